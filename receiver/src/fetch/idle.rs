//! Tells when the network leaves time for work that a killed pull would have done in vain.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whether the transfer has nothing in flight.
#[derive(Debug)]
pub(super) struct Idle {
    begun: Instant,
    is_idle: Mutex<bool>,
    changed: Condvar,
}

impl Idle {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), is_idle: Mutex::new(false), changed: Condvar::new() }
    }

    /// Notes that nothing is in flight.
    pub(super) fn set(&self) {
        *self.is_idle.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until nothing is in flight, or the pull has lasted for some seconds: one that is killed again and again
    /// would do nothing else.
    pub(super) fn wait(&self) {
        let is_idle = self.is_idle.lock().unwrap_or_else(PoisonError::into_inner);
        let left = BUSY.saturating_sub(self.begun.elapsed());
        let _unused = self.changed.wait_timeout_while(is_idle, left, |is_idle| !*is_idle);
    }
}

/// How long such work waits.
const BUSY: Duration = Duration::from_secs(3);
