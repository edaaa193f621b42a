//! Store errors, grouped by their cause: the caller, or the host and its disk.

use std::io;
use std::path::{Path, PathBuf};

use stillmirror_protocol::head::{BadRepositoryName, HeadError};
use stillmirror_protocol::list::ListError;
use stillmirror_protocol::local::LocalError;
use thiserror::Error;

/// An error of a store. The message names the file, and says what to do where that is known.
#[derive(Debug, Error)]
pub enum StoreError {
    // Caused by the caller.
    /// The directory does not exist or contains no store.
    #[error("{} is not a store: `stillmirror index` or `stillmirror pull` creates one", .0.display())]
    Missing(PathBuf),
    /// The directory contains other files.
    #[error("{} is neither empty nor a store: choose a new or empty directory for the store", .0.display())]
    NotAStore(PathBuf),
    /// The store belongs to another repository.
    #[error("{} is the store of the repository '{found}', not of '{wanted}': give '{wanted}' a store of its own", .dir.display())]
    OtherRepository {
        /// The store.
        dir: PathBuf,
        /// The repository that it belongs to.
        found: String,
        /// The requested repository.
        wanted: String,
    },
    /// The repository's name is invalid.
    #[error(transparent)]
    Name(#[from] BadRepositoryName),
    /// Another process is writing to this store.
    #[error("{} is being written by another process{}: wait for it to end", .dir.display(), holder_text(*.holder))]
    Locked {
        /// The store.
        dir: PathBuf,
        /// The ID of that process. `None` if the lock file does not tell.
        holder: Option<u32>,
    },
    /// The store has no such generation.
    #[error("{} has no generation {number}", .dir.display())]
    NoGeneration {
        /// The store.
        dir: PathBuf,
        /// The requested number.
        number: u64,
    },
    /// The generation's number does not fit into a pack's number.
    #[error("{}: generation number {number} is too large", .dir.display())]
    TooMany {
        /// The store.
        dir: PathBuf,
        /// The number.
        number: u64,
    },

    /// The directory of a pool contains other files.
    #[error("{} is neither empty nor a pool: let `pool` name a new or empty directory", .0.display())]
    NotAPool(PathBuf),
    /// The pool belongs to another repository or store.
    #[error("{} is the pool of {found}, not of {wanted}: let `pool` name another directory, or remove this one if the store was moved", .dir.display())]
    OtherPool {
        /// The pool.
        dir: PathBuf,
        /// What it belongs to.
        found: String,
        /// What should use it.
        wanted: String,
    },
    /// The file system of the pool can keep no contents.
    #[error("the file system of the pool {} has neither reflinks nor hard links: `pin` does not work there", .0.display())]
    NoPoolMethod(PathBuf),

    // Caused by the disk or by another program.
    /// A file is damaged, truncated, missing, or was written by another version of this program.
    #[error("{}: {damage}; {remedy}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
        /// What to do.
        remedy: String,
    },
    /// A system call failed.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// The failed action, as a verb: "open", "read".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// What is wrong with a file of a store.
#[derive(Debug, Error)]
pub enum Damage {
    /// The head is invalid.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The file list is invalid.
    #[error(transparent)]
    List(#[from] ListError),
    /// The table of local facts is invalid.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// Another kind of damage, described by the text.
    #[error("{0}")]
    Other(&'static str),
}

fn holder_text(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// Adds the action and the file to an I/O error.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::Io { action, path: path.to_owned(), source: error.into() })
    }
}
