//! Limits how many pieces found by the matchers wait to be requested.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A pot of pieces. A matcher waits for a grant when the pot is empty, so a slow network slows down the
/// search instead of filling the memory.
#[derive(Debug)]
pub(super) struct Pot {
    limit: usize,
    /// Number of pieces granted.
    used: Mutex<usize>,
    given_back: Condvar,
}

/// Units held for a number of pieces. They return to the pot on drop.
#[derive(Debug)]
pub(super) struct Grant {
    pot: Arc<Pot>,
    pieces: usize,
}

impl Pot {
    /// Creates a pot for `limit` pieces.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: Mutex::new(0), given_back: Condvar::new() })
    }

    /// Waits for a grant for `pieces` pieces. A number above the limit is granted when no other grant is
    /// held.
    pub(super) fn take(self: &Arc<Self>, pieces: usize) -> Grant {
        let is_full = |used: &mut usize| *used > 0 && used.saturating_add(pieces) > self.limit;
        let used = self.given_back.wait_while(self.lock(), is_full);
        *used.unwrap_or_else(PoisonError::into_inner) += pieces;
        Grant { pot: Arc::clone(self), pieces }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        *self.pot.lock() -= self.pieces;
        self.pot.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn grants_stay_below_the_limit_and_all_matchers_finish() {
        let pot = Pot::new(100);
        let (events, incoming) = mpsc::channel();
        std::thread::scope(|scope| {
            for matcher in 0..3 {
                let (events, pot) = (events.clone(), Arc::clone(&pot));
                scope.spawn(move || {
                    for number in 0..500 {
                        // Some exceed the limit: they are granted when nothing else is.
                        let pieces = if number % 100 == 7 { 250 } else { (number * 7 + matcher) % 40 + 1 };
                        events.send(pot.take(pieces)).unwrap();
                    }
                });
            }
            drop(events);
            let mut count = 0;
            for grant in incoming {
                let used = *pot.lock();
                assert!(used <= 100 || used == grant.pieces, "{used} pieces wait");
                count += 1;
            }
            assert_eq!((count, *pot.lock()), (1500, 0));
        });
    }

    #[test]
    fn a_waiting_matcher_continues_once_the_transfer_has_failed() {
        let pot = Pot::new(1);
        let (events, incoming) = mpsc::channel();
        events.send(pot.take(1)).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pot.take(1));
            // The transfer has failed.
            drop(incoming);
            drop(waiting.join().unwrap());
        });
        assert_eq!(*pot.lock(), 0);
    }
}
