//! What the service manager is told (`sd_notify(3)`). Without a `NOTIFY_SOCKET`, nothing is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

/// How much longer than `drain` the daemon may take to end, so that the service manager does not kill it early.
const END_MARGIN: Duration = Duration::from_secs(10);

/// The service manager. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Manager {
    /// Whether another process is the service now.
    is_retired: Arc<AtomicBool>,
}

impl Manager {
    /// The service is ready, and serves so many repositories.
    pub(super) fn ready(&self, repositories: usize) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(&serving(repositories))]);
    }

    /// The service reads its configuration again.
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "cannot read the clock"),
        }
    }

    /// The service goes on with the configuration that it had.
    pub(super) fn not_reloaded(&self, error: &str) {
        // A status is one line.
        let first = error.lines().next().unwrap_or_default();
        let status = format!("serving; the configuration was not reloaded: {first}");
        self.tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    /// The process that accepts connections is alive.
    pub(super) fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// The service ends. Clients may finish within `drain`.
    pub(super) fn stopping(&self, drain: Duration) {
        let longest = u32::try_from(drain.saturating_add(END_MARGIN).as_micros()).unwrap_or(u32::MAX);
        let status = format!("ending: clients may finish for {} s", drain.as_secs());
        self.tell(&[NotifyState::Stopping, NotifyState::Status(&status), NotifyState::ExtendTimeoutUsec(longest)]);
    }

    /// Another process is the service now. This one says nothing more.
    pub(super) fn replaced_by(&self, process: u32, repositories: usize) {
        self.tell(&[NotifyState::MainPid(process), NotifyState::Status(&serving(repositories)), NotifyState::Watchdog]);
        self.is_retired.store(true, Ordering::Relaxed);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.is_retired.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = sd_notify::notify(false, states) {
            tracing::warn!(%error, "cannot notify the service manager");
        }
    }
}

fn serving(repositories: usize) -> String {
    format!("serving {repositories} {}", if repositories == 1 { "repository" } else { "repositories" })
}

/// Returns how often the service manager's watchdog wants to hear from this process: twice in each of its periods.
pub(super) fn heartbeat() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_ours =
        std::env::var_os("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(std::process::id().into());
    number("WATCHDOG_USEC").filter(|&period| is_ours && period > 0).map(|period| Duration::from_micros(period / 2))
}
