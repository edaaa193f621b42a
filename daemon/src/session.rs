//! Sessions: what those of every dialect have in common.

pub(crate) mod counts;
pub(crate) mod native;
pub(crate) mod rsync;

use std::io;
use std::time::Duration;

use stillmirror_protocol::limits;
use stillmirror_protocol::rsync::fault::{Exit, Farewell, Fault};
use stillmirror_protocol::rsync::rules::RuleError;
use stillmirror_protocol::wire::WireError;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::Shared;
use crate::direct::page_size;
use crate::stream::Writer;

/// How long a session has to come to the end of a frame when the daemon ends.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(2);

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

/// Waits until the daemon does not wait for sessions any longer. The client can be told if the writer comes free in
/// time: who has it then is between two frames.
pub(crate) async fn out_of_time(shared: &Shared, writer: &Mutex<Writer>) -> Ended {
    shared.ending.cancelled().await;
    match timeout(LAST_WORDS, writer.lock()).await {
        Ok(_) => Ended::Stopping,
        Err(_) => Ended::CutOff,
    }
}

/// Makes mapped pages resident, so that sending them does not wait for the disk.
pub(crate) fn touch(bytes: &[u8]) {
    for at in on_each_page(bytes.len(), page_size() as usize) {
        std::hint::black_box(bytes[at]);
    }
}

/// A place on each page that so many bytes lie on, wherever on a page they begin.
fn on_each_page(len: usize, page: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(page).chain(len.checked_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_touched_wherever_bytes_begin() {
        for page in [4096, 16_384, 65_536] {
            for (begin, len) in
                [(0, 1), (page - 1, 2), (100, page), (page - 96, 200), (5, 3 * page), (0, 2 * page), (7, 0)]
            {
                let mut touched: Vec<_> = on_each_page(len, page).map(|at| (begin + at) / page).collect();
                touched.dedup();
                let all: Vec<_> = (begin / page..(begin + len).div_ceil(page)).filter(|_| len > 0).collect();
                assert_eq!(touched, all, "{len} bytes at {begin}, pages of {page}");
            }
        }
    }
}
