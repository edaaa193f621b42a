//! The daemon: serves generations to any number of receivers, and does no work for any one of them that
//! the index has done for all.
//!
//! ```text
//! listener    accepts, tells the dialect by the first bytes, admits or queues
//! pinned      the edition that a session keeps
//! shared      what all sessions share; strangers: connections that have not said what they are
//! session     native: one reader of requests, a lane of answers from the index, a lane of data
//! stream      the data lane of every dialect: read ahead, sent in order, never copied
//! registry    the repositories that are served
//! repository  who may have it, and its edition, which is replaced while sessions go on
//! edition     a generation and its tree, opened together, with the gates of the work on them
//! visible     what a client sees of them
//! logins      those that failed, and how long the next one waits
//! lists       encoded file lists for stock clients, built once and mapped
//! list_memory what lists of single clients may take together
//! networks    which addresses count as one client, and how many connections each has
//! fair        what there is only so much of, in turns by network: sessions' places, threads, memory
//! choosing    work of cores for single stock clients: rules, names, their own lists
//! pace        turns of tasks that always find something to do
//! gate        work that blocks, on threads of its own
//! extents     parts of files in memory, read once for all that want them
//! pack        keeps together who wants the same file at the same time
//! file, pool  opening beneath the root, direct reads, the bounded buffers they go to
//! pipe        pages on their way from the page cache to a socket
//! bandwidth   how fast bytes may leave: a connection's, a repository's, all together
//! direct      the one module with `unsafe`: aligned memory, and questions to the kernel
//! ```
//!
//! The protocol is described in `docs/native-protocol.md`.
#![deny(unsafe_code)]
// What a peer, a disk or a user can reach must not panic; tests may.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod access;
mod admission;
mod background;
mod bandwidth;
mod choosing;
mod config;
mod convoy;
mod damage;
mod descriptors;
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
mod strangers;
mod stream;
mod visible;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

pub use access::{HostPattern, HostPatternError, Hosts, SecretsError, Users};
pub use config::{
    Compression, Config, DirectPolicy, Limits, Memory, ModuleConfig, ModuleRules, RepositoryConfig, RsyncConfig,
};
pub use error::DaemonError;
pub use stillmirror_protocol::rsync::chmod::Chmod;
pub use stillmirror_protocol::rsync::requests::RuleLimits;

use edition::Gates;
use listener::Port;
use registry::Registry;
use repository::Repository;
use shared::ServerState;

/// Stores are not looked at more often than this, however short [`Config::reload_interval`] is.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);
/// Threads for all that is no repository's: messages, lists that are encoded, name lookups.
const OTHER_THREADS: usize = 64;
/// How long sessions that are cut off, and threads that hang, are waited for in all.
const LAST_PATIENCE: Duration = Duration::from_millis(4500);

/// Threads for work that may block, when all of it hangs in each of so many repositories.
pub fn blocking_threads(repositories: usize) -> usize {
    repositories.saturating_mul(Gates::THREADS).saturating_add(OTHER_THREADS)
}

/// Serves until `shutdown` is done, then lets what runs finish within [`Limits::drain`].
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

/// The sockets that a daemon listens on.
#[derive(Debug)]
pub struct Listeners {
    /// For clients of every kind.
    pub all: TcpListener,
    /// For stock rsync clients alone.
    pub rsync: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    fn from(all: TcpListener) -> Self {
        Self { all, rsync: None }
    }
}

/// A daemon that is ready to serve.
pub struct Daemon {
    shared: Arc<ServerState>,
    reload: Reload,
    config: Config,
}

impl Daemon {
    /// Opens the repositories' trees, stores and current generations. A repository of which something cannot be
    /// opened is logged, and unavailable until it can.
    pub async fn open(config: Config) -> Result<Self, DaemonError> {
        let registry = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || Registry::new(&config)).await.map_err(DaemonError::Worker)??
        };
        access::tell_of_root(config.serve_private);
        registry.open().await?;
        let shared = ServerState::new(&config, registry);
        Ok(Self { shared: Arc::new(shared), reload: Reload::default(), config })
    }

    /// A handle that makes the daemon look for new generations and roots at once.
    pub fn reload_handle(&self) -> Reload {
        self.reload.clone()
    }

    /// The same, with a handle that was there before the daemon.
    fn reloaded_by(self, reload: Reload) -> Self {
        Self { reload, ..self }
    }

    /// Serves until `shutdown` is done, then lets what runs finish within [`Limits::drain`].
    pub async fn run(
        self,
        listeners: impl Into<Listeners>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), DaemonError> {
        let Listeners { all, rsync } = listeners.into();
        let sessions = TaskTracker::new();
        let mut watchers = JoinSet::new();
        for repository in self.shared.registry.all() {
            let (shared, repository) = (Arc::clone(&self.shared), Arc::clone(repository));
            watchers.spawn(keep_up(shared, repository, self.reload.0.subscribe(), self.config.reload_interval));
        }
        let result = tokio::select! {
            result = listener::accept(all, Port::Any, &self.shared, &sessions) => result,
            result = accept_rsync(rsync, &self.shared, &sessions) => result,
            () = shutdown => Ok(()),
        };
        self.shared.stopping.cancel();
        watchers.abort_all();
        sessions.close();
        if timeout(self.shared.limits.drain, sessions.wait()).await.is_err() {
            tracing::warn!(sessions = sessions.len(), "ending sessions that did not finish in time");
            self.shared.ending.cancel();
            if timeout(LAST_PATIENCE, sessions.wait()).await.is_err() {
                tracing::warn!(sessions = sessions.len(), "some sessions hang, and are left behind");
            }
        }
        result
    }
}

async fn accept_rsync(
    listener: Option<TcpListener>,
    shared: &Arc<ServerState>,
    sessions: &TaskTracker,
) -> Result<(), DaemonError> {
    match listener {
        Some(listener) => listener::accept(listener, Port::Rsync, shared, sessions).await,
        None => std::future::pending().await,
    }
}

/// Makes a daemon look for new generations and roots at once.
#[derive(Debug, Clone, Default)]
pub struct Reload(watch::Sender<u64>);

impl Reload {
    /// Does so.
    pub fn reload(&self) {
        self.0.send_modify(|asked| *asked += 1);
    }
}

/// Looks for a new edition of one repository again and again. A look that hangs holds up no other repository's.
async fn keep_up(
    shared: Arc<ServerState>,
    repository: Arc<Repository>,
    mut asked: watch::Receiver<u64>,
    interval: Duration,
) {
    let (mut is_first, mut is_asked) = (true, false);
    loop {
        let look = {
            let (shared, repository, is_first) = (Arc::clone(&shared), Arc::clone(&repository), is_first);
            move || {
                if matches!(repository.look(is_asked), Ok(true)) || is_first {
                    shared.lists.sweep(&repository);
                }
            }
        };
        if tokio::task::spawn_blocking(look).await.is_err() {
            tracing::error!(repository = repository.name, "looking for a new generation failed");
        }
        is_first = false;
        is_asked = matches!(timeout(interval.max(LEAST_INTERVAL), asked.changed()).await, Ok(Ok(())));
    }
}
