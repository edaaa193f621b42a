//! The log line of a stock client's session, with the fields that rsync's own log has.

use std::net::SocketAddr;

use stillmirror_protocol::rsync::exit::Exit;

use crate::ended::Ended;
use crate::session::counts::Counts;

/// Counts of one session.
pub(super) struct Tally {
    pub(super) counts: Counts,
    /// The module's name, empty until the client is let in.
    module: String,
    user: Option<String>,
    generation: u64,
    /// The protocol version, 0 until it is known.
    pub(super) protocol: u32,
    /// The number of entries listed.
    pub(super) listed: u64,
    /// Whether the list came from the cache.
    pub(super) cached: bool,
    /// The errors reported to the client, as bits of [`stillmirror_protocol::rsync::exit::io_error`].
    pub(super) io_error: i32,
}

impl Tally {
    pub(super) fn new(peer: SocketAddr) -> Self {
        Self {
            counts: Counts::new(peer),
            module: String::new(),
            user: None,
            generation: 0,
            protocol: 0,
            listed: 0,
            cached: false,
            io_error: 0,
        }
    }

    /// Notes that the client is let in.
    pub(super) fn begin(&mut self, module: &str, user: Option<String>) {
        module.clone_into(&mut self.module);
        self.user = user;
    }

    /// Notes that the session pinned a generation.
    pub(super) fn pinned(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Writes the log lines.
    pub(super) fn report(&self, sent: u64, received: u64, ended: Option<&Ended>) {
        let address = self.counts.peer.ip().to_canonical();
        let exit = ended.map_or(Exit::partial(self.io_error) as i32, Ended::exit_code);
        let result = ended.map_or_else(|| "done".to_owned(), ToString::to_string);
        self.counts.report_failures(&self.module, self.generation);
        if self.module.is_empty() {
            return tracing::debug!(%address, exit, result, "rsync connection");
        }
        tracing::info!(
            module = self.module,
            user = self.user.as_deref().unwrap_or("-"),
            %address,
            generation = self.generation,
            protocol = self.protocol,
            listed = self.listed,
            cached = self.cached,
            files = self.counts.files,
            bytes_literal = self.counts.literal,
            bytes_sent = sent,
            bytes_received = received,
            seconds = self.counts.seconds(),
            exit,
            result,
            "rsync session"
        );
    }
}
