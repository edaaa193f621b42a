//! Sessions that stream the same file at the same time keep together, so that one read of the disk
//! serves them all.
//!
//! The cache holds what was read in the last moments. As long as the first of a pack is not too far
//! ahead, the others find everything there. So the one who is about to read waits a moment for those
//! who would lose touch, if that costs it little: they are moving, and not much slower than itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::file::FileState;

/// Who has not moved for so long is not waited for.
const MOVING: Duration = Duration::from_millis(300);
/// Nor who is slower than this part of the one who would wait.
const SLOWEST: f64 = 0.25;

/// All packs.
pub(crate) struct Packs {
    /// Extents that the cache holds.
    window: u64,
    /// What times are counted from.
    epoch: Instant,
    by_file: Mutex<HashMap<FileState, Arc<Pack>>>,
    /// How many packs have several members: they share the window. Kept, because it is asked for at every extent.
    several: AtomicU64,
}

/// The sessions on their way through one file.
#[derive(Default)]
struct Pack(Mutex<Vec<Arc<Runner>>>);

impl Pack {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Runner>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One session's way through one file.
struct Runner {
    began: Instant,
    /// The first extent, and the next one.
    start: u64,
    next: AtomicU64,
    /// When it moved last: milliseconds since the epoch.
    moved: AtomicU64,
}

/// A session's place in a pack. Dropping it leaves the pack.
pub(crate) struct Place {
    packs: Arc<Packs>,
    file: FileState,
    /// The pack itself: looking at it takes no lock that other packs take.
    pack: Arc<Pack>,
    runner: Arc<Runner>,
}

impl Packs {
    /// For a cache of `window` extents.
    pub(crate) fn new(window: usize) -> Arc<Self> {
        Arc::new(Self {
            window: window as u64,
            epoch: Instant::now(),
            by_file: Mutex::default(),
            several: AtomicU64::new(0),
        })
    }

    /// Joins the pack of a file, at the extent that is wanted first.
    pub(crate) fn join(self: &Arc<Self>, file: FileState, start: u64, now: Instant) -> Place {
        let (next, moved) = (AtomicU64::new(start), AtomicU64::new(self.millis(now)));
        let runner = Arc::new(Runner { began: now, start, next, moved });
        let pack = {
            let mut packs = self.lock();
            let pack = Arc::clone(packs.entry(file).or_default());
            let mut members = pack.lock();
            members.push(Arc::clone(&runner));
            if members.len() == 2 {
                self.several.fetch_add(1, Ordering::Relaxed);
            }
            drop(members);
            pack
        };
        Place { packs: Arc::clone(self), file, pack, runner }
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_millis() as u64
    }

    fn is_moving(&self, runner: &Runner, now: Instant) -> bool {
        self.millis(now).saturating_sub(runner.moved.load(Ordering::Relaxed)) <= MOVING.as_millis() as u64
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FileState, Arc<Pack>>> {
        self.by_file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The session has sent everything before this extent.
    pub(crate) fn advance(&self, next: u64, now: Instant) {
        self.runner.next.store(next, Ordering::Relaxed);
        self.runner.moved.store(self.packs.millis(now), Ordering::Relaxed);
    }

    /// Whether anybody else has this extent still before them. What a straggler reads for itself alone must
    /// not push out what the pack in front of it still shares.
    pub(crate) fn is_followed(&self, extent: u64) -> bool {
        let follows =
            |other: &Arc<Runner>| !Arc::ptr_eq(other, &self.runner) && other.next.load(Ordering::Relaxed) <= extent;
        self.pack.lock().iter().any(follows)
    }

    /// Whether somebody would lose touch if the session read this extent now.
    pub(crate) fn should_wait(&self, extent: u64, now: Instant) -> bool {
        let pack = self.pack.lock();
        if pack.len() < 2 {
            return false;
        }
        let window = self.packs.window / self.packs.several.load(Ordering::Relaxed).max(1);
        let own_rate = self.runner.rate(now);
        let mut others = pack.iter().filter(|other| !Arc::ptr_eq(other, &self.runner));
        others.any(|other| {
            let behind = extent.saturating_sub(other.next.load(Ordering::Relaxed));
            behind >= window / 2
                && behind < window
                && self.packs.is_moving(other, now)
                && other.rate(now) >= own_rate * SLOWEST
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut packs = self.packs.lock();
        let mut members = self.pack.lock();
        members.retain(|runner| !Arc::ptr_eq(runner, &self.runner));
        match members.len() {
            0 => drop(packs.remove(&self.file)),
            1 => _ = self.packs.several.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }
}

impl Runner {
    /// Extents a second, over the whole way.
    fn rate(&self, now: Instant) -> f64 {
        let done = self.next.load(Ordering::Relaxed).saturating_sub(self.start);
        done as f64 / now.saturating_duration_since(self.began).as_secs_f64().max(0.001)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::state;

    /// A second after the start of all packs of a test.
    fn later(packs: &Packs, millis: u64) -> Instant {
        packs.epoch + Duration::from_millis(1000 + millis)
    }

    #[test]
    fn the_first_waits_for_who_would_lose_touch_and_for_nobody_else() {
        let packs = Packs::new(100);
        let (start, now) = (packs.epoch, later(&packs, 0));
        let first = packs.join(state(1), 0, start);
        assert!(!first.should_wait(1000, now) && !first.is_followed(1000), "alone");
        let second = packs.join(state(1), 0, start);
        first.advance(60, now);
        second.advance(50, now);
        assert!(!first.should_wait(60, now), "close enough");
        assert!(first.should_wait(110, now), "about to leave the second behind");
        assert!(!first.should_wait(160, now), "the second is lost already");
        assert!(!second.should_wait(50, now), "nobody is behind the second");
        assert!(!first.should_wait(110, later(&packs, 301)), "the second does not move");
        drop(second);
        assert!(!first.should_wait(110, now) && !first.is_followed(110));
    }

    #[test]
    fn what_others_have_still_before_them_is_kept_for_them() {
        let packs = Packs::new(100);
        let (first, second) = (packs.join(state(1), 0, packs.epoch), packs.join(state(1), 5, packs.epoch));
        assert!(first.is_followed(5) && !first.is_followed(4), "the second wants nothing before 5");
        second.advance(20, later(&packs, 0));
        assert!(second.is_followed(20) && !first.is_followed(19));
    }

    #[test]
    fn a_much_slower_one_is_left_behind() {
        let packs = Packs::new(100);
        let now = later(&packs, 0);
        let (first, slow) = (packs.join(state(1), 0, packs.epoch), packs.join(state(1), 0, packs.epoch));
        first.advance(51, now);
        slow.advance(1, now);
        assert!(!first.should_wait(51, now));
        slow.advance(13, now);
        assert!(first.should_wait(63, now));
    }

    #[test]
    fn packs_of_several_files_share_the_window() {
        let packs = Packs::new(100);
        let now = later(&packs, 0);
        let members = [1, 1, 2, 2].map(|file| packs.join(state(file), 0, packs.epoch));
        members[0].advance(30, now);
        members[1].advance(20, now);
        assert!(!members[0].should_wait(44, now));
        assert!(members[0].should_wait(45, now));
        assert!(!members[0].should_wait(70, now));
    }

    #[test]
    fn a_look_at_one_pack_waits_for_no_other_and_the_number_of_packs_is_kept() {
        let packs = Packs::new(100);
        let now = later(&packs, 0);
        let members: Vec<_> = (0..4).map(|file| [(); 3].map(|()| packs.join(state(file), 0, packs.epoch))).collect();
        assert_eq!(packs.several.load(Ordering::Relaxed), 4);
        {
            // Somebody joins, and somebody is in another pack.
            let (_joining, _looking) = (packs.lock(), members[1][0].pack.lock());
            members[0][0].advance(24, now);
            members[0][1].advance(8, now);
            assert!(members[0][0].should_wait(25, now) && members[0][0].is_followed(25));
        }
        for (left, [first, second, third]) in (0..4).rev().zip(members) {
            drop((first, second));
            assert_eq!(packs.several.load(Ordering::Relaxed), left);
            drop(third);
        }
        assert!(packs.lock().is_empty());
    }
}
