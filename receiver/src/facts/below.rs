//! Finds the files in directories that the list does not have: in moved directories and in those that wait for their
//! deletion. New files may have their contents, or parts of them.

use std::os::fd::AsFd as _;

use stillmirror_protocol::entry::Time;
use stillmirror_protocol::list::{Dir, FileType, ListRef};
use stillmirror_protocol::path;

use super::Facts;
use crate::local::{self, Tree};
use crate::selection::Selection;

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalFile {
    pub(crate) path: Vec<u8>,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
}

impl Facts {
    /// Adds the files below extra directories, if any file has to be brought. They come from the list that the last
    /// pull left if it has the directory, and otherwise from the tree. What cannot be read is left out.
    pub(crate) fn add_below(&mut self, tree: Option<&Tree>, held: Option<ListRef<'_>>, selection: &Selection<'_>) {
        let is_wrong = |&row: &u32, fact: &Option<super::Fact>| {
            selection.list.row(row).is_file() && fact.is_none_or(|fact| !fact.content_matches)
        };
        if !selection.rows.iter().zip(&self.rows).any(|(row, fact)| is_wrong(row, fact)) {
            return;
        }
        let mut below = Vec::new();
        for extra in self.extra.iter().filter(|extra| extra.is_dir) {
            let dir = held.and_then(|held| Some(held.dir(held.find(&extra.path)?.dir_number()?)));
            match (held, dir, tree) {
                (Some(held), Some(dir), _) => add_listed(held, dir, &extra.path, &mut below),
                (_, None, Some(tree)) => add_found(tree, &extra.path, &mut below),
                _ => {}
            }
        }
        self.below = below;
    }
}

fn add_listed(list: ListRef<'_>, dir: Dir<'_>, at: &[u8], files: &mut Vec<LocalFile>) {
    let mut dirs = vec![(dir, at.to_vec())];
    while let Some((dir, at)) = dirs.pop() {
        for (name, row) in dir.children() {
            let path = path::join(&at, name);
            if row.is_file() {
                files.push(LocalFile { path, size: row.size(), mtime: row.mtime() });
            } else if let Some(number) = row.dir_number() {
                dirs.push((list.dir(number), path));
            }
        }
    }
}

fn add_found(tree: &Tree, at: &[u8], files: &mut Vec<LocalFile>) {
    let mut dirs = vec![at.to_vec()];
    let mut looked_at = 0;
    while let Some(at) = dirs.pop() {
        let Ok(dir) = tree.dir(&at) else { continue };
        let Ok(mut names) = local::names(dir.as_fd()) else { continue };
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (name, _) in names {
            looked_at += 1;
            if looked_at > MAX_FOUND {
                return;
            }
            let Ok(stat) = local::stat(dir.as_fd(), &name) else { continue };
            let path = path::join(&at, &name);
            match stat.kind {
                FileType::File => files.push(LocalFile { path, size: stat.size, mtime: stat.mtime }),
                FileType::Directory => dirs.push(path),
                _ => {}
            }
        }
    }
}

/// Maximum number of names that are looked at below one directory. They are of some use only.
const MAX_FOUND: u32 = 1 << 20;
