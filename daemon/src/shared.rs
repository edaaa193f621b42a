//! The state that all sessions share.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::bandwidth::Bucket;
use crate::choosing::Accounts;
use crate::config::{Config, Limits, RsyncConfig};
use crate::convoy::Convoys;
use crate::descriptors;
use crate::extents::Extents;
use crate::fair::Pot;
use crate::gate::Gate;
use crate::list_memory::ListMemory;
use crate::lists::Lists;
use crate::logins::Logins;
use crate::metrics::Metrics;
use crate::networks::Networks;
use crate::pipe::{PIPES, Pipes};
use crate::pool::Pool;
use crate::registry::Registry;
use crate::status::{Ports, Senders};
use crate::strangers::Strangers;

/// Maximum number of concurrent reads of the message of the day.
const MESSAGES: usize = 4;

/// The state that all sessions share.
pub(crate) struct ServerState {
    pub(crate) registry: Registry,
    pub(crate) metrics: Arc<Metrics>,
    /// What is known of the senders of pulled repositories.
    pub(crate) senders: Arc<Senders>,
    /// When the daemon was started.
    pub(crate) started: SystemTime,
    /// The ports that clients connect to, once they are known.
    pub(crate) ports: OnceLock<Ports>,
    pub(crate) limits: Limits,
    pub(crate) pool: Arc<Pool>,
    pub(crate) extents: Arc<Extents>,
    pub(crate) convoys: Arc<Convoys>,
    pub(crate) pipes: Arc<Pipes>,
    pub(crate) admission: Arc<Admission>,
    /// Permits for connections of every kind, one for each descriptor that they may need.
    pub(crate) sockets: Arc<Semaphore>,
    pub(crate) strangers: Arc<Strangers>,
    /// Permits for followers.
    pub(crate) followers: Arc<Semaphore>,
    /// The memory budget for lists of single clients.
    pub(crate) list_memory: Arc<ListMemory>,
    /// The number of connections from each network.
    pub(crate) networks: Arc<Networks>,
    /// The rate limit for all sessions together, if there is one.
    pub(crate) bandwidth: Option<Arc<Bucket>>,
    pub(crate) rsync: RsyncConfig,
    /// The encoded lists of all repositories.
    pub(crate) lists: Arc<Lists>,
    pub(crate) logins: Logins,
    /// The gate for reading the message of the day, since its file may hang like any other.
    pub(crate) messages: Gate,
    /// Turns for finding out whether a client's rules match anything.
    pub(crate) searches: Arc<Pot>,
    /// The comparison steps that the rules of each network have cost.
    pub(crate) accounts: Accounts,
    /// Cancelled when the daemon stops: nothing new is started.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when the drain timeout has passed: running sessions are cut off.
    pub(crate) ending: CancellationToken,
}

impl ServerState {
    /// Creates the state from a configuration.
    pub(crate) fn new(config: &Config, registry: Registry) -> Self {
        let extents = Extents::new(config.memory.cache);
        let shares = descriptors::shares(config);
        let permits = |number: usize| Arc::new(Semaphore::new(number.min(Semaphore::MAX_PERMITS)));
        Self {
            registry,
            metrics: Arc::new(Metrics::new()),
            senders: Arc::default(),
            started: SystemTime::now(),
            ports: OnceLock::new(),
            limits: config.limits.clone(),
            // The cache takes its buffers from the pool, which leaves `buffers` bytes for the sessions.
            pool: Pool::new(config.memory.cache.saturating_add(config.memory.buffers)),
            convoys: Convoys::new(extents.window()),
            pipes: Pipes::new(PIPES),
            extents,
            admission: Admission::new(config.limits.connections, config.limits.queue),
            sockets: permits(shares.descriptors),
            followers: permits(shares.followers),
            strangers: Arc::default(),
            list_memory: ListMemory::new(config.memory.lists),
            networks: Networks::new(&config.limits),
            bandwidth: Bucket::new(config.limits.bandwidth),
            rsync: config.rsync.clone(),
            lists: Arc::new(Lists::new(&config.rsync)),
            logins: Logins::default(),
            messages: Gate::new(MESSAGES),
            searches: Pot::new(1),
            accounts: Accounts::default(),
            stopping: CancellationToken::new(),
            ending: CancellationToken::new(),
        }
    }
}
