//! The reasons why sessions end early, and what stock clients are told about them.

use std::io;

use stillmirror_protocol::limits;
use stillmirror_protocol::rsync::exit::Exit;
use stillmirror_protocol::rsync::fault::{Farewell, Fault};
use stillmirror_protocol::rsync::rules::RuleError;
use stillmirror_protocol::wire::WireError;
use thiserror::Error;

use crate::cause::Cause;

/// The reason why a session ends early.
#[derive(Debug, Error)]
pub(crate) enum Ended {
    // Caused by the client.
    #[error("{0}")]
    Malformed(#[from] WireError),
    #[error("{0}")]
    Fault(#[from] Fault),
    #[error("{0}")]
    Rule(#[from] RuleError),
    #[error("the filter rules are too expensive to evaluate")]
    RulesTooCostly,
    #[error("the list repeats more than {} entries", limits::REPEATED_ENTRIES)]
    ListTooLong,
    #[error("this server has no memory left for lists of single clients -- try again later")]
    NoListMemory,
    #[error("the client sent no request for too long")]
    Idle,
    #[error("the client did not finish a request in time")]
    HalfRequest,
    #[error("too many connections have not named a repository yet, and this one is the oldest")]
    Evicted,
    #[error("the client reads too slowly")]
    TooSlow,
    #[error("the client ended{}", .0.map(|code| format!(" with exit code {code}")).unwrap_or_default())]
    ClientExit(Option<i32>),

    // Caused by the server.
    #[error("{1}")]
    Refused(Cause, String),
    #[error("the daemon is going down")]
    Stopping,
    #[error("the daemon is going down, in the middle of a message to the client")]
    CutOff,
    #[error("a file changed in the middle of a frame")]
    Torn,
    #[error("the cached encoded list is damaged; the next client gets a new one")]
    DamagedList,
    #[error("the file list on the disk was damaged after it was opened")]
    RottenIndex,
    #[error("a worker thread of the daemon panicked")]
    Panicked,

    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

impl Ended {
    /// Returns whether a stock client is told the reason in frames, possibly while it is still sending.
    pub(crate) fn is_told_in_frames(&self) -> bool {
        match self {
            Self::Fault(fault) => fault.farewell() == Farewell::Frames,
            Self::Rule(_) | Self::RulesTooCostly | Self::ListTooLong | Self::NoListMemory | Self::Refused(..) => true,
            _ => false,
        }
    }

    /// Returns the code with which stock rsync would exit.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Fault(fault) => fault.exit(),
            Self::Rule(error) => error.exit(),
            Self::RulesTooCostly | Self::ListTooLong => Exit::Syntax,
            Self::NoListMemory => Exit::Memory,
            Self::Refused(..) => Exit::Startup,
            Self::Idle | Self::HalfRequest | Self::Evicted | Self::TooSlow => Exit::Timeout,
            Self::Stopping | Self::CutOff => Exit::Signal,
            Self::Malformed(_) | Self::Torn | Self::DamagedList | Self::RottenIndex | Self::Panicked => Exit::Stream,
            Self::ClientExit(_) | Self::Broken(_) => Exit::Socket,
        }
    }

    /// Returns the cause, as logs and metrics name it.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Malformed(_) => Cause::Malformed,
            Self::Fault(fault) => of_fault(fault),
            Self::Rule(_) => Cause::RulesInvalid,
            Self::RulesTooCostly => Cause::RulesTooCostly,
            Self::ListTooLong => Cause::ListTooLong,
            Self::NoListMemory => Cause::ListMemory,
            Self::Idle => Cause::Idle,
            Self::HalfRequest => Cause::RequestTimeout,
            Self::Evicted => Cause::Evicted,
            Self::TooSlow => Cause::TooSlow,
            Self::ClientExit(_) => Cause::ClientExit,
            Self::Refused(cause, _) => *cause,
            Self::Stopping => Cause::Shutdown,
            Self::CutOff => Cause::CutOff,
            Self::Torn => Cause::FileChanged,
            Self::DamagedList => Cause::CachedListDamaged,
            Self::RottenIndex => Cause::IndexDamaged,
            Self::Panicked => Cause::Internal,
            Self::Broken(_) => Cause::Disconnected,
        }
    }

    /// Returns the numeric exit code: the client's own if it sent one.
    pub(crate) fn exit_code(&self) -> i32 {
        match self {
            Self::ClientExit(Some(code)) => *code,
            other => other.exit() as i32,
        }
    }
}

/// Returns the cause of a stock client's fault: what it asks for is refused, or it breaks the protocol.
fn of_fault(fault: &Fault) -> Cause {
    match fault {
        Fault::ReadOnly
        | Fault::WritingOption(_)
        | Fault::Refused(_)
        | Fault::Rejected
        | Fault::UnknownOption(_)
        | Fault::OptionValue { .. }
        | Fault::OptionVersion { .. }
        | Fault::TooManyPaths
        | Fault::NoPath
        | Fault::Choice { .. }
        | Fault::NothingInCommon { .. }
        | Fault::ArgumentsTooLong => Cause::OptionRefused,
        Fault::RulesTooMany(_) | Fault::RulesTooLong(_) => Cause::RulesInvalid,
        _ => Cause::Malformed,
    }
}
