//! Turns fetches into tasks: decides which files are searched together, and how each file is built.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use stillmirror_protocol::delta::{Assembly, Piece};
use stillmirror_protocol::entry::Digest;

use super::pot::Pot;
use super::{Fetcher, WorkerEvent};
use crate::matching::{Candidate, MIN_DELTA, Matcher};
use crate::plan::Fetch;
use crate::stage::{self, Task};

/// Creates tasks from fetches.
pub(super) struct Tasks<'a> {
    pub(super) fetcher: &'a Fetcher<'a>,
    pub(super) fetches: &'a [Fetch],
    pub(super) parts: &'a HashMap<Digest, u64>,
}

impl Tasks<'_> {
    /// Splits fetches into batches to search for, and fetches to request whole.
    pub(super) fn split(&self, missing: &[usize]) -> (VecDeque<Vec<usize>>, Vec<usize>) {
        let list = self.fetcher.selection.list;
        let (mut batches, mut whole) = (VecDeque::<Vec<usize>>::new(), Vec::new());
        let mut bytes_left = 0;
        for &number in missing {
            let row = list.row(self.fetches[number].row);
            let (size, part) = (row.size(), self.part(number));
            if self.fetches[number].bases.is_empty() || size < MIN_DELTA || part == size {
                whole.push(number);
                continue;
            }
            match batches.back_mut() {
                Some(batch) if size <= bytes_left && batch.len() < BATCH => batch.push(number),
                _ => {
                    batches.push_back(vec![number]);
                    bytes_left = BATCH_BYTES;
                }
            }
            bytes_left = bytes_left.saturating_sub(size);
        }
        (batches, whole)
    }

    /// Returns the length of a fetch's part in the staging directory, 0 if there is none.
    pub(super) fn part(&self, number: usize) -> u64 {
        let row = self.fetcher.selection.list.row(self.fetches[number].row);
        self.parts.get(&row.sha256()).copied().unwrap_or(0)
    }

    /// Matches one batch after another. Waits for a grant before it hands out a task.
    pub(super) fn match_all(
        &self,
        matcher: &Matcher<'_>,
        batches: &Mutex<VecDeque<Vec<usize>>>,
        pot: &Arc<Pot>,
        events: &Sender<WorkerEvent>,
    ) {
        loop {
            let batch = batches.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(batch) = batch else { return };
            let candidates: Vec<Candidate> = batch.iter().map(|&number| self.candidate(number)).collect();
            match matcher.search(&candidates) {
                Ok(found) => {
                    for ((number, candidate), assembly) in batch.into_iter().zip(candidates).zip(found) {
                        let task = match assembly {
                            Some(assembly) => self.assemble(number, &assembly, candidate.bases),
                            None => self.whole(number, self.part(number)),
                        };
                        let grant = pot.take(task.pieces.len() + TASK);
                        if events.send(WorkerEvent::Ready(Box::new(task), grant)).is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    let _ = events.send(WorkerEvent::MatchingFailed(error));
                    return;
                }
            }
        }
    }

    fn candidate(&self, number: usize) -> Candidate {
        let fetch = &self.fetches[number];
        let row = self.fetcher.selection.list.row(fetch.row);
        let mut bases = fetch.bases.clone();
        if self.part(number) > 0 {
            bases.push(stage::part_path(row.sha256()));
        }
        Candidate { row: fetch.row, size: row.size(), bases }
    }

    /// Creates a task that builds a file from the search's result. The part in the staging directory is kept.
    fn assemble(&self, number: usize, assembly: &Assembly, bases: Vec<Vec<u8>>) -> Task {
        let mut task = self.whole(number, self.part(number));
        task.pieces = assembly.pieces().iter().filter_map(|piece| cut(*piece, task.keep)).collect();
        task.bases = bases;
        task
    }

    /// Creates a task that fetches all of a file except the first `keep` bytes.
    pub(super) fn whole(&self, number: usize, keep: u64) -> Task {
        let row = self.fetcher.selection.list.row(self.fetches[number].row);
        let rest = Piece::Literal { target: keep, len: row.size() - keep };
        Task {
            number,
            sha256: row.sha256(),
            size: row.size(),
            metadata: self.fetcher.metadata(row.number()),
            keep,
            pieces: if !rest.is_empty() { vec![rest] } else { Vec::new() },
            bases: Vec::new(),
            keep_in_store: self.fetcher.policy(self.fetches[number].row),
        }
    }
}

/// Returns the part of a piece behind the first `keep` bytes. `None` if nothing is left of it.
fn cut(piece: Piece, keep: u64) -> Option<Piece> {
    let (Piece::Copy { target, len, .. } | Piece::Literal { target, len }) = piece;
    let skip = keep.saturating_sub(target);
    if skip >= len {
        return None;
    }
    Some(match piece {
        Piece::Copy { basis, offset, .. } => {
            Piece::Copy { target: target + skip, len: len - skip, basis, offset: offset + skip }
        }
        Piece::Literal { .. } => Piece::Literal { target: target + skip, len: len - skip },
    })
}

/// The memory that a task takes besides its pieces, counted in pieces.
const TASK: usize = 8;
/// Maximum number of files that are matched together, so that one round trip serves all of them.
const BATCH: usize = 512;
/// Maximum size of the new files that are matched together, in bytes. Their checksums are held in memory.
const BATCH_BYTES: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_before_the_kept_part_are_dropped_and_a_piece_across_its_end_is_cut() {
        let copy = Piece::Copy { target: 100, len: 50, basis: 1, offset: 7 };
        assert_eq!(cut(copy, 100), Some(copy));
        assert_eq!(cut(copy, 120), Some(Piece::Copy { target: 120, len: 30, basis: 1, offset: 27 }));
        assert_eq!(cut(copy, 150), None);
        let literal = Piece::Literal { target: 0, len: 10 };
        assert_eq!(cut(literal, 3), Some(Piece::Literal { target: 3, len: 7 }));
    }
}
