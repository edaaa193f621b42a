//! Why a daemon does not start or ends.

use std::io;
use std::path::PathBuf;

use stillmirror_protocol::rsync::rules::RuleError;
use stillmirror_store::StoreError;
use thiserror::Error;

use crate::access::SecretsError;

/// Why a daemon does not start or ends.
#[derive(Debug, Error)]
pub enum DaemonError {
    // The operator's.
    /// A repository's passwords cannot be had.
    #[error("repository '{repository}': {source}")]
    Secrets {
        /// The repository.
        repository: String,
        /// Why.
        source: SecretsError,
    },
    /// A repository's rules are none.
    #[error("repository '{repository}': {source}")]
    Rules {
        /// The repository.
        repository: String,
        /// Why.
        source: RuleError,
    },
    /// A file of patterns cannot be read.
    #[error("repository '{repository}': cannot read the patterns in {}: {source}", .file.display())]
    Patterns {
        /// The repository.
        repository: String,
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A store belongs to another repository.
    #[error(transparent)]
    Store(StoreError),

    // The system's.
    /// The listening socket is of no use.
    #[error("cannot accept connections: {0}")]
    Listener(#[source] io::Error),
    /// A thread of the daemon's own died.
    #[error("a worker thread died: {0}")]
    Worker(#[source] tokio::task::JoinError),
}
