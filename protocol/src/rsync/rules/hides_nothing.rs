//! Decides whether rules hide nothing in a list, looking at as few entries as the rules allow.

use super::Rules;
use crate::filter::Link;
use crate::list::{Dir, ListRef};
use crate::rsync::selection::Hides as _;

/// Number of names and directories after which the caller is asked whether to continue. A rule can cost a
/// microsecond, and a page of the list that is not in memory a hundred.
const CHECK_INTERVAL: u32 = 32;
/// Number of comparison steps after which the caller is asked as well.
const CHECK_STEPS: u64 = 1 << 16;

/// The files that rules may hide. Directories are always checked: a list has few of them.
enum Candidates<'a> {
    /// Files of these names, in any directory.
    Names(Vec<&'a [u8]>),
    /// All files.
    All,
}

/// Why a search stops early.
enum Stop {
    /// Something is hidden.
    Hidden,
    /// The caller does not wait any longer.
    GivenUp,
}

/// A search for a hidden name.
struct Search<'a, G> {
    rules: &'a Rules,
    /// The offset of the listed name in a path.
    root: usize,
    /// Returns whether to continue.
    goes_on: G,
    checked: u32,
    /// The number of steps at the last call of `goes_on`.
    asked_at: u64,
}

/// Returns whether nothing in the directory `dir` is hidden. `root` is the offset of the listed name in a
/// path. `None` if `goes_on` returned false before the result was known.
pub(super) fn hides_nothing(
    rules: &Rules,
    list: ListRef<'_>,
    dir: &[u8],
    root: usize,
    goes_on: impl FnMut() -> bool,
) -> Option<bool> {
    match (Search { rules, root, goes_on, checked: 0, asked_at: rules.steps() }).all(list, dir) {
        Ok(()) => Some(true),
        Err(Stop::Hidden) => Some(false),
        Err(Stop::GivenUp) => None,
    }
}

impl<'a> Candidates<'a> {
    fn add(&mut self, link: &'a Link, paths: &mut Vec<(&'a [u8], bool)>) {
        if link.negated {
            *self = Self::All;
        } else if link.pattern.directories_only() || link.pattern.never_matches() {
            // Directories are always checked.
        } else if let Some(path) = link.pattern.only_path() {
            // A path that is not in canonical form matches no entry.
            if crate::path::check_relative(path) == Ok(path) {
                paths.push((path, link.absolute));
            }
        } else if let (Some(name), Self::Names(names)) = (link.pattern.only_name(), &mut *self) {
            names.push(name);
        } else {
            *self = Self::All;
        }
    }
}

impl<G: FnMut() -> bool> Search<'_, G> {
    fn all(&mut self, list: ListRef<'_>, dir: &[u8]) -> Result<(), Stop> {
        let Some(top) = list.find(dir).and_then(|row| row.dir_number()) else { return Ok(()) };
        let root = self.root;
        let listed_itself = root < dir.len();
        if listed_itself {
            self.check(dir, true)?;
        }
        let rules = self.rules;
        let (mut candidates, mut paths) = (Candidates::Names(Vec::new()), Vec::new());
        for link in rules.excluding() {
            candidates.add(link, &mut paths);
        }
        for (path, absolute) in paths {
            let whole =
                if absolute { path.to_vec() } else { [&dir[..root.min(dir.len())], slash(dir, root), path].concat() };
            if let Some(row) = list.find(&whole).filter(|_| below(dir, &whole)) {
                self.check(&whole, row.is_dir())?;
            }
        }
        self.walk(list, list.dir(top), dir, &candidates)
    }

    fn walk(&mut self, list: ListRef<'_>, top: Dir<'_>, path: &[u8], candidates: &Candidates<'_>) -> Result<(), Stop> {
        let mut path = path.to_vec();
        // The directories that are still to be walked, each with the length of its parent's path.
        let mut pending = vec![(top, None)];
        while let Some((dir, parent)) = pending.pop() {
            if let Some(len) = parent {
                path.truncate(len);
                push(&mut path, list.parent_of(dir.row()).name_of(dir.row()));
            }
            let len = path.len();
            match candidates {
                Candidates::Names(names) if names.len() < dir.files().len() => {
                    for name in names {
                        self.count()?;
                        if let Some(row) = dir.child(name) {
                            self.check(with(&mut path, len, name), row.is_dir())?;
                        }
                    }
                }
                // There may be more names than files.
                _ => dir.files().try_for_each(|row| self.check(with(&mut path, len, dir.name_of(row)), false))?,
            }
            dir.subdirs().try_for_each(|row| self.check(with(&mut path, len, dir.name_of(row)), true))?;
            path.truncate(len);
            pending.extend(dir.subdirs().filter_map(|row| Some((list.dir(list.row(row).dir_number()?), Some(len)))));
            self.count()?;
        }
        Ok(())
    }

    fn check(&mut self, path: &[u8], is_dir: bool) -> Result<(), Stop> {
        self.count()?;
        if self.rules.hides(path, self.root, is_dir) { Err(Stop::Hidden) } else { Ok(()) }
    }

    fn count(&mut self) -> Result<(), Stop> {
        self.checked = self.checked.wrapping_add(1);
        let steps = self.rules.steps();
        let is_asked = self.checked.is_multiple_of(CHECK_INTERVAL) || steps.wrapping_sub(self.asked_at) > CHECK_STEPS;
        if is_asked {
            self.asked_at = steps;
        }
        if is_asked && !(self.goes_on)() { Err(Stop::GivenUp) } else { Ok(()) }
    }
}

/// Returns the path of a name in the directory whose path is the first `len` bytes of `path`.
fn with<'a>(path: &'a mut Vec<u8>, len: usize, name: &[u8]) -> &'a [u8] {
    path.truncate(len);
    push(path, name);
    path
}

fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// Returns the slash between a transfer's root and the path below it, if the root's path does not end with one.
fn slash(dir: &[u8], root: usize) -> &'static [u8] {
    if root > dir.len() { b"/" } else { b"" }
}

fn below(dir: &[u8], path: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}
