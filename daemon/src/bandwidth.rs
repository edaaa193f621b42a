//! Rate limits as token buckets: one for a connection, one for a repository, one for the whole daemon.
//!
//! A session asks its buckets one after the other for a slice, and sends the slice when the last bucket
//! allows it. Buckets serve requests in order, so sessions that share a bucket take turns, slice by slice.
//! The caller passes in the time; nothing here waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Nanoseconds in a second, and billionths of a byte in a byte.
const BILLION: u128 = 1_000_000_000;
/// Bytes that may be sent at once after a pause, however low the rate.
const MIN_BURST: u64 = 64 << 10;
/// Minimum and maximum size of a slice, in bytes, unless one second's worth or the data to send is less.
/// Slices are small enough for many sessions to take turns. They are large enough to be worth reading a file
/// again for, if memory had to be given back meanwhile.
const SLICE: (u64, u64) = (32 << 10, 1 << 20);
/// Slices per second, for rates that lead to a size between the two.
const SLICES: u64 = 128;

/// A limit on what all sessions that draw on it send together. In any period they send no more than the rate
/// allows, plus a burst of an eighth of a second (at least [`MIN_BURST`]).
pub(crate) struct Bucket {
    /// In bytes per second.
    rate: AtomicU64,
    level: Mutex<Level>,
}

/// The bytes that were handed out and that time has not paid off yet.
struct Level {
    /// In billionths of a byte. A nanosecond pays off `rate` of them, so nothing is ever rounded.
    owed: u128,
    at: Instant,
}

impl Bucket {
    /// Creates a full bucket of `rate` bytes per second, or `None` for a rate of 0, which means no limit.
    pub(crate) fn new(rate: u64) -> Option<Arc<Self>> {
        let level = Mutex::new(Level { owed: 0, at: Instant::now() });
        (rate > 0).then(|| Arc::new(Self { rate: AtomicU64::new(rate), level }))
    }

    /// Returns the bucket that takes the place of `before` for a rate of `rate` bytes per second. If both limit
    /// anything, that is the same bucket, which [`Bucket::change`] then changes for all that draw on it.
    pub(crate) fn after(before: Option<&Arc<Self>>, rate: u64) -> Option<Arc<Self>> {
        before.filter(|_| rate > 0).cloned().or_else(|| Self::new(rate))
    }

    /// Changes the rate for all that draw on the bucket. 0 is no limit.
    pub(crate) fn change(&self, rate: u64) {
        let rate = if rate == 0 { u64::MAX } else { rate };
        self.rate.store(rate, Ordering::Relaxed);
    }

    fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Returns how many bytes may be sent at once after a pause.
    fn burst(&self) -> u64 {
        (self.rate() / 8).max(MIN_BURST)
    }

    /// Returns the size of a slice, in bytes.
    fn slice(&self) -> u64 {
        let ((min, max), rate) = (SLICE, self.rate());
        (rate / SLICES).clamp(min, max).min(rate)
    }

    /// Hands out bytes, and returns the time from which they may be sent.
    fn hand_out(&self, bytes: u64, now: Instant) -> Instant {
        let (rate, burst) = (u128::from(self.rate()), u128::from(self.burst()));
        let mut level = self.level();
        let passed = now.saturating_duration_since(level.at).as_nanos();
        level.at = level.at.max(now);
        let left = level.owed.saturating_sub(passed.saturating_mul(rate));
        level.owed = left.saturating_add(u128::from(bytes) * BILLION);
        let over = level.owed.saturating_sub(burst * BILLION);
        let wait = over.div_ceil(rate);
        level.at + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// Takes back bytes that were never sent.
    fn take_back(&self, bytes: u64) {
        let mut level = self.level();
        level.owed = level.owed.saturating_sub(u128::from(bytes) * BILLION);
    }

    fn level(&self) -> MutexGuard<'_, Level> {
        self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes that one session may send. Without a bucket there is no limit.
#[derive(Default)]
pub(crate) struct Allowance {
    buckets: Vec<Arc<Bucket>>,
    /// Bytes that every bucket has handed out and that are not sent yet.
    granted: u64,
    pending: Option<PendingSlice>,
}

/// A slice on its way through the buckets.
struct PendingSlice {
    bytes: u64,
    /// The number of buckets that have been asked.
    asked: usize,
    /// When the last one of them releases the slice.
    until: Instant,
}

impl Allowance {
    /// Draws on `bucket` too from now on, unless it does already.
    pub(crate) fn draw_on(&mut self, bucket: &Arc<Bucket>) {
        if !self.buckets.iter().any(|known| Arc::ptr_eq(known, bucket)) {
            self.give_back();
            self.buckets.push(Arc::clone(bucket));
        }
    }

    /// Returns whether there is no limit.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Returns how many of `wanted` bytes may be sent now: 0 if none may before [`Self::until`].
    pub(crate) fn available(&mut self, wanted: usize, now: Instant) -> usize {
        if self.is_unlimited() {
            return wanted;
        }
        if self.granted == 0 && self.pending.is_none() {
            let slice = self.buckets.iter().map(|bucket| bucket.slice()).min().unwrap_or(u64::MAX);
            self.pending = Some(PendingSlice { bytes: slice.min(wanted as u64), asked: 0, until: now });
        }
        self.until(now);
        usize::try_from(self.granted).unwrap_or(usize::MAX).min(wanted)
    }

    /// Notes that bytes were sent.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.granted = self.granted.saturating_sub(bytes as u64);
    }

    /// Returns when to ask again, or `None` if no bucket delays the session.
    pub(crate) fn until(&mut self, now: Instant) -> Option<Instant> {
        while let Some(pending) = &mut self.pending {
            if pending.until > now {
                return Some(pending.until);
            }
            match self.buckets.get(pending.asked) {
                Some(bucket) => {
                    pending.until = bucket.hand_out(pending.bytes, now);
                    pending.asked += 1;
                }
                None => {
                    self.granted += pending.bytes;
                    self.pending = None;
                }
            }
        }
        None
    }

    /// Returns unsent bytes to the buckets, so that no session waits for them.
    fn give_back(&mut self) {
        let granted = std::mem::take(&mut self.granted);
        let (bytes, asked) = self.pending.take().map_or((0, 0), |pending| (pending.bytes, pending.asked));
        for (place, bucket) in self.buckets.iter().enumerate() {
            bucket.take_back(granted + if place < asked { bytes } else { 0 });
        }
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lets the sessions send as much as they want and may, for `time`. Returns for each write the session, the
    /// time and the number of bytes.
    fn run(sessions: &mut [(Allowance, usize)], time: Duration) -> Vec<(usize, Duration, u64)> {
        let began = Instant::now();
        let mut left = Vec::new();
        let mut now = began;
        loop {
            for (number, (allowance, wanted)) in sessions.iter_mut().enumerate() {
                loop {
                    let bytes = allowance.available(*wanted, now);
                    if bytes == 0 {
                        break;
                    }
                    allowance.spend(bytes);
                    left.push((number, now - began, bytes as u64));
                }
            }
            now = sessions.iter_mut().filter_map(|(allowance, _)| allowance.until(now)).min().unwrap();
            if now > began + time {
                return left;
            }
        }
    }

    fn drawing(buckets: &[&Arc<Bucket>], wanted: usize) -> (Allowance, usize) {
        let mut allowance = Allowance::default();
        buckets.iter().for_each(|bucket| allowance.draw_on(bucket));
        (allowance, wanted)
    }

    fn bucket(rate: u64) -> Arc<Bucket> {
        Bucket::new(rate).unwrap()
    }

    proptest! {
        #[test]
        fn no_period_exceeds_rate_and_burst(
            rate in 1_u64 << 10..1 << 28,
            wanted in prop::collection::vec(4 << 10..4_usize << 20, 1..6),
            slow in 1_u64 << 10..1 << 28,
        ) {
            let (shared, own) = (bucket(rate), bucket(slow));
            let mut sessions: Vec<_> = wanted.iter().map(|&wanted| drawing(&[&shared], wanted)).collect();
            // One of them is delayed by another bucket first.
            sessions.push(drawing(&[&own, &shared], 1 << 20));
            // The excess over the rate, in the period up to now in which it is largest.
            let (mut ahead, mut before) = (0, Duration::ZERO);
            for (_, at, bytes) in run(&mut sessions, Duration::from_millis(400)) {
                let due = (at - before).as_nanos() * u128::from(rate);
                ahead = u128::saturating_sub(ahead, due) + u128::from(bytes) * BILLION;
                before = at;
                prop_assert!(ahead <= u128::from(shared.burst()) * BILLION, "{ahead} at {at:?}");
            }
        }

        #[test]
        fn extreme_rates_and_times_do_not_overflow(
            rate in prop_oneof![Just(1), Just(u64::MAX), 1..=u64::MAX],
            asks in prop::collection::vec((any::<u64>(), 0..u64::MAX / 512), 1..20),
        ) {
            let bucket = bucket(rate);
            let mut now = Instant::now();
            for (bytes, passed) in asks {
                now += Duration::from_nanos(passed);
                prop_assert!(bucket.hand_out(bytes, now) >= now);
                bucket.take_back(bytes / 2);
            }
        }
    }

    #[test]
    fn the_whole_rate_is_used() {
        for rate in [10 << 10, 1 << 20, 1 << 30] {
            let left = run(&mut [drawing(&[&bucket(rate)], 1 << 20)], Duration::from_secs(20));
            let sum = left.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
            assert!(sum + bucket(rate).slice() >= 20 * rate, "{sum} at {rate}");
        }
    }

    #[test]
    fn sessions_that_share_a_bucket_take_turns() {
        let shared = bucket(1 << 20);
        let mut sessions: Vec<_> = (0..5).map(|_| drawing(&[&shared], 1 << 20)).collect();
        let left = run(&mut sessions, Duration::from_secs(10));
        let sums = [0, 1, 2, 3, 4].map(|session| {
            left.iter().filter(|(number, ..)| *number == session).map(|(_, _, bytes)| bytes).sum::<u64>()
        });
        let (least, most) = (sums.iter().min().unwrap(), sums.iter().max().unwrap());
        assert!(most - least <= shared.burst(), "{sums:?}");
        let late = &left[left.len() - 5..];
        assert!((0..5).all(|session| late.iter().any(|(number, ..)| *number == session)), "{late:?}");
    }

    #[test]
    fn a_session_that_another_bucket_delays_leaves_the_rest_to_others() {
        let (shared, own) = (bucket(1 << 20), bucket(100 << 10));
        let mut sessions = [drawing(&[&own, &shared], 1 << 20), drawing(&[&shared], 1 << 20)];
        let left = run(&mut sessions, Duration::from_secs(20));
        let other = left.iter().filter(|(number, ..)| *number == 1).map(|(_, _, bytes)| bytes).sum::<u64>();
        assert!(other >= 20 * ((1 << 20) - (100 << 10)) - shared.burst(), "{other}");
    }

    #[test]
    fn unsent_bytes_are_available_to_others() {
        let shared = bucket(100 << 10);
        let now = Instant::now();
        for _ in 0..100 {
            let (mut allowance, wanted) = drawing(&[&shared], 1 << 20);
            allowance.available(wanted, now);
        }
        assert_eq!(drawing(&[&shared], 1 << 20).0.available(1000, now), 1000);
    }

    #[test]
    fn another_rate_holds_for_those_who_draw_already() {
        let shared = bucket(1 << 20);
        let mut sessions = [drawing(&[&shared], 1 << 20)];
        assert!(Arc::ptr_eq(&Bucket::after(Some(&shared), 4 << 20).unwrap(), &shared));
        shared.change(4 << 20);
        let sum = run(&mut sessions, Duration::from_secs(10)).iter().map(|(_, _, bytes)| bytes).sum::<u64>();
        assert!((39 << 20..=41 << 20).contains(&sum), "{sum}");
        assert!(Bucket::after(Some(&shared), 0).is_none());
        shared.change(0);
        // The run above went on for ten seconds in the clock of the bucket.
        assert!(sessions[0].0.available(1 << 20, Instant::now() + Duration::from_secs(20)) > 0);
    }

    #[test]
    fn without_a_bucket_there_is_no_limit() {
        assert!(Bucket::new(0).is_none());
        assert_eq!(Allowance::default().available(usize::MAX, Instant::now()), usize::MAX);
    }
}
