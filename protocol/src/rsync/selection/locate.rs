//! From paths to rows, for many paths that lie near each other.

use super::follow::{self, Lost};
use super::{Hides, Why};
use crate::list::{ListRef, Row};
use crate::path;

/// Finds entries, and remembers the last directories: a list of names goes directory by directory.
#[derive(Debug, Default)]
pub(super) struct Locator {
    /// That names were relative to; with its number goes its own path.
    base: Last<(u32, Vec<u8>)>,
    /// That an entry was in.
    parent: Last<u32>,
}

/// A path and what came of it.
type Last<T> = Option<(Vec<u8>, Result<T, Lost>)>;

impl Lost {
    pub(super) fn going_in(self) -> Why {
        match self {
            Self::Absent => Why::NoDirectory,
            Self::NotDirectory => Why::NotDirectory,
            Self::TooManyLinks | Self::Unopened => Why::NoDirectoryBehindLinks,
            Self::Denied | Self::Closed => Why::DirectoryDenied,
        }
    }

    pub(super) fn looking(self) -> Why {
        match self {
            Self::Absent => Why::NoEntry,
            Self::NotDirectory => Why::NotOnTheWay,
            Self::TooManyLinks | Self::Unopened => Why::NoEntryBehindLinks,
            Self::Denied | Self::Closed => Why::EntryDenied,
        }
    }
}

impl Locator {
    /// The entry at a tidy path that leads through no symlink.
    pub(super) fn entry<'a>(&mut self, list: ListRef<'a>, hides: &impl Hides, path: &[u8]) -> Result<Row<'a>, Lost> {
        if path.is_empty() {
            return Ok(list.row(0));
        }
        let (dir, name) = path::split(path);
        let dir = self.directory(list, hides, dir)?;
        let row = list.dir(dir).child(name).ok_or(Lost::Absent)?;
        if hides.module_hides(path, row.is_dir()) { Err(Lost::Absent) } else { Ok(row) }
    }

    /// The number of the directory that names are relative to, and its own path: symlinks on the way to it
    /// are followed.
    pub(super) fn base(&mut self, list: ListRef<'_>, hides: &impl Hides, path: &[u8]) -> Result<(u32, Vec<u8>), Lost> {
        if let Some((_, found)) = self.base.as_ref().filter(|(base, _)| base == path) {
            return found.clone();
        }
        let found = match walk(list, hides, path) {
            Err(Lost::NotDirectory) => follow::resolve(list, hides, 0, path, 0)
                .and_then(|target| list.row(target.row).dir_number().ok_or(Lost::NotDirectory))
                .and_then(|number| follow::enter(list, hides, number))
                .map(|number| (number, list.dir(number).path())),
            found => found.map(|number| (number, path.to_vec())),
        };
        self.base = Some((path.to_vec(), found.clone()));
        found
    }

    /// The number of the directory at a tidy path.
    fn directory(&mut self, list: ListRef<'_>, hides: &impl Hides, path: &[u8]) -> Result<u32, Lost> {
        if let Some((_, found)) = self.parent.as_ref().filter(|(last, _)| last == path) {
            return *found;
        }
        let found = walk(list, hides, path);
        self.parent = Some((path.to_vec(), found));
        found
    }
}

/// The entry at a tidy path that leads through no symlink; none where the module's rules hide it, or a directory on the
/// way to it.
pub fn visible<'a>(list: ListRef<'a>, hides: &impl Hides, path: &[u8]) -> Option<Row<'a>> {
    Locator::default().entry(list, hides, path).ok()
}

fn walk(list: ListRef<'_>, hides: &impl Hides, path: &[u8]) -> Result<u32, Lost> {
    let (mut at, mut end) = (follow::enter(list, hides, 0)?, 0);
    for name in path::components(path) {
        end += name.len() + usize::from(end > 0);
        let row = list.dir(at).child(name).ok_or(Lost::Absent)?;
        if hides.module_hides(&path[..end], row.is_dir()) {
            return Err(Lost::Absent);
        }
        at = follow::enter(list, hides, row.dir_number().ok_or(Lost::NotDirectory)?)?;
    }
    Ok(at)
}
