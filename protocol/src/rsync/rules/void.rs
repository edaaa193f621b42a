//! Whether rules hide anything of a list, without looking at all of it where the rules allow.

use super::Rules;
use crate::filter::Link;
use crate::list::{Dir, ListRef};
use crate::rsync::selection::Hides as _;

/// Entries that rules may hide beside directories, which are always looked at: a list has few of them.
enum Reach<'a> {
    /// These names, in any directory.
    Names(Vec<&'a [u8]>),
    /// All.
    All,
}

/// Whether nothing of the directory `dir` is hidden; `root` is where names begin in paths.
pub(super) fn is_void(rules: &Rules, list: ListRef<'_>, dir: &[u8], root: usize) -> bool {
    let Some(top) = list.find(dir).and_then(|row| row.dir_number()) else { return true };
    let listed_itself = root < dir.len();
    if listed_itself && rules.hides(dir, root, true) {
        return false;
    }
    let (mut reach, mut paths) = (Reach::Names(Vec::new()), Vec::new());
    for link in rules.excluding() {
        reach.add(link, &mut paths);
    }
    let hides_path = |&(path, absolute): &(&[u8], bool)| {
        let whole =
            if absolute { path.to_vec() } else { [&dir[..root.min(dir.len())], slash(dir, root), path].concat() };
        list.find(&whole).is_some_and(|row| below(dir, &whole) && rules.hides(&whole, root, row.is_dir()))
    };
    !paths.iter().any(hides_path) && walk(rules, list, list.dir(top), dir, root, &reach)
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

fn walk(rules: &Rules, list: ListRef<'_>, top: Dir<'_>, path: &[u8], root: usize, reach: &Reach<'_>) -> bool {
    let mut path = path.to_vec();
    // Directories to go into, with the length of their parent's path.
    let mut pending = vec![(top, None)];
    while let Some((dir, parent)) = pending.pop() {
        if let Some(len) = parent {
            path.truncate(len);
            push(&mut path, list.parent_of(dir.row()).name_of(dir.row()));
        }
        let len = path.len();
        let mut hides = |name: &[u8], is_dir: bool| {
            path.truncate(len);
            push(&mut path, name);
            rules.hides(&path, root, is_dir)
        };
        let files_hidden = match reach {
            Reach::Names(names) if names.len() < dir.files().len() => {
                names.iter().any(|name| dir.child(name).is_some_and(|row| hides(name, row.is_dir())))
            }
            // Rules can name more than there is.
            _ => dir.files().any(|row| hides(dir.name_of(row), false)),
        };
        if files_hidden || dir.subdirs().any(|row| hides(dir.name_of(row), true)) {
            return false;
        }
        path.truncate(len);
        pending.extend(dir.subdirs().filter_map(|row| Some((list.dir(list.row(row).dir_number()?), Some(len)))));
    }
    true
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
