//! Why a session ends before its time, and what a stock client is told of it.

use std::io;

use stillmirror_protocol::limits;
use stillmirror_protocol::rsync::exit::Exit;
use stillmirror_protocol::rsync::fault::{Farewell, Fault};
use stillmirror_protocol::rsync::rules::RuleError;
use stillmirror_protocol::wire::WireError;
use thiserror::Error;

/// Why a session ends before its time.
#[derive(Debug, Error)]
pub(crate) enum Ended {
    // The client's doing.
    #[error("{0}")]
    Malformed(#[from] WireError),
    #[error("{0}")]
    Fault(#[from] Fault),
    #[error("{0}")]
    Rule(#[from] RuleError),
    #[error("filter rules that cost more than they may")]
    RulesTooCostly,
    #[error("the list repeats more than {} entries", limits::REPEATED_ENTRIES)]
    ListTooLong,
    #[error("this server has no memory left for lists of single clients -- try again later")]
    NoListMemory,
    #[error("no request for too long")]
    Idle,
    #[error("a request was begun and not finished")]
    HalfRequest,
    #[error("the peer reads too slowly")]
    TooSlow,
    #[error("the client ended{}", .0.map(|code| format!(" with exit code {code}")).unwrap_or_default())]
    ClientExit(Option<i32>),

    // This side's.
    #[error("{0}")]
    Refused(String),
    #[error("the daemon is going down")]
    Stopping,
    #[error("the daemon is going down, and the client was in the midst of something")]
    CutOff,
    #[error("a file changed in the middle of a frame")]
    Torn,
    #[error("the list that is kept encoded for such clients is damaged; the next one has another")]
    DamagedList,
    #[error("the file list has rotted on the disk since it was opened")]
    RottenIndex,
    #[error("a thread of the daemon's own died")]
    Panicked,

    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

impl Ended {
    /// Whether a stock client is told of it in frames, maybe in the midst of what it sends.
    pub(crate) fn is_told_in_frames(&self) -> bool {
        match self {
            Self::Fault(fault) => fault.farewell() == Farewell::Frames,
            Self::Rule(_) | Self::RulesTooCostly | Self::ListTooLong | Self::NoListMemory | Self::Refused(_) => true,
            _ => false,
        }
    }

    /// What stock rsync would exit with.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Fault(fault) => fault.exit(),
            Self::Rule(error) => error.exit(),
            Self::RulesTooCostly | Self::ListTooLong => Exit::Syntax,
            Self::NoListMemory => Exit::Memory,
            Self::Refused(_) => Exit::Startup,
            Self::Idle | Self::HalfRequest | Self::TooSlow => Exit::Timeout,
            Self::Stopping | Self::CutOff => Exit::Signal,
            Self::Malformed(_) | Self::Torn | Self::DamagedList | Self::RottenIndex | Self::Panicked => Exit::Stream,
            Self::ClientExit(_) | Self::Broken(_) => Exit::Socket,
        }
    }

    /// The same, or the client's own code.
    pub(crate) fn exit_code(&self) -> i32 {
        match self {
            Self::ClientExit(Some(code)) => *code,
            other => other.exit() as i32,
        }
    }
}
