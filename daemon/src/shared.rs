//! The state that all sessions share.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::choosing::Accounts;
use crate::config::{Config, Limits};
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
use crate::permits::Permits;
use crate::pipe::{PIPES, Pipes};
use crate::pool::Pool;
use crate::settings::Settings;
use crate::status::{Ports, Senders};
use crate::strangers::Strangers;

/// Maximum number of concurrent reads of the message of the day.
const MESSAGES: usize = 4;

/// Maximum number of TLS handshakes that sign at a time, whatever the number of cores: others remain for sessions.
const SIGNATURES: u64 = 1;

/// The state that all sessions share.
pub(crate) struct ServerState {
    settings: watch::Sender<Arc<Settings>>,
    pub(crate) metrics: Arc<Metrics>,
    /// What is known of the senders of pulled repositories.
    pub(crate) senders: Arc<Senders>,
    /// When the daemon was started.
    pub(crate) started: SystemTime,
    /// The ports that clients connect to, once they are known.
    pub(crate) ports: OnceLock<Ports>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) extents: Arc<Extents>,
    pub(crate) convoys: Arc<Convoys>,
    pub(crate) pipes: Arc<Pipes>,
    pub(crate) admission: Arc<Admission>,
    /// Permits for connections of every kind, one for each descriptor that they may need.
    pub(crate) sockets: Arc<Permits>,
    pub(crate) strangers: Arc<Strangers>,
    /// Turns at signing in TLS handshakes.
    pub(crate) signatures: Arc<Pot>,
    /// Permits for followers.
    pub(crate) followers: Arc<Permits>,
    /// The memory budget for lists of single clients.
    pub(crate) list_memory: Arc<ListMemory>,
    /// The number of connections from each network.
    pub(crate) networks: Arc<Networks>,
    /// The encoded lists of all repositories.
    pub(crate) lists: Arc<Lists>,
    pub(crate) logins: Logins,
    /// The gate for reading the message of the day, since its file may hang like any other.
    pub(crate) messages: Gate,
    /// Turns for finding out whether a client's rules match anything.
    pub(crate) searches: Arc<Pot>,
    /// The comparison steps that the rules of each network have cost.
    pub(crate) accounts: Accounts,
    /// Cancelled when another process accepts the connections: clients that only wait are told to come back. Cancelled when
    /// the daemon stops, too.
    pub(crate) leaving: CancellationToken,
    /// Cancelled when the daemon stops: nothing new is started.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when the drain timeout has passed: running sessions are cut off.
    pub(crate) ending: CancellationToken,
}

impl ServerState {
    /// Creates the state for settings.
    pub(crate) fn new(settings: Settings) -> Self {
        let config = &settings.config;
        let extents = Extents::new(config.memory.cache);
        let shares = descriptors::shares(config);
        let stopping = CancellationToken::new();
        Self {
            metrics: Arc::new(Metrics::new()),
            senders: Arc::default(),
            started: SystemTime::now(),
            ports: OnceLock::new(),
            // The cache takes its buffers from the pool, which leaves `buffers` bytes for the sessions.
            pool: Pool::new(config.memory.cache.saturating_add(config.memory.buffers)),
            convoys: Convoys::new(extents.window()),
            pipes: Pipes::new(PIPES),
            extents,
            admission: Admission::new(config.limits.connections, config.limits.queue),
            sockets: Permits::new(shares.descriptors),
            followers: Permits::new(shares.followers),
            strangers: Arc::default(),
            signatures: Pot::new(SIGNATURES),
            list_memory: ListMemory::new(config.memory.lists),
            networks: Networks::new(&config.limits),
            lists: Arc::new(Lists::new(&config.rsync)),
            logins: Logins::default(),
            messages: Gate::new(MESSAGES),
            searches: Pot::new(1),
            accounts: Accounts::default(),
            leaving: stopping.child_token(),
            stopping,
            ending: CancellationToken::new(),
            settings: watch::Sender::new(Arc::new(settings)),
        }
    }

    /// Returns the settings in force.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// Returns a receiver that notices when other settings are in force.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Settings>> {
        self.settings.subscribe()
    }

    /// Puts other settings in force. Limits that all sessions share change at once; the rest is for new sessions.
    pub(crate) fn put_in_force(&self, settings: Settings) {
        let settings = Arc::new(settings);
        let Config { limits, memory, .. } = &settings.config;
        let Limits { connections, queue, bandwidth, .. } = *limits;
        let shares = descriptors::shares(&settings.config);
        self.admission.resize(connections, queue);
        self.sockets.resize(shares.descriptors);
        self.followers.resize(shares.followers);
        self.networks.resize(limits);
        self.list_memory.resize(memory.lists);
        let before = self.settings.send_replace(Arc::clone(&settings));
        if let Some(bucket) = &before.bandwidth {
            bucket.change(bandwidth);
        }
        settings.registry.take_over(&before.registry, queue);
    }
}
