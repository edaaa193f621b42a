//! Looks up paths in a part of a list, as a kernel does whose root is the part's: symlinks are followed, and nothing
//! outside the part is found.

use stillmirror_protocol::list::{Dir, FileType, ListRef, Row};
use stillmirror_protocol::path;

/// A directory of a list, and everything below it.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) list: ListRef<'a>,
    pub(crate) root: Dir<'a>,
}

/// What a path leads to.
pub(crate) struct Found<'a> {
    /// Neither a symlink nor below one.
    pub(crate) row: Row<'a>,
    /// The symlinks on the way.
    pub(crate) symlinks: Vec<u32>,
}

impl<'a> Part<'a> {
    /// Returns what a path leads to. The path need not be checked: one that is invalid leads to nothing.
    pub(crate) fn find(&self, path: &[u8]) -> Option<Found<'a>> {
        self.follow(vec![self.root], path)
    }

    /// Returns what a row of a directory leads to. The directory is the root or below it.
    pub(crate) fn find_at(&self, dir: Dir<'a>, row: Row<'a>) -> Option<Found<'a>> {
        if row.file_type() != FileType::Symlink {
            return Some(Found { row, symlinks: Vec::new() });
        }
        let mut above = vec![dir];
        while let Some(dir) = above.last().filter(|dir| dir.number() != self.root.number()) {
            if dir.number() == 0 {
                return None;
            }
            above.push(self.list.dir(dir.parent()));
        }
        above.reverse();
        let found = self.follow(above, row.target()?)?;
        Some(Found { symlinks: [&found.symlinks[..], &[row.number()]].concat(), row: found.row })
    }

    fn follow(&self, mut above: Vec<Dir<'a>>, path: &[u8]) -> Option<Found<'a>> {
        let mut symlinks = Vec::new();
        if path.len() > stillmirror_protocol::limits::PATH || path.starts_with(b"/") {
            return None;
        }
        // The components that are left, the next one last.
        let mut left: Vec<Vec<u8>> = reversed(path);
        while let Some(name) = left.pop() {
            let dir = *above.last()?;
            match &name[..] {
                b"." => continue,
                b".." if above.len() == 1 => return None,
                b".." => {
                    above.pop();
                    continue;
                }
                _ => {}
            }
            let row = dir.child(&name)?;
            match row.dir_number() {
                Some(number) => above.push(self.list.dir(number)),
                None if row.file_type() == FileType::Symlink => {
                    symlinks.push(row.number());
                    let target = row.target()?;
                    if symlinks.len() > MAX_SYMLINKS || target.starts_with(b"/") {
                        return None;
                    }
                    left.extend(reversed(target));
                }
                None => return left.is_empty().then_some(Found { row, symlinks }),
            }
        }
        Some(Found { row: self.list.row(above.last()?.row()), symlinks })
    }

    /// Returns the path of a directory below the root, relative to it. `None` if it is not below.
    pub(crate) fn path_of(&self, dir: Dir<'a>) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = dir;
        while at.number() != self.root.number() {
            if at.number() == 0 {
                return None;
            }
            let parent = self.list.dir(at.parent());
            names.push(parent.name_of(at.row()));
            at = parent;
        }
        Some(names.iter().rev().fold(Vec::new(), |path, name| path::join(&path, name)))
    }

    /// Returns the directories with a name, and their paths, except those below another one of the name.
    pub(crate) fn named(self, name: &'a [u8]) -> impl Iterator<Item = (Dir<'a>, Vec<u8>)> {
        let is_named = move |dir: &Dir<'a>| dir.number() != 0 && self.list.dir(dir.parent()).name_of(dir.row()) == name;
        let found = self.list.dirs().filter(is_named).filter_map(move |dir| Some((dir, self.path_of(dir)?)));
        found.filter(move |(_, path)| path::components(path::split(path).0).all(|above| above != name))
    }
}

fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = path::components(path).map(<[u8]>::to_vec).collect();
    names.reverse();
    names
}

/// Maximum number of symlinks in one path, as in Linux.
const MAX_SYMLINKS: usize = 40;
