//! Counters of what the daemon does for its clients.
//!
//! What is counted while data is sent costs a few relaxed additions for each piece: a session looks its counters up once,
//! and keeps them as a [`Meter`]. Everything that can be derived from the daemon's state is computed at each scrape
//! instead, from the [`Report`](crate::status::Report). Labels have few values: the configured repositories, and names
//! from the code. Nothing that a client sends becomes a label.

mod history;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::cause::Cause;
use crate::dialect::Dialect;
use crate::source::{BySource, Source};
pub(crate) use history::{History, INTERVAL};

/// The repository of connections that have not named one.
const NO_REPOSITORY: &str = "";
/// Upper bounds of the histogram of session lengths, in seconds.
const SESSION_BOUNDS: [f64; 10] = [0.01, 0.1, 0.5, 1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0];
/// Upper bounds of the histogram of waits in the queue, in seconds.
const WAIT_BOUNDS: [f64; 9] = [0.001, 0.1, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];
/// Upper bounds of the histogram of reads, in seconds.
const READ_BOUNDS: [f64; 12] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

/// All counters.
pub(crate) struct Metrics {
    sent: Family<Client, Counter>,
    received: Family<Client, Counter>,
    files: Family<Client, Counter>,
    contents: Family<Content, Counter>,
    not_sent: Family<NotSent, Counter>,
    sessions: Family<Client, Gauge>,
    ended: Family<End, Counter>,
    session_seconds: Family<Kind, Histogram>,
    wait_seconds: Family<Kind, Histogram>,
    read_seconds: Histogram,
    meters: RwLock<Meters>,
    /// The traffic of the last hours.
    pub(crate) history: History,
}

#[derive(Default)]
struct Meters {
    by_client: HashMap<(Dialect, Arc<str>), Arc<Meter>>,
    /// Bytes sent for repositories that are gone.
    sent_before: HashMap<Dialect, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    dialect: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Client {
    dialect: &'static str,
    repository: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Content {
    dialect: &'static str,
    repository: Arc<str>,
    source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotSent {
    repository: Arc<str>,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct End {
    dialect: &'static str,
    repository: Arc<str>,
    cause: &'static str,
}

/// The counters for clients of one kind and one repository.
pub(crate) struct Meter {
    dialect: Dialect,
    repository: Arc<str>,
    /// Bytes sent.
    pub(crate) sent: Counter,
    /// Bytes received.
    pub(crate) received: Counter,
    /// Files that were sent completely.
    pub(crate) files: Counter,
    /// Files that were not sent because they are not the indexed ones.
    pub(crate) stale: Counter,
    /// Files that were not sent because they cannot be read.
    pub(crate) unreadable: Counter,
    contents: [Counter; Source::ALL.len()],
    sessions: Gauge,
}

/// A session that counts as running until this is dropped.
pub(crate) struct Running(Arc<Meter>);

impl Meter {
    /// Returns the repository's name, empty for connections that have not named one.
    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// Counts bytes of files, by where they come from.
    pub(crate) fn add_contents(&self, bytes: BySource) {
        for ((_, bytes), counter) in bytes.iter().zip(&self.contents) {
            if bytes > 0 {
                counter.inc_by(bytes);
            }
        }
    }

    /// Counts a session as running.
    pub(crate) fn run(self: &Arc<Self>) -> Running {
        self.sessions.inc();
        Running(Arc::clone(self))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.sessions.dec();
    }
}

impl Metrics {
    /// Creates counters that are all zero.
    pub(crate) fn new() -> Self {
        Self {
            sent: Family::default(),
            received: Family::default(),
            files: Family::default(),
            contents: Family::default(),
            not_sent: Family::default(),
            sessions: Family::default(),
            ended: Family::default(),
            session_seconds: Family::new_with_constructor(|| Histogram::new(SESSION_BOUNDS)),
            wait_seconds: Family::new_with_constructor(|| Histogram::new(WAIT_BOUNDS)),
            read_seconds: Histogram::new(READ_BOUNDS),
            meters: RwLock::default(),
            history: History::default(),
        }
    }

    /// Returns the counters for clients of one kind that have named no repository.
    pub(crate) fn nameless(&self, dialect: Dialect) -> Arc<Meter> {
        self.meter(dialect, NO_REPOSITORY)
    }

    /// Returns the counters for clients of one kind and one repository, which must be configured.
    pub(crate) fn meter(&self, dialect: Dialect, repository: &str) -> Arc<Meter> {
        let key = (dialect, Arc::from(repository));
        if let Some(meter) = self.meters.read().unwrap_or_else(PoisonError::into_inner).by_client.get(&key) {
            return Arc::clone(meter);
        }
        let mut meters = self.meters.write().unwrap_or_else(PoisonError::into_inner);
        let meter = meters.by_client.entry(key).or_insert_with_key(|(_, name)| Arc::new(self.new_meter(dialect, name)));
        Arc::clone(meter)
    }

    fn new_meter(&self, dialect: Dialect, repository: &Arc<str>) -> Meter {
        let client = Client { dialect: dialect.name(), repository: Arc::clone(repository) };
        let content = |source: Source| {
            let Client { dialect, repository } = client.clone();
            self.contents.get_or_create(&Content { dialect, repository, source: source.name() }).clone()
        };
        let not_sent =
            |reason| self.not_sent.get_or_create(&NotSent { repository: Arc::clone(repository), reason }).clone();
        Meter {
            dialect,
            repository: Arc::clone(repository),
            sent: self.sent.get_or_create(&client).clone(),
            received: self.received.get_or_create(&client).clone(),
            files: self.files.get_or_create(&client).clone(),
            stale: not_sent("stale"),
            unreadable: not_sent("unreadable"),
            contents: Source::ALL.map(content),
            sessions: self.sessions.get_or_create(&client).clone(),
        }
    }

    /// Counts a connection without a session that ended: a follower, or one that was refused.
    pub(crate) fn count(&self, dialect: Dialect, cause: Cause) {
        self.count_end(dialect, &Arc::from(NO_REPOSITORY), cause);
    }

    /// Counts a session that ended after this time.
    pub(crate) fn end(&self, meter: &Meter, cause: Cause, length: Duration) {
        self.count_end(meter.dialect, &meter.repository, cause);
        self.session_seconds.get_or_create(&Kind { dialect: meter.dialect.name() }).observe(length.as_secs_f64());
    }

    fn count_end(&self, dialect: Dialect, repository: &Arc<str>, cause: Cause) {
        let (dialect, repository) = (dialect.name(), Arc::clone(repository));
        self.ended.get_or_create(&End { dialect, repository, cause: cause.name() }).inc();
    }

    /// Records how long a client waited for its session.
    pub(crate) fn waited(&self, dialect: Dialect, since: Instant) {
        self.wait_seconds.get_or_create(&Kind { dialect: dialect.name() }).observe(since.elapsed().as_secs_f64());
    }

    /// Reads a piece of the tree or the store, and records how long that takes.
    pub(crate) fn time_read<T>(&self, read: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = read();
        self.read_seconds.observe(began.elapsed().as_secs_f64());
        result
    }

    /// Returns the sums over all repositories of what `of` returns, for one kind of client.
    pub(crate) fn total(&self, dialect: Dialect, of: impl Fn(&Meter) -> u64) -> u64 {
        let meters = self.meters.read().unwrap_or_else(PoisonError::into_inner);
        meters.by_client.values().filter(|meter| meter.dialect == dialect).map(|meter| of(meter)).sum()
    }

    /// Returns the bytes sent to clients of one kind, also for repositories that are gone.
    pub(crate) fn sent_ever(&self, dialect: Dialect) -> u64 {
        let meters = self.meters.read().unwrap_or_else(PoisonError::into_inner);
        let before = meters.sent_before.get(&dialect).copied().unwrap_or(0);
        drop(meters);
        before + self.total(dialect, |meter| meter.sent.get())
    }

    /// Returns the number of sessions of one kind that run now, for one repository or for all.
    pub(crate) fn running(&self, dialect: Dialect, repository: Option<&str>) -> u64 {
        let is_meant = |meter: &Meter| repository.is_none_or(|name| meter.repository() == name);
        let running = |meter: &Meter| u64::try_from(meter.sessions.get()).unwrap_or(0);
        self.total(dialect, |meter| if is_meant(meter) { running(meter) } else { 0 })
    }

    /// Returns the bytes of files from one source, over all clients.
    pub(crate) fn contents_from(&self, source: Source) -> u64 {
        let of = |meter: &Meter| meter.contents[source as usize].get();
        [Dialect::Native, Dialect::Rsync].map(|dialect| self.total(dialect, of)).into_iter().sum()
    }

    /// Forgets the repositories that are not configured any more.
    pub(crate) fn retain(&self, is_configured: impl Fn(&str) -> bool) {
        let mut meters = self.meters.write().unwrap_or_else(PoisonError::into_inner);
        let is_kept = |name: &str| name == NO_REPOSITORY || is_configured(name);
        let gone: Vec<_> = meters.by_client.extract_if(|(_, name), _| !is_kept(name)).map(|(_, meter)| meter).collect();
        for meter in gone {
            *meters.sent_before.entry(meter.dialect).or_default() += meter.sent.get();
            self.forget(&meter);
        }
    }

    fn forget(&self, meter: &Meter) {
        let client = Client { dialect: meter.dialect.name(), repository: Arc::clone(&meter.repository) };
        for family in [&self.sent, &self.received, &self.files] {
            family.remove(&client);
        }
        self.sessions.remove(&client);
        let Client { dialect, repository } = client;
        for source in Source::ALL.map(Source::name) {
            self.contents.remove(&Content { dialect, repository: Arc::clone(&repository), source });
        }
        for reason in ["stale", "unreadable"] {
            self.not_sent.remove(&NotSent { repository: Arc::clone(&repository), reason });
        }
        for cause in Cause::ALL.iter().map(|cause| cause.name()) {
            self.ended.remove(&End { dialect, repository: Arc::clone(&repository), cause });
        }
    }

    /// Registers all counters.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("sent_bytes", "Bytes sent to clients", self.sent.clone());
        registry.register("received_bytes", "Bytes received from clients", self.received.clone());
        registry.register("sent_files", "Files that were sent completely", self.files.clone());
        let help = "Bytes of file contents, by where they came from";
        registry.register("content_bytes", help, self.contents.clone());
        let help =
            "Files that were not sent because they are not the indexed ones (stale) or cannot be read (unreadable)";
        registry.register("files_not_sent", help, self.not_sent.clone());
        registry.register("sessions", "Sessions that run now, and followers", self.sessions.clone());
        let help = "Sessions and other connections that ended, by cause";
        registry.register("connections_ended", help, self.ended.clone());
        let help = "Length of sessions in seconds, with the time in the queue";
        registry.register("session_seconds", help, self.session_seconds.clone());
        let help = "Time in seconds that clients waited for a session";
        registry.register("queue_wait_seconds", help, self.wait_seconds.clone());
        let help = "Time in seconds that reading a piece of up to 1 MiB or 128 files took";
        registry.register("read_seconds", help, self.read_seconds.clone());
    }
}
