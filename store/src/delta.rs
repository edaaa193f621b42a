//! The delta of a generation, which turns the previous list into its own. It can be opened without either list.

use std::path::{Path, PathBuf};

use stillmirror_protocol::changes;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::head::Head;

use crate::error::StoreError;
use crate::part::{RecheckedMap, map, optional};

/// A mapped delta. It stays readable after its generation has been removed.
#[derive(Debug)]
pub struct Delta {
    path: PathBuf,
    from: Digest,
    to: Digest,
    file: RecheckedMap,
}

impl Delta {
    /// Maps the delta in `dir`, the directory of the generation with this head. `None` if it has no delta.
    pub(crate) fn open(dir: &Path, head: &Head) -> Result<Option<Self>, StoreError> {
        let path = dir.join("delta");
        let Some(mapped) = optional(map(&path))? else { return Ok(None) };
        Ok(Some(Self { path, from: head.previous, to: head.list_digest, file: RecheckedMap::of(mapped) }))
    }

    /// The digest of the list that the delta applies to.
    pub fn from(&self) -> Digest {
        self.from
    }

    /// The digest of the list that the delta produces.
    pub fn to(&self) -> Digest {
        self.to
    }

    /// The encoded delta.
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// Returns whether [`Delta::bytes`] are what was written. Every call reads them all; the first one also
    /// decompresses them.
    pub fn is_right(&self) -> bool {
        self.file.is_right(|bytes| changes::check(bytes).is_ok_and(|digests| digests == (self.from, self.to)))
    }

    /// The path of the delta's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
