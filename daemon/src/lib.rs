//! The daemon serves generations to any number of receivers. It does no work for a single receiver that the
//! index has already done for all of them.
//!
//! ```text
//! listener    accepts connections: the header of a proxy, TLS, and the dialect of the first bytes
//! admission   the session limit and the queue
//! pinned      the edition that a session holds
//! shared      the state that all sessions share
//! settings    the settings in force, which a reload replaces
//! reload      another configuration for a daemon that runs
//! transport   the connection with a client, in the clear or encrypted
//! certificate the certificate of the TLS ports, and its key
//! strangers   the limit on connections that have not identified themselves yet
//! session     native: one reader of requests, a lane of answers from the index, a lane of data; followers, which wait
//!             for the next edition
//! stream      the data lane of every dialect: reads ahead, sends in order, never copies
//! registry    the repositories that are served
//! repository  one repository as clients may use it: access, rules, limits
//! editions    the current edition of one tree and store, which is replaced while sessions run
//! watchers    the looks for new editions
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
//! permits     permits whose number can change
//! heartbeat   tells a watchdog that connections are accepted
//! extents     cached parts of files, read once for all sessions that want them
//! convoy      keeps sessions together that stream the same file
//! file, pool  opening beneath the root, direct reads, and the bounded buffers for them
//! pipe        pages on their way from the page cache to a socket
//! metrics     counters of what is done for clients
//! status      what the daemon tells about itself: metrics, a page, JSON, over HTTP
//! probe       what a daemon would find on this host, without serving
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
mod certificate;
mod choosing;
mod config;
mod convoy;
mod damage;
mod descriptors;
mod dialect;
mod direct;
mod edition;
mod editions;
mod ended;
mod error;
mod extents;
mod fair;
mod file;
mod gate;
mod heartbeat;
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
mod permits;
mod pinned;
mod pipe;
mod pool;
pub mod probe;
mod registry;
mod reload;
mod repository;
mod session;
mod settings;
mod shared;
mod source;
mod status;
mod store_watch;
mod strangers;
mod stream;
mod transport;
mod visible;
mod watchers;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

pub use access::{HostPattern, HostPatternError, Hosts, SecretsError, Users};
pub use certificate::TlsError;
pub use config::{
    Compression, Config, DirectPolicy, Limits, Memory, ModuleConfig, ModuleRules, RepositoryConfig, RsyncConfig,
    TlsConfig,
};
pub use editions::OpenError;
pub use error::DaemonError;
pub use listener::{Listeners, Port};
pub use registry::Changes;
pub use reload::Reload;
pub use status::{Budget, ByClient, MirrorReport, MirrorStatus, Ports, Report, SenderReport, Traffic};
pub use stillmirror_protocol::rsync::chmod::Chmod;
pub use stillmirror_protocol::rsync::requests::RuleLimits;

use edition::Gates;
use heartbeat::Heartbeat;
use registry::Registry;
use settings::Settings;
use shared::ServerState;

/// Threads for work that belongs to no repository: messages of the day, list encoding, name lookups.
const OTHER_THREADS: usize = 64;
/// How long to wait, in all, for sessions that were cut off and for threads that hang.
const FINAL_TIMEOUT: Duration = Duration::from_millis(4500);

/// Returns how many threads blocking work can occupy if all of it hangs in every one of `repositories`
/// repositories.
pub fn blocking_threads(repositories: usize) -> usize {
    repositories.saturating_mul(Gates::THREADS).saturating_add(OTHER_THREADS)
}

/// A daemon that is ready to serve.
pub struct Daemon {
    shared: Arc<ServerState>,
    reload: Reload,
    heartbeat: Heartbeat,
}

impl Daemon {
    /// Opens the repositories' trees, stores and current generations. A repository that cannot be opened
    /// completely is logged, and is unavailable until it can be opened.
    pub async fn open(config: Config) -> Result<Self, DaemonError> {
        let (registry, config, tls) = {
            let read = move || {
                let tls = config.tls.as_ref().map(certificate::load).transpose()?;
                Ok::<_, DaemonError>((Registry::new(&config, None)?, config, tls))
            };
            tokio::task::spawn_blocking(read).await.map_err(DaemonError::Worker)??
        };
        access::warn_if_root(config.serve_private);
        registry.open(None).await?;
        let shared = Arc::new(ServerState::new(Settings::new(config, registry, tls, None)));
        Ok(Self { reload: Reload::new(Arc::clone(&shared)), shared, heartbeat: Heartbeat::default() })
    }

    /// Returns a handle that gives the daemon another configuration, and makes it check for new generations and roots.
    pub fn reload_handle(&self) -> Reload {
        self.reload.clone()
    }

    /// Calls `beat` every `interval`, from the task that accepts connections. If that task hangs, no call is made.
    pub fn with_heartbeat(self, interval: Duration, beat: impl FnMut() + Send + 'static) -> Self {
        Self { heartbeat: Heartbeat::new(interval, beat), ..self }
    }

    /// Serves until `shutdown` completes, then lets running requests finish within [`Limits::drain`]. If the sockets were
    /// handed over before ([`Reload::hand_over`]), all clients may finish within [`Limits::upgrade_drain`].
    pub async fn run(
        self,
        listeners: impl Into<Listeners>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), DaemonError> {
        let Self { shared, reload, mut heartbeat } = self;
        let mut listeners: Listeners = listeners.into();
        let _ = shared.ports.set(listeners.ports());
        // They answer until the last session has ended.
        let mut observers = status::serve(listeners.take_observed(), &shared);
        let sessions = TaskTracker::new();
        let serving = async {
            let mut shutdown = pin!(shutdown);
            let mut watching = pin!(watchers::watch(&shared, &reload));
            tokio::select! {
                result = listener::accept(listeners, &shared, &sessions) => return result,
                never = &mut watching => match never {},
                () = shared.leaving.cancelled() => {}
                () = &mut shutdown => return Ok(()),
            }
            sessions.close();
            // Those of the other process answer now.
            observers.abort_all();
            tokio::select! {
                never = &mut watching => match never {},
                () = sessions.wait() => {}
                () = sleep(shared.settings().limits().upgrade_drain) => {}
                () = shutdown => {}
            }
            Ok(())
        };
        let result = tokio::select! {
            result = serving => result,
            never = heartbeat.run() => match never {},
        };
        tokio::select! {
            () = end(&shared, &sessions) => result,
            never = heartbeat.run() => match never {},
        }
    }
}

/// Lets running requests finish, and then cuts off the sessions that are left.
async fn end(shared: &ServerState, sessions: &TaskTracker) {
    shared.stopping.cancel();
    sessions.close();
    if timeout(shared.settings().limits().drain, sessions.wait()).await.is_ok() {
        return;
    }
    tracing::warn!(sessions = sessions.len(), "cutting off sessions that did not finish in time");
    shared.ending.cancel();
    if timeout(FINAL_TIMEOUT, sessions.wait()).await.is_err() {
        tracing::warn!(sessions = sessions.len(), "some sessions hang and are abandoned");
    }
}
