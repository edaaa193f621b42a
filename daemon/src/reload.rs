//! What a daemon that runs can be told: another configuration, a look for new generations, the end of its work.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::task::spawn_blocking;

use crate::certificate;
use crate::config::{Config, Memory, RsyncConfig};
use crate::error::DaemonError;
use crate::registry::{Changes, Registry};
use crate::settings::Settings;
use crate::shared::ServerState;

/// A handle to a daemon: gives it another configuration, makes it check for new generations and roots, or ends its work.
#[derive(Clone)]
pub struct Reload {
    shared: Arc<ServerState>,
    /// Counts the requests to check.
    looks: watch::Sender<u64>,
    /// Held by the one reload that is under way.
    turn: Arc<Mutex<()>>,
}

impl Reload {
    pub(crate) fn new(shared: Arc<ServerState>) -> Self {
        Self { shared, looks: watch::Sender::default(), turn: Arc::default() }
    }

    /// Checks for new generations and roots now.
    pub fn reload(&self) {
        self.looks.send_modify(|requests| *requests += 1);
    }

    /// Puts another configuration in force. Sessions go on with the settings, repositories and editions that they began
    /// with. A repository at the same place keeps its editions and what is cached of them.
    ///
    /// `memory.cache`, `memory.buffers`, `rsync.cached_lists` and `rsync.lists` stay as they are.
    ///
    /// The files of [`Config::tls`] are read again. If there are none, the certificate from before stays.
    ///
    /// If this fails, the old configuration stays in force as a whole.
    pub async fn reconfigure(&self, config: Config) -> Result<Changes, DaemonError> {
        let _turn = self.turn.lock().await;
        let before = self.shared.settings();
        let config = with_what_stays(config, &before.config);
        let (registry, config, tls) = {
            let before = Arc::clone(&before);
            let new = spawn_blocking(move || {
                let tls = config.tls.as_ref().map(certificate::load).transpose()?;
                Ok::<_, DaemonError>((Registry::new(&config, Some(&before.registry))?, config, tls))
            });
            new.await.map_err(DaemonError::Worker)??
        };
        registry.open(Some(&before.registry)).await?;
        let changes = registry.changes(&before.registry);
        self.shared.put_in_force(Settings::new(config, registry, tls, Some(&before)));
        Ok(changes)
    }

    /// Returns the number of repositories.
    pub fn repositories(&self) -> usize {
        self.shared.settings().registry.all().len()
    }

    /// Returns how long running requests may take to finish once the daemon is told to stop.
    pub fn drain(&self) -> Duration {
        self.shared.settings().limits().drain
    }

    /// Stops accepting connections, because another process does. Followers and idle clients are told to come back, and get
    /// that one; all others finish. [`Daemon::run`](crate::Daemon::run) ends when they have.
    pub fn hand_over(&self) {
        self.shared.leaving.cancel();
    }

    /// Returns a receiver that notices the requests to check.
    pub(crate) fn looks(&self) -> watch::Receiver<u64> {
        self.looks.subscribe()
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload")
    }
}

/// Returns the configuration, with what cannot change while the daemon runs taken from the one before.
fn with_what_stays(config: Config, before: &Config) -> Config {
    let Memory { cache, buffers, .. } = before.memory;
    let RsyncConfig { cached_lists, ref lists, .. } = before.rsync;
    Config {
        memory: Memory { cache, buffers, ..config.memory },
        // A port for TLS stays, too, and needs one.
        tls: config.tls.or_else(|| before.tls.clone()),
        rsync: RsyncConfig { cached_lists, lists: lists.clone(), ..config.rsync },
        ..config
    }
}
