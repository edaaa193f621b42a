//! Extents of files in memory: read once for all that want them at the same time.

use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stillmirror_protocol::wire::ItemFailure;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::file::FileState;
use crate::gate::Gate;
use crate::pool::{Buffer, EXTENT};

/// Reads under way at once, over all sessions: enough to keep many disks busy, few enough that their
/// threads cost little.
const READS: usize = 32;

/// An extent by the state of its file, whatever its name and generation, and its place in it: bytes
/// `number * EXTENT ..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The file.
    pub(crate) file: FileState,
    /// The extent's number within it.
    pub(crate) number: u64,
}

/// The bytes of an extent.
pub(crate) struct Extent {
    buffer: Buffer,
    range: Range<usize>,
}

impl Deref for Extent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// An extent, or why it cannot be had.
pub(crate) type Outcome = Result<Arc<Extent>, ItemFailure>;

/// The cache of extents, and the gate through which all reads go.
///
/// The oldest extent is the first to go, however often it was used: clients follow each other through a
/// file, and what all of them have passed is of no more use.
pub(crate) struct Extents {
    capacity: usize,
    slots: Mutex<Slots>,
    reads: Gate,
}

#[derive(Default)]
struct Slots {
    by_key: HashMap<Key, Slot>,
    ready: VecDeque<Key>,
}

enum Slot {
    Reading(watch::Receiver<Option<Outcome>>),
    Ready(Arc<Extent>),
}

/// An extent that is there, or about to be.
pub(crate) enum Coming {
    /// It is there.
    Ready(Arc<Extent>),
    /// Somebody reads it.
    Reading(watch::Receiver<Option<Outcome>>),
}

/// What became of asking for an extent.
pub(crate) enum Begun {
    /// Somebody has it or reads it.
    Coming(Coming),
    /// The caller is to read it.
    Mine(Lead),
}

/// The task of reading an extent for all that want it. Others wait until it is finished or dropped.
pub(crate) struct Lead {
    extents: Arc<Extents>,
    key: Key,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Lead {
    /// What others that want the extent wait for.
    pub(crate) fn coming(&self) -> Coming {
        Coming::Reading(self.outcome.subscribe())
    }

    /// Has `read` fill the buffer and say where in it the extent lies. Who waits gets it in any case;
    /// `keep` is for those who come later.
    pub(crate) fn read<F>(self, mut buffer: Buffer, keep: bool, read: F) -> Outcome
    where
        F: FnOnce(&mut [u8]) -> Result<Range<usize>, ItemFailure>,
    {
        let outcome = read(&mut buffer).map(|range| Arc::new(Extent { buffer, range }));
        self.extents.settle(self.key, outcome.as_ref().ok().filter(|_| keep));
        self.outcome.send_replace(Some(outcome.clone()));
        outcome
    }
}

impl Coming {
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
        Arc::new(Self { capacity: bytes / EXTENT, slots: Mutex::default(), reads: Gate::new(READS) })
    }

    /// An extent that is there or being read already.
    pub(crate) fn find(&self, key: Key) -> Option<Coming> {
        match self.lock().by_key.get(&key)? {
            Slot::Ready(extent) => Some(Coming::Ready(Arc::clone(extent))),
            // A reader that died leaves no outcome and no sender.
            Slot::Reading(outcome) if outcome.has_changed().is_err() && outcome.borrow().is_none() => None,
            Slot::Reading(outcome) => Some(Coming::Reading(outcome.clone())),
        }
    }

    /// An extent, or the task of reading it.
    pub(crate) fn begin(self: &Arc<Self>, key: Key) -> Begun {
        if let Some(coming) = self.find(key) {
            return Begun::Coming(coming);
        }
        let (sender, receiver) = watch::channel(None);
        self.lock().by_key.insert(key, Slot::Reading(receiver));
        Begun::Mine(Lead { extents: Arc::clone(self), key, outcome: sender })
    }

    /// Runs something that may wait for the disk, on a thread of its own, in the order of asking.
    pub(crate) fn run<T, F>(&self, work: F) -> JoinHandle<Option<T>>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.reads.run(work)
    }

    fn settle(&self, key: Key, extent: Option<&Arc<Extent>>) {
        let mut slots = self.lock();
        let Some(extent) = extent.filter(|_| self.capacity > 0) else {
            slots.by_key.remove(&key);
            return;
        };
        slots.by_key.insert(key, Slot::Ready(Arc::clone(extent)));
        slots.ready.push_back(key);
        while slots.ready.len() > self.capacity {
            let Some(oldest) = slots.ready.pop_front() else { break };
            slots.by_key.remove(&oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::state;
    use crate::pool::Pool;

    #[tokio::test]
    async fn one_read_serves_all_that_want_an_extent() {
        let (extents, pool) = (Extents::new(4 * EXTENT), Pool::new(8 * EXTENT));
        let key = Key { file: state(1), number: 0 };
        let Begun::Mine(lead) = extents.begin(key) else { panic!("nobody else reads") };
        let waiting: Vec<_> = (0..20).map(|_| extents.begin(key)).collect();
        let buffer = pool.take().await;
        let read = |buffer: &mut [u8]| {
            buffer[10..15].copy_from_slice(b"bytes");
            Ok(10..15)
        };
        assert_eq!(&**lead.read(buffer, true, read).unwrap(), b"bytes");
        for begun in waiting {
            let Begun::Coming(coming) = begun else { panic!("read twice") };
            assert_eq!(&**coming.wait().await.unwrap(), b"bytes");
        }
        assert!(matches!(extents.begin(key), Begun::Coming(Coming::Ready(_))));
    }

    #[tokio::test]
    async fn the_oldest_extents_go_first_and_give_their_buffers_back() {
        let (extents, pool) = (Extents::new(2 * EXTENT), Pool::new(8 * EXTENT));
        let key = |number| Key { file: state(1), number };
        for number in 0..5 {
            let Begun::Mine(lead) = extents.begin(key(number)) else { panic!("nobody else reads") };
            lead.read(pool.take().await, true, |_| Ok(0..1)).unwrap();
        }
        let there: Vec<_> = (0..5).filter(|&number| extents.find(key(number)).is_some()).collect();
        assert_eq!((there, pool.available()), (vec![3, 4], 6));
    }

    #[tokio::test]
    async fn a_failed_or_abandoned_read_fails_who_waits_and_nobody_later() {
        let (extents, pool) = (Extents::new(2 * EXTENT), Pool::new(8 * EXTENT));
        let key = Key { file: state(1), number: 0 };
        for abandon in [false, true] {
            let Begun::Mine(lead) = extents.begin(key) else { panic!("nobody else reads") };
            let Begun::Coming(coming) = extents.begin(key) else { panic!("read twice") };
            if abandon {
                drop(lead);
                assert_eq!(coming.wait().await.err(), Some(ItemFailure::Unreadable));
            } else {
                let _ = lead.read(pool.take().await, true, |_| Err(ItemFailure::Stale));
                assert_eq!(coming.wait().await.err(), Some(ItemFailure::Stale));
            }
        }
        assert!(matches!(extents.begin(key), Begun::Mine(_)));
    }
}
