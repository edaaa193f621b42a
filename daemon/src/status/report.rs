//! The state of the daemon at one moment.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use stillmirror_store::SenderSeen;

use crate::dialect::Dialect;
use crate::metrics::INTERVAL;
use crate::pipe::PIPES;
use crate::repository::Repository;
use crate::settings::Settings;
use crate::shared::ServerState;
use crate::source::Source;

/// Who reads a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// The operator, who may see every repository, and errors with paths of the host.
    Operator,
    /// Anybody: only listed repositories, and no paths.
    Public,
}

/// The state of a daemon at one moment: the content of `/status.json`. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of the daemon.
    pub version: String,
    /// The time of the report.
    pub time_ts: i64,
    /// When the daemon was started.
    pub started_ts: i64,
    /// Whether the daemon takes new sessions and has something to serve.
    pub ready: bool,
    /// Whether the daemon shuts down.
    pub draining: bool,
    /// The ports that clients connect to.
    pub ports: Ports,
    /// The repositories, in the order of the configuration.
    pub mirrors: Vec<MirrorReport>,
    /// Sessions that run now.
    pub sessions: ByClient,
    /// Followers.
    pub followers: u64,
    /// Open connections of clients, in any state.
    pub connections: u64,
    /// The addresses that these come from; addresses that share their limits count as one.
    pub addresses: u64,
    /// Clients in the queue for a session, of the daemon or of a repository.
    pub waiting: u64,
    /// Bytes sent since the start.
    pub sent_bytes: ByClient,
    /// Bytes of file contents sent since the start, by where they came from.
    pub content_bytes: BTreeMap<String, u64>,
    /// What is limited, and how much of it is used.
    pub budgets: Vec<Budget>,
    /// The traffic of the last hours.
    pub traffic: Traffic,
}

/// One repository. The names of the first five fields are those that programs expect which watch many mirrors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorReport {
    /// The name.
    pub name: String,
    /// Whether it is served, and whether the last look at its store succeeded.
    pub status: MirrorStatus,
    /// When the served generation was published in this host's store, as text.
    pub last_update: Option<String>,
    /// The same as a number.
    pub last_update_ts: Option<i64>,
    /// The total size of its files, with a binary unit: `1.4T`.
    pub size: String,
    /// The description for clients.
    pub comment: String,
    /// Why the last look failed. Only the operator is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The number of the served generation at its origin.
    pub generation: Option<u64>,
    /// When the generation was indexed at its origin.
    pub created_ts: Option<i64>,
    /// Seconds since then.
    pub age: Option<i64>,
    /// Seconds from the indexing at the origin to the publication in this host's store.
    pub delay: Option<i64>,
    /// What the sender had when it was asked last, if the repository is pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<SenderReport>,
    /// By how many seconds the sender's generation is newer than the served one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<i64>,
    /// Until when receivers accept the signature of the generation, if it is signed.
    pub expires_ts: Option<i64>,
    /// What was selected, if only a part of the origin's tree is here.
    pub slice: Option<String>,
    /// The total size of its files in bytes.
    pub bytes: u64,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// Devices, fifos and sockets.
    pub specials: u64,
    /// Whether native clients are served.
    pub native: bool,
    /// Whether rsync clients are served.
    pub rsync: bool,
    /// Whether a login is required.
    pub login: bool,
    /// Sessions that run now.
    pub sessions: ByClient,
    /// Bytes sent since the start.
    pub sent_bytes: ByClient,
    /// Files that are known to be rotten in the tree.
    pub rotten_files: u64,
    /// How often damage was found in each part of the store of this generation.
    pub damage: BTreeMap<String, u64>,
}

/// The generation that a sender had when it was asked last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SenderReport {
    /// Its number at the origin.
    pub generation: u64,
    /// When it was indexed at the origin.
    pub created_ts: i64,
    /// When the sender was asked.
    pub asked_ts: i64,
}

/// The ports that clients connect to. There is none if no socket is for these clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ports {
    /// The port for clients of every kind.
    pub native: Option<u16>,
    /// The port for rsync clients only.
    pub rsync: Option<u16>,
}

/// Whether a repository is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MirrorStatus {
    /// It is served, and nothing newer waits.
    Success,
    /// Its store or its tree cannot be opened. An earlier generation may still be served.
    Failed,
    /// It is not indexed yet.
    None,
}

/// A number for native clients and one for rsync clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ByClient {
    /// Native clients. Their followers count where bytes are meant.
    pub native: u64,
    /// Stock rsync clients.
    pub rsync: u64,
}

/// A limited resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Its name.
    pub name: String,
    /// How much is used. The unit is that of the limit: bytes for `cache`, `buffers`, `list_memory` and `cached_lists`.
    pub used: u64,
    /// How much there is.
    pub limit: u64,
}

/// The bytes sent in each interval of the last hours.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// The length of an interval in seconds.
    pub interval: u64,
    /// When the first interval began.
    pub first_ts: u64,
    /// Bytes to native clients.
    pub native: Vec<u64>,
    /// Bytes to rsync clients.
    pub rsync: Vec<u64>,
}

impl Report {
    /// Takes the state of the daemon for one reader.
    pub(super) fn of(shared: &ServerState, audience: Audience) -> Self {
        let metrics = &shared.metrics;
        let now = seconds(SystemTime::now());
        sample_traffic(shared);
        let settings = shared.settings();
        let repositories = settings.registry.all();
        let is_shown = |repository: &&Repository| audience == Audience::Operator || repository.is_listed;
        let draining = shared.leaving.is_cancelled();
        let own_queues = repositories.iter().filter_map(|repository| repository.admission.as_ref());
        let waiting = own_queues.chain([&shared.admission]).map(|admission| admission.waiting() as u64).sum();
        let (connections, addresses) = shared.networks.open();
        let content = |source: Source| (source.name().to_owned(), metrics.contents_from(source));
        let (first_ts, intervals) = metrics.history.intervals();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time_ts: now,
            started_ts: seconds(shared.started),
            ready: !draining && repositories.iter().any(|repository| repository.current().is_some()),
            draining,
            ports: shared.ports.get().copied().unwrap_or_default(),
            mirrors: repositories
                .iter()
                .map(|repository| &**repository)
                .filter(is_shown)
                .map(|repository| MirrorReport::of(shared, &settings, repository, audience, now))
                .collect(),
            sessions: ByClient::of(|dialect| metrics.running(dialect, None)),
            followers: metrics.running(Dialect::Follower, None),
            connections: connections as u64,
            addresses: addresses as u64,
            waiting,
            sent_bytes: sent(shared),
            content_bytes: Source::ALL.into_iter().map(content).collect(),
            budgets: budgets(shared, &settings),
            traffic: Traffic {
                interval: INTERVAL,
                first_ts,
                native: intervals.iter().map(|[native, _]| *native).collect(),
                rsync: intervals.iter().map(|[_, rsync]| *rsync).collect(),
            },
        }
    }
}

impl MirrorReport {
    fn of(shared: &ServerState, settings: &Settings, repository: &Repository, audience: Audience, now: i64) -> Self {
        let metrics = &shared.metrics;
        let edition = repository.current();
        let head = edition.as_ref().map(|edition| edition.generation.head());
        let published = edition.as_ref().map(|edition| edition.mark.published());
        let created = head.map(|head| head.created.sec);
        let counts = head.map(|head| head.counts).unwrap_or_default();
        let sender = shared.senders.seen(&repository.name);
        let lag = sender.zip(created).map(|(sender, created)| sender.created.saturating_sub(created).max(0));
        let failure = repository.failure();
        let status = match (&failure, &edition) {
            (Some(_), _) => MirrorStatus::Failed,
            (None, Some(_)) => MirrorStatus::Success,
            (None, None) => MirrorStatus::None,
        };
        let damage = edition.as_ref().map(|edition| edition.damage_log.in_store());
        let sent = |dialect| {
            metrics.total(dialect, |meter| if meter.repository() == repository.name { meter.sent.get() } else { 0 })
        };
        Self {
            name: repository.name.clone(),
            status,
            last_update: published.and_then(text),
            last_update_ts: published,
            size: with_unit(counts.bytes),
            comment: repository.comment.clone(),
            error: failure.filter(|_| audience == Audience::Operator),
            generation: head.map(|head| head.generation),
            created_ts: created,
            age: created.map(|created| now.saturating_sub(created)),
            delay: created.zip(published).map(|(created, published)| published.saturating_sub(created).max(0)),
            sender: sender.map(|SenderSeen { generation, created, asked }| SenderReport {
                generation,
                created_ts: created,
                asked_ts: asked,
            }),
            lag,
            expires_ts: head.and_then(|head| head.expires).map(|expires| expires.sec),
            slice: head.and_then(|head| head.slice.as_ref()).map(|slice| slice.selected.clone()),
            bytes: counts.bytes,
            files: counts.files,
            directories: counts.directories,
            symlinks: counts.symlinks,
            specials: counts.specials,
            native: repository.is_native && repository.users.is_everybody(),
            rsync: settings.rsync().enabled,
            login: !repository.users.is_everybody(),
            sessions: ByClient::of(|dialect| metrics.running(dialect, Some(&repository.name))),
            sent_bytes: ByClient::of(sent),
            rotten_files: edition.as_ref().map_or(0, |edition| edition.damage_log.rotten_files() as u64),
            damage: damage.into_iter().flatten().map(|(part, count)| (part.to_owned(), count)).collect(),
        }
    }
}

impl ByClient {
    fn of(number: impl Fn(Dialect) -> u64) -> Self {
        Self { native: number(Dialect::Native), rsync: number(Dialect::Rsync) }
    }
}

/// Adds what was sent since the last call to the traffic of the last hours.
pub(super) fn sample_traffic(shared: &ServerState) {
    let ByClient { native, rsync } = sent(shared);
    let now = u64::try_from(seconds(SystemTime::now())).unwrap_or(0);
    shared.metrics.history.sample(now, [native, rsync]);
}

/// Returns the bytes sent since the start.
fn sent(shared: &ServerState) -> ByClient {
    let mut sent = ByClient::of(|dialect| shared.metrics.sent_ever(dialect));
    sent.native += shared.metrics.sent_ever(Dialect::Follower);
    sent
}

fn budgets(shared: &ServerState, settings: &Settings) -> Vec<Budget> {
    let limits = settings.limits();
    let (buffers, in_use) = shared.pool.bytes();
    let (cache, cached) = shared.extents.bytes();
    let (strangers, known) = shared.strangers.count();
    let followers = shared.metrics.running(Dialect::Follower, None);
    let budgets = [
        ("sessions", shared.admission.slots()),
        ("queue", (limits.queue as u64, shared.admission.waiting() as u64)),
        ("followers", (limits.followers as u64, followers)),
        ("strangers", (strangers as u64, known as u64)),
        ("cache", (cache, cached)),
        // The cache takes its buffers from the same pool.
        ("buffers", (buffers - cache.min(buffers), in_use.saturating_sub(cached))),
        ("list_memory", shared.list_memory.bytes()),
        ("cached_lists", (settings.rsync().cached_lists, shared.lists.bytes())),
        ("pipes", (PIPES as u64, shared.pipes.used() as u64)),
    ];
    let budget = |(name, (limit, used)): (&str, (u64, u64))| Budget { name: name.to_owned(), used, limit };
    budgets.into_iter().map(budget).collect()
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(since).unwrap_or(i64::MAX)
}

/// Formats a time as `2026-01-31 12:00:00 +0000`. `None` if it is beyond the calendar.
fn text(seconds: i64) -> Option<String> {
    let stamp = jiff::Timestamp::new(seconds, 0).ok()?;
    Some(stamp.strftime("%Y-%m-%d %H:%M:%S +0000").to_string())
}

/// Formats a number of bytes as `du -h` does: `512`, `1.5K`, `1.4T`.
fn with_unit(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    if bytes < 1024 {
        return bytes.to_string();
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_written_as_mirror_monitors_expect() {
        assert_eq!([0, 1023, 1024, 1_048_575, 1 << 40].map(with_unit), ["0", "1023", "1.0K", "1.0M", "1.0T"]);
        assert_eq!(text(1_000_000_000).as_deref(), Some("2001-09-09 01:46:40 +0000"));
        assert_eq!(text(i64::MAX), None);
    }
}
