//! Flushes staged contents while more of them arrive, so that the disk works while the network does, and little is
//! left to flush before the commit.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::stage::Stage;

/// Number of bytes that were written since the last flush.
#[derive(Debug, Default)]
pub(super) struct Unflushed(AtomicU64);

impl Unflushed {
    /// Notes that more bytes were written.
    pub(super) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Flushes the staging directory's file system from time to time, until the other end of `over` is dropped.
    pub(super) fn flush_until(&self, over: &Receiver<Infallible>, stage: &Stage) {
        // Each descriptor learns of a failed write once. The flush before the commit has another one and reports the
        // failure, so it is ignored here.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::openat(stage.fd(), ".", flags, Mode::empty()) else { return };
        while over.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
            if self.0.load(Ordering::Relaxed) >= ENOUGH {
                self.0.store(0, Ordering::Relaxed);
                let _ = rustix::fs::syncfs(&dir);
            }
        }
    }
}

/// The pause between two flushes.
const PAUSE: Duration = Duration::from_millis(500);
/// Number of bytes for which a flush is worth its cost.
const ENOUGH: u64 = 8 << 20;
