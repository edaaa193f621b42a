//! Bringing contents into the staging directory: from local files where they are, by matching and
//! ranges where parts of them are, else whole.
//!
//! Three kinds of threads. *Matchers* search local files and hand out tasks. The caller's thread turns
//! tasks into requests, keeps several under way, and deals the bytes that come to the *builders*, which
//! hash and write. Queues are bounded, so that memory is; a builder that lags behind stops the reading.

mod room;
mod tasks;
mod transfer;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use rayon::prelude::*;
use stillmirror_protocol::delta::Piece;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::local::RecordAt;
use stillmirror_store::{Draft, Record};
use tokio_util::sync::CancellationToken;

use crate::error::{At as _, PullError};
use crate::local::Tree;
use crate::matching::Matcher;
use crate::owners::OwnerMap;
use crate::plan::{Fetch, Reuse};
use crate::report::{Failure, Progress, Report};
use crate::selection::Selection;
use crate::source::Source;
use crate::stage::{self, Building, Built, KeepPolicy, Kept, Metadata, Stage, Task};

use room::{Room, Taken};
use tasks::Tasks;
use transfer::Transfer;

/// What is needed to bring contents.
pub(crate) struct Fetcher<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) handle: u32,
    /// An earlier connection of this pull broke: what lies in the staging directory has been counted.
    pub(crate) resumed: bool,
    pub(crate) tree: &'a Tree,
    pub(crate) stage: &'a Stage,
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) owners: &'a OwnerMap,
    /// Where records go, when there is a store, and what they hold.
    pub(crate) draft: Option<&'a Draft>,
    pub(crate) keep: KeepPolicy,
    pub(crate) threads: usize,
    pub(crate) pool: &'a rayon::ThreadPool,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a CancellationToken,
}

/// What is in the staging directory now.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    /// Rows and their staged names.
    pub(crate) files: Vec<StagedFile>,
    /// Records of the rows whose content was read on its way here.
    pub(crate) records: HashMap<u32, RecordAt>,
    /// Rows whose content did not come.
    pub(crate) failed: HashMap<u32, Failure>,
}

/// One staged file.
#[derive(Debug)]
pub(crate) struct StagedFile {
    pub(crate) row: u32,
    pub(crate) name: Vec<u8>,
    /// It is a local file under a further name: mode and time are still that one's.
    pub(crate) linked: bool,
}

impl Fetcher<'_> {
    /// Stages the contents of all fetches, and counts what they took into the report. When it fails,
    /// `staged` has what came, and another fetcher can go on from there.
    pub(crate) fn fetch(&self, fetches: &[Fetch], staged: &mut Staged, report: &mut Report) -> Result<(), PullError> {
        let list = self.selection.list;
        let done = staged.rows();
        let open: Vec<usize> = (0..fetches.len()).filter(|&number| !done.contains(&fetches[number].row)).collect();
        let sizes = open.iter().map(|&number| list.row(fetches[number].row)).map(|row| (row.sha256(), row.size()));
        let names = staged.files.iter().map(|file| &file.name[..]).collect();
        let mut parts = self.stage.survey(&sizes.collect(), &names)?;
        let reused = self.pool.install(|| self.reuse_all(fetches, &open, &parts))?;
        let mut missing = Vec::new();
        for (number, reused) in open.into_iter().zip(reused) {
            match reused {
                Some(reused) => {
                    report.files_updated += 1;
                    report.files_reused += 1;
                    report.add_matched(list.row(fetches[number].row).size());
                    staged.add(self.row_of(&fetches[number]), reused);
                }
                None => missing.push(number),
            }
        }
        for row in missing.iter().filter(|&&number| !fetches[number].reuse.is_empty()).map(|&n| fetches[n].row) {
            // A local file that was copied in vain has taken the part's name, and away with it.
            let sha256 = list.row(row).sha256();
            if parts.contains_key(&sha256) && !self.stage.has_part(sha256)? {
                parts.remove(&sha256);
            }
        }
        if !missing.is_empty() {
            self.transfer(fetches, missing, &parts, staged, report)?;
        }
        self.copy_all(fetches, staged, report)
    }

    fn row_of(&self, fetch: &Fetch) -> (u32, Digest) {
        (fetch.row, self.selection.list.row(fetch.row).sha256())
    }

    /// Takes whole contents from local files, where that works.
    fn reuse_all(
        &self,
        fetches: &[Fetch],
        open: &[usize],
        parts: &HashMap<Digest, u64>,
    ) -> Result<Vec<Option<Reused>>, PullError> {
        let reuse = |&number: &usize| {
            let fetch = &fetches[number];
            if self.cancel.is_cancelled() {
                return Err(PullError::Interrupted);
            }
            let row = self.selection.list.row(fetch.row);
            if parts.get(&row.sha256()) == Some(&row.size()) {
                return Ok(None);
            }
            for reuse in &fetch.reuse {
                let reused = self.reuse(fetch.row, reuse)?;
                if reused.is_some() {
                    self.progress.advance(1, row.size());
                    return Ok(reused);
                }
            }
            Ok(None)
        };
        open.par_iter().map(reuse).collect()
    }

    fn reuse(&self, row: u32, reuse: &Reuse) -> Result<Option<Reused>, PullError> {
        let shown = || self.tree.shown(&reuse.path);
        let metadata = self.metadata(row);
        let sha256 = self.selection.list.row(row).sha256();
        if reuse.sure && reuse.goes && self.stage.link(self.tree, reuse, sha256).at("link", shown())? {
            return Ok(Some(Reused { linked: true, record: None }));
        }
        if reuse.sure && self.stage.clone_blocks(self.tree, reuse, sha256, &metadata).at("clone", shown())? {
            return Ok(Some(Reused { linked: false, record: None }));
        }
        let whole = Piece::Copy { target: 0, len: reuse.size, basis: 0, offset: 0 };
        let task = Task {
            number: 0,
            sha256,
            size: reuse.size,
            metadata,
            keep: 0,
            pieces: if reuse.size > 0 { vec![whole] } else { Vec::new() },
            bases: vec![reuse.path.clone()],
            keep_in_store: self.policy(row),
        };
        let mut building = Building::new(self.stage, self.tree, task);
        building.copy().at("copy", shown())?;
        match building.finish().at("copy", shown())? {
            Built::Right(kept) => Ok(Some(Reused { linked: false, record: self.keep(sha256, &kept)? })),
            Built::Wrong => Ok(None),
        }
    }

    /// What the store keeps of the content of a row: nothing of it whole that not everybody may read.
    fn policy(&self, row: u32) -> Option<KeepPolicy> {
        let contents = if self.selection.list.is_public(row) { self.keep.contents } else { 0 };
        self.draft.is_some().then_some(KeepPolicy { contents, ..self.keep })
    }

    fn keep(&self, file: Digest, Kept { sums, content }: &Kept) -> Result<Option<RecordAt>, PullError> {
        let Some(draft) = self.draft else { return Ok(None) };
        let at = draft.append(file, Record { sums, content })?;
        Ok((!at.is_empty()).then_some(at))
    }

    fn metadata(&self, row: u32) -> Metadata {
        let row = self.selection.list.row(row);
        Metadata { mode: row.permissions(), owner: self.owners.of(row), mtime: row.mtime() }
    }

    /// Makes the further files of contents that several rows want.
    fn copy_all(&self, fetches: &[Fetch], staged: &mut Staged, report: &mut Report) -> Result<(), PullError> {
        let list = self.selection.list;
        for fetch in fetches {
            let (sha256, size) = (list.row(fetch.row).sha256(), list.row(fetch.row).size());
            let why = staged.failed.get(&fetch.row).copied();
            for (copy, &row) in fetch.copies.iter().enumerate() {
                if let Some(why) = why {
                    staged.failed.insert(row, why);
                    continue;
                }
                if self.cancel.is_cancelled() {
                    return Err(PullError::Interrupted);
                }
                if list.row(row).size() != size {
                    return Err(PullError::offence(format!("a list with two sizes for the digest {sha256}")));
                }
                let shown = self.tree.shown(&self.selection.path(row));
                let name = self.stage.duplicate(sha256, copy, &self.metadata(row)).at("copy to", shown)?;
                if let Some(record) = staged.records.get(&fetch.row).copied() {
                    staged.records.insert(row, record);
                }
                staged.files.push(StagedFile { row, name, linked: false });
                report.files_updated += 1;
                report.files_reused += 1;
                report.add_matched(size);
            }
        }
        Ok(())
    }

    /// Brings what no local file has as a whole.
    fn transfer(
        &self,
        fetches: &[Fetch],
        missing: Vec<usize>,
        parts: &HashMap<Digest, u64>,
        staged: &mut Staged,
        report: &mut Report,
    ) -> Result<(), PullError> {
        let (events, incoming) = mpsc::channel();
        let checksums = AtomicU64::new(0);
        let tasks = Tasks { fetcher: self, fetches, parts };
        let (batches, whole) = tasks.split(&missing);
        let (batches, room) = (Mutex::new(batches), Room::new(WAITING));
        let matcher = Matcher {
            source: self.source,
            handle: self.handle,
            tree: self.tree,
            pool: self.pool,
            checksums: &checksums,
        };
        let result = thread::scope(|scope| {
            if !batches.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                for _ in 0..MATCHERS {
                    let events = events.clone();
                    let (matcher, batches, tasks, room) = (&matcher, &batches, &tasks, &room);
                    scope.spawn(move || tasks.match_all(matcher, batches, room, &events));
                }
            }
            let builders = (0..self.threads.max(1)).map(|_| {
                let (work, orders) = mpsc::sync_channel(BUILDER_QUEUE);
                let events = events.clone();
                scope.spawn(move || self.build_all(&orders, &events));
                work
            });
            let builders = builders.collect();
            drop(events);
            let transfer = Transfer::new(&tasks, builders, incoming, whole, missing.len(), staged, report);
            let result = transfer.run();
            if result.is_err() {
                // Whoever waits for the sender waits no longer.
                self.source.close();
            }
            result
        });
        report.bytes_checksums += checksums.into_inner();
        result
    }

    /// A builder: takes the tasks and bytes that it is dealt, until there are no more.
    fn build_all(&self, orders: &Receiver<Order>, events: &Sender<Happened>) {
        let mut open: HashMap<usize, Building<'_>> = HashMap::new();
        for order in orders {
            let number = order.number();
            let result = self.build(order, &mut open).unwrap_or_else(|error| {
                open.remove(&number);
                Some(Err(error))
            });
            if let Some(result) = result {
                let _ = events.send(Happened::Built(number, result));
            }
        }
        for building in open.into_values() {
            // The pull has ended early; what cannot be kept is fetched again.
            let _ = building.suspend();
        }
    }

    fn build<'s>(
        &'s self,
        order: Order,
        open: &mut HashMap<usize, Building<'s>>,
    ) -> Result<Option<Result<Outcome, PullError>>, PullError> {
        let number = order.number();
        let mut building = match order {
            Order::Begin(task) => Building::new(self.stage, self.tree, *task),
            Order::Bytes(number, bytes) => {
                let Some(mut building) = open.remove(&number) else { return Ok(None) };
                building.literal(&bytes).at("write", building.shown())?;
                self.progress.advance(0, bytes.len() as u64);
                building
            }
            Order::Abandon(number) => {
                if let Some(building) = open.remove(&number) {
                    self.stage.forget(building.task().sha256)?;
                }
                return Ok(None);
            }
        };
        if building.wants_literals() {
            open.insert(number, building);
            return Ok(None);
        }
        let shown = building.shown();
        building.copy().at("write", &shown)?;
        debug_assert!(building.is_complete());
        let sha256 = building.task().sha256;
        let outcome = match building.finish().at("write", &shown)? {
            Built::Right(kept) => Outcome::Right(self.keep(sha256, &kept)?),
            Built::Wrong => Outcome::Wrong,
        };
        Ok(Some(Ok(outcome)))
    }
}

impl Staged {
    /// Rows that have come to an end.
    fn rows(&self) -> HashSet<u32> {
        self.files.iter().map(|file| file.row).chain(self.failed.keys().copied()).collect()
    }

    fn add(&mut self, (row, sha256): (u32, Digest), Reused { linked, record }: Reused) {
        self.files.push(StagedFile { row, name: stage::final_name(sha256), linked });
        self.records.extend(record.map(|record| (row, record)));
    }
}

/// A content that a local file had.
struct Reused {
    linked: bool,
    record: Option<RecordAt>,
}

/// What a builder is told.
enum Order {
    Begin(Box<Task>),
    Bytes(usize, Bytes),
    Abandon(usize),
}

impl Order {
    fn number(&self) -> usize {
        match self {
            Order::Begin(task) => task.number,
            Order::Bytes(number, _) | Order::Abandon(number) => *number,
        }
    }
}

/// What matchers and builders tell.
enum Happened {
    /// A file's way to be built is known.
    Ready(Box<Task>, Taken),
    /// A matcher could not go on.
    MatchingFailed(PullError),
    Built(usize, Result<Outcome, PullError>),
}

enum Outcome {
    Right(Option<RecordAt>),
    Wrong,
}

/// Pieces of matched files that wait for the link, each of some 40 bytes.
const WAITING: usize = 64 << 10;
/// Threads that match. Each has two requests under way beside the transfer's.
const MATCHERS: usize = 2;
/// Orders that wait for one builder: at most so many frames' parts.
const BUILDER_QUEUE: usize = 64;
