//! Work that may block: on threads of its own, so much of it at a time.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};

/// Lets so many pieces of work run at once. Clones are the same gate.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

/// The right to run one piece of work.
pub(crate) struct Pass {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Gate {
    /// For `most` at once.
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// Waits in the order of asking. A caller that gives up leaves nothing in the queue.
    pub(crate) async fn enter(&self) -> Pass {
        Pass { _permit: Arc::clone(&self.0).acquire_owned().await.ok() }
    }

    /// A pass, if one is free.
    pub(crate) fn try_enter(&self) -> Option<Pass> {
        Arc::clone(&self.0).try_acquire_owned().ok().map(|permit| Pass { _permit: Some(permit) })
    }

    /// Waits for a pass, and runs the work. Nothing comes of work that panicked.
    pub(crate) async fn run<T, F>(&self, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.enter().await.run(work).await.ok()
    }
}

impl Pass {
    /// Runs the work on a thread of its own, whether or not anybody waits for it.
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
    async fn work_that_hangs_holds_up_its_own_gate_alone() {
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
            // Callers that give up leave nothing behind.
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
    async fn nothing_comes_of_work_that_panicked_and_its_pass_comes_back() {
        let gate = Gate::new(1);
        assert_eq!(gate.run(|| assert!(std::hint::black_box(false))).await, None);
        assert_eq!(gate.run(|| 1).await, Some(1));
    }
}
