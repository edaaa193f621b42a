//! Turns fetches into tasks: decides which files are searched together, and how each file is built.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use stillmirror_protocol::delta::{Assembly, Piece};

use super::idle::Idle;
use super::pot::Pot;
use super::{Fetcher, WorkerEvent};
use crate::error::{At as _, PullError};
use crate::matching::{Candidate, MIN_DELTA, Matcher};
use crate::plan::Fetch;
use crate::roots::FileAt;
use crate::stage::{self, Building, Leftovers, Task};

/// Creates tasks from fetches.
pub(super) struct Tasks<'a> {
    pub(super) fetcher: &'a Fetcher<'a>,
    pub(super) fetches: &'a [Fetch],
    pub(super) left: &'a Leftovers,
    pub(super) matcher: Matcher<'a>,
    pub(super) idle: Idle,
}

impl<'a> Tasks<'a> {
    /// Splits fetches into batches to search for, fetches of which an earlier pull left much, and fetches to request whole.
    pub(super) fn split(&self, missing: &[usize]) -> (VecDeque<Vec<usize>>, VecDeque<usize>, Vec<usize>) {
        let list = self.fetcher.selection.list;
        let (mut batches, mut long, mut whole) = (VecDeque::<Vec<usize>>::new(), Vec::new(), Vec::new());
        let mut bytes_left = 0;
        for &number in missing {
            let row = list.row(self.fetches[number].row);
            let (size, part) = (row.size(), self.part(number));
            if self.bases(number).is_empty() || size < MIN_DELTA || part == size {
                let is_long = part >= LONG_PART || (part > 0 && part == size);
                if is_long { &mut long } else { &mut whole }.push(number);
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
        long.sort_by_key(|&number| self.part(number) == list.row(self.fetches[number].row).size());
        (batches, long.into(), whole)
    }

    /// Returns the length of a fetch's part in the staging directory, 0 if there is none.
    pub(super) fn part(&self, number: usize) -> u64 {
        let row = self.fetcher.selection.list.row(self.fetches[number].row);
        self.left.parts.get(&row.sha256()).copied().unwrap_or(0)
    }

    /// Matches one batch after another. Waits for a grant before it hands out a task.
    pub(super) fn match_all(
        &self,
        batches: &Mutex<VecDeque<Vec<usize>>>,
        pot: &Arc<Pot>,
        events: &Sender<WorkerEvent<'_>>,
    ) {
        loop {
            let batch = batches.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(batch) = batch else { return };
            let candidates: Vec<Candidate> = batch.iter().map(|&number| self.candidate(number)).collect();
            match self.matcher.search(&candidates) {
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
                    let _ = events.send(WorkerEvent::Failed(error));
                    return;
                }
            }
        }
    }

    /// Reads what an earlier pull left of contents, the unfinished ones first. Those of which nothing is missing can wait.
    pub(super) fn resume_all(&self, long: &Mutex<VecDeque<usize>>, open: &Arc<Pot>, events: &Sender<WorkerEvent<'a>>) {
        loop {
            let number = long.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(number) = number else { return };
            if self.part(number) == self.fetcher.selection.list.row(self.fetches[number].row).size() {
                self.idle.wait();
            }
            let is_cancelled = self.fetcher.cancel.is_cancelled();
            let event =
                if is_cancelled { WorkerEvent::Failed(PullError::Interrupted) } else { self.resume(number, open) };
            if events.send(event).is_err() || is_cancelled {
                return;
            }
        }
    }

    fn resume(&self, number: usize, open: &Arc<Pot>) -> WorkerEvent<'a> {
        let grant = open.take(1);
        let mut building = Building::new(self.fetcher.stage, self.fetcher.roots, self.whole(number, self.part(number)));
        let sha256 = building.task().sha256;
        let shown = || self.fetcher.stage.shown_part(sha256);
        match building.copy().or_else(|error| Err(error).at("read", shown())) {
            Ok(()) if building.is_complete() => WorkerEvent::Built(vec![(number, self.fetcher.finish(building))]),
            Ok(()) => WorkerEvent::Resumed(Box::new(building), grant),
            Err(error) => WorkerEvent::Built(vec![(number, Err(error))]),
        }
    }

    /// Returns the number of bytes of a complete content of an earlier pull that count as local.
    pub(super) fn kept(&self, number: usize) -> u64 {
        let sha256 = self.fetcher.selection.list.row(self.fetches[number].row).sha256();
        let is_counted = self.fetcher.resumed || self.fetcher.counted.contains(&sha256);
        if is_counted { 0 } else { self.part(number) }
    }

    fn candidate(&self, number: usize) -> Candidate {
        let fetch = &self.fetches[number];
        let row = self.fetcher.selection.list.row(fetch.row);
        let mut bases = self.bases(number);
        if self.part(number) > 0 {
            bases.push(stage::part_at(row.sha256()));
        }
        Candidate { row: fetch.asked_row(), sha256: row.sha256(), size: row.size(), bases }
    }

    /// Searches a file that was built and has a wrong digest for what is right in it. Returns the task that fetches the
    /// rest. `None` if nothing in it can be told to be right.
    pub(super) fn repair(&self, number: usize) -> Result<Option<Task>, PullError> {
        let fetch = &self.fetches[number];
        let row = self.fetcher.selection.list.row(fetch.row);
        if row.size() < MIN_DELTA || !self.fetcher.stage.has_wrong(row.sha256()) {
            return Ok(None);
        }
        // Perhaps they led to the error.
        self.fetcher.sums.forget(row.sha256());
        let bases = vec![stage::wrong_at(row.sha256())];
        let candidate =
            Candidate { row: fetch.asked_row(), sha256: row.sha256(), size: row.size(), bases: bases.clone() };
        let found = self.matcher.search(&[candidate])?.into_iter().flatten().next();
        Ok(found.map(|assembly| Task { pieces: assembly.pieces().to_vec(), bases, ..self.whole(number, 0) }))
    }

    /// Removes the file with errors that may have been built of a content, and what is known of its block checksums.
    pub(super) fn forget_wrong(&self, number: usize) -> Result<(), PullError> {
        let sha256 = self.fetcher.selection.list.row(self.fetches[number].row).sha256();
        self.fetcher.sums.forget(sha256);
        self.fetcher.stage.forget_wrong(sha256)
    }

    /// Returns the local files in which parts of a content are looked for, except its own part.
    fn bases(&self, number: usize) -> Vec<FileAt> {
        let fetch = &self.fetches[number];
        let mut bases = fetch.bases.clone();
        if self.part(number) > 0 {
            bases.extend(fetch.reuse.iter().map(|reuse| reuse.at.clone()));
        }
        let sha256 = self.fetcher.selection.list.row(fetch.row).sha256();
        if self.left.wrong.contains(&sha256) {
            bases.push(stage::wrong_at(sha256));
        }
        bases
    }

    /// Creates a task that builds a file from the search's result. The part in the staging directory is kept.
    fn assemble(&self, number: usize, assembly: &Assembly, bases: Vec<FileAt>) -> Task {
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
/// Length in bytes of a part that takes so long to read that the rest should not be requested before.
const LONG_PART: u64 = 2 << 20;
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
