//! From paths to rows, for many paths that lie near each other.

use super::{Hides, Why};
use crate::list::{ListRef, Row};
use crate::path;

/// Symlinks that one path may lead through, as in Linux.
const LINKS: usize = 40;

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

    /// The number of the directory that names are relative to, and its own path: symlinks on the way to it
    /// are followed, as far as they stay in the repository.
    pub(super) fn base(&mut self, list: ListRef<'_>, hides: &impl Hides, path: &[u8]) -> Result<(u32, Vec<u8>), Lost> {
        if let Some((_, found)) = self.base.as_ref().filter(|(base, _)| base == path) {
            return found.clone();
        }
        let found = match walk(list, hides, path) {
            Err(Lost::NotDirectory) => follow(list, hides, path).map(|number| (number, list.dir(number).path())),
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

/// The directory at a path, through symlinks. Absolute targets lead out of the repository, and so does `..`
/// from its root.
fn follow(list: ListRef<'_>, hides: &impl Hides, path: &[u8]) -> Result<u32, Lost> {
    let mut links = LINKS;
    let mut at = 0;
    // The names that are still to go, the next one last.
    let mut names: Vec<&[u8]> = path.rsplit(|&byte| byte == b'/').collect();
    while let Some(name) = names.pop() {
        match name {
            b"" | b"." => continue,
            b".." if at == 0 => return Err(Lost::Absent),
            b".." => {
                at = list.dir(at).parent();
                continue;
            }
            _ => {}
        }
        let row = list.dir(at).child(name).ok_or(Lost::Absent)?;
        if hides.module_hides(&list.path(row.number()), row.is_dir()) {
            return Err(Lost::Absent);
        }
        match (row.dir_number(), row.target()) {
            (Some(number), _) => at = number,
            (None, Some(target)) if links > 0 && !target.starts_with(b"/") => {
                links -= 1;
                names.extend(target.rsplit(|&byte| byte == b'/'));
            }
            (None, Some(_)) => return Err(Lost::Absent),
            (None, None) => return Err(Lost::NotDirectory),
        }
    }
    Ok(at)
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
