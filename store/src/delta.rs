//! The delta of a generation: what leads to its list from the one before. It is open without either list.

use std::path::{Path, PathBuf};

use stillmirror_protocol::changes;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::head::Head;

use crate::error::StoreError;
use crate::part::{Watched, map, optional};

/// A mapped delta. It stays readable after its generation was collected.
#[derive(Debug)]
pub struct Delta {
    path: PathBuf,
    from: Digest,
    to: Digest,
    file: Watched,
}

impl Delta {
    /// Maps the delta in the directory of the generation with that head; none when it has none.
    pub(crate) fn open(dir: &Path, head: &Head) -> Result<Option<Self>, StoreError> {
        let path = dir.join("delta");
        let Some(mapped) = optional(map(&path))? else { return Ok(None) };
        Ok(Some(Self { path, from: head.previous, to: head.list_digest, file: Watched::of(mapped) }))
    }

    /// The digest of the list that it is applied to.
    pub fn from(&self) -> Digest {
        self.from
    }

    /// The digest of the list that it leads to.
    pub fn to(&self) -> Digest {
        self.to
    }

    /// The encoded delta.
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// Whether [`Delta::bytes`] are what was written. Reads them through each time, and decompresses them the first
    /// time.
    pub fn is_right(&self) -> bool {
        self.file.is_right(|bytes| changes::check(bytes).is_ok_and(|digests| digests == (self.from, self.to)))
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
