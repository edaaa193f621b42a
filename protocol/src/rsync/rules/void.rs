//! Whether rules hide anything of a list, without looking at all of it where the rules allow.

use super::Rules;
use crate::filter::Link;
use crate::list::{Dir, ListRef};
use crate::rsync::selection::Hides as _;

/// Names and directories after which it is asked whether to go on. A rule can cost a microsecond, and a page of the
/// list that is not in memory a hundred.
const ASKED_EVERY: u32 = 32;
/// Steps of comparison after which it is asked too.
const ASKED_AFTER: u64 = 1 << 16;

/// Entries that rules may hide beside directories, which are always looked at: a list has few of them.
enum Reach<'a> {
    /// These names, in any directory.
    Names(Vec<&'a [u8]>),
    /// All.
    All,
}

/// Why a search ends before all is looked at.
enum End {
    /// Something is hidden.
    Hidden,
    /// Whoever asks will not wait.
    GivenUp,
}

/// The search for a name that is hidden.
struct Search<'a, G> {
    rules: &'a Rules,
    /// Where names begin in paths.
    root: usize,
    /// Asked now and then.
    goes_on: G,
    looked_at: u32,
    /// Steps when it was asked last.
    asked_at: u64,
}

/// Whether nothing of the directory `dir` is hidden; `root` is where names begin in paths. Nothing, when `goes_on` said
/// no before that was clear.
pub(super) fn is_void(
    rules: &Rules,
    list: ListRef<'_>,
    dir: &[u8],
    root: usize,
    goes_on: impl FnMut() -> bool,
) -> Option<bool> {
    match (Search { rules, root, goes_on, looked_at: 0, asked_at: rules.steps() }).all(list, dir) {
        Ok(()) => Some(true),
        Err(End::Hidden) => Some(false),
        Err(End::GivenUp) => None,
    }
}

impl<'a> Reach<'a> {
    fn add(&mut self, link: &'a Link, paths: &mut Vec<(&'a [u8], bool)>) {
        if link.negated {
            *self = Self::All;
        } else if link.pattern.directories_only() || link.pattern.never_matches() {
            // Directories are looked at anyhow.
        } else if let Some(path) = link.pattern.only_path() {
            // What is no proper path is nobody's.
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
    fn all(&mut self, list: ListRef<'_>, dir: &[u8]) -> Result<(), End> {
        let Some(top) = list.find(dir).and_then(|row| row.dir_number()) else { return Ok(()) };
        let root = self.root;
        let listed_itself = root < dir.len();
        if listed_itself {
            self.look_at(dir, true)?;
        }
        let rules = self.rules;
        let (mut reach, mut paths) = (Reach::Names(Vec::new()), Vec::new());
        for link in rules.excluding() {
            reach.add(link, &mut paths);
        }
        for (path, absolute) in paths {
            let whole =
                if absolute { path.to_vec() } else { [&dir[..root.min(dir.len())], slash(dir, root), path].concat() };
            if let Some(row) = list.find(&whole).filter(|_| below(dir, &whole)) {
                self.look_at(&whole, row.is_dir())?;
            }
        }
        self.walk(list, list.dir(top), dir, &reach)
    }

    fn walk(&mut self, list: ListRef<'_>, top: Dir<'_>, path: &[u8], reach: &Reach<'_>) -> Result<(), End> {
        let mut path = path.to_vec();
        // Directories to go into, with the length of their parent's path.
        let mut pending = vec![(top, None)];
        while let Some((dir, parent)) = pending.pop() {
            if let Some(len) = parent {
                path.truncate(len);
                push(&mut path, list.parent_of(dir.row()).name_of(dir.row()));
            }
            let len = path.len();
            match reach {
                Reach::Names(names) if names.len() < dir.files().len() => {
                    for name in names {
                        self.count()?;
                        if let Some(row) = dir.child(name) {
                            self.look_at(with(&mut path, len, name), row.is_dir())?;
                        }
                    }
                }
                // Rules can name more than there is.
                _ => dir.files().try_for_each(|row| self.look_at(with(&mut path, len, dir.name_of(row)), false))?,
            }
            dir.subdirs().try_for_each(|row| self.look_at(with(&mut path, len, dir.name_of(row)), true))?;
            path.truncate(len);
            pending.extend(dir.subdirs().filter_map(|row| Some((list.dir(list.row(row).dir_number()?), Some(len)))));
            self.count()?;
        }
        Ok(())
    }

    fn look_at(&mut self, path: &[u8], is_dir: bool) -> Result<(), End> {
        self.count()?;
        if self.rules.hides(path, self.root, is_dir) { Err(End::Hidden) } else { Ok(()) }
    }

    fn count(&mut self) -> Result<(), End> {
        self.looked_at = self.looked_at.wrapping_add(1);
        let steps = self.rules.steps();
        let is_asked = self.looked_at.is_multiple_of(ASKED_EVERY) || steps.wrapping_sub(self.asked_at) > ASKED_AFTER;
        if is_asked {
            self.asked_at = steps;
        }
        if is_asked && !(self.goes_on)() { Err(End::GivenUp) } else { Ok(()) }
    }
}

/// The path of a name in the directory whose path is the first `len` bytes.
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

/// The slash between a transfer's root and what is below it, where the root's path does not end in one.
fn slash(dir: &[u8], root: usize) -> &'static [u8] {
    if root > dir.len() { b"/" } else { b"" }
}

fn below(dir: &[u8], path: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}
