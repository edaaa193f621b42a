//! The errors of a run.

use std::io;
use std::path::PathBuf;

use stillmirror_protocol::changes::ApplyError;
use stillmirror_protocol::path::{Escaped, PathError};
use stillmirror_store::StoreError;
use thiserror::Error;

use crate::signer::SignError;

/// An error that ended a run. The store's current generation is unchanged, unless the error occurred after
/// publishing, when old generations are removed and the scrub position is stored.
#[derive(Debug, Error)]
pub enum IndexError {
    // Caused by the caller.
    /// The repository's root does not exist.
    #[error("the root {} does not exist", .0.display())]
    NoRoot(PathBuf),
    /// The repository's root is not a directory.
    #[error("the root {} is not a directory", .0.display())]
    RootNotADirectory(PathBuf),
    /// The store and the root are the same directory.
    #[error("the store {} is the root itself: give the store a directory of its own", .0.display())]
    StoreIsRoot(PathBuf),
    /// The pool is on another file system than the root.
    #[error("the pool {} is on another file system than the root {}: let `pool` name a directory on the root's", .pool.display(), .root.display())]
    PoolElsewhere {
        /// The pool.
        pool: PathBuf,
        /// The root.
        root: PathBuf,
    },
    /// The pool and the root are the same directory, or the root is in the pool.
    #[error("the root {} is in the pool {}: let `pool` name a directory of its own", .root.display(), .pool.display())]
    RootInPool {
        /// The pool.
        pool: PathBuf,
        /// The root.
        root: PathBuf,
    },
    /// A changed path is invalid.
    #[error("invalid changed path '{}': {error}; give paths relative to the root", Escaped(.path))]
    ChangedPath {
        /// The path.
        path: Vec<u8>,
        /// What is wrong with it.
        error: PathError,
    },
    /// The stop flag was set.
    #[error("stopped before the generation was published")]
    Stopped,

    // Caused by the host.
    /// The root has no entries, but the current generation has files. See
    /// [`Options::allow_empty`](crate::Options::allow_empty).
    #[error("the root {} is empty, and generation {generation} has {files} file{}: is it mounted?", .path.display(), if *.files == 1 { "" } else { "s" })]
    EmptyRoot {
        /// The root.
        path: PathBuf,
        /// The current generation's number in the store.
        generation: u64,
        /// The number of regular files in the current generation.
        files: u64,
    },
    /// The root cannot be read.
    #[error("cannot read the root {}: {source}", .path.display())]
    Root {
        /// The root.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),

    /// The head cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),

    // Caused by the tree's size.
    /// The tree is too large for a list.
    #[error("cannot build a file list of the tree: {0}")]
    Build(#[from] ApplyError),
}
