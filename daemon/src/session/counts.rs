//! What a session of any dialect sent, for the log.

use std::net::SocketAddr;
use std::time::Instant;

use stillmirror_protocol::path;
use stillmirror_protocol::wire::ItemFailure;

use crate::stream::Frames;

/// Names that one session's log line shows.
const NAMES_SHOWN: usize = 5;

/// Who came, when, and what they were sent of files.
pub(crate) struct Counts {
    pub(crate) peer: SocketAddr,
    began: Instant,
    pub(crate) files: u64,
    /// Bytes of files.
    pub(crate) literal: u64,
    failures: Failures,
}

/// Files that were not sent.
#[derive(Default)]
struct Failures {
    /// Those that are gone, or not what they were when they were indexed.
    stale: u64,
    unreadable: u64,
    names: Vec<String>,
}

impl Counts {
    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self { peer, began: Instant::now(), files: 0, literal: 0, failures: Failures::default() }
    }

    /// How long the session lasts, to the millisecond.
    pub(crate) fn seconds(&self) -> f64 {
        self.began.elapsed().as_millis() as f64 / 1000.0
    }

    /// A piece was sent, and with it the last of so many files; `path` tells those of items.
    pub(crate) fn add(&mut self, frames: &Frames, files: u64, path: impl Fn(u32) -> Vec<u8>) {
        self.files += files;
        self.literal += frames.literal();
        for &(item, reason) in frames.failures() {
            self.failures.add(&path(item), reason);
        }
    }

    /// Writes the log line about files that were not sent, if there is one to write.
    pub(crate) fn report_failures(&self, repository: &str, generation: u64) {
        let Failures { stale, unreadable, names } = &self.failures;
        let what = match (stale, unreadable) {
            (0, 0) => return,
            (_, 0) => "files were not sent because they are no longer the indexed ones; index the repository again",
            (0, _) => "files were not sent because they could not be read",
            _ => {
                "files were not sent: some are no longer the indexed ones (index the repository again), others could not be read"
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
