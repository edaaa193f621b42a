//! The reasons why a pull ends early, grouped by whose fault it is.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use stillmirror_protocol::changes::{ApplyError, DeltaError};
use stillmirror_protocol::codec::DecodeError;
use stillmirror_protocol::head::HeadError;
use stillmirror_protocol::list::ListError;
use stillmirror_protocol::path::Escaped;
use stillmirror_protocol::sums::SumsError;
use stillmirror_protocol::wire::{ErrorCode, WireError};
use stillmirror_store::StoreError;
use thiserror::Error;

use crate::distrust::TrustError;
use crate::limit::MaxDelete;
use crate::report::Report;
use crate::slice::IndexFault;
use crate::tls::{AuthoritiesError, TlsFault};

/// The reason why a pull ends early.
///
/// Cheap to clone, because every request in flight learns why its connection ended. The message includes the
/// system's reason, so that reason is not reported again as `source()`.
#[derive(Debug, Clone, Error)]
pub enum PullError {
    // Caused by the caller.
    /// The request is invalid or cannot work here.
    #[error("{0}")]
    Usage(String),
    /// The caller cancelled the pull.
    #[error("interrupted")]
    Interrupted,
    /// The update deletes more than the caller allows. Everything else was done, and nothing was deleted.
    #[error(
        "{wanted} names of {total} would be deleted, but --max-delete allows {allowed}: nothing was deleted; \
         raise --max-delete if the deletions are intended"
    )]
    DeleteLimit {
        /// Number of names that the update deletes.
        wanted: u64,
        /// Number of names that the tree has where the pull may delete.
        total: u64,
        /// How many may be deleted.
        allowed: MaxDelete,
        /// What the pull did.
        report: Box<Report>,
    },

    /// There are no authorities that an encrypted connection could trust.
    #[error(transparent)]
    Authorities(AuthoritiesError),
    /// Another pull has the destination.
    #[error("another pull into {} is running: wait for it to end, or give --wait", .dest.display())]
    Busy {
        /// The destination.
        dest: PathBuf,
    },
    /// The destination has no entries, but the store knows files of it. See
    /// [`Options::allow_empty`](crate::Options::allow_empty).
    #[error(
        "the destination {} is empty, and generation {generation} has {files} file{}: is it mounted? \
         give --allow-empty if it was emptied on purpose",
        .path.display(),
        if *.files == 1 { "" } else { "s" }
    )]
    EmptyDestination {
        /// The destination.
        path: PathBuf,
        /// The current generation's number in the store.
        generation: u64,
        /// The number of regular files in the current generation.
        files: u64,
    },

    // Caused by the network.
    /// No connection could be made.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// The sender, `HOST:PORT`.
        address: String,
        /// The system's reason.
        reason: Arc<io::Error>,
    },
    /// The connection broke.
    #[error("the connection to {address} failed: {reason}")]
    Socket {
        /// The sender, `HOST:PORT`.
        address: String,
        /// The system's reason.
        reason: Arc<io::Error>,
    },
    /// The sender was silent for too long.
    #[error("timed out: {address} sent nothing for {} seconds", .silence.as_secs())]
    Timeout {
        /// The sender, `HOST:PORT`.
        address: String,
        /// How long the sender was silent.
        silence: Duration,
    },

    // Caused by the sender.
    /// No encrypted connection could be made.
    #[error("no secure connection to {address}: {fault}")]
    Tls {
        /// The sender, `HOST:PORT`.
        address: String,
        /// What is wrong.
        fault: TlsFault,
    },
    /// The peer does not speak this protocol, or has no version in common with this program.
    #[error("{address}: {reason}")]
    Handshake {
        /// The peer, `HOST:PORT`.
        address: String,
        /// What is wrong with its hello.
        reason: WireError,
    },
    /// The sender answered with an error.
    #[error("{address} refused: {}", Escaped(.message.as_bytes()))]
    Refused {
        /// The sender, `HOST:PORT`.
        address: String,
        /// Its error code.
        code: ErrorCode,
        /// Its message.
        message: String,
    },
    /// The sender's generation is older than the one that the last pull took. See
    /// [`Options::allow_older`](crate::Options::allow_older).
    #[error(
        "the sender went back to generation {generation}, which is older than generation {held} here: nothing was \
         changed; give --allow-older if that is intended"
    )]
    Older {
        /// The number of the sender's generation.
        generation: u64,
        /// The number of the sender's generation that the last pull took.
        held: u64,
    },
    /// The sender has only a slice of the repository, and the last pull found it whole. See
    /// [`Options::allow_slice`](crate::Options::allow_slice).
    #[error(
        "the sender has only a slice of '{repository}' now ({selected}), and had all of it at the last pull: nothing was \
         changed; give --allow-slice if that is intended"
    )]
    TurnedSlice {
        /// The repository.
        repository: String,
        /// What the slice has.
        selected: String,
    },
    /// The head is not trusted. Nothing was changed. See [`Options::trust`](crate::Options::trust).
    #[error("the head of '{repository}' is not trusted: {reason}")]
    Untrusted {
        /// The repository.
        repository: String,
        /// Why it is not trusted.
        reason: TrustError,
    },
    /// An index of a package repository cannot be read, so it is not known what belongs to a slice. Nothing was changed.
    #[error("the index '{}' cannot be read: {reason}", Escaped(.path))]
    Index {
        /// Its path in the repository.
        path: Vec<u8>,
        /// What is wrong with it.
        reason: IndexFault,
    },
    /// The sender violates the protocol, or its data does not match its own digests.
    #[error("the sender broke the protocol: {0}")]
    Protocol(String),

    // Caused by this host.
    /// An operation on a local file or directory failed.
    #[error("cannot {action} {}: {reason}", .path.display())]
    File {
        /// The operation, a verb such as `open`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        reason: Arc<io::Error>,
    },
    /// The file in the store that says which generations were accepted is damaged.
    #[error(
        "{} is damaged: it says which generations were accepted before; without it, any generation that a \
         trusted key has signed is accepted, so remove it only if the sender is right now",
        .0.display()
    )]
    TrustFile(PathBuf),
    /// What is to be brought does not fit. Nothing was changed.
    #[error(
        "the file system of {} has {} free{}, and the pull needs {}: nothing was changed; give --min-free off if the \
         files are sparse or the file system compresses them",
        .path.display(), Megabytes(*.free), reserved(*.keep), Megabytes(*.needed)
    )]
    NoSpace {
        /// A directory on the file system.
        path: PathBuf,
        /// Number of bytes that the pull needs.
        needed: u64,
        /// Number of bytes that are free.
        free: u64,
        /// Number of bytes that must remain free.
        keep: u64,
    },
    /// There are too few inodes for what is to be brought. Nothing was changed.
    #[error("the file system of {} has {free} free inodes, and the pull needs {needed}: nothing was changed", .path.display())]
    NoInodes {
        /// A directory on the file system.
        path: PathBuf,
        /// Number of inodes that the pull needs.
        needed: u64,
        /// Number of inodes that are free.
        free: u64,
    },
    /// The receiver's own store failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
}

impl PullError {
    /// Creates an error for a sender that violates the protocol.
    pub(crate) fn protocol(violation: impl Into<String>) -> Self {
        Self::Protocol(violation.into())
    }

    /// Returns whether a new connection may succeed: this one broke or could not be made, or the sender is
    /// shutting down.
    pub(crate) fn may_succeed_on_reconnect(&self) -> bool {
        let shutting_down = |code: &ErrorCode| *code == ErrorCode::ShuttingDown;
        matches!(self, Self::Connect { .. } | Self::Socket { .. })
            || matches!(self, Self::Refused { code, .. } if shutting_down(code))
    }

    /// Returns whether the network or the sender is the reason, so that another sender may have what is wanted.
    pub(crate) fn concerns_sender(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::Socket { .. }
                | Self::Timeout { .. }
                | Self::Tls { .. }
                | Self::Handshake { .. }
                | Self::Refused { .. }
                | Self::Untrusted { .. }
                | Self::TurnedSlice { .. }
                | Self::Protocol(_)
        )
    }

    /// Returns whether another process has a lock that the pull needs.
    pub(crate) fn is_busy(&self) -> bool {
        match self {
            Self::Busy { .. } => true,
            Self::Store(error) => matches!(**error, StoreError::Locked { .. }),
            _ => false,
        }
    }

    /// Returns whether the error is about one local name, which this host refuses to change: other names may still be
    /// changed. A full or failing disk is not.
    pub(crate) fn concerns_one_name(&self) -> bool {
        let Self::File { reason, .. } = self else { return false };
        let errno = reason.raw_os_error().map(Errno::from_raw_os_error);
        matches!(
            errno,
            Some(
                // An immutable file, a missing right, a mount point, a program that runs, a file system that is read-only.
                Errno::PERM | Errno::ACCESS | Errno::BUSY | Errno::TXTBSY | Errno::ROFS
                // Another process changed the type of the name or of a directory above it.
                | Errno::NOENT | Errno::NOTDIR | Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY | Errno::LOOP
                // The file system cannot store such a name, owner or type.
                | Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ | Errno::OPNOTSUPP | Errno::XDEV | Errno::MLINK
            )
        )
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

/// Data that cannot be decoded or is inconsistent came from the sender, so all these errors are protocol
/// errors.
macro_rules! protocol_errors {
    ($($error:ty),*) => {$(
        impl From<$error> for PullError {
            fn from(error: $error) -> Self {
                Self::Protocol(error.to_string())
            }
        }
    )*};
}
protocol_errors!(WireError, DecodeError, HeadError, ListError, DeltaError, ApplyError, SumsError);

/// A number of bytes for people.
struct Megabytes(u64);

impl fmt::Display for Megabytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MB", self.0 as f64 / 1e6)
    }
}

fn reserved(keep: u64) -> String {
    if keep == 0 { String::new() } else { format!(", of which --min-free keeps {}", Megabytes(keep)) }
}

/// Turns an I/O error into a [`PullError::File`] that names the action and the file.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, PullError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, PullError> {
        self.map_err(|error| PullError::File { action, path: path.as_ref().to_owned(), reason: Arc::new(error.into()) })
    }
}
