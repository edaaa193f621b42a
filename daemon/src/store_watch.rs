//! Notices at once that a store has a new generation. What it misses (a file system that reports nothing, a lack of
//! watches) is found by the periodic check.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::Notify;

/// Bytes of events that are read at once. An event with a name takes up to 272.
const EVENTS: usize = 4096;

/// Watches the directories of stores. A watch does not keep a file system from being unmounted.
pub(crate) struct StoreWatch {
    /// `None` if the kernel does not allow it.
    watches: Option<Watches>,
    /// Whom to wake, by watch.
    waiting: Mutex<HashMap<WatchDescriptor, Arc<Notify>>>,
}

/// What happens in the stores.
pub(crate) type StoreEvents = EventStream<[u8; EVENTS]>;

impl StoreWatch {
    /// Creates a watch of no store, and what [`StoreWatch::run`] needs.
    pub(crate) fn new() -> (Arc<Self>, Option<StoreEvents>) {
        let begun = Inotify::init().and_then(|inotify| {
            let watches = inotify.watches();
            Ok((watches, inotify.into_event_stream([0; EVENTS])?))
        });
        let begun =
            begun.inspect_err(|error| tracing::warn!(%error, "stores are only checked every `reload_interval`")).ok();
        let (watches, events) = begun.unzip();
        (Arc::new(Self { watches, waiting: Mutex::default() }), events)
    }

    /// Wakes `waiting` whenever the store in this directory gets another current generation, from now on. It may be called
    /// again, and must be if the directory was replaced. It may wait for the disk.
    pub(crate) fn add(&self, store: &Path, waiting: &Arc<Notify>) {
        let Some(mut watches) = self.watches.clone() else { return };
        // Without the lock, since this may hang. A change before the entry is there is found by the look that follows.
        if let Ok(watch) = watches.add(store, WatchMask::MOVED_TO | WatchMask::ONLYDIR) {
            self.waiting().insert(watch, Arc::clone(waiting));
        }
    }

    /// Stops waking `waiting`.
    pub(crate) fn remove(&self, waiting: &Arc<Notify>) {
        let mut all = self.waiting();
        let ended: Vec<_> = all.extract_if(|_, woken| Arc::ptr_eq(woken, waiting)).map(|(watch, _)| watch).collect();
        drop(all);
        let Some(mut watches) = self.watches.clone() else { return };
        // A directory that is gone has no watch any more.
        ended.into_iter().for_each(|watch| drop(watches.remove(watch)));
    }

    /// Wakes until dropped.
    pub(crate) async fn run(&self, mut events: StoreEvents) {
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!(%error, "stores are only checked every `reload_interval` from now on");
                    return;
                }
            };
            let mut all = self.waiting();
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                all.values().for_each(|waiting| waiting.notify_one());
            } else if event.mask.contains(EventMask::IGNORED) {
                // The directory is gone, or its file system.
                all.remove(&event.wd);
            } else if event.name.as_deref() == Some(OsStr::new(stillmirror_store::CURRENT)) {
                all.get(&event.wd).into_iter().for_each(|waiting| waiting.notify_one());
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<WatchDescriptor, Arc<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn only_a_new_current_generation_wakes_and_a_replaced_store_is_watched_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let (watch, events) = StoreWatch::new();
        let running = tokio::spawn({
            let watch = Arc::clone(&watch);
            async move { watch.run(events.unwrap()).await }
        });
        let waiting = Arc::new(Notify::new());
        watch.add(&store, &waiting);
        for _ in 0..2 {
            std::fs::create_dir(&store).unwrap();
            watch.add(&store, &waiting);
            watch.add(&store, &waiting);
            for name in ["trust", stillmirror_store::CURRENT] {
                std::fs::write(store.join("new"), name).unwrap();
                std::fs::rename(store.join("new"), store.join(name)).unwrap();
                let woken = timeout(Duration::from_millis(200), waiting.notified()).await;
                assert_eq!(woken.is_ok(), name == stillmirror_store::CURRENT);
            }
            std::fs::remove_dir_all(&store).unwrap();
            while !watch.waiting().is_empty() {
                tokio::task::yield_now().await;
            }
        }
        running.abort();
    }
}
