//! The findings of a walk.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::report::Problem;
use crate::tree::Facts;

/// All differences that a walk found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The root's own entry, if it differs.
    pub(crate) root: Option<Found>,
    /// The differences by directory.
    pub(crate) dirs: BTreeMap<Vec<u8>, DirFindings>,
    /// Rows that differ only in local facts, and are not regular files.
    pub(crate) local_only: Vec<(u32, Facts)>,
    /// Unchanged rows whose inodes have several names, or that are in a link group. Other names of their
    /// groups may have changed.
    pub(crate) linked: Vec<(u32, Facts)>,
    /// Directories that existed when their parent was listed, but could not be listed themselves.
    pub(crate) lost: Vec<Lost>,
    pub(crate) unreadable: Vec<Problem>,
}

/// The differences among the children of one directory.
#[derive(Debug, Default)]
pub(crate) struct DirFindings {
    pub(crate) found: Vec<Found>,
    pub(crate) removed: Vec<Vec<u8>>,
}

/// A name that is new or differs.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: Vec<u8>,
    pub(crate) facts: Facts,
    /// The row that had this name, whatever its type.
    pub(crate) old: Option<u32>,
    /// Whether the file is read even if its content is known.
    pub(crate) is_to_be_read: bool,
    /// The symlink's target. Empty for other types.
    pub(crate) target: Vec<u8>,
}

/// A directory that could not be listed.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) path: Vec<u8>,
    pub(crate) error: Errno,
    /// Whether the previous generation's entry stays.
    pub(crate) keeps_old: bool,
}

impl Findings {
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_none() && self.dirs.is_empty() && self.local_only.is_empty()
    }

    /// Returns all found names, each with its index among them and its directory.
    pub(crate) fn found(&self) -> impl Iterator<Item = (usize, &Vec<u8>, &Found)> {
        let all = self.dirs.iter().flat_map(|(dir, differs)| differs.found.iter().map(move |found| (dir, found)));
        all.enumerate().map(|(at, (dir, found))| (at, dir, found))
    }

    /// Fails if the root itself could not be listed. Directories below it may fail.
    pub(super) fn root_listed(self) -> Result<Self, Errno> {
        match self.lost.iter().find(|lost| lost.path.is_empty()) {
            Some(lost) => Err(lost.error),
            None => Ok(self),
        }
    }

    pub(super) fn add(&mut self, dir: &[u8], differs: DirFindings) {
        if !(differs.found.is_empty() && differs.removed.is_empty()) {
            let dir = self.dirs.entry(dir.to_vec()).or_default();
            dir.found.extend(differs.found);
            dir.removed.extend(differs.removed);
        }
    }

    pub(super) fn problem(&mut self, path: Vec<u8>, error: Errno) {
        self.unreadable.push(Problem { path, error: error.into() });
    }

    pub(super) fn absorb(&mut self, other: Self) {
        for (path, differs) in other.dirs {
            self.add(&path, differs);
        }
        self.local_only.extend(other.local_only);
        self.linked.extend(other.linked);
        self.lost.extend(other.lost);
        self.unreadable.extend(other.unreadable);
    }
}
