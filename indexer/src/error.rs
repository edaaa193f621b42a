//! Why nothing was indexed.

use std::io;
use std::path::PathBuf;

use stillmirror_protocol::changes::ApplyError;
use stillmirror_protocol::path::{Escaped, PathError};
use stillmirror_store::StoreError;
use thiserror::Error;

/// Why nothing was indexed. The store's current generation is what it was.
#[derive(Debug, Error)]
pub enum IndexError {
    // The caller's.
    /// The repository's root is not there.
    #[error("the root {} does not exist", .0.display())]
    NoRoot(PathBuf),
    /// The root is something else.
    #[error("the root {} is not a directory", .0.display())]
    RootNotADirectory(PathBuf),
    /// The store would be its own repository.
    #[error("the store {} is the root itself: give the store a directory of its own", .0.display())]
    StoreIsRoot(PathBuf),
    /// A path said to have changed that cannot be one.
    #[error("the changed path '{}' is refused: {error}; give paths relative to the root", Escaped(.path))]
    ChangedPath {
        /// The path.
        path: Vec<u8>,
        /// What is wrong with it.
        error: PathError,
    },
    /// The stop flag was raised.
    #[error("stopped before the generation was published")]
    Stopped,

    // The host's.
    /// The root has no entries at all, and the current generation has files. See
    /// [`Options::allow_empty`](crate::Options::allow_empty).
    #[error("the root {} is empty, and generation {generation} has {files} file{}: is it mounted?", .path.display(), if *.files == 1 { "" } else { "s" })]
    EmptyRoot {
        /// The root.
        path: PathBuf,
        /// The store's number of its current generation.
        generation: u64,
        /// Regular files in that.
        files: u64,
    },
    /// The root cannot be read.
    #[error("cannot read the root {}: {source}", .path.display())]
    Root {
        /// The root.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),

    // The tree's size.
    /// The tree is larger than a list can be.
    #[error("the tree does not make a file list: {0}")]
    Build(#[from] ApplyError),
}
