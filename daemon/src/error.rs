//! The errors of the daemon as a whole.

use std::io;
use std::path::PathBuf;

use stillmirror_protocol::rsync::rules::RuleError;
use stillmirror_store::StoreError;
use thiserror::Error;

use crate::access::SecretsError;

/// The reasons why a daemon does not start, or ends.
#[derive(Debug, Error)]
pub enum DaemonError {
    // Mistakes of the operator.
    /// A repository's passwords cannot be read.
    #[error("repository '{repository}': {source}")]
    Secrets {
        /// The repository's name.
        repository: String,
        /// The underlying error.
        source: SecretsError,
    },
    /// A repository's rules are invalid.
    #[error("repository '{repository}': {source}")]
    Rules {
        /// The repository's name.
        repository: String,
        /// The underlying error.
        source: RuleError,
    },
    /// A file of patterns cannot be read.
    #[error("repository '{repository}': cannot read the patterns in {}: {source}", .file.display())]
    Patterns {
        /// The repository's name.
        repository: String,
        /// The file.
        file: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// A store belongs to another repository.
    #[error(transparent)]
    Store(StoreError),

    // Failures of the system.
    /// The listening socket cannot be used.
    #[error("cannot accept connections: {0}")]
    Listener(#[source] io::Error),
    /// A worker thread of the daemon panicked.
    #[error("a worker thread of the daemon panicked: {0}")]
    Worker(#[source] tokio::task::JoinError),
}
