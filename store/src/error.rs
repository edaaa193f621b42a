//! What can go wrong with a store, sorted by whose fault it is.

use std::io;
use std::path::{Path, PathBuf};

use stillmirror_protocol::head::{BadRepositoryName, HeadError};
use stillmirror_protocol::list::ListError;
use stillmirror_protocol::local::LocalError;
use thiserror::Error;

/// A store that cannot be used. Every message names the file and what to do.
#[derive(Debug, Error)]
pub enum StoreError {
    // The caller's.
    /// There is no store there.
    #[error("{} is no store: no index or pull has made it yet", .0.display())]
    Missing(PathBuf),
    /// The directory has other things in it.
    #[error("{} is neither empty nor a store: name a directory of its own for the store", .0.display())]
    NotAStore(PathBuf),
    /// The store belongs to another repository.
    #[error("{} is the store of the repository '{found}', not of '{wanted}': give '{wanted}' a store of its own", .dir.display())]
    OtherRepository {
        /// The store.
        dir: PathBuf,
        /// The repository that it belongs to.
        found: String,
        /// The repository that was asked for.
        wanted: String,
    },
    /// A repository's name that is not allowed.
    #[error(transparent)]
    Name(#[from] BadRepositoryName),
    /// Another process writes this store.
    #[error("{} is being written by another process{}: wait for it to end", .dir.display(), holder_text(*.holder))]
    Locked {
        /// The store.
        dir: PathBuf,
        /// That process, when it could be read.
        holder: Option<u32>,
    },
    /// No such generation is kept.
    #[error("{} has no generation {number}", .dir.display())]
    NoGeneration {
        /// The store.
        dir: PathBuf,
        /// The number asked for.
        number: u64,
    },
    /// More generations than a pack's number can count.
    #[error("{}: generation number {number} is too large", .dir.display())]
    TooMany {
        /// The store.
        dir: PathBuf,
        /// The number.
        number: u64,
    },

    // The disk's, or another program's.
    /// A file is damaged, cut short, or from another version of this program.
    #[error("{}: {damage}; {remedy}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
        /// What to do.
        remedy: String,
    },
    /// The host refuses.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// What is wrong with a file of a store.
#[derive(Debug, Error)]
pub enum Damage {
    /// A head.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// A file list.
    #[error(transparent)]
    List(#[from] ListError),
    /// A table of local facts.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// Anything else.
    #[error("{0}")]
    Other(&'static str),
}

fn holder_text(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// Names the action and the file of an I/O error.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::Io { action, path: path.to_owned(), source: error.into() })
    }
}
