//! The traffic of the last hours, in a ring of fixed size.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// The length of an interval, in seconds.
pub(crate) const INTERVAL: u64 = 300;
/// The number of intervals that are kept: a day.
const INTERVALS: usize = 288;

/// Bytes sent to native clients and to rsync clients.
pub(crate) type Sent = [u64; 2];

/// The bytes that were sent in each interval of the last day.
#[derive(Default)]
pub(crate) struct History(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    /// The number of the last interval since 1970; 0 before the first sample.
    last: u64,
    /// The oldest first.
    intervals: VecDeque<Sent>,
    /// The totals at the last sample.
    counted: Sent,
}

impl History {
    /// Adds what was sent since the last sample to the interval that `now`, in seconds since 1970, lies in. `totals` are
    /// the bytes sent so far.
    pub(crate) fn sample(&self, now: u64, totals: Sent) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = now / INTERVAL;
        if ring.intervals.is_empty() {
            ring.last = number;
            ring.intervals.push_back(Sent::default());
        }
        // A clock that was set back adds to the last interval.
        let passed = number.saturating_sub(ring.last).min(INTERVALS as u64);
        for _ in 0..passed {
            ring.intervals.push_back(Sent::default());
        }
        ring.last = ring.last.max(number);
        let excess = ring.intervals.len().saturating_sub(INTERVALS);
        ring.intervals.drain(..excess);
        let counted = std::mem::replace(&mut ring.counted, totals);
        if let Some(last) = ring.intervals.back_mut() {
            for ((bytes, total), before) in last.iter_mut().zip(totals).zip(counted) {
                *bytes += total.saturating_sub(before);
            }
        }
    }

    /// Returns when the first interval began, in seconds since 1970, and the bytes of each interval.
    pub(crate) fn intervals(&self) -> (u64, Vec<Sent>) {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = (ring.last + 1).saturating_sub(ring.intervals.len() as u64);
        (first * INTERVAL, ring.intervals.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_for_the_interval_in_which_they_were_noticed() {
        let history = History::default();
        let begin = 1000 * INTERVAL;
        history.sample(begin + 10, [5, 0]);
        history.sample(begin + 20, [7, 1]);
        history.sample(begin + 2 * INTERVAL, [7, 100]);
        assert_eq!(history.intervals(), (begin, vec![[7, 1], [0, 0], [0, 99]]));
        history.sample(begin, [8, 100]);
        assert_eq!(history.intervals().1, [[7, 1], [0, 0], [1, 99]], "the clock was set back");
    }

    #[test]
    fn only_the_last_day_is_kept_however_long_nothing_was_sampled() {
        let history = History::default();
        for hour in 0..100 {
            history.sample(hour * 3600, [hour, 0]);
        }
        let (first, intervals) = history.intervals();
        assert_eq!((first, intervals.len()), (99 * 3600 - 287 * INTERVAL, INTERVALS));
        assert_eq!(intervals.iter().map(|[native, _]| native).sum::<u64>(), 24);
        history.sample(u64::MAX, [1000, 0]);
        let (_, intervals) = history.intervals();
        assert_eq!((intervals.len(), intervals[INTERVALS - 1]), (INTERVALS, [901, 0]));
    }
}
