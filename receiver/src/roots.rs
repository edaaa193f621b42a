//! The directories in which local contents are looked for: the destination, and those that the caller names as bases
//! ([`Options::bases`](crate::Options::bases)). Nothing is written to the latter, and nothing outside them is opened.
//! They may change or vanish at any time.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::local::{Stat, Tree};

/// One of the directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Root {
    /// The destination.
    Dest,
    /// The basis with this index.
    Basis(usize),
}

/// A path in one of the directories.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FileAt {
    pub(crate) root: Root,
    pub(crate) path: Vec<u8>,
}

impl FileAt {
    /// Returns the path in the destination.
    pub(crate) fn dest(path: Vec<u8>) -> Self {
        Self { root: Root::Dest, path }
    }
}

/// All the directories, opened.
#[derive(Clone, Copy)]
pub(crate) struct Roots<'a> {
    pub(crate) dest: &'a Tree,
    pub(crate) bases: &'a [Tree],
}

impl<'a> Roots<'a> {
    /// Opens a regular file for reading.
    pub(crate) fn file(&self, at: &FileAt) -> io::Result<File> {
        self.tree(at.root)?.file(&at.path)
    }

    /// Returns what is at a path. `None` if nothing is.
    pub(crate) fn stat(&self, at: &FileAt) -> io::Result<Option<Stat>> {
        self.tree(at.root)?.stat(&at.path)
    }

    /// Returns the path for messages.
    pub(crate) fn shown(&self, at: &FileAt) -> PathBuf {
        self.tree(at.root).unwrap_or(self.dest).shown(&at.path)
    }

    fn tree(&self, root: Root) -> io::Result<&'a Tree> {
        match root {
            Root::Dest => Ok(self.dest),
            Root::Basis(number) => self.bases.get(number).ok_or_else(|| io::ErrorKind::NotFound.into()),
        }
    }
}

/// Opens the bases. Those that cannot be opened are left out with a warning: they only save traffic.
pub(crate) fn open_bases(paths: &[PathBuf]) -> Vec<Tree> {
    let open = |path: &PathBuf| match Tree::open(path) {
        Ok(tree) => Some(tree),
        Err(error) => {
            warn(path, &error);
            None
        }
    };
    paths.iter().filter_map(open).collect()
}

fn warn(path: &Path, error: &io::Error) {
    tracing::warn!(path = %path.display(), %error, "cannot open a basis; pulling without it");
}
