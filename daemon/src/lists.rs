//! Encoded lists for stock clients: mapped once they are there, and built while nobody waits for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stillmirror_protocol::rsync::flist::{Class, ListWriter};
use stillmirror_protocol::rsync::rules::Rules;
use stillmirror_protocol::rsync::selection::{Hides, Selection};
use stillmirror_store::Store;
use stillmirror_store::list_cache::{Bounds, CachedList, Key, ListCache};

use crate::Shared;
use crate::edition::Pinned;
use crate::repository::Repository;

/// Lists of fewer entries than this are written faster than they are looked for.
const WORTH: u32 = 4096;
/// Files in one store.
const FILES: usize = 64;
/// Lists that one generation knows of; who comes with more kinds of them than any honest crowd gets them
/// streamed.
const KNOWN: usize = 4096;

/// The encoded lists of one generation.
#[derive(Default)]
pub(crate) struct Lists {
    known: Mutex<HashMap<Key, State>>,
}

/// What is known of a list.
#[derive(Clone)]
enum State {
    /// It was asked for once, with filters: the next client with the same ones makes it worth its place.
    AskedOnce,
    /// It is being built, or could not be.
    NotToBeHad,
    Ready(Arc<CachedList>),
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
        if list.len() < WORTH {
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
    /// An encoded list, if there is one. Reads a file the first time.
    pub(crate) fn find(shared: &Shared, pinned: &Pinned, query: &Query) -> Option<Arc<CachedList>> {
        let cache = cache(shared, &pinned.repository)?;
        let lists = &pinned.edition.lists;
        // Copied out: the lock must be free when the file is read.
        let state = lists.lock().get(&query.key).cloned();
        match state {
            Some(State::Ready(list)) if !list.is_damaged() => return Some(list),
            // It was right when it was opened. The file is looked at again.
            Some(State::Ready(_)) => _ = lists.lock().remove(&query.key),
            Some(State::NotToBeHad | State::AskedOnce) => return None,
            None => {}
        }
        let found = cache.open(&query.key).unwrap_or_else(|error| {
            tracing::warn!(repository = pinned.repository.name, %error, "an encoded list is of no use");
            None
        })?;
        let mut known = lists.lock();
        if known.len() < KNOWN {
            known.insert(query.key.clone(), State::Ready(Arc::clone(&found)));
        }
        Some(found)
    }

    /// A list was not found: it is built in the background when that pays.
    pub(crate) fn want(shared: &Arc<Shared>, pinned: &Arc<Pinned>, query: Query) {
        let Some(cache) = cache(shared, &pinned.repository) else { return };
        let lists = &pinned.edition.lists;
        let mut known = lists.lock();
        match known.get(&query.key) {
            Some(State::Ready(_) | State::NotToBeHad) => return,
            Some(State::AskedOnce) => {}
            None if known.len() >= KNOWN => return,
            None if query.rules.nothing() => {}
            None => {
                known.insert(query.key, State::AskedOnce);
                return;
            }
        }
        known.insert(query.key.clone(), State::NotToBeHad);
        drop(known);
        build(shared, pinned, cache, query);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, State>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Builds a list as soon as no other is being built.
fn build(shared: &Arc<Shared>, pinned: &Arc<Pinned>, cache: ListCache, query: Query) {
    let (shared, pinned) = (Arc::clone(shared), Arc::clone(pinned));
    tokio::spawn(async move {
        let Ok(_turn) = shared.builder.acquire().await else { return };
        let Query { key, class, selection, rules } = query;
        let building = Arc::clone(&pinned);
        let build = move || {
            let list = building.edition.generation.list();
            let writer = ListWriter::new(list, class, selection, &*rules);
            let built = cache.build(&key, list, writer, &*rules);
            (key, built)
        };
        match tokio::task::spawn_blocking(build).await {
            Ok((key, Ok(list))) => {
                tracing::debug!(repository = pinned.repository.name, bytes = list.file_bytes(), "a list is encoded");
                pinned.edition.lists.lock().insert(key, State::Ready(list));
            }
            Ok((_, Err(error))) => tracing::warn!(
                repository = pinned.repository.name,
                %error,
                "an encoded list cannot be kept; each client's is written anew"
            ),
            Err(error) => tracing::error!(repository = pinned.repository.name, %error, "encoding a list failed"),
        }
    });
}

/// Removes the encoded lists of generations that are gone.
pub(crate) fn sweep(shared: &Shared, repository: &Repository) {
    let Some(cache) = cache(shared, repository) else { return };
    let kept = repository.store().and_then(Store::generations);
    if let Err(error) = kept.and_then(|kept| cache.sweep(|generation| kept.contains(&generation))) {
        tracing::debug!(repository = repository.name, %error, "old encoded lists stay");
    }
}

/// Where the lists of a repository are kept, if they are to be.
fn cache(shared: &Shared, repository: &Repository) -> Option<ListCache> {
    let bytes = shared.rsync.cached_lists;
    let bounds = Bounds { files: FILES, bytes };
    let store = repository.store().ok().filter(|_| bytes > 0)?;
    Some(match &shared.rsync.lists {
        Some(lists) => ListCache::new(lists.join(&repository.name), bounds),
        None => store.list_cache(bounds),
    })
}
