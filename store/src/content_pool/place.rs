//! Where a repository's pool is.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{At, Damage, StoreError};
use crate::packs::read_small;
use crate::part::{POOL, damaged, optional};

/// The name of a pool in its store.
const IN_STORE: &str = "pool";
/// The name of a pool in its tree. It is never indexed.
pub const POOL_IN_TREE: &str = ".stillmirror-pool";
/// How the file `pool` of a generation begins.
const FORMAT: &[u8] = b"stillmirror pool 1 ";
/// The maximum length of that file, in bytes.
const MAX_BYTES: u64 = 8192;

/// Where a repository's pool is. It lies on the file system of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolPlace {
    /// In the store.
    Store,
    /// In the root directory of the tree.
    Root,
    /// At this absolute path.
    At(PathBuf),
}

impl PoolPlace {
    /// Returns the path of the pool's directory.
    pub fn path(&self, store: &Path, root: &Path) -> PathBuf {
        match self {
            Self::Store => store.join(IN_STORE),
            Self::Root => root.join(POOL_IN_TREE),
            Self::At(path) => path.clone(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let place = match self {
            Self::Store => b"store",
            Self::Root => &b"root"[..],
            Self::At(path) => path.as_os_str().as_bytes(),
        };
        [FORMAT, place, b"\n"].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.strip_prefix(FORMAT)?.strip_suffix(b"\n")? {
            b"store" => Some(Self::Store),
            b"root" => Some(Self::Root),
            path if path.first() == Some(&b'/') => {
                Some(Self::At(PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()))))
            }
            _ => None,
        }
    }

    /// Reads the file `pool` in a generation's directory. `None` if there is none.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(POOL);
        let Some(bytes) = optional(read_small(&path, MAX_BYTES).at("read", &path))? else { return Ok(None) };
        let place = Self::decode(&bytes).filter(|_| bytes.len() as u64 <= MAX_BYTES);
        place.map(Some).ok_or_else(|| damaged(&path, Damage::Other("not the place of a pool")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_back_and_anything_else_is_refused() {
        for place in [PoolPlace::Store, PoolPlace::Root, PoolPlace::At("/a\nb/store".into())] {
            assert_eq!(PoolPlace::decode(&place.encode()), Some(place));
        }
        for bytes in [&b""[..], b"stillmirror pool 1 ", b"stillmirror pool 2 store\n", b"stillmirror pool 1 a/b\n"] {
            assert_eq!(PoolPlace::decode(bytes), None);
        }
    }
}
