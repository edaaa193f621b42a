//! Waits until no other pull has the destination or its store.

use std::time::Duration;

use stillmirror_store::{Store, StoreError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::PullError;
use crate::local::Tree;
use crate::report::{Options, Phase, Progress};
use crate::snapshots;

/// The time that a pull may wait for others.
pub(crate) struct Turn {
    /// `None` if the pull does not wait.
    deadline: Option<Instant>,
    /// Whether somebody else was faster.
    is_lost: bool,
}

impl Turn {
    pub(crate) fn of(options: &Options) -> Self {
        let wait = options.wait.filter(|_| !options.dry_run);
        let deadline = wait.map(|wait| Instant::now().checked_add(wait).unwrap_or_else(far_future));
        Self { deadline, is_lost: false }
    }

    /// Waits until nobody has the locks, or the time is over. Whoever takes them next may still be somebody else.
    pub(crate) async fn come(
        &mut self,
        options: &Options,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<(), PullError> {
        let Some(deadline) = self.deadline else { return Ok(()) };
        while Instant::now() < deadline && (std::mem::take(&mut self.is_lost) || is_taken(options)) {
            progress.phase(Phase::Turn, 0, 0);
            tokio::select! {
                () = cancel.cancelled() => return Err(PullError::Interrupted),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
        Ok(())
    }

    /// Returns whether to wait again after the pull ended with this error.
    pub(crate) fn is_lost_to(&mut self, error: &PullError) -> bool {
        self.is_lost = self.deadline.is_some_and(|deadline| Instant::now() < deadline) && error.is_busy();
        self.is_lost
    }
}

/// Returns whether another process has one of the locks that a pull takes. Errors are reported by the pull itself.
fn is_taken(options: &Options) -> bool {
    if options.keep_snapshots.is_some() && snapshots::are_taken(&options.dest) {
        return true;
    }
    let tree = Tree::open(&options.dest).and_then(|tree| tree.lock());
    if matches!(tree, Ok(None)) {
        return true;
    }
    let store = options.store.as_ref().map(|dir| Store::open(dir).and_then(|store| store.lock()));
    matches!(store, Some(Err(StoreError::Locked { .. })))
}

fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

/// The pause between two looks at the locks.
const PAUSE: Duration = Duration::from_millis(200);
