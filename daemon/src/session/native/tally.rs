//! The log line of a native session.

use std::net::SocketAddr;

use crate::ended::Ended;
use crate::session::counts::Counts;

/// Counts of one session.
pub(super) struct Tally {
    pub(super) counts: Counts,
    /// Whether the session got a slot.
    served: bool,
    /// The repository that was pinned last.
    repository: String,
    /// The generation that was pinned last.
    generation: u64,
    pub(super) requests: u64,
}

impl Tally {
    pub(super) fn new(peer: SocketAddr) -> Self {
        Self { counts: Counts::new(peer), served: false, repository: String::new(), generation: 0, requests: 0 }
    }

    /// Notes that the session got a slot.
    pub(super) fn begin(&mut self) {
        self.served = true;
    }

    /// Notes that the session pinned a generation.
    pub(super) fn pinned(&mut self, repository: &str, generation: u64) {
        repository.clone_into(&mut self.repository);
        self.generation = generation;
    }

    /// Writes the log lines.
    pub(super) fn report(&self, sent: u64, ended: Option<&Ended>) {
        let result = ended.map_or_else(|| "done".to_owned(), ToString::to_string);
        self.counts.report_failures(&self.repository, self.generation);
        if !self.served {
            return tracing::debug!(peer = %self.counts.peer, result, "connection");
        }
        tracing::info!(
            peer = %self.counts.peer,
            repository = self.repository,
            generation = self.generation,
            requests = self.requests,
            files = self.counts.files,
            bytes_sent = sent,
            bytes_literal = self.counts.literal,
            seconds = self.counts.seconds(),
            result,
            "session"
        );
    }
}
