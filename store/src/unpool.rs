//! Which contents of a pool the generations of a store refer to, and which can go.
//!
//! All generations together refer to what the current one refers to, and to what each but the oldest has dropped. When
//! generations are removed, only what they and the oldest one left have dropped can become superfluous.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use stillmirror_protocol::list::ListRef;
use stillmirror_protocol::local::LocalRef;

use crate::content_pool::{ContentPool, PoolName, PoolPlace, for_each_name};
use crate::draft::Draft;
use crate::dropped;
use crate::error::StoreError;
use crate::generation::{Generation, open_list, open_local};
use crate::kill_point;
use crate::part::{DROPPED, POOL, read_head};
use crate::retain::Retained;
use crate::store::{Store, StoreLock};

/// The fingerprints of names.
#[derive(Default)]
struct Names(HashSet<u64, BuildHasherDefault<Fingerprint>>);

impl Names {
    fn add(&mut self, list: ListRef<'_>, local: LocalRef<'_>) {
        for_each_name(list, local, |name| {
            self.0.insert(name.fingerprint());
        });
    }

    fn has(&self, name: &PoolName) -> bool {
        self.0.contains(&name.fingerprint())
    }
}

/// Fingerprints are hashes already.
#[derive(Default)]
struct Fingerprint(u64);

impl Hasher for Fingerprint {
    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Draft {
    /// Writes where the pool with the contents of this generation is, and what it has dropped of the generation `before`
    /// it, if that has the same pool. The head, the list and the local facts must have been written before.
    pub fn write_pool(&self, place: &PoolPlace, before: Option<&Generation>) -> Result<(), StoreError> {
        self.write(POOL, &place.encode())?;
        let Some(before) = before.filter(|before| before.pool() == Some(place)) else { return Ok(()) };
        let (head, _) = read_head(&self.path("head"))?;
        let list = open_list(&self.path("list"), &head)?;
        let list = ListRef::new(list.get());
        let local = open_local(&self.path("local"), &head, list.len(), list.files())?;
        let mut names = Names::default();
        names.add(list, local.get());
        let mut gone = HashSet::new();
        for_each_name(before.list(), before.local(), |name| {
            if !names.has(&name) {
                gone.insert(name);
            }
        });
        self.write(DROPPED, &dropped::encode(gone.iter()))
    }
}

impl Store {
    /// Removes contents from the pool of the current generation to which no generation refers any more.
    ///
    /// Two sets of contents are looked at: those that the removed generations and the oldest remaining one have dropped, and
    /// `others`. The whole pool is looked at if `is_unknown` is set, or if an earlier run left the pool dirty.
    pub fn unpool(
        &self,
        lock: &StoreLock,
        pool: &ContentPool,
        removed: Retained,
        others: Vec<PoolName>,
        is_unknown: bool,
    ) -> Result<(), StoreError> {
        let candidates: HashSet<PoolName> = removed.dropped.into_iter().chain(others).collect();
        let is_all = is_unknown || removed.is_damaged;
        kill_point("before-unpooling");
        if is_all || !candidates.is_empty() {
            let names = self.names(lock)?;
            if is_all {
                pool.sweep(|name| names.has(name))?;
            } else {
                candidates.iter().filter(|name| !names.has(name)).try_for_each(|name| pool.remove(name))?;
            }
        }
        pool.settle()
    }

    /// Returns what the generation with this number has dropped of the one before it. `None` if that is not known, because
    /// the two are not in the same pool.
    pub fn dropped(&self, number: u64) -> Result<Option<Vec<PoolName>>, StoreError> {
        dropped::read(&self.layout.generation_dir(number))
    }

    /// Returns the names of all contents that a generation refers to.
    fn names(&self, _lock: &StoreLock) -> Result<Names, StoreError> {
        let mut names = Names::default();
        if let Some(current) = self.current()? {
            names.add(current.list(), current.local());
        }
        for number in self.generations()?.into_iter().skip(1) {
            names.0.extend(self.dropped(number)?.iter().flatten().map(PoolName::fingerprint));
        }
        Ok(names)
    }
}
