//! Files in memory: extents of large ones, read once for all that want them at the same time, and small
//! ones, which lie on shelves.

mod shelf;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stillmirror_protocol::wire::ItemFailure;
use tokio::sync::watch;

use crate::file::FileState;
use crate::pool::{Buffer, EXTENT, Pool};
use shelf::Shelf;

/// Reads of one repository's files under way at once, over all sessions: enough to keep many disks busy, few enough
/// that their threads cost little.
pub(crate) const READS: usize = 32;
/// The part of the cache that is left to shelves when large files want all of it. A client that takes a
/// million small files must not push out what others share of a large one, nor the other way round.
const SHELVES: usize = 4;
/// Files up to this part of the cache are kept for the next client although nobody else wants them yet.
const KEPT: usize = 8;

/// An extent by the state of its file, whatever its name and generation, and its place in it: bytes
/// `number * EXTENT ..`. A small file is its first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The file.
    pub(crate) file: FileState,
    /// The extent's number within it.
    pub(crate) number: u64,
}

/// The bytes of an extent, for as long as anybody holds them.
#[derive(Clone)]
pub(crate) struct Extent {
    buffer: Arc<Buffer>,
    range: Range<usize>,
}

impl Deref for Extent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// An extent, or why it cannot be had.
pub(crate) type Outcome = Result<Extent, ItemFailure>;

/// The cache of extents.
///
/// The oldest extent is the first to go, however often it was used: clients follow each other through a
/// file, and what all of them have passed is of no more use. The same holds for shelves.
pub(crate) struct Extents {
    /// Buffers.
    capacity: usize,
    slots: Mutex<Slots>,
    /// Where small files are put until it is full. To be locked before the slots.
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Slots {
    by_key: HashMap<Key, Slot>,
    /// The extents, the oldest first.
    ready: VecDeque<Key>,
    /// What lies on each full shelf, the oldest first.
    shelves: VecDeque<Vec<Key>>,
}

enum Slot {
    Reading(watch::Receiver<Option<Outcome>>),
    Ready(Extent),
}

/// An extent that is there, or about to be.
pub(crate) enum PendingExtent {
    /// It is there.
    Ready(Extent),
    /// Somebody reads it.
    Reading(watch::Receiver<Option<Outcome>>),
}

/// What became of asking for an extent.
pub(crate) enum Begun {
    /// Somebody has it or reads it.
    Found(PendingExtent),
    /// The caller is to read it.
    Mine(ReadTask),
}

/// The task of reading an extent for all that want it. Others wait until it is finished or dropped.
pub(crate) struct ReadTask {
    extents: Arc<Extents>,
    key: Key,
    outcome: watch::Sender<Option<Outcome>>,
}

impl ReadTask {
    /// What others that want the extent wait for.
    pub(crate) fn pending(&self) -> PendingExtent {
        PendingExtent::Reading(self.outcome.subscribe())
    }

    /// Has `read` fill the buffer and say where in it the extent lies. Who waits gets it in any case;
    /// `keep` is for those who come later.
    pub(crate) fn read<F>(self, mut buffer: Buffer, keep: bool, read: F) -> Outcome
    where
        F: FnOnce(&mut [u8]) -> Result<Range<usize>, ItemFailure>,
    {
        let outcome = read(&mut buffer).map(|range| Extent { buffer: Arc::new(buffer), range });
        self.extents.settle(self.key, outcome.as_ref().ok().filter(|_| keep));
        self.outcome.send_replace(Some(outcome.clone()));
        outcome
    }
}

impl PendingExtent {
    /// The extent, once it is there.
    pub(crate) async fn wait(self) -> Outcome {
        match self {
            Self::Ready(extent) => Ok(extent),
            Self::Reading(mut outcome) => {
                let outcome = outcome.wait_for(Option::is_some).await;
                outcome.ok().and_then(|outcome| outcome.clone()).unwrap_or(Err(ItemFailure::Unreadable))
            }
        }
    }
}

impl Extents {
    /// A cache that keeps at most `bytes` of extents that nobody holds any more.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        let shelf = Mutex::new(Shelf::new(bytes));
        Arc::new(Self { capacity: bytes / EXTENT, slots: Mutex::default(), shelf })
    }

    /// Extents of large files that it holds at least, once it is full.
    pub(crate) fn window(&self) -> usize {
        self.capacity - self.capacity / SHELVES
    }

    /// Whether a file of that many bytes is kept although nobody else wants it yet.
    pub(crate) fn keeps(&self, size: u64) -> bool {
        size <= (self.capacity / KEPT * EXTENT) as u64
    }

    /// An extent that is there or being read already.
    pub(crate) fn find(&self, key: Key) -> Option<PendingExtent> {
        self.lock().find(key)
    }

    /// Those that are there.
    pub(crate) fn ready(&self, keys: impl Iterator<Item = Key>) -> Vec<Option<Extent>> {
        let slots = self.lock();
        let ready = |key| match slots.by_key.get(&key) {
            Some(Slot::Ready(extent)) => Some(extent.clone()),
            _ => None,
        };
        keys.map(ready).collect()
    }

    /// Puts copies of those small files on the shelf that were read before not long ago: most clients take
    /// each file once, and so do most files have one client. What a full shelf holds is there for all from then on.
    pub(crate) fn shelve<'a>(&self, files: impl Iterator<Item = (FileState, &'a [u8])>, pool: &Arc<Pool>) {
        if self.capacity < SHELVES {
            return;
        }
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        for (file, bytes) in files {
            let key = Key { file, number: 0 };
            if !shelf.was_read(key) || shelf.has(key) {
                continue;
            }
            if !shelf.has_room(bytes.len()) {
                let Some(buffer) = pool.try_take() else { return };
                let full = shelf.replace(buffer);
                self.lock().put_up(full, self.capacity);
            }
            shelf.put(key, bytes);
        }
    }

    /// An extent, or the task of reading it.
    pub(crate) fn begin(self: &Arc<Self>, key: Key) -> Begun {
        let mut slots = self.lock();
        if let Some(pending) = slots.find(key) {
            return Begun::Found(pending);
        }
        let (sender, receiver) = watch::channel(None);
        slots.by_key.insert(key, Slot::Reading(receiver));
        Begun::Mine(ReadTask { extents: Arc::clone(self), key, outcome: sender })
    }

    fn settle(&self, key: Key, extent: Option<&Extent>) {
        let mut slots = self.lock();
        let Some(extent) = extent.filter(|_| self.capacity > 0) else {
            slots.by_key.remove(&key);
            return;
        };
        slots.by_key.insert(key, Slot::Ready(extent.clone()));
        slots.ready.push_back(key);
        slots.make_room(self.capacity);
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn find(&self, key: Key) -> Option<PendingExtent> {
        match self.by_key.get(&key)? {
            Slot::Ready(extent) => Some(PendingExtent::Ready(extent.clone())),
            // A reader that died leaves no outcome and no sender.
            Slot::Reading(outcome) if outcome.has_changed().is_err() && outcome.borrow().is_none() => None,
            Slot::Reading(outcome) => Some(PendingExtent::Reading(outcome.clone())),
        }
    }

    /// Makes what lies on a full shelf known, but for what was shelved twice. Another shelf is in hand now.
    fn put_up(&mut self, full: impl Iterator<Item = (Key, Extent)>, capacity: usize) {
        let mut keys = Vec::new();
        for (key, extent) in full {
            if let Entry::Vacant(slot) = self.by_key.entry(key) {
                slot.insert(Slot::Ready(extent));
                keys.push(key);
            }
        }
        if !keys.is_empty() {
            self.shelves.push_back(keys);
        }
        self.make_room(capacity);
    }

    /// Drops what is oldest, for no more than `capacity` buffers to be held, of which one is the shelf in hand's.
    /// Shelves above their share go first.
    fn make_room(&mut self, capacity: usize) {
        let in_hand = usize::from(capacity >= SHELVES);
        while self.ready.len() + self.shelves.len() + in_hand > capacity {
            if self.ready.is_empty() || self.shelves.len() + in_hand > capacity / SHELVES {
                let Some(oldest) = self.shelves.pop_front() else { break };
                oldest.iter().for_each(|key| drop(self.by_key.remove(key)));
            } else if let Some(oldest) = self.ready.pop_front() {
                self.by_key.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests;
