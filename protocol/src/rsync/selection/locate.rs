//! Looks up rows by path, efficiently for many paths near each other.

use super::follow::{self, LookupError};
use super::{Hides, Why};
use crate::list::{ListRef, Row};
use crate::path;

/// Finds entries. It caches the last directories, because a list of names goes directory by directory.
#[derive(Debug, Default)]
pub(super) struct Locator {
    /// The last directory that names were relative to: its number and its own path.
    base: Cached<(u32, Vec<u8>)>,
    /// The last directory that an entry was in.
    parent: Cached<u32>,
}

/// A path and the result of looking it up.
type Cached<T> = Option<(Vec<u8>, Result<T, LookupError>)>;

impl LookupError {
    /// Returns the reason for a path that cannot be entered.
    pub(super) fn change_dir_reason(self) -> Why {
        match self {
            Self::NotFound => Why::NoDirectory,
            Self::NotDirectory => Why::NotDirectory,
            Self::TooManyLinks | Self::Unopened => Why::NoDirectoryBehindLinks,
            Self::Denied | Self::Closed => Why::DirectoryDenied,
        }
    }

    /// Returns the reason for an entry that cannot be found.
    pub(super) fn stat_reason(self) -> Why {
        match self {
            Self::NotFound => Why::NoEntry,
            Self::NotDirectory => Why::NotOnTheWay,
            Self::TooManyLinks | Self::Unopened => Why::NoEntryBehindLinks,
            Self::Denied | Self::Closed => Why::EntryDenied,
        }
    }
}

impl Locator {
    /// Returns the entry at a normalized path that leads through no symlink.
    pub(super) fn entry<'a>(
        &mut self,
        list: ListRef<'a>,
        hides: &impl Hides,
        path: &[u8],
    ) -> Result<Row<'a>, LookupError> {
        if path.is_empty() {
            return Ok(list.row(0));
        }
        let (dir, name) = path::split(path);
        let dir = self.directory(list, hides, dir)?;
        let row = list.dir(dir).child(name).ok_or(LookupError::NotFound)?;
        if hides.module_hides(path, row.is_dir()) { Err(LookupError::NotFound) } else { Ok(row) }
    }

    /// Returns the number and the own path of the directory that names are relative to. Follows the symlinks
    /// on the way to it.
    pub(super) fn base(
        &mut self,
        list: ListRef<'_>,
        hides: &impl Hides,
        path: &[u8],
    ) -> Result<(u32, Vec<u8>), LookupError> {
        if let Some((_, found)) = self.base.as_ref().filter(|(base, _)| base == path) {
            return found.clone();
        }
        let found = match walk(list, hides, path) {
            Err(LookupError::NotDirectory) => follow::resolve(list, hides, 0, path, 0)
                .and_then(|target| list.row(target.row).dir_number().ok_or(LookupError::NotDirectory))
                .and_then(|number| follow::enter(list, hides, number))
                .map(|number| (number, list.dir(number).path())),
            found => found.map(|number| (number, path.to_vec())),
        };
        self.base = Some((path.to_vec(), found.clone()));
        found
    }

    /// Returns the number of the directory at a normalized path.
    fn directory(&mut self, list: ListRef<'_>, hides: &impl Hides, path: &[u8]) -> Result<u32, LookupError> {
        if let Some((_, found)) = self.parent.as_ref().filter(|(last, _)| last == path) {
            return *found;
        }
        let found = walk(list, hides, path);
        self.parent = Some((path.to_vec(), found));
        found
    }
}

/// Returns the entry at a normalized path that leads through no symlink. `None` if it does not exist or the
/// module's rules hide it or a directory above it.
pub fn visible<'a>(list: ListRef<'a>, hides: &impl Hides, path: &[u8]) -> Option<Row<'a>> {
    Locator::default().entry(list, hides, path).ok()
}

fn walk(list: ListRef<'_>, hides: &impl Hides, path: &[u8]) -> Result<u32, LookupError> {
    let (mut at, mut end) = (follow::enter(list, hides, 0)?, 0);
    for name in path::components(path) {
        end += name.len() + usize::from(end > 0);
        let row = list.dir(at).child(name).ok_or(LookupError::NotFound)?;
        if hides.module_hides(&path[..end], row.is_dir()) {
            return Err(LookupError::NotFound);
        }
        at = follow::enter(list, hides, row.dir_number().ok_or(LookupError::NotDirectory)?)?;
    }
    Ok(at)
}
