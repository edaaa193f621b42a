//! The daemon serves generations to any number of receivers. It does no work for a single receiver that the
//! index has already done for all of them.
//!
//! ```text
//! listener    accepts connections and detects the dialect from the first bytes
//! admission   the session limit and the queue
//! pinned      the edition that a session holds
//! shared      the state that all sessions share
//! strangers   the limit on connections that have not identified themselves yet
//! session     native: one reader of requests, a lane of answers from the index, a lane of data; followers, which wait
//!             for the next edition
//! stream      the data lane of every dialect: reads ahead, sends in order, never copies
//! registry    the repositories that are served
//! repository  access rules of one repository, and its edition, which is replaced while sessions run
//! store_watch notices at once that a store has a new generation
//! cause       why sessions end, as logs and metrics name it
//! edition     a generation and its tree, opened together, with the gates for work on them
//! visible     the repositories as one client sees them
//! logins      failed logins, and the delay that they impose on the next one
//! lists       encoded file lists for stock clients, built once and mapped
//! list_memory the memory budget for lists of single clients
//! networks    which addresses count as one client, and how many connections each has
//! fair        limited resources, shared in turns by network: session slots, threads, memory
//! choosing    CPU-bound work for single stock clients: rules, names, their own lists
//! background  blocking threads of low priority, for clients' own rules
//! pace        cooperative yielding for tasks that always find something to do
//! gate        blocking work, on its own threads
//! source      where the bytes of a file come from
//! extents     cached parts of files, read once for all sessions that want them
//! convoy      keeps sessions together that stream the same file
//! file, pool  opening beneath the root, direct reads, and the bounded buffers for them
//! pipe        pages on their way from the page cache to a socket
//! metrics     counters of what is done for clients
//! status      what the daemon tells about itself: metrics, a page, JSON, over HTTP
//! bandwidth   rate limits: per connection, per repository, overall
//! direct      the one module with `unsafe`: aligned memory, and system calls for direct I/O
//! ```
//!
//! The protocol is described in `docs/native-protocol.md`.
#![deny(unsafe_code)]
// Code that a peer, a disk or a user can reach must not panic. Tests may.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod access;
mod admission;
mod background;
mod bandwidth;
mod cause;
mod choosing;
mod config;
mod convoy;
mod damage;
mod descriptors;
mod dialect;
mod direct;
mod edition;
mod ended;
mod error;
mod extents;
mod fair;
mod file;
mod gate;
mod list_forms;
mod list_memory;
mod listener;
mod lists;
mod logins;
mod metrics;
mod mounted;
mod networks;
mod operator_file;
mod pace;
mod pinned;
mod pipe;
mod pool;
mod registry;
mod repository;
mod session;
mod shared;
mod source;
mod status;
mod store_watch;
mod strangers;
mod stream;
mod visible;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

pub use access::{HostPattern, HostPatternError, Hosts, SecretsError, Users};
pub use config::{
    Compression, Config, DirectPolicy, Limits, Memory, ModuleConfig, ModuleRules, RepositoryConfig, RsyncConfig,
};
pub use error::DaemonError;
pub use listener::{Listeners, Port};
pub use status::{Budget, ByClient, MirrorReport, MirrorStatus, Ports, Report, SenderReport, Traffic};
pub use stillmirror_protocol::rsync::chmod::Chmod;
pub use stillmirror_protocol::rsync::requests::RuleLimits;

use edition::Gates;
use registry::Registry;
use repository::{Look, OpenError, Repository};
use shared::ServerState;
use store_watch::StoreWatch;

/// The shortest interval between checks of a store, however short [`Config::reload_interval`] is.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
/// The pause between the change of a store and the look at it. A pull switches its tree right after it publishes.
const SETTLING: Duration = Duration::from_millis(20);
/// The pause before the next look, if the tree did not fit the generation at an early one.
const UNSETTLED: Duration = Duration::from_millis(200);
/// Threads for work that belongs to no repository: messages of the day, list encoding, name lookups.
const OTHER_THREADS: usize = 64;
/// How long to wait, in all, for sessions that were cut off and for threads that hang.
const FINAL_TIMEOUT: Duration = Duration::from_millis(4500);

/// Returns how many threads blocking work can occupy if all of it hangs in every one of `repositories`
/// repositories.
pub fn blocking_threads(repositories: usize) -> usize {
    repositories.saturating_mul(Gates::THREADS).saturating_add(OTHER_THREADS)
}

/// Serves until `shutdown` completes, then lets running requests finish within [`Limits::drain`].
pub async fn run(
    listeners: impl Into<Listeners>,
    config: Config,
    reload: Reload,
    shutdown: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let mut shutdown = std::pin::pin!(shutdown);
    let daemon = tokio::select! {
        daemon = Daemon::open(config) => daemon?.reloaded_by(reload),
        () = &mut shutdown => return Ok(()),
    };
    daemon.run(listeners, shutdown).await
}

/// A daemon that is ready to serve.
pub struct Daemon {
    shared: Arc<ServerState>,
    reload: Reload,
    config: Config,
}

impl Daemon {
    /// Opens the repositories' trees, stores and current generations. A repository that cannot be opened
    /// completely is logged, and is unavailable until it can be opened.
    pub async fn open(config: Config) -> Result<Self, DaemonError> {
        let registry = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || Registry::new(&config)).await.map_err(DaemonError::Worker)??
        };
        access::warn_if_root(config.serve_private);
        registry.open().await?;
        let shared = ServerState::new(&config, registry);
        Ok(Self { shared: Arc::new(shared), reload: Reload::default(), config })
    }

    /// Returns a handle that makes the daemon check for new generations and roots at once.
    pub fn reload_handle(&self) -> Reload {
        self.reload.clone()
    }

    /// Replaces the reload handle by one that was created before the daemon.
    fn reloaded_by(self, reload: Reload) -> Self {
        Self { reload, ..self }
    }

    /// Serves until `shutdown` completes, then lets running requests finish within [`Limits::drain`].
    pub async fn run(
        self,
        listeners: impl Into<Listeners>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), DaemonError> {
        let mut listeners: Listeners = listeners.into();
        let _ = self.shared.ports.set(listeners.ports());
        // They answer until the last session has ended.
        let _observers = status::serve(listeners.take_observed(), &self.shared);
        let sessions = TaskTracker::new();
        let mut watchers = JoinSet::new();
        let (store_watch, events) = StoreWatch::new();
        if let Some(events) = events {
            let store_watch = Arc::clone(&store_watch);
            watchers.spawn(async move { store_watch.run(events).await });
        }
        for repository in self.shared.registry.all() {
            let (shared, repository) = (Arc::clone(&self.shared), Arc::clone(repository));
            let interval = self.config.reload_interval;
            watchers.spawn(watch(shared, repository, Arc::clone(&store_watch), self.reload.0.subscribe(), interval));
        }
        let result = tokio::select! {
            result = listener::accept(listeners, &self.shared, &sessions) => result,
            () = shutdown => Ok(()),
        };
        self.shared.stopping.cancel();
        watchers.abort_all();
        sessions.close();
        if timeout(self.shared.limits.drain, sessions.wait()).await.is_err() {
            tracing::warn!(sessions = sessions.len(), "cutting off sessions that did not finish in time");
            self.shared.ending.cancel();
            if timeout(FINAL_TIMEOUT, sessions.wait()).await.is_err() {
                tracing::warn!(sessions = sessions.len(), "some sessions hang and are abandoned");
            }
        }
        result
    }
}

/// A handle that makes a daemon check for new generations and roots at once.
#[derive(Debug, Clone, Default)]
pub struct Reload(watch::Sender<u64>);

impl Reload {
    /// Checks for new generations and roots now.
    pub fn reload(&self) {
        self.0.send_modify(|requests| *requests += 1);
    }
}

/// Checks one repository for a new edition periodically, and when its store has changed. Each repository has its
/// own task, so a check that hangs does not delay the others.
async fn watch(
    shared: Arc<ServerState>,
    repository: Arc<Repository>,
    store_watch: Arc<StoreWatch>,
    mut reloads: watch::Receiver<u64>,
    interval: Duration,
) {
    let changed = Arc::new(Notify::new());
    let (mut is_first, mut look) = (true, Look::Periodic);
    loop {
        let refresh = {
            let (shared, repository, is_first) = (Arc::clone(&shared), Arc::clone(&repository), is_first);
            let (store_watch, changed) = (Arc::clone(&store_watch), Arc::clone(&changed));
            move || {
                // First, so that no change is missed.
                store_watch.add(repository.store_dir(), &changed);
                let refreshed = repository.refresh(look);
                if matches!(refreshed, Ok(true)) || is_first {
                    shared.lists.sweep(&repository);
                }
                look == Look::Early && matches!(refreshed, Err(OpenError::OtherRoot { .. } | OpenError::Root { .. }))
            }
        };
        let is_unsettled = tokio::task::spawn_blocking(refresh).await.unwrap_or_else(|_| {
            tracing::error!(repository = repository.name, "the check for a new generation panicked");
            false
        });
        is_first = false;
        let pause = if is_unsettled { interval.min(UNSETTLED) } else { interval };
        look = tokio::select! {
            Ok(()) = reloads.changed() => Look::Forced,
            () = changed.notified() => {
                sleep(SETTLING).await;
                Look::Early
            }
            () = sleep(pause.max(MIN_INTERVAL)) => Look::Periodic,
        };
    }
}
