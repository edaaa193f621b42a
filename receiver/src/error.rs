//! Why a pull ends early, sorted by whose fault it is.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stillmirror_protocol::changes::{ApplyError, DeltaError};
use stillmirror_protocol::codec::DecodeError;
use stillmirror_protocol::head::HeadError;
use stillmirror_protocol::list::ListError;
use stillmirror_protocol::path::Escaped;
use stillmirror_protocol::sums::SumsError;
use stillmirror_protocol::wire::{ErrorCode, WireError};
use stillmirror_store::StoreError;
use thiserror::Error;

use crate::report::Report;

/// Why a pull ends early. Cheap to clone: every request under way learns why its connection ended. The
/// message is whole: it has the system's reason in it, which therefore is no `source()` of its own.
#[derive(Debug, Clone, Error)]
pub enum PullError {
    // The caller's.
    /// What was asked for makes no sense here.
    #[error("{0}")]
    Usage(String),
    /// The caller's cancellation.
    #[error("interrupted")]
    Interrupted,
    /// The update deletes more than the caller allows. Everything else was done, and nothing was deleted.
    #[error("{wanted} names would be deleted and --max-delete allows {limit}: nothing was deleted")]
    DeleteLimit {
        /// Names that the update deletes.
        wanted: u64,
        /// Names that may be deleted.
        limit: u64,
        /// What was done.
        report: Box<Report>,
    },

    // The network's.
    /// No connection could be made.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// The sender, `HOST:PORT`.
        address: String,
        /// The system's reason.
        reason: Arc<io::Error>,
    },
    /// The connection broke.
    #[error("connection to {address}: {reason}")]
    Socket {
        /// The sender.
        address: String,
        /// The system's reason.
        reason: Arc<io::Error>,
    },
    /// The sender was silent for too long.
    #[error("{address} was silent for {} seconds", .silence.as_secs())]
    Timeout {
        /// The sender.
        address: String,
        /// For how long.
        silence: Duration,
    },

    // The sender's.
    /// The peer does not speak this protocol, or no common version of it.
    #[error("{address}: {offence}")]
    Handshake {
        /// The peer.
        address: String,
        /// What it did instead.
        offence: WireError,
    },
    /// The sender refuses in due form.
    #[error("{address} refuses: {}", Escaped(.message.as_bytes()))]
    Refused {
        /// The sender.
        address: String,
        /// Its reason.
        code: ErrorCode,
        /// Its words.
        message: String,
    },
    /// The sender does what the protocol does not allow, or its data do not match its own digests.
    #[error("the sender offends: {0}")]
    Protocol(String),

    // The host's.
    /// A file or directory of this host.
    #[error("cannot {action} {}: {reason}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: Arc<io::Error>,
    },
    /// The receiver's own store.
    #[error(transparent)]
    Store(Arc<StoreError>),
}

impl PullError {
    /// The sender's offence.
    pub(crate) fn offence(offence: impl Into<String>) -> Self {
        Self::Protocol(offence.into())
    }

    /// Whether the connection broke, or cannot be made just now, which another one may not.
    pub(crate) fn is_of_the_connection(&self) -> bool {
        let ends = |code: &ErrorCode| *code == ErrorCode::ShuttingDown;
        matches!(self, Self::Connect { .. } | Self::Socket { .. })
            || matches!(self, Self::Refused { code, .. } if ends(code))
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }
}

impl From<StoreError> for PullError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Whatever does not decode or makes no sense came from the sender: these are all its offences.
macro_rules! offences {
    ($($error:ty),*) => {$(
        impl From<$error> for PullError {
            fn from(error: $error) -> Self {
                Self::Protocol(error.to_string())
            }
        }
    )*};
}
offences!(WireError, DecodeError, HeadError, ListError, DeltaError, ApplyError, SumsError);

/// Names the action and the file of an I/O error.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, PullError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, PullError> {
        self.map_err(|error| PullError::File { action, path: path.as_ref().to_owned(), reason: Arc::new(error.into()) })
    }
}
