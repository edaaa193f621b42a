//! The cache of file contents: extents of large files, which are read once for all sessions that want them at
//! the same time, and small files, which lie on shelves.

mod shelf;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stillmirror_protocol::wire::ItemFailure;
use tokio::sync::watch;

use crate::file::FileState;
use crate::file::InMemory;
use crate::pool::{Buffer, EXTENT, Pool};
use crate::source::Source;
use shelf::Shelf;

/// Maximum number of reads of one repository's files in flight, over all sessions: enough to keep many disks
/// busy, few enough that their threads cost little.
pub(crate) const READS: usize = 32;
/// If large files want the whole cache, shelves keep this fraction (1/4) of it. A client that fetches a million
/// small files must not evict what others share of a large one, and vice versa.
const SHELVES: usize = 4;
/// Files up to this fraction (1/8) of the cache are kept for the next client, although nobody else wants them
/// yet.
const KEPT: usize = 8;

/// Identifies an extent by the state of its file, whatever the file's name and generation, and by its number:
/// it begins at byte `number * EXTENT`. A small file is extent 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) file: FileState,
    /// The extent's number within the file.
    pub(crate) number: u64,
}

/// The bytes of an extent. They stay in memory as long as anybody holds them.
#[derive(Clone)]
pub(crate) struct Extent {
    buffer: Arc<Buffer>,
    range: Range<usize>,
    /// Where it came from for whoever holds it.
    source: Source,
}

impl Extent {
    /// Returns where the bytes came from: the cache, unless the holder has read them itself.
    pub(crate) fn source(&self) -> Source {
        self.source
    }

    /// Returns the extent for a holder who did not read it.
    fn shared(&self) -> Self {
        Self { source: Source::Cache, ..self.clone() }
    }
}

impl Deref for Extent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// An extent, or the reason why it cannot be read.
pub(crate) type Outcome = Result<Extent, ItemFailure>;

/// The cache of extents.
///
/// The oldest extent is evicted first, however often it was used: clients follow each other through a file,
/// and an extent that all of them have passed no longer helps. The same holds for shelves.
pub(crate) struct Extents {
    /// Maximum number of buffers.
    capacity: usize,
    slots: Mutex<Slots>,
    /// The open shelf: small files are copied to it until it is full. Lock it before `slots`.
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Slots {
    by_key: HashMap<Key, Slot>,
    /// The extents of large files, oldest first.
    ready: VecDeque<Key>,
    /// The files on each full shelf, oldest first.
    shelves: VecDeque<Vec<Key>>,
}

enum Slot {
    Reading(watch::Receiver<Option<Outcome>>),
    Ready(Extent),
}

/// An extent that is cached or being read.
pub(crate) enum PendingExtent {
    /// It is cached.
    Ready(Extent),
    /// It is being read.
    Reading {
        outcome: watch::Receiver<Option<Outcome>>,
        /// Whether this session reads it, rather than another one.
        is_own: bool,
    },
}

/// The result of asking for an extent.
pub(crate) enum Begun {
    /// It is cached, or another session is reading it.
    Found(PendingExtent),
    /// The caller must read it.
    Mine(ReadTask),
}

/// The duty to read an extent for all sessions that want it. Others wait until it is finished or dropped.
pub(crate) struct ReadTask {
    extents: Arc<Extents>,
    key: Key,
    outcome: watch::Sender<Option<Outcome>>,
}

impl ReadTask {
    /// Returns a handle that waits for the extent.
    pub(crate) fn pending(&self) -> PendingExtent {
        PendingExtent::Reading { outcome: self.outcome.subscribe(), is_own: true }
    }

    /// Reads the extent: `read` fills the buffer and returns where in it the extent lies. Waiting sessions
    /// get the extent in any case; `keep` says whether it is cached for later ones.
    pub(crate) fn read<F>(self, mut buffer: Buffer, keep: bool, read: F) -> Outcome
    where
        F: FnOnce(&mut [u8]) -> Result<InMemory, ItemFailure>,
    {
        let outcome =
            read(&mut buffer).map(|InMemory { range, source }| Extent { buffer: Arc::new(buffer), range, source });
        self.extents.settle(self.key, outcome.as_ref().ok().filter(|_| keep));
        self.outcome.send_replace(Some(outcome.clone()));
        outcome
    }
}

impl PendingExtent {
    /// Waits until the extent has been read.
    pub(crate) async fn wait(self) -> Outcome {
        match self {
            Self::Ready(extent) => Ok(extent),
            Self::Reading { mut outcome, is_own } => {
                let outcome = outcome.wait_for(Option::is_some).await;
                let outcome = outcome.ok().and_then(|outcome| outcome.clone()).unwrap_or(Err(ItemFailure::Unreadable));
                if is_own { outcome } else { outcome.map(|extent| extent.shared()) }
            }
        }
    }
}

impl Extents {
    /// Creates a cache that keeps up to `bytes` of extents that nobody holds any more.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        let shelf = Mutex::new(Shelf::new(bytes));
        Arc::new(Self { capacity: bytes / EXTENT, slots: Mutex::default(), shelf })
    }

    /// Returns the minimum number of extents of large files that the cache holds once it is full.
    pub(crate) fn window(&self) -> usize {
        self.capacity - self.capacity / SHELVES
    }

    /// Returns whether a file of `size` bytes is kept although nobody else wants it yet.
    pub(crate) fn keeps(&self, size: u64) -> bool {
        size <= (self.capacity / KEPT * EXTENT) as u64
    }

    /// Returns how many bytes the cache may hold, and how many it holds.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let slots = self.lock();
        let buffers = slots.ready.len() + slots.shelves.len();
        ((self.capacity * EXTENT) as u64, (buffers * EXTENT) as u64)
    }

    /// Returns an extent that is cached or already being read.
    pub(crate) fn find(&self, key: Key) -> Option<PendingExtent> {
        self.lock().find(key)
    }

    /// Returns, for each key, the extent if it is cached.
    pub(crate) fn ready(&self, keys: impl Iterator<Item = Key>) -> Vec<Option<Extent>> {
        let slots = self.lock();
        let ready = |key| match slots.by_key.get(&key) {
            Some(Slot::Ready(extent)) => Some(extent.clone()),
            _ => None,
        };
        keys.map(ready).collect()
    }

    /// Copies small files to the open shelf if they were read before, not long ago. Files that are read for
    /// the first time are only remembered: most clients fetch each file once, and most files have only one
    /// client. The files on a shelf become available to all sessions when it is full.
    pub(crate) fn shelve<'a>(&self, files: impl Iterator<Item = (FileState, &'a [u8])>, pool: &Arc<Pool>) {
        if self.capacity < SHELVES {
            return;
        }
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        for (file, bytes) in files {
            let key = Key { file, number: 0 };
            if !shelf.mark_read(key) || shelf.has(key) {
                continue;
            }
            if !shelf.has_room(bytes.len()) {
                let Some(buffer) = pool.try_take() else { return };
                let full = shelf.replace(buffer);
                self.lock().publish(full, self.capacity);
            }
            shelf.put(key, bytes);
        }
    }

    /// Returns an extent, or the duty to read it.
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
            Slot::Ready(extent) => Some(PendingExtent::Ready(extent.shared())),
            // A reader that panicked or gave up leaves no outcome and no sender.
            Slot::Reading(outcome) if outcome.has_changed().is_err() && outcome.borrow().is_none() => None,
            Slot::Reading(outcome) => Some(PendingExtent::Reading { outcome: outcome.clone(), is_own: false }),
        }
    }

    /// Makes the files on a full shelf available, except those that are cached already. Another shelf is open
    /// now.
    fn publish(&mut self, full: impl Iterator<Item = (Key, Extent)>, capacity: usize) {
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

    /// Evicts the oldest until at most `capacity` buffers are held, including that of the open shelf. Shelves
    /// above their share are evicted first.
    fn make_room(&mut self, capacity: usize) {
        let open = usize::from(capacity >= SHELVES);
        while self.ready.len() + self.shelves.len() + open > capacity {
            if self.ready.is_empty() || self.shelves.len() + open > capacity / SHELVES {
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
