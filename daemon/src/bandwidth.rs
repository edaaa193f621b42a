//! How fast bytes may leave: one bucket for a connection, one for a repository, one for the whole daemon.
//!
//! A session asks bucket after bucket for a slice, and sends it when the last one says so. Who asks first is
//! served first, so those who share a bucket take turns, slice by slice. Time comes in from outside: nothing
//! here waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Billionths in one: of a second in a second, of a byte in a byte.
const BILLION: u128 = 1_000_000_000;
/// Bytes that may leave at once after a pause, however low the rate.
const LEAST_BURST: u64 = 64 << 10;
/// Bytes of a slice, unless a second's or what is to be sent is less: few enough for many to take turns, and enough to be worth
/// reading a file again for, when memory had to be given back meanwhile.
const SLICE: (u64, u64) = (32 << 10, 1 << 20);
/// Slices in a second, for rates at which they are of neither size.
const SLICES: u64 = 128;

/// A bound on what all who draw on it send together: in any time no more than the rate allows, and a burst of
/// an eighth of a second (at least [`LEAST_BURST`]).
pub(crate) struct Bucket {
    /// Bytes a second.
    rate: u64,
    burst: u64,
    slice: u64,
    level: Mutex<Level>,
}

/// What was handed out and is not worked off by time yet.
struct Level {
    /// Billionths of a byte: a nanosecond works off `rate` of them, so nothing is ever rounded.
    owed: u128,
    at: Instant,
}

impl Bucket {
    /// A full one of so many bytes a second; none for a rate of 0, which is no limit.
    pub(crate) fn new(rate: u64) -> Option<Arc<Self>> {
        let (least, most) = SLICE;
        let (burst, slice) = ((rate / 8).max(LEAST_BURST), (rate / SLICES).clamp(least, most).min(rate));
        let level = Mutex::new(Level { owed: 0, at: Instant::now() });
        (rate > 0).then(|| Arc::new(Self { rate, burst, slice, level }))
    }

    /// Hands out bytes, and says from when on they may leave.
    fn hand_out(&self, bytes: u64, now: Instant) -> Instant {
        let mut level = self.level();
        let passed = now.saturating_duration_since(level.at).as_nanos();
        level.at = level.at.max(now);
        let left = level.owed.saturating_sub(passed.saturating_mul(self.rate.into()));
        level.owed = left.saturating_add(u128::from(bytes) * BILLION);
        let over = level.owed.saturating_sub(u128::from(self.burst) * BILLION);
        let wait = over.div_ceil(self.rate.into());
        level.at + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// Takes back bytes that never left.
    fn take_back(&self, bytes: u64) {
        let mut level = self.level();
        level.owed = level.owed.saturating_sub(u128::from(bytes) * BILLION);
    }

    fn level(&self) -> MutexGuard<'_, Level> {
        self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one session may send. Without a bucket, everything at once.
#[derive(Default)]
pub(crate) struct Allowance {
    buckets: Vec<Arc<Bucket>>,
    /// Bytes that every bucket has handed out.
    granted: u64,
    coming: Option<Coming>,
}

/// A slice on its way through the buckets.
struct Coming {
    bytes: u64,
    /// Buckets that were asked.
    asked: usize,
    /// When the last of them lets it go.
    until: Instant,
}

impl Allowance {
    /// From now on `bucket` is asked too, if it is not already.
    pub(crate) fn draw_on(&mut self, bucket: &Arc<Bucket>) {
        if !self.buckets.iter().any(|known| Arc::ptr_eq(known, bucket)) {
            self.give_back();
            self.buckets.push(Arc::clone(bucket));
        }
    }

    /// Whether everything may leave at any time.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.buckets.is_empty()
    }

    /// How many of so many bytes may leave now; 0 when none may before [`Self::until`].
    pub(crate) fn of(&mut self, wanted: usize, now: Instant) -> usize {
        if self.is_unlimited() {
            return wanted;
        }
        if self.granted == 0 && self.coming.is_none() {
            let slice = self.buckets.iter().map(|bucket| bucket.slice).min().unwrap_or(u64::MAX);
            self.coming = Some(Coming { bytes: slice.min(wanted as u64), asked: 0, until: now });
        }
        self.until(now);
        usize::try_from(self.granted).unwrap_or(usize::MAX).min(wanted)
    }

    /// Bytes have left.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.granted = self.granted.saturating_sub(bytes as u64);
    }

    /// When to ask again; none when nothing holds the session up.
    pub(crate) fn until(&mut self, now: Instant) -> Option<Instant> {
        while let Some(coming) = &mut self.coming {
            if coming.until > now {
                return Some(coming.until);
            }
            match self.buckets.get(coming.asked) {
                Some(bucket) => {
                    coming.until = bucket.hand_out(coming.bytes, now);
                    coming.asked += 1;
                }
                None => {
                    self.granted += coming.bytes;
                    self.coming = None;
                }
            }
        }
        None
    }

    /// Nobody is to wait for bytes that do not leave.
    fn give_back(&mut self) {
        let granted = std::mem::take(&mut self.granted);
        let (bytes, asked) = self.coming.take().map_or((0, 0), |coming| (coming.bytes, coming.asked));
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

    /// Sends for that long, as each of the sessions may and wants: what left, and when.
    fn run(sessions: &mut [(Allowance, usize)], time: Duration) -> Vec<(usize, Duration, u64)> {
        let began = Instant::now();
        let mut left = Vec::new();
        let mut now = began;
        loop {
            for (number, (allowance, wanted)) in sessions.iter_mut().enumerate() {
                loop {
                    let bytes = allowance.of(*wanted, now);
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
        fn what_leaves_in_any_time_is_within_rate_and_burst(
            rate in 1_u64 << 10..1 << 28,
            wanted in prop::collection::vec(4 << 10..4_usize << 20, 1..6),
            slow in 1_u64 << 10..1 << 28,
        ) {
            let (shared, own) = (bucket(rate), bucket(slow));
            let mut sessions: Vec<_> = wanted.iter().map(|&wanted| drawing(&[&shared], wanted)).collect();
            // One of them is held up by another bucket first.
            sessions.push(drawing(&[&own, &shared], 1 << 20));
            // What the rate does not account for, in that stretch of time up to now in which it is the most.
            let (mut ahead, mut before) = (0, Duration::ZERO);
            for (_, at, bytes) in run(&mut sessions, Duration::from_millis(400)) {
                let due = (at - before).as_nanos() * u128::from(rate);
                ahead = u128::saturating_sub(ahead, due) + u128::from(bytes) * BILLION;
                before = at;
                prop_assert!(ahead <= u128::from(shared.burst) * BILLION, "{ahead} at {at:?}");
            }
        }

        #[test]
        fn no_rate_and_no_time_overflows(
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
    fn all_of_the_rate_is_used() {
        for rate in [10 << 10, 1 << 20, 1 << 30] {
            let left = run(&mut [drawing(&[&bucket(rate)], 1 << 20)], Duration::from_secs(20));
            let sum = left.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
            assert!(sum + bucket(rate).slice >= 20 * rate, "{sum} at {rate}");
        }
    }

    #[test]
    fn who_shares_a_bucket_takes_turns() {
        let shared = bucket(1 << 20);
        let mut sessions: Vec<_> = (0..5).map(|_| drawing(&[&shared], 1 << 20)).collect();
        let left = run(&mut sessions, Duration::from_secs(10));
        let sums = [0, 1, 2, 3, 4].map(|session| {
            left.iter().filter(|(number, ..)| *number == session).map(|(_, _, bytes)| bytes).sum::<u64>()
        });
        let (least, most) = (sums.iter().min().unwrap(), sums.iter().max().unwrap());
        assert!(most - least <= shared.burst, "{sums:?}");
        let late = &left[left.len() - 5..];
        assert!((0..5).all(|session| late.iter().any(|(number, ..)| *number == session)), "{late:?}");
    }

    #[test]
    fn who_is_held_up_elsewhere_leaves_the_rest_to_others() {
        let (shared, own) = (bucket(1 << 20), bucket(100 << 10));
        let mut sessions = [drawing(&[&own, &shared], 1 << 20), drawing(&[&shared], 1 << 20)];
        let left = run(&mut sessions, Duration::from_secs(20));
        let other = left.iter().filter(|(number, ..)| *number == 1).map(|(_, _, bytes)| bytes).sum::<u64>();
        assert!(other >= 20 * ((1 << 20) - (100 << 10)) - shared.burst, "{other}");
    }

    #[test]
    fn what_a_session_did_not_send_is_there_for_others() {
        let shared = bucket(100 << 10);
        let now = Instant::now();
        for _ in 0..100 {
            let (mut allowance, wanted) = drawing(&[&shared], 1 << 20);
            allowance.of(wanted, now);
        }
        assert_eq!(drawing(&[&shared], 1 << 20).0.of(1000, now), 1000);
    }

    #[test]
    fn without_a_bucket_everything_may_leave() {
        assert!(Bucket::new(0).is_none());
        assert_eq!(Allowance::default().of(usize::MAX, Instant::now()), usize::MAX);
    }
}
