//! From fetches to tasks: which files are searched for together, and how a file is built.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use stillmirror_protocol::delta::{Assembly, Piece};
use stillmirror_protocol::entry::Digest;

use super::room::Room;
use super::{Fetcher, Happened};
use crate::matching::{Candidate, MIN_DELTA, Matcher};
use crate::plan::Fetch;
use crate::stage::{self, Task};

/// Makes tasks of fetches.
pub(super) struct Tasks<'a> {
    pub(super) fetcher: &'a Fetcher<'a>,
    pub(super) fetches: &'a [Fetch],
    pub(super) parts: &'a HashMap<Digest, u64>,
}

impl Tasks<'_> {
    /// Splits fetches into batches to search for, and those that are fetched whole.
    pub(super) fn split(&self, missing: &[usize]) -> (VecDeque<Vec<usize>>, Vec<usize>) {
        let list = self.fetcher.selection.list;
        let (mut batches, mut whole) = (VecDeque::<Vec<usize>>::new(), Vec::new());
        let mut room = 0;
        for &number in missing {
            let row = list.row(self.fetches[number].row);
            let (size, part) = (row.size(), self.part(number));
            if self.fetches[number].bases.is_empty() || size < MIN_DELTA || part == size {
                whole.push(number);
                continue;
            }
            match batches.back_mut() {
                Some(batch) if size <= room && batch.len() < BATCH => batch.push(number),
                _ => {
                    batches.push_back(vec![number]);
                    room = BATCH_BYTES;
                }
            }
            room = room.saturating_sub(size);
        }
        (batches, whole)
    }

    pub(super) fn part(&self, number: usize) -> u64 {
        let row = self.fetcher.selection.list.row(self.fetches[number].row);
        self.parts.get(&row.sha256()).copied().unwrap_or(0)
    }

    /// Matches batch after batch, no faster than what was found finds room.
    pub(super) fn match_all(
        &self,
        matcher: &Matcher<'_>,
        batches: &Mutex<VecDeque<Vec<usize>>>,
        room: &Arc<Room>,
        events: &Sender<Happened>,
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
                        let taken = room.take(task.pieces.len() + TASK);
                        if events.send(Happened::Ready(Box::new(task), taken)).is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    let _ = events.send(Happened::MatchingFailed(error));
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

    /// A task that builds a file as the search found; the beginning that is there already stays.
    fn assemble(&self, number: usize, assembly: &Assembly, bases: Vec<Vec<u8>>) -> Task {
        let mut task = self.whole(number, self.part(number));
        task.pieces = assembly.pieces().iter().filter_map(|piece| cut(*piece, task.keep)).collect();
        task.bases = bases;
        task
    }

    /// A task that fetches all but the first `keep` bytes.
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

/// What of a piece lies behind the first `keep` bytes.
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

/// A task takes as much memory as so many pieces, without its own.
const TASK: usize = 8;
/// Files that are matched side by side, so that a round trip serves all of them.
const BATCH: usize = 512;
/// Bytes of new files that are matched side by side: their checksums are held in memory.
const BATCH_BYTES: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_before_what_is_kept_fall_away_and_the_one_across_is_cut() {
        let copy = Piece::Copy { target: 100, len: 50, basis: 1, offset: 7 };
        assert_eq!(cut(copy, 100), Some(copy));
        assert_eq!(cut(copy, 120), Some(Piece::Copy { target: 120, len: 30, basis: 1, offset: 27 }));
        assert_eq!(cut(copy, 150), None);
        let literal = Piece::Literal { target: 0, len: 10 };
        assert_eq!(cut(literal, 3), Some(Piece::Literal { target: 3, len: 7 }));
    }
}
