//! What a session did, for the log: one line a pull.

use std::net::SocketAddr;
use std::time::Instant;

use stillmirror_protocol::path;
use stillmirror_protocol::wire::ItemFailure;

use crate::session::Ended;

/// Names of failed files that one session's log line shows.
const NAMES_SHOWN: usize = 5;

/// Counts of one session.
pub(super) struct Tally {
    peer: SocketAddr,
    began: Instant,
    /// Whether it got as far as being served.
    served: bool,
    /// The repository and generation asked for last.
    repository: String,
    generation: u64,
    pub(super) requests: u64,
    pub(super) files: u64,
    /// Bytes of files.
    pub(super) literal: u64,
    failed: u64,
    failed_names: Vec<String>,
}

impl Tally {
    pub(super) fn new(peer: SocketAddr) -> Self {
        Self {
            peer,
            began: Instant::now(),
            served: false,
            repository: String::new(),
            generation: 0,
            requests: 0,
            files: 0,
            literal: 0,
            failed: 0,
            failed_names: Vec::new(),
        }
    }

    /// The session has its place.
    pub(super) fn begin(&mut self) {
        self.served = true;
    }

    /// The session pinned a generation.
    pub(super) fn pinned(&mut self, repository: &str, generation: u64) {
        repository.clone_into(&mut self.repository);
        self.generation = generation;
    }

    /// A file was not sent.
    pub(super) fn failed(&mut self, path: &[u8], reason: ItemFailure) {
        self.failed += 1;
        if self.failed_names.len() < NAMES_SHOWN {
            let reason = match reason {
                ItemFailure::Stale => "stale",
                ItemFailure::Vanished => "vanished",
                ItemFailure::Unreadable => "unreadable",
            };
            self.failed_names.push(format!("{} ({reason})", path::Escaped(path)));
        }
    }

    /// Writes the log lines.
    pub(super) fn report(&self, sent: u64, ended: Option<&Ended>) {
        let result = ended.map_or_else(|| "done".to_owned(), ToString::to_string);
        if self.failed > 0 {
            tracing::warn!(
                peer = %self.peer,
                repository = self.repository,
                generation = self.generation,
                files = self.failed,
                first = self.failed_names.join(", "),
                "files were not sent because they are no longer the indexed ones; index the repository again"
            );
        }
        if !self.served {
            return tracing::debug!(peer = %self.peer, result, "connection");
        }
        tracing::info!(
            peer = %self.peer,
            repository = self.repository,
            generation = self.generation,
            requests = self.requests,
            files = self.files,
            bytes_sent = sent,
            bytes_literal = self.literal,
            seconds = self.began.elapsed().as_millis() as f64 / 1000.0,
            result,
            "session"
        );
    }
}
