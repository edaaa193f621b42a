//! The errors of the daemon as a whole.

use std::io;
use std::path::PathBuf;

use stillmirror_protocol::rsync::rules::RuleError;
use stillmirror_store::StoreError;
use thiserror::Error;

use crate::access::SecretsError;
use crate::certificate::TlsError;
use crate::editions::OpenError;

/// The reasons why a daemon does not start, ends, or keeps its old configuration.
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
    /// The certificate of the TLS ports, or its key, cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is a port for TLS, and no certificate.
    #[error("a port for TLS needs a certificate and its key")]
    NoCertificate,
    /// A store belongs to another repository.
    #[error(transparent)]
    Store(StoreError),
    /// A repository that is served cannot be opened with its new root, store or way of reading.
    #[error("repository '{repository}': {source}")]
    Move {
        /// The repository's name.
        repository: String,
        /// The underlying error.
        source: Box<OpenError>,
    },
    /// A repository that is served has no generation in its new store.
    #[error("repository '{repository}': the store {} has no generation: run `stillmirror index`", .store.display())]
    NotIndexed {
        /// The repository's name.
        repository: String,
        /// The new store.
        store: PathBuf,
    },
    /// Repositories that are served take too long to open at their new place.
    #[error("these repositories take too long to open with their new root or store: {repositories}")]
    SlowMove {
        /// Their names.
        repositories: String,
    },

    // Failures of the system.
    /// The listening socket cannot be used.
    #[error("cannot accept connections: {0}")]
    Listener(#[source] io::Error),
    /// A worker thread of the daemon panicked.
    #[error("a worker thread of the daemon panicked: {0}")]
    Worker(#[source] tokio::task::JoinError),
}
