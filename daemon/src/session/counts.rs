//! Counts of the files that a session sent, for the log. Both dialects use them.

use std::net::SocketAddr;
use std::time::Instant;

use stillmirror_protocol::path;
use stillmirror_protocol::wire::ItemFailure;

use crate::stream::Frames;

/// The maximum number of file names in one session's log line.
const NAMES_SHOWN: usize = 5;

/// The peer of a session, its start, and the files that it was sent.
pub(crate) struct Counts {
    pub(crate) peer: SocketAddr,
    began: Instant,
    /// Files that were sent completely.
    pub(crate) files: u64,
    /// File bytes sent.
    pub(crate) literal: u64,
    failures: Failures,
}

/// Files that were not sent.
#[derive(Default)]
struct Failures {
    /// Files that vanished, or changed since they were indexed.
    stale: u64,
    unreadable: u64,
    names: Vec<String>,
}

impl Counts {
    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self { peer, began: Instant::now(), files: 0, literal: 0, failures: Failures::default() }
    }

    /// Returns the duration of the session so far, in seconds with milliseconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.began.elapsed().as_millis() as f64 / 1000.0
    }

    /// Counts a piece that was sent, and `files` files that end with it. `path` returns the path of an item.
    pub(crate) fn add(&mut self, frames: &Frames, files: u64, path: impl Fn(u32) -> Vec<u8>) {
        self.files += files;
        self.literal += frames.literal();
        for &(item, reason) in frames.failures() {
            self.failures.add(&path(item), reason);
        }
    }

    /// Logs the files that were not sent, if there are any.
    pub(crate) fn report_failures(&self, repository: &str, generation: u64) {
        let Failures { stale, unreadable, names } = &self.failures;
        let what = match (stale, unreadable) {
            (0, 0) => return,
            (_, 0) => "files were not sent because they changed since they were indexed; index the repository again",
            (0, _) => "files were not sent because they could not be read",
            _ => {
                "files were not sent: some changed since they were indexed (index the repository again), others could not be read"
            }
        };
        let first = names.join(", ");
        tracing::warn!(peer = %self.peer, repository, generation, stale, unreadable, first, "{what}");
    }
}

impl Failures {
    fn add(&mut self, path: &[u8], reason: ItemFailure) {
        match reason {
            ItemFailure::Stale | ItemFailure::Vanished => self.stale += 1,
            ItemFailure::Unreadable => self.unreadable += 1,
        }
        if self.names.len() < NAMES_SHOWN {
            let reason = match reason {
                ItemFailure::Stale => "stale",
                ItemFailure::Vanished => "vanished",
                ItemFailure::Unreadable => "unreadable",
            };
            self.names.push(format!("{} ({reason})", path::Escaped(path)));
        }
    }
}
