//! What a walk found.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::report::Problem;
use crate::tree::Facts;

/// All that a walk found to differ.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The root's own entry, when it differs.
    pub(crate) root: Option<Found>,
    /// Differences by directory.
    pub(crate) dirs: BTreeMap<Vec<u8>, DirFindings>,
    /// Rows that differ in nothing portable, and are no files whose content must be looked at.
    pub(crate) moved: Vec<(u32, Facts)>,
    /// Unchanged rows whose inodes have several names, or that are of a link group: the grouping may have changed around them.
    pub(crate) linked: Vec<(u32, Facts)>,
    /// Directories that were there when their parent was listed, and could not be listed themselves.
    pub(crate) lost: Vec<Lost>,
    pub(crate) unreadable: Vec<Problem>,
}

/// What differs among the children of one directory.
#[derive(Debug, Default)]
pub(crate) struct DirFindings {
    pub(crate) found: Vec<Found>,
    pub(crate) removed: Vec<Vec<u8>>,
}

/// One name that is new or differs.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: Vec<u8>,
    pub(crate) facts: Facts,
    /// The row that had the name, of whatever type.
    pub(crate) old: Option<u32>,
    /// Whether it is read whatever else is known of it.
    pub(crate) is_to_be_read: bool,
    /// A symlink's target.
    pub(crate) target: Vec<u8>,
}

/// A directory that could not be listed.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) path: Vec<u8>,
    pub(crate) error: Errno,
    /// Whether what the last generation has there stays.
    pub(crate) keeps_old: bool,
}

impl Findings {
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_none() && self.dirs.is_empty() && self.moved.is_empty()
    }

    /// All found names with their directories, each with its place among them.
    pub(crate) fn found(&self) -> impl Iterator<Item = (usize, &Vec<u8>, &Found)> {
        let all = self.dirs.iter().flat_map(|(dir, differs)| differs.found.iter().map(move |found| (dir, found)));
        all.enumerate().map(|(at, (dir, found))| (at, dir, found))
    }

    /// What is below the root may fail to be listed, but not the root.
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
        self.moved.extend(other.moved);
        self.linked.extend(other.linked);
        self.lost.extend(other.lost);
        self.unreadable.extend(other.unreadable);
    }
}
