//! Encoded lists for stock clients. They are mapped from cache files, which are built in the background. A
//! list is built when it is requested for the second time.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stillmirror_protocol::rsync::flist::{Class, ListWriter};
use stillmirror_protocol::rsync::rules::Rules;
use stillmirror_protocol::rsync::selection::{Hides, Selection};
use stillmirror_store::Store;
use stillmirror_store::list_cache::{CachedList, Key, Limits, ListCache, Shelf};
use tokio::sync::Semaphore;

use crate::config::RsyncConfig;
use crate::editions::Editions;
use crate::pinned::Pinned;

/// Lists with fewer entries than this are not cached: writing them is faster than looking them up.
const MIN_ENTRIES: u32 = 4096;
/// Maximum number of cache files. Each one is a mapping.
const FILES: usize = 4096;
/// Maximum number of lists whose [`Known`] state is remembered. Beyond that, the least recently used are
/// forgotten.
const KNOWN: usize = 16 << 10;
/// Maximum number of lists that wait to be built. Each one holds its generation.
const WAITING: usize = 16;

/// The encoded lists of all repositories, and the state of those that are not encoded.
pub(crate) struct Lists {
    /// `None` if encoded lists are not kept.
    cache: Option<ListCache>,
    /// The directory of the cache files. `None` if they are kept in each store.
    dir: Option<PathBuf>,
    hasher: RandomState,
    known: Mutex<KnownLists>,
    waiting: Arc<Semaphore>,
    /// Allows one list at a time to be encoded.
    turn: Semaphore,
    /// A separate turn for lists that depend on a client's rules, which can take long.
    turn_with_rules: Semaphore,
}

/// The state of a list that is not in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It was requested once. It is built when the next client requests it.
    RequestedOnce,
    /// It is being built, or waits to be built.
    Building,
    /// It did not fit into this many bytes.
    TooLarge(u64),
    /// Building it failed.
    Failed,
}

/// The states of lists, as an approximate LRU cache of two halves. Used entries move to `recent`. When
/// `recent` is full, it replaces `before`.
#[derive(Default)]
struct KnownLists {
    recent: HashMap<u64, Known>,
    before: HashMap<u64, Known>,
}

impl KnownLists {
    fn get(&mut self, list: u64) -> Option<Known> {
        let known = self.recent.get(&list).copied().or_else(|| self.before.remove(&list))?;
        self.set(list, known);
        Some(known)
    }

    fn set(&mut self, list: u64, known: Known) {
        if self.recent.len() >= KNOWN / 2 && !self.recent.contains_key(&list) {
            self.before = std::mem::take(&mut self.recent);
        }
        self.recent.insert(list, known);
    }

    fn remove(&mut self, list: u64) {
        self.recent.remove(&list);
        self.before.remove(&list);
    }
}

/// Identifies a list that a session looks for or has built.
pub(crate) struct Query {
    key: Key,
    class: Class,
    selection: Selection,
    rules: Arc<Rules>,
}

impl Query {
    /// Creates a query. `None` if the list is not worth caching.
    pub(crate) fn new(pinned: &Pinned, class: Class, selection: &Selection, rules: &Arc<Rules>) -> Option<Self> {
        let generation = &pinned.edition.generation;
        let list = generation.list_sparsely();
        // With closed directories, the list comes with messages to the client, which are not cached.
        if list.len() < MIN_ENTRIES || rules.is_public_only() {
            return None;
        }
        let class = class.canonical(list);
        let rules_key = if rules.nothing() { Vec::new() } else { rules.key() };
        let key = Key::new(generation.number(), generation.head().list_digest, &class, &selection.key()?, &rules_key);
        Some(Self { key, class, selection: selection.clone(), rules: Arc::clone(rules) })
    }

    /// Returns the same query without rules, for rules that hide nothing.
    pub(crate) fn without_rules(&self, pinned: &Pinned) -> Option<Self> {
        Self::new(pinned, self.class, &self.selection, &Arc::default())
    }
}

impl Lists {
    pub(crate) fn new(config: &RsyncConfig) -> Self {
        let limits = Limits { files: FILES, bytes: config.cached_lists };
        Self {
            cache: (limits.bytes > 0).then(|| ListCache::new(limits)),
            dir: config.lists.clone(),
            hasher: RandomState::new(),
            known: Mutex::default(),
            waiting: Arc::new(Semaphore::new(WAITING)),
            turn: Semaphore::new(1),
            turn_with_rules: Semaphore::new(1),
        }
    }

    /// Returns the bytes of encoded lists on the disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.cache.as_ref().map_or(0, ListCache::taken)
    }

    /// Returns an encoded list if there is one. Reads a file the first time.
    pub(crate) fn find(&self, pinned: &Pinned, query: &Query) -> Option<Arc<CachedList>> {
        self.shelf(&pinned.repository.editions)?.open(&query.key).unwrap_or_else(|error| {
            tracing::warn!(repository = pinned.repository.name, %error, "cannot use a cached list");
            None
        })
    }

    /// Removes the encoded lists of generations that are gone.
    pub(crate) fn sweep(&self, editions: &Editions) {
        let Some(shelf) = self.shelf(editions) else { return };
        let kept = editions.store().and_then(Store::generations);
        if let Err(error) = kept.and_then(|kept| shelf.sweep(|generation| kept.contains(&generation))) {
            tracing::debug!(repository = editions.place.name, %error, "cannot remove old cached lists");
        }
    }

    /// Records the request for a list that is not in the cache, and returns whether it must be built now.
    fn should_build(&self, id: u64) -> bool {
        let room = || self.cache.as_ref().map_or(0, ListCache::room);
        let mut known = self.lock();
        match known.get(id) {
            None => known.set(id, Known::RequestedOnce),
            Some(Known::Building | Known::Failed) => {}
            Some(Known::TooLarge(bytes)) if room() <= bytes => {}
            Some(Known::RequestedOnce | Known::TooLarge(_)) => {
                known.set(id, Known::Building);
                return true;
            }
        }
        false
    }

    /// Returns the cached lists of a repository. `None` if lists are not kept.
    fn shelf(&self, editions: &Editions) -> Option<Shelf> {
        let (cache, store) = (self.cache.as_ref()?, editions.store().ok()?);
        let dir = self.dir.as_ref().map_or_else(|| store.dir().join("lists"), |dir| dir.join(&editions.place.name));
        Some(cache.shelf(dir))
    }

    fn lock(&self) -> MutexGuard<'_, KnownLists> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lists {
    /// Records that a list was not found. Builds it in the background if it was requested before.
    pub(crate) fn want(self: &Arc<Self>, pinned: &Arc<Pinned>, query: Query) {
        let Some(shelf) = self.shelf(&pinned.repository.editions) else { return };
        let id = self.hasher.hash_one((&pinned.repository.name, &query.key));
        if !self.should_build(id) {
            return;
        }
        // Lists with clients' rules leave half of the places to lists without rules.
        let has_room = query.rules.nothing() || self.waiting.available_permits() > WAITING / 2;
        let place = if has_room { Arc::clone(&self.waiting).try_acquire_owned().ok() } else { None };
        let Some(place) = place else {
            // The next client tries again.
            return self.lock().set(id, Known::RequestedOnce);
        };
        let (lists, pinned) = (Arc::clone(self), Arc::clone(pinned));
        tokio::spawn(async move {
            match lists.build(&pinned, shelf, query).await {
                Some(known) => lists.lock().set(id, known),
                None => lists.lock().remove(id),
            }
            drop(place);
        });
    }

    /// Builds a list as soon as no other one of its kind is being built. Returns `None` if it is in the cache
    /// then, or its new state otherwise.
    async fn build(&self, pinned: &Arc<Pinned>, shelf: Shelf, query: Query) -> Option<Known> {
        let turn = if query.rules.nothing() { &self.turn } else { &self.turn_with_rules };
        let turn = turn.acquire().await;
        let building = Arc::clone(pinned);
        let build = move || {
            let Query { key, class, selection, rules } = query;
            let list = building.edition.generation.list();
            let writer = ListWriter::new(list, class, selection, &*rules);
            shelf.build(&key, list, writer, &*rules)
        };
        let room = self.cache.as_ref().map_or(0, ListCache::room);
        let built = tokio::task::spawn_blocking(build).await;
        drop(turn);
        let repository = &pinned.repository.name;
        match built {
            Ok(Ok(Some(list))) => {
                tracing::debug!(repository, bytes = list.file_bytes(), "cached an encoded list");
                return None;
            }
            Ok(Ok(None)) => {
                tracing::debug!(
                    repository,
                    room,
                    "an encoded list does not fit into the cache; it is written anew for each client"
                );
                return Some(Known::TooLarge(room));
            }
            Ok(Err(error)) => {
                tracing::warn!(repository, %error, "cannot cache an encoded list; it is written anew for each client");
            }
            Err(error) => tracing::error!(repository, %error, "encoding a list panicked"),
        }
        Some(Known::Failed)
    }
}
