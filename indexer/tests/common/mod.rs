//! A tree to index, and helpers to look at the result.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use stillmirror_indexer::{IndexError, Options, Report, index};
use stillmirror_store::{Generation, Store};
use tempfile::TempDir;

/// A repository in a temporary directory.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
    pub(crate) options: Options,
}

impl Site {
    /// Creates an empty root.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut options = Options::new(&root, dir.path().join("store"), "debian");
        options.threads = std::num::NonZeroUsize::new(2);
        Self { dir, options }
    }

    pub(crate) fn path(&self, path: impl AsRef<[u8]>) -> PathBuf {
        self.options.root.join(std::ffi::OsStr::from_bytes(path.as_ref()))
    }

    pub(crate) fn write(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).unwrap();
    }

    pub(crate) fn link(&self, from: &str, to: &str) {
        fs::hard_link(self.path(from), self.path(to)).unwrap();
    }

    pub(crate) fn try_index(&self) -> Result<Report, IndexError> {
        index(&self.options, &(), &AtomicBool::new(false))
    }

    pub(crate) fn index(&self) -> Report {
        self.try_index().unwrap()
    }

    /// Indexes with `changed_from`, so that only these paths are looked at.
    pub(crate) fn index_changed(&self, paths: &[&[u8]]) -> Report {
        let mut options = self.options.clone();
        options.changed_from = Some(paths.iter().map(|path| path.to_vec()).collect());
        index(&options, &(), &AtomicBool::new(false)).unwrap()
    }

    pub(crate) fn current(&self) -> Generation {
        Store::open(&self.options.store).unwrap().current().unwrap().unwrap()
    }

    /// Indexes the tree into a new store, and returns its list.
    pub(crate) fn fresh_list(&self) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { store: dir.path().join("store"), ..self.options.clone() };
        index(&options, &(), &AtomicBool::new(false)).unwrap();
        Store::open(&options.store).unwrap().current().unwrap().unwrap().list_bytes().to_vec()
    }

    /// Like [`Self::fresh_list`], without a pool, which would make hard links to the files.
    pub(crate) fn fresh_list_without_pool(&self) -> Vec<u8> {
        let options = Options { pin: false, ..self.options.clone() };
        Self { dir: tempfile::tempdir().unwrap(), options }.fresh_list()
    }

    /// Asserts that the current list is the one that a new store gets for the tree.
    pub(crate) fn assert_same_as_fresh(&self, what: &str) {
        assert!(self.current().list_bytes() == self.fresh_list(), "{what}: {:#?}", self.paths());
    }

    /// Returns all paths in the current list, in its order.
    pub(crate) fn paths(&self) -> Vec<String> {
        let generation = self.current();
        let list = generation.list();
        (1..list.len()).map(|row| list.path(row).escape_ascii().to_string()).collect()
    }

    /// Returns the paths of the link group that a path is in.
    pub(crate) fn group(&self, path: &str) -> Vec<String> {
        let generation = self.current();
        let list = generation.list();
        let leader = list.find(path.as_bytes()).unwrap().link_leader();
        let members = list.links().filter(|&(_, own)| Some(own) == leader);
        members.map(|(row, _)| String::from_utf8(list.path(row)).unwrap()).collect()
    }
}

/// Computes a SHA-256 without the indexer's code.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

/// Sets the modification time of a path in seconds, without following a symlink.
pub(crate) fn set_mtime(path: &Path, sec: i64) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let time = Timespec { tv_sec: sec, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
