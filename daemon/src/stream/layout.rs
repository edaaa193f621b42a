//! Where the parts of a batch go in its buffer: what the store has in runs, each of which one read brings, behind them
//! what comes from the tree, each part by itself. Of what the store has of a file all is read, however little is asked
//! for: its check is over all of it.

use std::ops::Range;

use super::part::{Origin, Part};
use crate::direct::ALIGNMENT;
use crate::file::{Stored, room};
use crate::pool::EXTENT;

/// Bytes that nobody asked for, and that are read all the same where that saves a read.
const GAP: u64 = 16 << 10;

/// Neighbours in a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackRange {
    /// The pack.
    pub(super) pack: u32,
    /// Bytes of it.
    pub(super) bytes: Range<u64>,
}

/// The layout of parts that were added one by one. The same parts have the same layout.
#[derive(Debug, Default)]
pub(super) struct Layout {
    runs: Vec<PackRange>,
    /// Bytes of the buffer: for runs, for the rest.
    stored: usize,
    rest: usize,
}

impl PackRange {
    /// Bytes of the buffer.
    pub(super) fn room(&self) -> usize {
        room(self.bytes.start, (self.bytes.end - self.bytes.start) as usize)
    }

    fn holds(&self, of: &PackRange) -> bool {
        self.pack == of.pack && self.bytes.start <= of.bytes.start && of.bytes.end <= self.bytes.end
    }

    /// Both and what is between them, if that is little.
    fn joined(&self, other: &PackRange) -> Option<PackRange> {
        let near = self.bytes.start <= other.bytes.end + GAP && other.bytes.start <= self.bytes.end + GAP;
        let bytes = self.bytes.start.min(other.bytes.start)..self.bytes.end.max(other.bytes.end);
        (self.pack == other.pack && near).then_some(PackRange { pack: self.pack, bytes })
    }
}

impl Layout {
    /// Of a batch.
    pub(super) fn of(parts: &[Part]) -> Self {
        let mut layout = Self::default();
        parts.iter().for_each(|part| _ = layout.add(part));
        layout
    }

    /// Finds room for one more part; false if there is none.
    pub(super) fn add(&mut self, part: &Part) -> bool {
        let Some(new) = run(part) else {
            let room = if part.is_words() { 0 } else { room(part.offset, part.len) };
            let fits = self.stored + self.rest + room <= EXTENT;
            self.rest += if fits { room } else { 0 };
            return fits;
        };
        // Contents lie in the order in which they were read, nearly: so the last runs are the ones to look at.
        let near = self.runs.iter_mut().rev().find_map(|run| Some((run.joined(&new)?, run)));
        let (joined, before) = near.as_ref().map_or((&new, 0), |(joined, run)| (joined, run.room()));
        let stored = self.stored - before + joined.room();
        if stored + self.rest > EXTENT {
            return false;
        }
        self.stored = stored;
        match near {
            Some((joined, run)) => *run = joined,
            None => self.runs.push(new),
        }
        true
    }

    /// What is to be read from packs. Their rooms stand at the buffer's beginning, in this order.
    pub(super) fn runs(&self) -> &[PackRange] {
        &self.runs
    }

    /// Bytes of the buffer that the runs take.
    pub(super) fn stored(&self) -> usize {
        self.stored
    }
}

/// Which bytes of which pack are read for a part.
fn run(part: &Part) -> Option<PackRange> {
    match part.origin {
        Origin::Store(_, stored) => Some(run_of(stored)),
        Origin::Words | Origin::Denied | Origin::Tree(..) => None,
    }
}

fn run_of(stored: Stored) -> PackRange {
    PackRange { pack: stored.pack, bytes: stored.bytes() }
}

/// Where in the rooms of `runs` a content goes, with the check behind it: the run's number, and bytes of the buffer.
pub(super) fn place(runs: &[PackRange], stored: Stored) -> Option<(usize, Range<usize>)> {
    let wanted = run_of(stored);
    let number = runs.iter().position(|run| run.holds(&wanted))?;
    let before: usize = runs[..number].iter().map(PackRange::room).sum();
    let skip = (runs[number].bytes.start % ALIGNMENT as u64) as usize;
    let start = before + skip + (wanted.bytes.start - runs[number].bytes.start) as usize;
    Some((number, start..start + stored.len as usize))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::file::tests::state;

    /// Parts of a store with two packs, and of the tree.
    fn parts() -> impl Strategy<Value = Vec<Part>> {
        let part = (0..4u32, 0..3_000_000u64, 0..(64usize << 10)).prop_map(|(kind, at, len)| {
            let origin = match kind {
                pack @ 1..3 => Origin::Store(7, Stored { pack, file: 3, at, len: len as u32 + 8 }),
                3 => Origin::Tree(7, state(7)),
                _ => Origin::Words,
            };
            let offset = if kind == 3 { at } else { 0 };
            Part { item: 0, before: 0, origin, offset, len: if kind == 0 { 0 } else { len } }
        });
        prop::collection::vec(part, 0..200)
    }

    fn stored(parts: &[(u64, usize)]) -> Vec<Part> {
        let part = |&(at, len): &(u64, usize)| {
            let origin = Origin::Store(7, Stored { pack: 1, file: 3, at, len: len as u32 });
            Part { item: 0, before: 0, origin, offset: 0, len: len - 8 }
        };
        parts.iter().map(part).collect()
    }

    #[test]
    fn neighbours_are_one_run_in_whatever_order_they_are_asked_for() {
        let parts = stored(&[(20_000, 8_000), (10_000, 9_900), (28_100, 100), (500_000, 10)]);
        let layout = Layout::of(&parts);
        let bytes: Vec<_> = layout.runs().iter().map(|run| run.bytes.clone()).collect();
        assert_eq!(bytes, [10_000..28_200, 500_000..500_010]);
        assert_eq!(layout.stored(), 6 * ALIGNMENT);
    }

    #[test]
    fn as_many_files_fit_as_the_buffer_has_bytes_for_when_they_lie_together() {
        let parts = stored(&(0..200).map(|n| (64 + n * 8_192, 8_192)).collect::<Vec<_>>());
        let mut layout = Layout::default();
        assert_eq!(parts.iter().take_while(|part| layout.add(part)).count(), EXTENT / 8_192 - 1);
    }

    proptest! {
        #[test]
        fn every_part_that_was_added_has_its_bytes_in_a_run_and_all_fit_into_a_buffer(parts in parts()) {
            let mut layout = Layout::default();
            let added: Vec<Part> = parts.into_iter().filter(|part| layout.add(part)).collect();
            let again = Layout::of(&added);
            prop_assert_eq!((layout.runs(), layout.stored(), layout.rest), (again.runs(), again.stored(), again.rest));
            prop_assert_eq!(layout.stored(), layout.runs().iter().map(PackRange::room).sum::<usize>());
            prop_assert!(layout.stored() + layout.rest <= EXTENT && layout.stored().is_multiple_of(ALIGNMENT));
            let tree: usize = added.iter().filter(|part| !part.is_stored()).map(|part| room(part.offset, part.len)).sum();
            prop_assert_eq!(layout.rest, tree);
            for part in added.iter().filter(|part| part.is_stored() && !part.is_words()) {
                let Origin::Store(_, stored) = part.origin else { unreachable!() };
                let Stored { pack, at, len, .. } = stored;
                let (number, bytes) = place(layout.runs(), stored).unwrap();
                let run = &layout.runs()[number];
                let begin: usize = layout.runs()[..number].iter().map(PackRange::room).sum();
                prop_assert!(run.pack == pack && bytes.len() == len as usize && bytes.end <= begin + run.room());
                // As far behind an alignment as in the pack, and as far behind the run's first byte.
                let first = begin + (run.bytes.start % ALIGNMENT as u64) as usize;
                prop_assert_eq!((bytes.start - first) as u64, at - run.bytes.start);
            }
        }
    }
}
