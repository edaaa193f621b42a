//! Gates: bounded concurrency for work that may block. The work runs on separate threads.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::permits::Permits;

/// A limit on how many jobs run at once. Clones share the limit.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Permits>);

/// The permit to run one job.
pub(crate) struct Pass {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Gate {
    /// Creates a gate for up to `limit` jobs at once.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Permits::new(limit))
    }

    /// Changes the limit. Jobs that run are not affected.
    pub(crate) fn resize(&self, limit: usize) {
        self.0.resize(limit);
    }

    /// Waits for a pass. Callers are served in order; one that gives up leaves nothing in the queue.
    pub(crate) async fn enter(&self) -> Pass {
        Pass { _permit: Arc::clone(self.0.semaphore()).acquire_owned().await.ok() }
    }

    /// Returns a pass if one is free.
    pub(crate) fn try_enter(&self) -> Option<Pass> {
        Arc::clone(self.0.semaphore()).try_acquire_owned().ok().map(|permit| Pass { _permit: Some(permit) })
    }

    /// Waits for a pass, and runs the work. `None` if it panicked.
    pub(crate) async fn run<T, F>(&self, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.enter().await.run(work).await.ok()
    }
}

impl Pass {
    /// Runs the work on a separate thread, whether or not anybody waits for the result.
    pub(crate) fn run<T, F>(self, work: F) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        spawn_blocking(move || {
            let _pass = self;
            work()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn work_that_hangs_blocks_only_its_own_gate() {
        let (hung, other) = (Gate::new(2), Gate::new(2));
        let (release, wait) = mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let hang = || {
            let wait = Arc::clone(&wait);
            move || wait.lock().is_ok_and(|wait| wait.recv().is_err())
        };
        let running = [hung.enter().await.run(hang()), hung.enter().await.run(hang())];
        assert!(hung.try_enter().is_none());
        for _ in 0..100 {
            // Callers that give up leave nothing in the queue.
            assert!(timeout(Duration::from_millis(1), hung.run(|| ())).await.is_err());
        }
        assert_eq!(other.run(|| 7).await, Some(7));
        drop(release);
        for running in running {
            assert!(running.await.unwrap());
        }
        assert_eq!(hung.run(|| 8).await, Some(8));
    }

    #[tokio::test]
    async fn work_that_panics_returns_nothing_and_frees_its_pass() {
        let gate = Gate::new(1);
        assert_eq!(gate.run(|| assert!(std::hint::black_box(false))).await, None);
        assert_eq!(gate.run(|| 1).await, Some(1));
    }
}
