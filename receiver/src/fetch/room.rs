//! How much of what matchers found may wait for the link.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Room for pieces of files that wait. Who finds none waits itself, so that a slow link holds the search up and not
/// the memory.
#[derive(Debug)]
pub(super) struct Room {
    limit: usize,
    taken: Mutex<usize>,
    given_back: Condvar,
}

/// Room that is taken, given back on drop.
#[derive(Debug)]
pub(super) struct Taken {
    room: Arc<Room>,
    pieces: usize,
}

impl Room {
    /// For so many pieces.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::new(0), given_back: Condvar::new() })
    }

    /// Waits for room for so many pieces. Too many for the limit have it when nothing else waits.
    pub(super) fn take(self: &Arc<Self>, pieces: usize) -> Taken {
        let is_full = |taken: &mut usize| *taken > 0 && taken.saturating_add(pieces) > self.limit;
        let taken = self.given_back.wait_while(self.lock(), is_full);
        *taken.unwrap_or_else(PoisonError::into_inner) += pieces;
        Taken { room: Arc::clone(self), pieces }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.room.lock() -= self.pieces;
        self.room.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn no_more_pieces_wait_than_there_is_room_for_and_all_get_through() {
        let room = Room::new(100);
        let (events, incoming) = mpsc::channel();
        std::thread::scope(|scope| {
            for matcher in 0..3 {
                let (events, room) = (events.clone(), Arc::clone(&room));
                scope.spawn(move || {
                    for number in 0..500 {
                        // Some are larger than all room: they are let in alone.
                        let pieces = if number % 100 == 7 { 250 } else { (number * 7 + matcher) % 40 + 1 };
                        events.send(room.take(pieces)).unwrap();
                    }
                });
            }
            drop(events);
            let mut count = 0;
            for taken in incoming {
                let waiting = *room.lock();
                assert!(waiting <= 100 || waiting == taken.pieces, "{waiting} pieces wait");
                count += 1;
            }
            assert_eq!((count, *room.lock()), (1500, 0));
        });
    }

    #[test]
    fn who_waits_for_room_goes_on_when_nobody_takes_it_any_more() {
        let room = Room::new(1);
        let (events, incoming) = mpsc::channel();
        events.send(room.take(1)).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| room.take(1));
            // The transfer has failed.
            drop(incoming);
            drop(waiting.join().unwrap());
        });
        assert_eq!(*room.lock(), 0);
    }
}
