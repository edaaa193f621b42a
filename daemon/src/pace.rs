//! Turns on the runtime's threads: a task that always finds something to do leaves them to others now and then.

use std::time::{Duration, Instant};

use tokio::task::yield_now;

/// How long a task goes on before others have their turn.
const TURN: Duration = Duration::from_micros(500);

/// The turn of one task.
pub(crate) struct Pace {
    since: Instant,
}

impl Pace {
    /// It begins now.
    pub(crate) fn new() -> Self {
        Self { since: Instant::now() }
    }

    /// Between two pieces of work: lets others go first if this turn is over.
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
    async fn a_task_that_never_waits_leaves_others_their_turn() {
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
