//! A reload: SIGHUP makes `serve` read its configuration again, and look for new generations.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::{Context, Result};
use stillmirror_daemon as daemon;
use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;

use super::manager::Manager;
use super::{Arguments, config, reach, resolve};
use crate::config::{Config, Daemon};
use crate::output;
use crate::sandbox::Reach;

/// What a reload needs.
pub(super) struct Reloading {
    pub(super) arguments: Arc<Arguments>,
    /// The settings that the daemon was started with.
    pub(super) started: Daemon,
    /// What this process can reach, unless that is everything.
    pub(super) reach: Option<Reach>,
    pub(super) daemon: daemon::Reload,
    pub(super) manager: Manager,
}

impl Reloading {
    /// Reloads at every hangup, until dropped.
    pub(super) async fn run(self, mut hangups: Signal) -> Infallible {
        loop {
            if hangups.recv().await.is_none() {
                return std::future::pending().await;
            }
            self.manager.reloading();
            match self.reload().await {
                Ok(changes) => {
                    self.manager.ready(self.daemon.repositories());
                    let [added, removed, moved] =
                        [changes.added, changes.removed, changes.moved].map(|names| names.join(", "));
                    tracing::info!(added, removed, moved, "the configuration was reloaded");
                }
                Err(error) => {
                    let error = output::error(&error);
                    self.manager.not_reloaded(&error);
                    tracing::error!(error, "the configuration was not reloaded: the old one stays in force");
                }
            }
            self.daemon.reload();
        }
    }

    async fn reload(&self) -> Result<daemon::Changes> {
        let arguments = Arc::clone(&self.arguments);
        // The disk with the file may hang.
        let config = spawn_blocking(move || config(&arguments)).await.context("the reload panicked")??;
        let late = fixed_at_the_start(&self.started, &config.daemon);
        self.warn_of_unreachable(&config);
        let changes = self.daemon.reconfigure(resolve(config)).await?;
        if !late.is_empty() {
            tracing::warn!(keys = late.join(", "), "these keys of [daemon] changed: they take effect after a restart");
        }
        Ok(changes)
    }

    /// Logs what the configuration names and this process cannot reach. No process can widen its own sandbox.
    fn warn_of_unreachable(&self, config: &Config) {
        let wanted = reach::reach(config, self.arguments.config.as_deref());
        let Some(own) = &self.reach else { return };
        for path in own.lacks(&wanted) {
            tracing::warn!(path = %path.display(), "the sandbox does not allow this path: it needs a restart");
        }
    }
}

/// Returns the keys of `[daemon]` that differ and that only a start takes up.
fn fixed_at_the_start(started: &Daemon, now: &Daemon) -> Vec<&'static str> {
    let differs = [
        ("listen", started.listen != now.listen),
        ("rsync_listen", started.rsync_listen != now.rsync_listen || started.rsync != now.rsync),
        ("tls_listen", started.tls_listen != now.tls_listen),
        ("metrics_listen", started.metrics_listen != now.metrics_listen),
        ("status_socket", started.status_socket != now.status_socket),
        ("user", started.user != now.user),
        ("group", started.group != now.group),
        ("sandbox", started.sandbox != now.sandbox),
        ("cache", started.cache != now.cache),
        ("buffers", started.buffers != now.buffers),
        ("cached_lists", started.cached_lists != now.cached_lists),
        ("lists", started.lists != now.lists),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Bytes;

    #[test]
    fn keys_that_need_a_restart_are_named() {
        let started = Daemon::default();
        assert!(fixed_at_the_start(&started, &Daemon { connections: 5, ..Daemon::default() }).is_empty());
        let now = Daemon { cache: Bytes(1), user: Some("mirror".to_owned()), ..Daemon::default() };
        assert_eq!(fixed_at_the_start(&started, &now), ["user", "cache"]);
    }
}
