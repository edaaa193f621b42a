//! What a session did, for the log: one line a pull, with the fields of rsync's own.

use std::net::SocketAddr;

use stillmirror_protocol::rsync::exit::Exit;

use crate::ended::Ended;
use crate::session::counts::Counts;

/// Counts of one session.
pub(super) struct Tally {
    pub(super) counts: Counts,
    /// Empty until the client may have it.
    module: String,
    user: Option<String>,
    generation: u64,
    /// Protocol version, 0 until it is known.
    pub(super) protocol: u32,
    /// Entries listed.
    pub(super) listed: u64,
    /// The list came out of the cache.
    pub(super) cached: bool,
    /// What the client was told of files that it does not get: [`stillmirror_protocol::rsync::exit::io_error`].
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

    /// The client may have the module.
    pub(super) fn begin(&mut self, module: &str, user: Option<String>) {
        module.clone_into(&mut self.module);
        self.user = user;
    }

    /// The session pinned a generation.
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
