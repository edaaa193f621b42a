//! The record of a session: what it asked for, what it was sent, and how it ended. It becomes one line of the access log,
//! with the same fields for both dialects. `docs/operations.md` explains the fields.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use stillmirror_protocol::path;
use stillmirror_protocol::rsync::exit::{Exit, io_error};
use stillmirror_protocol::wire::ItemFailure;

use crate::cause::Cause;
use crate::dialect::Dialect;
use crate::ended::Ended;
use crate::metrics::{Meter, Metrics, Running};
use crate::stream::Frames;

/// The target of the access log, by which it can be filtered.
const TARGET: &str = "stillmirror::access";
/// The maximum number of file names in one line.
const NAMES_SHOWN: usize = 5;

/// The record of one session.
pub(crate) struct Record {
    metrics: Arc<Metrics>,
    /// The counters of the repository that the client uses.
    meter: Arc<Meter>,
    /// Set while the client has a slot.
    running: Option<Running>,
    dialect: Dialect,
    peer: SocketAddr,
    began: Instant,
    /// Whether the client got a slot, or named a repository. Others are not worth a line.
    is_notable: bool,
    /// The repository that the client named last.
    repository: String,
    /// The user who logged in, if the repository requires a login.
    user: String,
    /// The generation that was pinned last; 0 for none.
    generation: u64,
    /// The protocol version; 0 until it is known.
    pub(crate) protocol: u32,
    /// The number of requests.
    pub(crate) requests: u64,
    /// The number of entries listed.
    pub(crate) listed: u64,
    /// Whether the list came encoded from the cache.
    pub(crate) cached: bool,
    /// Files that were sent completely.
    files: u64,
    /// File bytes sent.
    literal: u64,
    /// Bytes received.
    pub(crate) received: u64,
    /// The errors reported to the client, as bits of [`io_error`].
    pub(crate) io_error: i32,
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

impl Record {
    /// Begins the record of a session.
    pub(crate) fn new(metrics: &Arc<Metrics>, dialect: Dialect, peer: SocketAddr) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            meter: metrics.nameless(dialect),
            running: None,
            dialect,
            peer,
            began: Instant::now(),
            is_notable: false,
            repository: String::new(),
            user: String::new(),
            generation: 0,
            protocol: 0,
            requests: 0,
            listed: 0,
            cached: false,
            files: 0,
            literal: 0,
            received: 0,
            io_error: 0,
            failures: Failures::default(),
        }
    }

    /// Notes that the client got a slot.
    pub(crate) fn admit(&mut self) {
        self.is_notable = true;
        self.running = Some(self.meter.run());
    }

    /// Notes the repository that the client names, which need not exist.
    pub(crate) fn name(&mut self, repository: &str) {
        self.is_notable = true;
        repository.clone_into(&mut self.repository);
    }

    /// Notes that the client is let in to a repository, and who logged in. Returns the counters for that.
    pub(crate) fn enter(&mut self, repository: &str, user: Option<String>) -> Arc<Meter> {
        self.name(repository);
        self.user = user.unwrap_or_default();
        self.meter = self.metrics.meter(self.dialect, repository);
        if self.running.is_some() {
            self.running = Some(self.meter.run());
        }
        Arc::clone(&self.meter)
    }

    /// Notes that the session pinned a generation.
    pub(crate) fn pin(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Counts a request of `bytes` bytes.
    pub(crate) fn count_request(&mut self, bytes: u64) {
        self.requests += 1;
        self.received += bytes;
    }

    /// Counts a piece that was sent, and `files` files that end with it. `path` returns the path of an item.
    pub(crate) fn add(&mut self, frames: &Frames, files: u64, path: impl Fn(u32) -> Vec<u8>) {
        self.files += files;
        self.meter.files.inc_by(files);
        self.literal += frames.literal();
        for &(item, reason) in frames.failures() {
            self.failures.add(&path(item), reason);
            let counter = match reason {
                ItemFailure::Stale | ItemFailure::Vanished => &self.meter.stale,
                ItemFailure::Unreadable => &self.meter.unreadable,
            };
            counter.inc();
        }
    }

    /// Writes the log lines of a session that is over, and counts its end. `ended` tells why it ended early.
    pub(crate) fn finish(&mut self, sent: u64, ended: Option<&Ended>) {
        self.report_failures();
        let (cause, length) = (ended.map_or(Cause::Done, Ended::cause), self.began.elapsed());
        self.running = None;
        self.meter.received.inc_by(self.received);
        self.metrics.end(&self.meter, cause, length);
        let exit = ended.map_or(Exit::partial(self.errors()) as i32, Ended::exit_code);
        let seconds = length.as_millis() as f64 / 1000.0;
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    target: TARGET,
                    dialect = %self.dialect.name(),
                    address = %self.peer.ip().to_canonical(),
                    repository = self.repository,
                    user = self.user,
                    generation = self.generation,
                    protocol = self.protocol,
                    requests = self.requests,
                    listed = self.listed,
                    cached = self.cached,
                    files = self.files,
                    stale = self.failures.stale,
                    unreadable = self.failures.unreadable,
                    bytes_literal = self.literal,
                    bytes_sent = sent,
                    bytes_received = self.received,
                    seconds,
                    exit,
                    cause = %cause.name(),
                    reason = ended.map(tracing::field::display),
                    "session"
                )
            };
        }
        if self.is_notable { log!(info) } else { log!(debug) }
    }

    /// Returns the errors that decide about the exit code. A native client is not told bits, and derives its code from the
    /// files that it did not get.
    fn errors(&self) -> i32 {
        let bit = |count: u64, bit: i32| if count > 0 { bit } else { 0 };
        match self.dialect {
            Dialect::Rsync => self.io_error,
            Dialect::Native | Dialect::Follower | Dialect::Unknown => {
                bit(self.failures.stale, io_error::VANISHED) | bit(self.failures.unreadable, io_error::GENERAL)
            }
        }
    }

    /// Logs the files that were not sent, if there are any.
    fn report_failures(&self) {
        let Failures { stale, unreadable, names } = &self.failures;
        let what = match (stale, unreadable) {
            (0, 0) => return,
            (_, 0) => "files were not sent because they changed since they were indexed; index the repository again",
            (0, _) => "files were not sent because they could not be read",
            _ => {
                "files were not sent: some changed since they were indexed (index the repository again), others could not be read"
            }
        };
        tracing::warn!(
            address = %self.peer.ip().to_canonical(),
            repository = self.repository,
            generation = self.generation,
            stale,
            unreadable,
            first = names.join(", "),
            "{what}"
        );
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
