//! Keeps sessions together that stream the same file at the same time, so that one disk read serves them all.
//!
//! The extent cache holds what was read most recently. As long as the first session of a convoy is not too
//! far ahead, the others find everything in the cache. So a session that is about to read waits a moment for
//! sessions that would fall out of the cache, if waiting costs little: they are moving, and are not much
//! slower than itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::file::FileState;

/// Sessions that have not moved for this long are not waited for.
const MOVING: Duration = Duration::from_millis(300);
/// Sessions are not waited for if their rate is less than this fraction of the waiting session's rate.
const SLOWEST: f64 = 0.25;

/// All convoys.
pub(crate) struct Convoys {
    /// The number of extents that the cache holds.
    window: u64,
    /// The origin of time stamps.
    epoch: Instant,
    by_file: Mutex<HashMap<FileState, Arc<Convoy>>>,
    /// The number of convoys with several members, which share the window. Stored, because every extent needs
    /// it.
    several: AtomicU64,
}

/// The sessions on their way through one file.
#[derive(Default)]
struct Convoy(Mutex<Vec<Arc<Runner>>>);

impl Convoy {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Runner>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One session's way through one file.
struct Runner {
    began: Instant,
    /// The first extent.
    start: u64,
    /// The extent that is needed next.
    next: AtomicU64,
    /// When it moved last, in milliseconds since the epoch.
    moved: AtomicU64,
}

/// A session's place in a convoy. Dropping it leaves the convoy.
pub(crate) struct Member {
    convoys: Arc<Convoys>,
    file: FileState,
    /// A reference to the convoy itself, so that looking at it takes no lock that other convoys take.
    convoy: Arc<Convoy>,
    runner: Arc<Runner>,
}

impl Convoys {
    /// Creates an empty set of convoys for a cache of `window` extents.
    pub(crate) fn new(window: usize) -> Arc<Self> {
        Arc::new(Self {
            window: window as u64,
            epoch: Instant::now(),
            by_file: Mutex::default(),
            several: AtomicU64::new(0),
        })
    }

    /// Joins the convoy of a file at extent `start`, which the session needs first.
    pub(crate) fn join(self: &Arc<Self>, file: FileState, start: u64, now: Instant) -> Member {
        let (next, moved) = (AtomicU64::new(start), AtomicU64::new(self.millis(now)));
        let runner = Arc::new(Runner { began: now, start, next, moved });
        let convoy = {
            let mut convoys = self.lock();
            let convoy = Arc::clone(convoys.entry(file).or_default());
            let mut members = convoy.lock();
            members.push(Arc::clone(&runner));
            if members.len() == 2 {
                self.several.fetch_add(1, Ordering::Relaxed);
            }
            drop(members);
            convoy
        };
        Member { convoys: Arc::clone(self), file, convoy, runner }
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_millis() as u64
    }

    fn is_moving(&self, runner: &Runner, now: Instant) -> bool {
        self.millis(now).saturating_sub(runner.moved.load(Ordering::Relaxed)) <= MOVING.as_millis() as u64
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FileState, Arc<Convoy>>> {
        self.by_file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// Notes that the session has sent everything before this extent.
    pub(crate) fn advance(&self, next: u64, now: Instant) {
        self.runner.next.store(next, Ordering::Relaxed);
        self.runner.moved.store(self.convoys.millis(now), Ordering::Relaxed);
    }

    /// Returns whether another session still has this extent ahead of it. An extent that a straggler reads
    /// for itself alone must not evict what the convoy in front of it still shares.
    pub(crate) fn is_followed(&self, extent: u64) -> bool {
        let follows =
            |other: &Arc<Runner>| !Arc::ptr_eq(other, &self.runner) && other.next.load(Ordering::Relaxed) <= extent;
        self.convoy.lock().iter().any(follows)
    }

    /// Returns whether another session would fall out of the cache if this one read the extent now.
    pub(crate) fn should_wait(&self, extent: u64, now: Instant) -> bool {
        let convoy = self.convoy.lock();
        if convoy.len() < 2 {
            return false;
        }
        let window = self.convoys.window / self.convoys.several.load(Ordering::Relaxed).max(1);
        let own_rate = self.runner.rate(now);
        let mut others = convoy.iter().filter(|other| !Arc::ptr_eq(other, &self.runner));
        others.any(|other| {
            let behind = extent.saturating_sub(other.next.load(Ordering::Relaxed));
            behind >= window / 2
                && behind < window
                && self.convoys.is_moving(other, now)
                && other.rate(now) >= own_rate * SLOWEST
        })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut convoys = self.convoys.lock();
        let mut members = self.convoy.lock();
        members.retain(|runner| !Arc::ptr_eq(runner, &self.runner));
        match members.len() {
            0 => drop(convoys.remove(&self.file)),
            1 => _ = self.convoys.several.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }
}

impl Runner {
    /// Returns the average rate since the start, in extents per second.
    fn rate(&self, now: Instant) -> f64 {
        let done = self.next.load(Ordering::Relaxed).saturating_sub(self.start);
        done as f64 / now.saturating_duration_since(self.began).as_secs_f64().max(0.001)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::state;

    /// The time `millis` ms after the first second of a test.
    fn later(convoys: &Convoys, millis: u64) -> Instant {
        convoys.epoch + Duration::from_millis(1000 + millis)
    }

    #[test]
    fn the_first_waits_only_for_sessions_that_would_fall_out_of_the_cache() {
        let convoys = Convoys::new(100);
        let (start, now) = (convoys.epoch, later(&convoys, 0));
        let first = convoys.join(state(1), 0, start);
        assert!(!first.should_wait(1000, now) && !first.is_followed(1000), "alone");
        let second = convoys.join(state(1), 0, start);
        first.advance(60, now);
        second.advance(50, now);
        assert!(!first.should_wait(60, now), "close enough");
        assert!(first.should_wait(110, now), "about to leave the second behind");
        assert!(!first.should_wait(160, now), "the second is lost already");
        assert!(!second.should_wait(50, now), "nobody is behind the second");
        assert!(!first.should_wait(110, later(&convoys, 301)), "the second is not moving");
        drop(second);
        assert!(!first.should_wait(110, now) && !first.is_followed(110));
    }

    #[test]
    fn an_extent_is_followed_while_others_still_have_it_ahead() {
        let convoys = Convoys::new(100);
        let (first, second) = (convoys.join(state(1), 0, convoys.epoch), convoys.join(state(1), 5, convoys.epoch));
        assert!(first.is_followed(5) && !first.is_followed(4), "the second wants nothing before 5");
        second.advance(20, later(&convoys, 0));
        assert!(second.is_followed(20) && !first.is_followed(19));
    }

    #[test]
    fn a_much_slower_session_is_left_behind() {
        let convoys = Convoys::new(100);
        let now = later(&convoys, 0);
        let (first, slow) = (convoys.join(state(1), 0, convoys.epoch), convoys.join(state(1), 0, convoys.epoch));
        first.advance(51, now);
        slow.advance(1, now);
        assert!(!first.should_wait(51, now));
        slow.advance(13, now);
        assert!(first.should_wait(63, now));
    }

    #[test]
    fn convoys_of_several_files_share_the_window() {
        let convoys = Convoys::new(100);
        let now = later(&convoys, 0);
        let members = [1, 1, 2, 2].map(|file| convoys.join(state(file), 0, convoys.epoch));
        members[0].advance(30, now);
        members[1].advance(20, now);
        assert!(!members[0].should_wait(44, now));
        assert!(members[0].should_wait(45, now));
        assert!(!members[0].should_wait(70, now));
    }

    #[test]
    fn one_convoy_does_not_wait_for_the_locks_of_others_and_the_count_of_convoys_is_right() {
        let convoys = Convoys::new(100);
        let now = later(&convoys, 0);
        let members: Vec<_> =
            (0..4).map(|file| [(); 3].map(|()| convoys.join(state(file), 0, convoys.epoch))).collect();
        assert_eq!(convoys.several.load(Ordering::Relaxed), 4);
        {
            // As if one session were joining, and another one looking at a different convoy.
            let (_joining, _looking) = (convoys.lock(), members[1][0].convoy.lock());
            members[0][0].advance(24, now);
            members[0][1].advance(8, now);
            assert!(members[0][0].should_wait(25, now) && members[0][0].is_followed(25));
        }
        for (left, [first, second, third]) in (0..4).rev().zip(members) {
            drop((first, second));
            assert_eq!(convoys.several.load(Ordering::Relaxed), left);
            drop(third);
        }
        assert!(convoys.lock().is_empty());
    }
}
