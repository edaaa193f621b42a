//! Encoded lists for stock clients: mapped once they are there, and built while nobody waits for them.

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
use crate::pinned::Pinned;
use crate::repository::Repository;

/// Lists of fewer entries than this are written faster than they are looked for.
const WORTH: u32 = 4096;
/// Files with a name. Each is a mapping.
const FILES: usize = 4096;
/// Lists of which it is known that they were asked for. Beyond them the ones asked for longest ago are forgotten.
const KNOWN: usize = 16 << 10;
/// Lists that may wait to be built. Each holds its generation.
const WAITING: usize = 16;

/// The encoded lists of all repositories, and what is known of those that are not encoded.
pub(crate) struct Lists {
    /// None when none are to be kept.
    cache: Option<ListCache>,
    /// Where they are kept; none for within each store.
    dir: Option<PathBuf>,
    hasher: RandomState,
    known: Mutex<KnownLists>,
    waiting: Arc<Semaphore>,
    /// Whose turn it is to encode a list.
    turn: Semaphore,
    /// The same of what takes the rules of a client, and can take long.
    turn_of_ruled: Semaphore,
}

/// What is known of a list that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It was asked for once: the next client makes it worth its place.
    AskedOnce,
    /// It is being built, or waits for that.
    Building,
    /// It did not fit into so many bytes.
    TooLarge(u64),
    /// It could not be built.
    Failed,
}

/// What is known, by list: of recent ones and of those before. What is used is recent; when that is much, what was
/// before is forgotten.
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

/// What a session may find or have built.
pub(crate) struct Query {
    key: Key,
    class: Class,
    selection: Selection,
    rules: Arc<Rules>,
}

impl Query {
    /// None for a list that is not worth a file.
    pub(crate) fn new(pinned: &Pinned, class: Class, selection: &Selection, rules: &Arc<Rules>) -> Option<Self> {
        let generation = &pinned.edition.generation;
        let list = generation.list_sparsely();
        // Messages to the client are no part of a list that is kept.
        if list.len() < WORTH || rules.is_public_only() {
            return None;
        }
        let class = class.canonical(list);
        let rules_key = if rules.nothing() { Vec::new() } else { rules.key() };
        let key = Key::new(generation.number(), generation.head().list_digest, &class, &selection.key()?, &rules_key);
        Some(Self { key, class, selection: selection.clone(), rules: Arc::clone(rules) })
    }

    /// The same without rules: they hide nothing.
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
            turn_of_ruled: Semaphore::new(1),
        }
    }

    /// An encoded list, if there is one. Reads a file the first time.
    pub(crate) fn find(&self, pinned: &Pinned, query: &Query) -> Option<Arc<CachedList>> {
        self.shelf(&pinned.repository)?.open(&query.key).unwrap_or_else(|error| {
            tracing::warn!(repository = pinned.repository.name, %error, "an encoded list is of no use");
            None
        })
    }

    /// Removes the encoded lists of generations that are gone.
    pub(crate) fn sweep(&self, repository: &Repository) {
        let Some(shelf) = self.shelf(repository) else { return };
        let kept = repository.store().and_then(Store::generations);
        if let Err(error) = kept.and_then(|kept| shelf.sweep(|generation| kept.contains(&generation))) {
            tracing::debug!(repository = repository.name, %error, "old encoded lists stay");
        }
    }

    /// Notes that a list was asked for that is not there, and says whether it is to be built now.
    fn is_to_be_built(&self, id: u64) -> bool {
        let room = || self.cache.as_ref().map_or(0, ListCache::room);
        let mut known = self.lock();
        match known.get(id) {
            None => known.set(id, Known::AskedOnce),
            Some(Known::Building | Known::Failed) => {}
            Some(Known::TooLarge(bytes)) if room() <= bytes => {}
            Some(Known::AskedOnce | Known::TooLarge(_)) => {
                known.set(id, Known::Building);
                return true;
            }
        }
        false
    }

    /// The lists of a repository, if they are to be kept.
    fn shelf(&self, repository: &Repository) -> Option<Shelf> {
        let (cache, store) = (self.cache.as_ref()?, repository.store().ok()?);
        let dir = self.dir.as_ref().map_or_else(|| store.dir().join("lists"), |dir| dir.join(&repository.name));
        Some(cache.shelf(dir))
    }

    fn lock(&self) -> MutexGuard<'_, KnownLists> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lists {
    /// A list was not found: it is built in the background when it was asked for before.
    pub(crate) fn want(self: &Arc<Self>, pinned: &Arc<Pinned>, query: Query) {
        let Some(shelf) = self.shelf(&pinned.repository) else { return };
        let id = self.hasher.hash_one((&pinned.repository.name, &query.key));
        if !self.is_to_be_built(id) {
            return;
        }
        // Rules of clients leave half of the places to lists without any.
        let has_room = query.rules.nothing() || self.waiting.available_permits() > WAITING / 2;
        let place = if has_room { Arc::clone(&self.waiting).try_acquire_owned().ok() } else { None };
        let Some(place) = place else {
            // The next client tries again.
            return self.lock().set(id, Known::AskedOnce);
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

    /// Builds a list as soon as no other of its kind is being built. Gives what is to be known of it when it is not there
    /// then.
    async fn build(&self, pinned: &Arc<Pinned>, shelf: Shelf, query: Query) -> Option<Known> {
        let turn = if query.rules.nothing() { &self.turn } else { &self.turn_of_ruled };
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
                tracing::debug!(repository, bytes = list.file_bytes(), "a list is encoded");
                return None;
            }
            Ok(Ok(None)) => {
                tracing::debug!(
                    repository,
                    room,
                    "an encoded list is larger than the room for it; each client's is written anew"
                );
                return Some(Known::TooLarge(room));
            }
            Ok(Err(error)) => {
                tracing::warn!(repository, %error, "an encoded list cannot be kept; each client's is written anew");
            }
            Err(error) => tracing::error!(repository, %error, "encoding a list failed"),
        }
        Some(Known::Failed)
    }
}
