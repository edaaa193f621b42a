//! The daemon: serves generations to any number of receivers, and does no work for any one of them that
//! the index has done for all.
//!
//! ```text
//! listener    accepts, tells the dialect by the first bytes, admits or queues
//! session     native: one reader of requests, a lane of answers from the index, a lane of data
//! stream      the data lane of every dialect: read ahead, sent in order, never copied
//! registry    the repositories and their current generations, replaced while sessions go on
//! lists       encoded file lists for stock clients, built once and mapped
//! gate        work that blocks, on threads of its own: reads, and lists for single clients
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
mod bandwidth;
mod config;
mod damage;
mod descriptors;
mod direct;
mod extents;
mod file;
mod gate;
mod listener;
mod lists;
mod operator_file;
mod pack;
mod pipe;
mod pool;
mod registry;
mod session;
mod stream;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stillmirror_protocol::rsync::rules::RuleError;
use stillmirror_store::StoreError;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use access::{HostPattern, HostPatternError, Hosts, SecretsError, Users};
pub use config::{
    Compression, Config, DirectPolicy, Limits, Memory, ModuleConfig, ModuleRules, RepositoryConfig, RsyncConfig,
};
pub use stillmirror_protocol::rsync::chmod::Chmod;
pub use stillmirror_protocol::rsync::requests::RuleLimits;

use admission::Admission;
use bandwidth::Bucket;
use extents::Extents;
use gate::Gate;
use listener::{Port, Strangers};
use pack::Packs;
use pipe::{PIPES, Pipes};
use pool::Pool;
use registry::Registry;

/// Stores are not looked at more often than this, however short [`Config::reload_interval`] is.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);
/// Searches in clients' rules that may wait for their turn: each holds its rules, and any of them can take seconds.
const SEARCHES: usize = 16;

/// Why a daemon does not start or ends.
#[derive(Debug, Error)]
pub enum DaemonError {
    // The operator's.
    /// A repository's tree cannot be opened.
    #[error("repository '{repository}': cannot open its root {}: {source}", .root.display())]
    Root {
        /// The repository.
        repository: String,
        /// Its root.
        root: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A repository's passwords cannot be had.
    #[error("repository '{repository}': {source}")]
    Secrets {
        /// The repository.
        repository: String,
        /// Why.
        source: SecretsError,
    },
    /// A repository's rules are none.
    #[error("repository '{repository}': {source}")]
    Rules {
        /// The repository.
        repository: String,
        /// Why.
        source: RuleError,
    },
    /// A file of patterns cannot be read.
    #[error("repository '{repository}': cannot read the patterns in {}: {source}", .file.display())]
    Patterns {
        /// The repository.
        repository: String,
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A store belongs to another repository.
    #[error(transparent)]
    Store(StoreError),

    // The system's.
    /// The listening socket is of no use.
    #[error("cannot accept connections: {0}")]
    Listener(#[source] io::Error),
    /// A thread of the daemon's own died.
    #[error("a worker thread died: {0}")]
    Worker(#[source] tokio::task::JoinError),
}

/// Serves until `shutdown` is done, then lets what runs finish within [`Limits::drain`].
pub async fn run(
    listeners: impl Into<Listeners>,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    Daemon::open(config).await?.run(listeners, shutdown).await
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
    shared: Arc<Shared>,
    reload: Arc<Notify>,
    config: Config,
}

/// What all sessions share.
struct Shared {
    registry: Registry,
    limits: Limits,
    pool: Arc<Pool>,
    extents: Arc<Extents>,
    packs: Arc<Packs>,
    pipes: Arc<Pipes>,
    admission: Arc<Admission>,
    /// Places for connections of every kind, as many as there are descriptors for.
    sockets: Arc<Semaphore>,
    strangers: Arc<Strangers>,
    /// The limit on what all sessions send, if there is one.
    bandwidth: Option<Arc<Bucket>>,
    rsync: RsyncConfig,
    /// Whose turn it is to encode a list, or to find out whether it need be.
    builder: Semaphore,
    /// Places for those who wait for that turn with rules of a client.
    searches: Arc<Semaphore>,
    /// Filters, names and lists of single stock clients: beside the reads, which must not wait for them.
    choosing: Gate,
    /// The daemon stops: nothing new is begun.
    stopping: CancellationToken,
    /// The daemon ends: what runs is cut off.
    ending: CancellationToken,
}

impl Daemon {
    /// Opens the repositories' trees, stores and current generations. A repository whose store or
    /// generation cannot be used is logged and announced as not indexed.
    pub async fn open(config: Config) -> Result<Self, DaemonError> {
        let (repositories, queue) = (config.repositories.clone(), config.limits.queue);
        let opened = tokio::task::spawn_blocking(move || Registry::open(&repositories, queue)).await;
        let extents = Extents::new(config.memory.cache);
        let sockets = descriptors::connections(&config);
        let shared = Shared {
            registry: opened.map_err(DaemonError::Worker)??,
            limits: config.limits.clone(),
            // What the cache keeps comes out of the pool, and leaves `buffers` for the sessions.
            pool: Pool::new(config.memory.cache.saturating_add(config.memory.buffers)),
            packs: Packs::new(extents.window()),
            pipes: Pipes::new(PIPES),
            extents,
            admission: Admission::new(config.limits.connections, config.limits.queue),
            sockets: Arc::new(Semaphore::new(sockets.min(Semaphore::MAX_PERMITS))),
            strangers: Arc::default(),
            bandwidth: Bucket::new(config.limits.bandwidth),
            rsync: config.rsync.clone(),
            builder: Semaphore::new(1),
            searches: Arc::new(Semaphore::new(SEARCHES)),
            // Some wait for a page of a list.
            choosing: Gate::new(2 * std::thread::available_parallelism().map_or(1, usize::from)),
            stopping: CancellationToken::new(),
            ending: CancellationToken::new(),
        };
        Ok(Self { shared: Arc::new(shared), reload: Arc::new(Notify::new()), config })
    }

    /// A handle that makes the daemon look for new generations at once.
    pub fn reload_handle(&self) -> Reload {
        Reload(Arc::clone(&self.reload))
    }

    /// Serves until `shutdown` is done, then lets what runs finish within [`Limits::drain`].
    pub async fn run(
        self,
        listeners: impl Into<Listeners>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), DaemonError> {
        let Listeners { all, rsync } = listeners.into();
        let sessions = TaskTracker::new();
        let reloader = tokio::spawn(reload(Arc::clone(&self.shared), self.reload, self.config.reload_interval));
        let result = tokio::select! {
            result = listener::accept(all, Port::Any, &self.shared, &sessions) => result,
            result = accept_rsync(rsync, &self.shared, &sessions) => result,
            () = shutdown => Ok(()),
        };
        self.shared.stopping.cancel();
        reloader.abort();
        sessions.close();
        if timeout(self.shared.limits.drain, sessions.wait()).await.is_err() {
            tracing::warn!(sessions = sessions.len(), "ending sessions that did not finish in time");
            self.shared.ending.cancel();
            sessions.wait().await;
        }
        result
    }
}

async fn accept_rsync(
    listener: Option<TcpListener>,
    shared: &Arc<Shared>,
    sessions: &TaskTracker,
) -> Result<(), DaemonError> {
    match listener {
        Some(listener) => listener::accept(listener, Port::Rsync, shared, sessions).await,
        None => std::future::pending().await,
    }
}

/// Makes a daemon look for new generations at once.
#[derive(Clone)]
pub struct Reload(Arc<Notify>);

impl Reload {
    /// Does so.
    pub fn reload(&self) {
        self.0.notify_one();
    }
}

async fn reload(shared: Arc<Shared>, now: Arc<Notify>, interval: Duration) {
    let (mut is_first, interval) = (true, interval.max(LEAST_INTERVAL));
    loop {
        let (shared, always) = (Arc::clone(&shared), std::mem::take(&mut is_first));
        let look = move || {
            for repository in shared.registry.all() {
                if repository.reload() || always {
                    lists::sweep(&shared, repository);
                }
                repository.prepare();
            }
        };
        if tokio::task::spawn_blocking(look).await.is_err() {
            tracing::error!("looking for new generations failed");
        }
        let _ = timeout(interval, now.notified()).await;
    }
}
