//! Work that may block: on threads of its own, so much of it at a time.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn, spawn_blocking};

/// Lets so many pieces of work run at once.
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    /// For `most` at once.
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// Runs it in the order of asking. Nothing comes of work that panicked.
    pub(crate) fn run<T, F>(&self, work: F) -> JoinHandle<Option<T>>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        if let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() {
            return spawn_blocking(move || {
                let _permit = permit;
                Some(work())
            });
        }
        let gate = Arc::clone(&self.0);
        spawn(async move {
            let permit = gate.acquire_owned().await;
            let work = move || {
                let _permit = permit;
                work()
            };
            spawn_blocking(work).await.ok()
        })
    }
}
