//! One file of a generation: how it is read or mapped, and what to say when it is damaged.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use stillmirror_protocol::head::Head;
use stillmirror_protocol::limits;
use twox_hash::XxHash3_64;

use crate::error::{At, Damage, StoreError};
use crate::map::Map;
use crate::packs;

/// A file that is sent as it is mapped, and has no checksum that could be compared on the way.
#[derive(Debug)]
pub(crate) struct Watched {
    map: Map,
    /// Its checksum, once it was found to be right; none inside when it was found not to be.
    right: OnceLock<Option<u64>>,
}

impl Watched {
    pub(crate) fn of(map: Map) -> Self {
        Self { map, right: OnceLock::new() }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    /// Whether it is right, and was not changed since that was found by `check`.
    pub(crate) fn is_right(&self, check: impl FnOnce(&[u8]) -> bool) -> bool {
        let bytes = self.bytes();
        let right = *self.right.get_or_init(|| check(bytes).then(|| XxHash3_64::oneshot(bytes)));
        right.is_some_and(|right| right == XxHash3_64::oneshot(bytes))
    }
}

/// Reads and decodes a head.
pub(crate) fn read_head(path: &Path) -> Result<(Head, Vec<u8>), StoreError> {
    let bytes = packs::read_small(path, limits::HEAD as u64).at("read", path)?;
    let head = Head::decode(&bytes).map_err(|error| damaged(path, error))?;
    Ok((head, bytes))
}

pub(crate) fn map(path: &Path) -> Result<Map, StoreError> {
    File::open(path).and_then(|file| Map::of(&file)).at("open", path)
}

/// A file that need not be there.
pub(crate) fn optional<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn damaged(path: &Path, damage: impl Into<Damage>) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), damage: damage.into(), remedy: remedy(path) }
}

/// What to do about a damaged file of a generation.
pub(crate) fn remedy(path: &Path) -> String {
    let current = path.ancestors().nth(3).map(|store| store.join("current"));
    let current = current.unwrap_or_default();
    format!("delete {} and index (or pull) again", current.display())
}
