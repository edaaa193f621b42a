//! The looks for new editions: one task for each repository, so a look that hangs does not delay the others.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use tokio::time::sleep;

use crate::editions::{Editions, Look, OpenError};
use crate::reload::Reload;
use crate::shared::ServerState;
use crate::store_watch::StoreWatch;

/// The shortest interval between looks, however short [`Config::reload_interval`](crate::Config::reload_interval) is.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
/// The pause between the change of a store and the look at it. A pull switches its tree right after it publishes.
const SETTLING: Duration = Duration::from_millis(20);
/// The pause before the next look, if the tree did not fit the generation at an early one.
const UNSETTLED: Duration = Duration::from_millis(200);

/// Looks for new editions of all repositories, also of those that a reload adds, until dropped.
pub(crate) async fn watch(shared: &Arc<ServerState>, reload: &Reload) -> Infallible {
    let mut tasks = JoinSet::new();
    let (store_watch, events) = StoreWatch::new();
    if let Some(events) = events {
        let store_watch = Arc::clone(&store_watch);
        tasks.spawn(async move { store_watch.run(events).await });
    }
    let mut watched: Vec<(Arc<Editions>, AbortHandle)> = Vec::new();
    let mut changes = shared.changes();
    loop {
        // Forget those that have ended.
        while tasks.try_join_next().is_some() {}
        {
            let settings = changes.borrow_and_update();
            watched.retain(|(editions, task)| {
                let stays = settings.registry.has(editions);
                if !stays {
                    task.abort();
                }
                stays
            });
            for editions in settings.registry.editions() {
                if !watched.iter().any(|(known, _)| Arc::ptr_eq(known, editions)) {
                    let (shared, editions) = (Arc::clone(shared), Arc::clone(editions));
                    let watching = watch_one(shared, Arc::clone(&editions), Arc::clone(&store_watch), reload.looks());
                    watched.push((editions, tasks.spawn(watching)));
                }
            }
        }
        // This cannot fail: `shared` has the sender.
        let _ = changes.changed().await;
    }
}

/// Looks for a new edition periodically, and when the store has changed.
async fn watch_one(
    shared: Arc<ServerState>,
    editions: Arc<Editions>,
    store_watch: Arc<StoreWatch>,
    mut looks: watch::Receiver<u64>,
) {
    let waiting = Waiting { store_watch, changed: Arc::default() };
    let (mut is_first, mut look) = (true, Look::Periodic);
    loop {
        let refresh = {
            let (shared, editions, is_first) = (Arc::clone(&shared), Arc::clone(&editions), is_first);
            let (store_watch, changed) = (Arc::clone(&waiting.store_watch), Arc::clone(&waiting.changed));
            move || {
                // First, so that no change is missed.
                store_watch.add(&editions.place.store, &changed);
                let refreshed = editions.refresh(look);
                if matches!(refreshed, Ok(true)) || is_first {
                    shared.lists.sweep(&editions);
                }
                look == Look::Early && matches!(refreshed, Err(OpenError::OtherRoot { .. } | OpenError::Root { .. }))
            }
        };
        let is_unsettled = spawn_blocking(refresh).await.unwrap_or_else(|_| {
            tracing::error!(repository = editions.place.name, "the check for a new generation panicked");
            false
        });
        is_first = false;
        let interval = shared.settings().config.reload_interval;
        let pause = if is_unsettled { interval.min(UNSETTLED) } else { interval };
        look = tokio::select! {
            Ok(()) = looks.changed() => Look::Forced,
            () = waiting.changed.notified() => {
                sleep(SETTLING).await;
                Look::Early
            }
            () = sleep(pause.max(MIN_INTERVAL)) => Look::Periodic,
        };
    }
}

/// What a store's changes wake, until this is dropped.
struct Waiting {
    store_watch: Arc<StoreWatch>,
    changed: Arc<Notify>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.store_watch.remove(&self.changed);
    }
}
