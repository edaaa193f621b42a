//! The paths of the files in a store's directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{At, StoreError};

/// The name of the symlink to the current generation. A publish replaces it by a rename.
pub const CURRENT: &str = "current";

/// The paths of one store.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    pub(crate) fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn generations_dir(&self) -> PathBuf {
        self.dir.join("generations")
    }

    pub(crate) fn generation_dir(&self, number: u64) -> PathBuf {
        self.generations_dir().join(number.to_string())
    }

    pub(crate) fn sums_dir(&self) -> PathBuf {
        self.dir.join("sums")
    }

    /// The symlink to the current generation.
    pub(crate) fn current(&self) -> PathBuf {
        self.dir.join(CURRENT)
    }

    /// Returns the numbers of all generation directories, published or not, in ascending order.
    pub(crate) fn generations(&self) -> Result<Vec<u64>, StoreError> {
        let mut numbers: Vec<u64> = names(&self.generations_dir())?.iter().filter_map(|name| number_of(name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// Syncs a directory, so that the names in it survive a power failure.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).at("sync", dir)
}

/// Returns the names in a directory, except those that are not UTF-8, which a store never uses.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).at("read", dir)? {
        names.extend(entry.at("read", dir)?.file_name().into_string().ok());
    }
    Ok(names)
}

/// Parses the name of a generation's directory. `None` if it is not a number in canonical form.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    name.parse().ok().filter(|number: &u64| *number > 0 && number.to_string() == name)
}
