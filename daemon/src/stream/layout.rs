//! Where the parts of a batch go in its buffer: what the store has in runs, each of which one read brings, behind them
//! what comes from the tree, each part by itself.

use std::ops::Range;

use super::plan::{Origin, Part};
use crate::file::{Stored, room};
use crate::pool::EXTENT;

/// Bytes that nobody asked for, and that are read all the same where that saves a read.
const GAP: u64 = 16 << 10;

/// Neighbours in a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// The pack.
    pub(super) pack: u32,
    /// Bytes of it.
    pub(super) bytes: Range<u64>,
}

/// The layout of parts that were added one by one. The same parts have the same layout.
#[derive(Debug, Default)]
pub(super) struct Layout {
    runs: Vec<Run>,
    /// Bytes of the buffer: for runs, for the rest.
    stored: usize,
    rest: usize,
}

impl Run {
    /// Bytes of the buffer.
    pub(super) fn room(&self) -> usize {
        room(self.bytes.start, (self.bytes.end - self.bytes.start) as usize)
    }

    fn holds(&self, of: &Run) -> bool {
        self.pack == of.pack && self.bytes.start <= of.bytes.start && of.bytes.end <= self.bytes.end
    }

    /// Both and what is between them, if that is little.
    fn joined(&self, other: &Run) -> Option<Run> {
        let near = self.bytes.start <= other.bytes.end + GAP && other.bytes.start <= self.bytes.end + GAP;
        let bytes = self.bytes.start.min(other.bytes.start)..self.bytes.end.max(other.bytes.end);
        (self.pack == other.pack && near).then_some(Run { pack: self.pack, bytes })
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
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Bytes of the buffer that the runs take.
    pub(super) fn stored(&self) -> usize {
        self.stored
    }
}

/// Which bytes of which pack a part is.
fn run(part: &Part) -> Option<Run> {
    match part.origin {
        Origin::Store(_, Stored { pack, at }) => Some(Run { pack, bytes: at..at + part.len as u64 }),
        Origin::Words | Origin::Tree(..) => None,
    }
}

/// Where in the rooms of `runs` the bytes of a part from the store go.
pub(super) fn place(runs: &[Run], part: &Part) -> Option<(usize, Range<usize>)> {
    let wanted = run(part)?;
    let number = runs.iter().position(|run| run.holds(&wanted))?;
    let before: usize = runs[..number].iter().map(Run::room).sum();
    let skip = room_skip(&runs[number]);
    let start = before + skip + (wanted.bytes.start - runs[number].bytes.start) as usize;
    Some((number, start..start + part.len))
}

/// Bytes of a run's room before its first one.
fn room_skip(run: &Run) -> usize {
    (run.bytes.start % crate::direct::ALIGNMENT as u64) as usize
}
