//! Where the parts of a batch go in its buffer.
//!
//! Contents from the store come first, in runs: a run is a range of a pack that one read brings. Behind the runs come
//! the parts from the tree, each with its own room. The content of a stored file is always read as a whole, however
//! little is asked for, because its checksum covers all of it.

use std::ops::Range;

use super::part::{Origin, Part};
use crate::direct::ALIGNMENT;
use crate::file::{Stored, room};
use crate::pool::EXTENT;

/// The largest gap (bytes) between two contents that are read as one run: reading the gap saves a second read.
const MAX_GAP: u64 = 16 << 10;

/// A range of a pack with one or several neighbouring contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackRange {
    pub(super) pack: u32,
    pub(super) bytes: Range<u64>,
}

/// The layout of parts that were added one by one. It is a function of the parts and their order.
#[derive(Debug, Default)]
pub(super) struct Layout {
    runs: Vec<PackRange>,
    /// Bytes of the buffer for runs.
    stored: usize,
    /// Bytes of the buffer for parts from the tree.
    rest: usize,
}

impl PackRange {
    /// Returns the bytes of the buffer that the range takes.
    pub(super) fn room(&self) -> usize {
        room(self.bytes.start, (self.bytes.end - self.bytes.start) as usize)
    }

    fn holds(&self, of: &PackRange) -> bool {
        self.pack == of.pack && self.bytes.start <= of.bytes.start && of.bytes.end <= self.bytes.end
    }

    /// Returns one range that covers both. `None` if they are too far apart.
    fn joined(&self, other: &PackRange) -> Option<PackRange> {
        let near = self.bytes.start <= other.bytes.end + MAX_GAP && other.bytes.start <= self.bytes.end + MAX_GAP;
        let bytes = self.bytes.start.min(other.bytes.start)..self.bytes.end.max(other.bytes.end);
        (self.pack == other.pack && near).then_some(PackRange { pack: self.pack, bytes })
    }
}

impl Layout {
    /// Lays out the parts of a batch.
    pub(super) fn of(parts: &[Part]) -> Self {
        let mut layout = Self::default();
        parts.iter().for_each(|part| _ = layout.add(part));
        layout
    }

    /// Adds a part. Returns false, and changes nothing, if it does not fit into the buffer.
    pub(super) fn add(&mut self, part: &Part) -> bool {
        let Some(new) = run(part) else {
            let room = if part.needs_no_read() { 0 } else { room(part.offset, part.len) };
            let fits = self.stored + self.rest + room <= EXTENT;
            self.rest += if fits { room } else { 0 };
            return fits;
        };
        // Contents lie in the pack nearly in the order in which clients ask for them, so the last runs are the likely
        // neighbours.
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

    /// Returns the ranges to read from packs. They take the beginning of the buffer, in this order.
    pub(super) fn runs(&self) -> &[PackRange] {
        &self.runs
    }

    /// Returns the bytes of the buffer that the runs take.
    pub(super) fn stored(&self) -> usize {
        self.stored
    }
}

/// Returns the pack range that is read for a part. `None` if the part is not in the store.
fn run(part: &Part) -> Option<PackRange> {
    match part.origin {
        Origin::Store(_, stored) => Some(run_of(stored)),
        Origin::NoFile | Origin::Denied | Origin::Tree(..) => None,
    }
}

fn run_of(stored: Stored) -> PackRange {
    PackRange { pack: stored.pack, bytes: stored.bytes() }
}

/// Returns where the content of a file goes, together with the checksum behind it: the number of its run, and its range
/// in the buffer.
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

    /// Generates parts from two packs of a store, parts from the tree, and parts without content.
    fn parts() -> impl Strategy<Value = Vec<Part>> {
        let part = (0..4u32, 0..3_000_000u64, 0..(64usize << 10)).prop_map(|(kind, at, len)| {
            let origin = match kind {
                pack @ 1..3 => Origin::Store(7, Stored { pack, file: 3, at, len: len as u32 + 8 }),
                3 => Origin::Tree(7, state(7)),
                _ => Origin::NoFile,
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
    fn neighbours_form_one_run_in_any_order_of_requests() {
        let parts = stored(&[(20_000, 8_000), (10_000, 9_900), (28_100, 100), (500_000, 10)]);
        let layout = Layout::of(&parts);
        let bytes: Vec<_> = layout.runs().iter().map(|run| run.bytes.clone()).collect();
        assert_eq!(bytes, [10_000..28_200, 500_000..500_010]);
        assert_eq!(layout.stored(), 6 * ALIGNMENT);
    }

    #[test]
    fn files_that_lie_together_fill_the_buffer() {
        let parts = stored(&(0..200).map(|n| (64 + n * 8_192, 8_192)).collect::<Vec<_>>());
        let mut layout = Layout::default();
        assert_eq!(parts.iter().take_while(|part| layout.add(part)).count(), EXTENT / 8_192 - 1);
    }

    proptest! {
        #[test]
        fn every_added_part_has_its_bytes_in_a_run_and_all_fit_into_a_buffer(parts in parts()) {
            let mut layout = Layout::default();
            let added: Vec<Part> = parts.into_iter().filter(|part| layout.add(part)).collect();
            let again = Layout::of(&added);
            prop_assert_eq!((layout.runs(), layout.stored(), layout.rest), (again.runs(), again.stored(), again.rest));
            prop_assert_eq!(layout.stored(), layout.runs().iter().map(PackRange::room).sum::<usize>());
            prop_assert!(layout.stored() + layout.rest <= EXTENT && layout.stored().is_multiple_of(ALIGNMENT));
            let tree: usize = added.iter().filter(|part| !part.is_stored()).map(|part| room(part.offset, part.len)).sum();
            prop_assert_eq!(layout.rest, tree);
            for part in added.iter().filter(|part| part.is_stored() && !part.needs_no_read()) {
                let Origin::Store(_, stored) = part.origin else { unreachable!() };
                let Stored { pack, at, len, .. } = stored;
                let (number, bytes) = place(layout.runs(), stored).unwrap();
                let run = &layout.runs()[number];
                let begin: usize = layout.runs()[..number].iter().map(PackRange::room).sum();
                prop_assert!(run.pack == pack && bytes.len() == len as usize && bytes.end <= begin + run.room());
                // The offset within the run, and within an aligned block, is the same as in the pack.
                let first = begin + (run.bytes.start % ALIGNMENT as u64) as usize;
                prop_assert_eq!((bytes.start - first) as u64, at - run.bytes.start);
            }
        }
    }
}
