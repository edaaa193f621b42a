//! How far an incremental list is sent ahead of its client.
//!
//! The window has a maximum, because the session may have to queue a request for every entry that the client has.
//! Without that queue, the client could wait for the session to read while the session waits for the client.
//!
//! The window begins small, because a client that is sent much of the list at once processes all of it before it takes
//! any data: its receiving process hands lists to the other one through a pipe. The window grows by what the client
//! gets through while the session has nothing to do but wait for the client. A client that changes nothing, or is far
//! away, reaches the maximum after a few round trips.

use std::collections::VecDeque;

/// The initial size of the window: indices behind the oldest unfinished piece.
const INITIAL_SIZE: u32 = 2 << 10;
/// The maximum size of the window.
pub(super) const MAX_SIZE: u32 = 32 << 10;
/// Once the window is full, sending resumes when this part of it (1/32) is free again, if the client asks for data: its
/// data must not wait for much of the list at once.
const FREE_PART_WITH_DATA: u32 = 32;
/// The same (1/4) for a client that asks for nothing, since many small pieces of the list cost more work.
const FREE_PART: u32 = 4;

/// A position in a list: the number of whole lists before it, and the number of indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    pub(super) lists: u32,
    pub(super) index: u32,
}

impl Position {
    /// Returns the position after `lists` whole lists with `entries` entries. Each list has one index more than entries.
    pub(super) fn after(lists: u32, entries: u32) -> Self {
        Self { lists, index: lists.saturating_add(entries) }
    }

    /// Returns whether a client is past this position. `client` has the number of lists that the client has ended, and
    /// the index of its last request that was answered.
    ///
    /// A client sends its requests in list order, and may send none. It ends a list only after its requests for that
    /// list. So either number can show that the client is past.
    pub(super) fn is_passed_by(self, client: Self) -> bool {
        self.lists <= client.lists || self.index <= client.index
    }
}

/// The pieces of a list that are sent, but not processed by the client yet.
///
/// The oldest of them does not count: a client may need the next list before it ends the one that it has.
#[derive(Debug)]
pub(super) struct Window {
    /// The ends of the pieces.
    sent: VecDeque<Position>,
    /// The number of indices that the client has processed.
    done: u32,
    /// The number of indices that may be outstanding behind the oldest piece.
    size: u32,
    /// The last index that the client has asked for.
    asked: u32,
    /// Whether the client has asked for anything since `room` was called before.
    is_asking: bool,
}

impl Default for Window {
    fn default() -> Self {
        Self { sent: VecDeque::new(), done: 0, size: INITIAL_SIZE, asked: 0, is_asking: false }
    }
}

impl Window {
    /// Notes that a piece is sent, up to `end`.
    pub(super) fn send(&mut self, end: Position) {
        self.sent.push_back(end);
    }

    /// Returns the number of indices that may be sent to a client at position `client`. `was_idle` tells whether the
    /// session had nothing to do but wait for the client; the window then grows.
    pub(super) fn room(&mut self, client: Position, was_idle: bool) -> u32 {
        let before = self.done;
        self.is_asking = client.index > self.asked;
        self.asked = client.index;
        while let Some(end) = self.sent.front().filter(|end| end.is_passed_by(client)) {
            self.done = end.index;
            self.sent.pop_front();
        }
        if was_idle {
            self.size = self.size.saturating_add(self.done.saturating_sub(before)).min(MAX_SIZE);
        }
        self.size.saturating_sub(self.ahead_of(0))
    }

    /// Returns the position that the client must be past before it is worthwhile to send more.
    pub(super) fn resume_position(&self) -> Position {
        let required = self.size / if self.is_asking { FREE_PART_WITH_DATA } else { FREE_PART };
        let is_enough = |at: &usize| self.size.saturating_sub(self.ahead_of(at + 1)) >= required;
        (0..self.sent.len()).find(is_enough).map_or(Position::default(), |at| self.sent[at])
    }

    /// Returns the number of indices that were sent behind piece number `at`.
    fn ahead_of(&self, at: usize) -> u32 {
        let index = |end: Option<&Position>| end.map_or(0, |end| end.index);
        index(self.sent.back()).saturating_sub(index(self.sent.get(at).or(self.sent.back())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ended(lists: u32) -> Position {
        Position { lists, index: 0 }
    }

    #[test]
    fn the_oldest_unfinished_piece_does_not_count() {
        let mut window = Window::default();
        [(1, 50_000), (5, 51_000), (9, 60_000)]
            .iter()
            .for_each(|&(lists, index)| window.send(Position { lists, index }));
        window.size = MAX_SIZE;
        assert_eq!(window.room(ended(0), false), MAX_SIZE - 10_000);
        assert_eq!(window.room(ended(1), false), MAX_SIZE - 9_000);
        assert_eq!(window.room(ended(5), false), MAX_SIZE);
        assert_eq!(window.room(ended(9), false), MAX_SIZE);
    }

    #[test]
    fn a_window_begins_small_and_grows_while_the_session_waits_for_the_client() {
        let mut window = Window::default();
        assert_eq!(window.room(ended(0), true), INITIAL_SIZE);
        let first = Position::after(10, 990);
        assert_eq!(first.index, 1_000);
        window.send(first);
        window.send(Position { lists: 20, index: 1_000 + INITIAL_SIZE });
        assert_eq!((window.room(ended(9), true), window.resume_position()), (0, first));
        assert_eq!(window.room(ended(10), true), INITIAL_SIZE + 1_000);
        assert_eq!(window.room(ended(20), false), INITIAL_SIZE + 1_000);
    }

    #[test]
    fn a_client_that_asks_for_nothing_is_sent_large_pieces() {
        let mut window = Window::default();
        (1..=100).for_each(|n| window.send(Position { lists: n, index: n * 100 }));
        assert_eq!((window.room(Position { lists: 0, index: 99 }, false), window.resume_position().index), (0, 8_000));
        assert_eq!((window.room(Position { lists: 0, index: 99 }, false), window.resume_position().index), (0, 8_400));
    }

    #[test]
    fn a_client_is_past_an_entry_that_it_asked_for_before_it_ends_the_list() {
        let mut window = Window::default();
        window.send(Position { lists: 10, index: 1_000 });
        window.send(Position { lists: 20, index: 1_000 + INITIAL_SIZE });
        assert_eq!(window.room(Position { lists: 0, index: 999 }, false), 0);
        assert_eq!(window.room(Position { lists: 0, index: 1_000 }, false), INITIAL_SIZE);
    }

    proptest! {
        #[test]
        fn a_client_that_ends_enough_lists_gets_more_of_them(
            pieces in prop::collection::vec((1..50u32, 0..5_000u32), 1..100),
            done in 0..100u32,
        ) {
            let mut window = Window::default();
            let (mut lists, mut entries) = (0, 0);
            for (more_lists, more_entries) in pieces {
                (lists, entries) = (lists + more_lists, entries + more_entries);
                window.send(Position::after(lists, entries));
            }
            if window.room(ended(done), true) == 0 {
                let resume = window.resume_position();
                prop_assert!(resume.lists > done && resume.lists <= lists);
                prop_assert!(window.room(ended(resume.lists - 1), false) < MAX_SIZE / FREE_PART);
                prop_assert!(window.room(ended(resume.lists), false) > 0);
            }
        }
    }
}
