//! The limit on the rate at which a connection is read.

use std::time::Duration;

use tokio::time::Instant;

/// How much time that was not used may be used later. Timers fire late, and the process has other work, so without it the
/// rate would stay below the limit.
const BURST: Duration = Duration::from_millis(125);

/// Keeps the reading rate at a limit. No period exceeds the limit by more than the bytes of [`BURST`] and of one read.
pub(super) struct Pace {
    /// Bytes per second.
    rate: f64,
    /// When everything read so far is paid for.
    free: Instant,
}

impl Pace {
    pub(super) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1) as f64, free: Instant::now() }
    }

    /// Returns how many bytes to read at once: those of [`BURST`], at most `most`.
    pub(super) fn chunk(&self, most: usize) -> usize {
        ((self.rate * BURST.as_secs_f64()) as usize).max(1024).min(most)
    }

    /// Returns when to read again, after `read` bytes were read.
    pub(super) fn after(&mut self, read: usize) -> Instant {
        let now = Instant::now();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        self.free = self.free.max(earliest) + Duration::from_secs_f64(read as f64 / self.rate);
        self.free
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    const RATE: u64 = 40 << 20;
    const MOST: usize = 256 << 10;

    /// Reads for `time`, and is late by `late` after every read. Returns the number of bytes read.
    async fn read(pace: &mut Pace, time: Duration, late: Duration) -> u64 {
        let end = Instant::now() + time;
        let mut bytes = 0;
        while Instant::now() < end {
            let chunk = pace.chunk(MOST);
            bytes += chunk as u64;
            sleep_until(pace.after(chunk)).await;
            advance(late).await;
        }
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn late_timers_and_other_work_do_not_lower_the_rate() {
        for late in [0, 1, 3, 5] {
            let mut pace = Pace::new(RATE);
            let bytes = read(&mut pace, Duration::from_secs(10), Duration::from_millis(late)).await;
            let part = bytes as f64 / (10 * RATE) as f64;
            assert!((0.99..1.02).contains(&part), "{part} of the rate, if always {late} ms late");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_silence_allows_no_more_than_a_short_burst() {
        let mut pace = Pace::new(RATE);
        advance(Duration::from_secs(3600)).await;
        let bytes = read(&mut pace, Duration::from_secs(1), Duration::ZERO).await;
        assert!(bytes <= RATE + RATE / 8 + MOST as u64, "{bytes}");
    }
}
