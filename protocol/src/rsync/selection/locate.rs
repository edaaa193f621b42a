//! From paths to rows, for many paths that lie near each other.

use super::{Hides, Why};
use crate::list::{ListRef, Row};
use crate::path;

/// Finds entries, and remembers the last directory: a list of names goes directory by directory.
#[derive(Debug, Default)]
pub(super) struct Locator {
    last: Option<(Vec<u8>, Result<u32, Lost>)>,
}

/// A path that leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// A component is not there, or hidden.
    Absent,
    /// A component is no directory.
    NotDirectory,
}

impl Lost {
    pub(super) fn going_in(self) -> Why {
        if self == Self::Absent { Why::NoDirectory } else { Why::NotDirectory }
    }

    pub(super) fn looking(self) -> Why {
        if self == Self::Absent { Why::NoEntry } else { Why::NotOnTheWay }
    }
}

impl Locator {
    /// The entry at a tidy path.
    pub(super) fn entry<'a>(&mut self, list: ListRef<'a>, hides: &impl Hides, path: &[u8]) -> Result<Row<'a>, Lost> {
        if path.is_empty() {
            return Ok(list.row(0));
        }
        let (dir, name) = path::split(path);
        let dir = self.directory(list, hides, dir)?;
        let row = list.dir(dir).child(name).ok_or(Lost::Absent)?;
        if hides.module_hides(path, row.is_dir()) { Err(Lost::Absent) } else { Ok(row) }
    }

    /// The number of the directory at a tidy path.
    pub(super) fn directory(&mut self, list: ListRef<'_>, hides: &impl Hides, path: &[u8]) -> Result<u32, Lost> {
        if let Some((_, found)) = self.last.as_ref().filter(|(last, _)| last == path) {
            return *found;
        }
        let found = walk(list, hides, path);
        self.last = Some((path.to_vec(), found));
        found
    }
}

fn walk(list: ListRef<'_>, hides: &impl Hides, path: &[u8]) -> Result<u32, Lost> {
    let (mut at, mut end) = (0, 0);
    for name in path::components(path) {
        end += name.len() + usize::from(end > 0);
        let row = list.dir(at).child(name).ok_or(Lost::Absent)?;
        if hides.module_hides(&path[..end], row.is_dir()) {
            return Err(Lost::Absent);
        }
        at = row.dir_number().ok_or(Lost::NotDirectory)?;
    }
    Ok(at)
}
