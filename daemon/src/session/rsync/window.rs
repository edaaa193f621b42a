//! How far an incremental list goes ahead of its client.
//!
//! What a client asks for in the lists that it has may all have to be remembered, so that it never waits for this side
//! to read while this side waits for it: therefore there is a most. And a client that is sent much of the list at once
//! looks at all of that before it takes any data, as the one of its processes that receives has to hand lists to the
//! other one through a pipe: so this begins small, and grows by what the client gets through while this side has nothing
//! to do but to wait for it. A client that changes nothing, or is far away, has all of it after a few round trips.

use std::collections::VecDeque;

/// Indices behind the oldest unfinished piece, at the beginning.
const FIRST: u32 = 2 << 10;
/// The same, at the most.
pub(super) const MOST: u32 = 32 << 10;
/// The part of it that is to be free before more is sent, when none was: of a client that asks for things, whose data
/// are not to wait for much of the list at once; and of one that does not, for which little at a time is much work.
const PART_BESIDE_DATA: u32 = 32;
const PART: u32 = 4;

/// A place in a list: whole lists before it, and indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct At {
    pub(super) lists: u32,
    pub(super) index: u32,
}

impl At {
    /// After so many whole lists with so many entries: each list has one index more than entries.
    pub(super) fn after(lists: u32, entries: u32) -> Self {
        Self { lists, index: lists.saturating_add(entries) }
    }

    /// Whether a client is past this place that has ended so many lists, and whose last request to be answered had
    /// this index. It asks for things in their order, and may ask for nothing; and it ends lists in its requests' order,
    /// so that what it has asked for is in front of all ends.
    pub(super) fn is_behind(self, client: Self) -> bool {
        self.lists <= client.lists || self.index <= client.index
    }
}

/// The pieces of a list that were sent, and that the client is not through with.
///
/// The oldest of them does not count: a client may want the next list before it ends the one that it has.
#[derive(Debug)]
pub(super) struct Window {
    /// Their ends.
    sent: VecDeque<At>,
    /// Indices that the client is through with.
    done: u32,
    /// Indices behind the oldest piece that are too much.
    size: u32,
    /// The last index that the client has asked for, and whether it has asked for more than before.
    asked: u32,
    asks: bool,
}

impl Default for Window {
    fn default() -> Self {
        Self { sent: VecDeque::new(), done: 0, size: FIRST, asked: 0, asks: false }
    }
}

impl Window {
    /// A piece goes out, up to there.
    pub(super) fn send(&mut self, end: At) {
        self.sent.push_back(end);
    }

    /// Indices that may be sent to a client that is at this place, and was waited for or not.
    pub(super) fn room(&mut self, client: At, was_waited_for: bool) -> u32 {
        let before = self.done;
        self.asks = client.index > self.asked;
        self.asked = client.index;
        while let Some(end) = self.sent.front().filter(|end| end.is_behind(client)) {
            self.done = end.index;
            self.sent.pop_front();
        }
        if was_waited_for {
            self.size = self.size.saturating_add(self.done.saturating_sub(before)).min(MOST);
        }
        self.size.saturating_sub(self.ahead_of(0))
    }

    /// What the client must be past before it is worth while to send more.
    pub(super) fn enough(&self) -> At {
        let least = self.size / if self.asks { PART_BESIDE_DATA } else { PART };
        let is_enough = |at: &usize| self.size.saturating_sub(self.ahead_of(at + 1)) >= least;
        (0..self.sent.len()).find(is_enough).map_or(At::default(), |at| self.sent[at])
    }

    /// Indices behind the piece at that place.
    fn ahead_of(&self, at: usize) -> u32 {
        let index = |end: Option<&At>| end.map_or(0, |end| end.index);
        index(self.sent.back()).saturating_sub(index(self.sent.get(at).or(self.sent.back())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ended(lists: u32) -> At {
        At { lists, index: 0 }
    }

    #[test]
    fn the_oldest_piece_that_a_client_is_not_through_with_does_not_count() {
        let mut window = Window::default();
        [(1, 50_000), (5, 51_000), (9, 60_000)].iter().for_each(|&(lists, index)| window.send(At { lists, index }));
        window.size = MOST;
        assert_eq!(window.room(ended(0), false), MOST - 10_000);
        assert_eq!(window.room(ended(1), false), MOST - 9_000);
        assert_eq!(window.room(ended(5), false), MOST);
        assert_eq!(window.room(ended(9), false), MOST);
    }

    #[test]
    fn a_window_begins_small_and_grows_by_what_a_client_gets_through_that_is_waited_for() {
        let mut window = Window::default();
        assert_eq!(window.room(ended(0), true), FIRST);
        let first = At::after(10, 990);
        assert_eq!(first.index, 1_000);
        window.send(first);
        window.send(At { lists: 20, index: 1_000 + FIRST });
        assert_eq!((window.room(ended(9), true), window.enough()), (0, first));
        assert_eq!(window.room(ended(10), true), FIRST + 1_000);
        assert_eq!(window.room(ended(20), false), FIRST + 1_000);
    }

    #[test]
    fn a_client_that_asks_for_nothing_is_sent_much_at_a_time() {
        let mut window = Window::default();
        (1..=100).for_each(|n| window.send(At { lists: n, index: n * 100 }));
        assert_eq!((window.room(At { lists: 0, index: 99 }, false), window.enough().index), (0, 8_000));
        assert_eq!((window.room(At { lists: 0, index: 99 }, false), window.enough().index), (0, 8_400));
    }

    #[test]
    fn a_client_is_past_what_it_has_asked_for_although_it_has_not_ended_it() {
        let mut window = Window::default();
        window.send(At { lists: 10, index: 1_000 });
        window.send(At { lists: 20, index: 1_000 + FIRST });
        assert_eq!(window.room(At { lists: 0, index: 999 }, false), 0);
        assert_eq!(window.room(At { lists: 0, index: 1_000 }, false), FIRST);
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
                window.send(At::after(lists, entries));
            }
            if window.room(ended(done), true) == 0 {
                let enough = window.enough();
                prop_assert!(enough.lists > done && enough.lists <= lists);
                prop_assert!(window.room(ended(enough.lists - 1), false) < MOST / PART);
                prop_assert!(window.room(ended(enough.lists), false) > 0);
            }
        }
    }
}
