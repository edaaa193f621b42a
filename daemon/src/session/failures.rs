//! Files that were not sent, for the log.

use std::net::SocketAddr;

use stillmirror_protocol::path;
use stillmirror_protocol::wire::ItemFailure;

/// Names that one session's log line shows.
const NAMES_SHOWN: usize = 5;

/// Files that one session was not sent.
#[derive(Default)]
pub(crate) struct Failures {
    count: u64,
    names: Vec<String>,
}

impl Failures {
    /// A file was not sent.
    pub(crate) fn add(&mut self, path: &[u8], reason: ItemFailure) {
        self.count += 1;
        if self.names.len() < NAMES_SHOWN {
            let reason = match reason {
                ItemFailure::Stale => "stale",
                ItemFailure::Vanished => "vanished",
                ItemFailure::Unreadable => "unreadable",
            };
            self.names.push(format!("{} ({reason})", path::Escaped(path)));
        }
    }

    /// Writes the log line, if there is one to write.
    pub(crate) fn report(&self, peer: SocketAddr, repository: &str, generation: u64) {
        if self.count > 0 {
            tracing::warn!(
                %peer,
                repository,
                generation,
                files = self.count,
                first = self.names.join(", "),
                "files were not sent because they are no longer the indexed ones; index the repository again"
            );
        }
    }
}
