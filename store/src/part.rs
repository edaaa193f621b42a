//! Helpers for the files of a generation: reading, mapping, rechecking, and reporting damage.

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

/// A mapped file that is sent as it is, and is rechecked each time because no checksum of it is stored.
#[derive(Debug)]
pub(crate) struct RecheckedMap {
    map: Map,
    /// The checksum of the file when it was first checked. `None` if it was wrong then.
    checksum: OnceLock<Option<u64>>,
}

impl RecheckedMap {
    pub(crate) fn of(map: Map) -> Self {
        Self { map, checksum: OnceLock::new() }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    /// Returns whether the file is right. The first call asks `check`; later calls compare the file with its
    /// checksum at that time.
    pub(crate) fn is_right(&self, check: impl FnOnce(&[u8]) -> bool) -> bool {
        let bytes = self.bytes();
        let checksum = *self.checksum.get_or_init(|| check(bytes).then(|| XxHash3_64::oneshot(bytes)));
        checksum.is_some_and(|checksum| checksum == XxHash3_64::oneshot(bytes))
    }
}

/// The file with the signature of a generation's head.
pub(crate) const SIGNATURE: &str = "head.minisig";
/// The file with the signature of the origin's head, in a generation that is only a part of its origin's.
pub(crate) const ORIGIN_SIGNATURE: &str = "origin-head.minisig";

/// The file of a generation that says where its pool is.
pub(crate) const POOL: &str = "pool";
/// The file of a generation with the contents that the generation before it refers to and it does not.
pub(crate) const DROPPED: &str = "dropped";

/// Reads the signature of a head. `None` if the head is not signed. Who made the signature, and whether it is right, is
/// not checked.
pub(crate) fn read_signature(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(signature) = optional(packs::read_small(path, limits::SIGNATURE as u64).at("read", path))? else {
        return Ok(None);
    };
    if signature.len() > limits::SIGNATURE {
        return Err(damaged(path, Damage::Other("the signature is too long")));
    }
    Ok(Some(signature))
}

/// Reads and decodes a head. Returns it with its encoded bytes.
pub(crate) fn read_head(path: &Path) -> Result<(Head, Vec<u8>), StoreError> {
    let bytes = packs::read_small(path, limits::HEAD as u64).at("read", path)?;
    let head = Head::decode(&bytes).map_err(|error| damaged(path, error))?;
    Ok((head, bytes))
}

pub(crate) fn map(path: &Path) -> Result<Map, StoreError> {
    File::open(path).and_then(|file| Map::of(&file)).at("open", path)
}

/// Turns a "not found" error into `None`, for a file that may be absent.
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

/// Returns the remedy for a damaged file of a generation.
pub(crate) fn remedy(path: &Path) -> String {
    let current = path.ancestors().nth(3).map(|store| store.join("current"));
    let current = current.unwrap_or_default();
    format!("delete {} and index (or pull) again", current.display())
}
