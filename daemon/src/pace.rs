//! Cooperative yielding: a task that always finds something to do leaves the runtime's threads to others now
//! and then.

use std::time::{Duration, Instant};

use tokio::task::yield_now;

/// How long a task runs before it yields.
const TURN: Duration = Duration::from_micros(500);

/// The current turn of one task.
pub(crate) struct Pace {
    since: Instant,
}

impl Pace {
    /// Begins a turn now.
    pub(crate) fn new() -> Self {
        Self { since: Instant::now() }
    }

    /// Yields to other tasks if the turn is over. To be called between two pieces of work.
    pub(crate) async fn step(&mut self) {
        if self.since.elapsed() >= TURN {
            yield_now().await;
            self.since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_never_waits_lets_others_run() {
        let has_run = Arc::new(AtomicBool::new(false));
        let other = Arc::clone(&has_run);
        tokio::spawn(async move { other.store(true, Ordering::Relaxed) });
        let (mut pace, begin) = (Pace::new(), Instant::now());
        while !has_run.load(Ordering::Relaxed) {
            assert!(begin.elapsed() < Duration::from_secs(60), "the other task never ran");
            pace.step().await;
        }
    }
}
