//! Brings contents into the staging directory: copied from local files that have them, assembled by matching
//! and ranges where local files have parts of them, and fetched whole otherwise.
//!
//! There are four kinds of threads. *Matchers* search local files and hand out tasks. *Resumers* read what an earlier
//! pull left. The caller's thread turns tasks into requests, keeps several in flight, and passes the bytes that arrive
//! to the *builders*, which hash and write them. The queues are bounded, and so is memory: while a builder lags
//! behind, nothing more is read. Builders do no long work, because a kill loses the bytes that wait for them.

mod builder;
mod flush;
mod idle;
mod pot;
mod tasks;
mod transfer;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread;

use rayon::prelude::*;
use stillmirror_protocol::delta::Piece;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::list::{ListRef, Row};
use stillmirror_protocol::local::RecordAt;
use stillmirror_store::{Draft, Record};
use tokio_util::sync::CancellationToken;

use crate::attributes::Attributes;
use crate::error::{At as _, PullError};
use crate::matching::Matcher;
use crate::plan::{Fetch, Reuse};
use crate::rank::{Rank, rank};
use crate::report::{Failure, Progress, Report};
use crate::roots::Roots;
use crate::selection::Selection;
use crate::source::Source;
use crate::stage::{self, Building, Built, KeepPolicy, Kept, Leftovers, Link, Metadata, Stage, SumsLog, Task};

use builder::{Builders, Outcome};
use flush::Unflushed;
use idle::Idle;
use pot::{Grant, Pot};
use tasks::Tasks;
use transfer::Transfer;

/// Everything needed to bring contents into the staging directory.
pub(crate) struct Fetcher<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) handle: u32,
    /// Whether an earlier connection of this pull broke. The contents of the staging directory are then
    /// counted already.
    pub(crate) resumed: bool,
    /// Contents of the staging directory that this pull has counted already.
    pub(crate) counted: &'a HashSet<Digest>,
    /// Whether this pull fetches more later, so that other contents of the staging directory are kept.
    pub(crate) more_follow: bool,
    pub(crate) roots: Roots<'a>,
    pub(crate) stage: &'a Stage,
    /// The block checksums that were received.
    pub(crate) sums: &'a SumsLog,
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) attributes: &'a Attributes,
    /// Where records are written. `None` if there is no store.
    pub(crate) draft: Option<&'a Draft>,
    /// What the records keep of contents.
    pub(crate) keep: KeepPolicy,
    pub(crate) threads: usize,
    /// Whether contents are flushed to the disk while more of them arrive.
    pub(crate) sync: bool,
    pub(crate) pool: &'a rayon::ThreadPool,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a CancellationToken,
}

/// The files in the staging directory.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    /// Staged files, each with its row and its name.
    pub(crate) files: Vec<StagedFile>,
    /// Records of the rows whose content was read while it was staged.
    pub(crate) records: HashMap<u32, RecordAt>,
    /// Rows whose content could not be brought.
    pub(crate) failed: HashMap<u32, Failure>,
}

/// A staged file.
#[derive(Debug)]
pub(crate) struct StagedFile {
    pub(crate) row: u32,
    pub(crate) name: Vec<u8>,
    /// Whether this is a hard link to a local file that still has its old mode, owner and time.
    pub(crate) linked: bool,
}

impl Fetcher<'_> {
    /// Stages the contents of all fetches, and counts the work in the report. If this fails, `staged` holds
    /// what was staged so far, and another fetcher can continue from there.
    pub(crate) fn fetch(&self, fetches: &[Fetch], staged: &mut Staged, report: &mut Report) -> Result<(), PullError> {
        let pending = staged.pending(fetches);
        let mut left = self.survey(fetches, &pending, staged)?;
        // What refers to other files is replaced under the same name by the next update, so it may be gone soon. Searching
        // and fetching the rest can take long.
        let is_payload = |&number: &usize| rank(&self.selection.path(fetches[number].row)) == Rank::Payload;
        let (payload, referring): (Vec<_>, Vec<_>) = pending.into_iter().partition(is_payload);
        for part in [referring, payload] {
            self.fetch_part(fetches, &part, &mut left, staged, report)?;
            self.fetch_by_other_names(fetches, &part, &mut left, staged, report)?;
        }
        Ok(())
    }

    /// Stages what a sender of another generation has of the contents. `older` is its list.
    pub(crate) fn fetch_from_older(
        &self,
        older: ListRef<'_>,
        fetches: &[Fetch],
        staged: &mut Staged,
        report: &mut Report,
    ) -> Result<(), PullError> {
        let pending = staged.pending(fetches);
        let mut left = self.survey(fetches, &pending, staged)?;
        let files = (0..older.len()).map(|row| older.row(row)).filter(Row::is_file);
        let wanted: HashSet<Digest> = pending.iter().map(|&number| self.row_of(&fetches[number]).1).collect();
        let found = files.filter(|row| wanted.contains(&row.sha256())).map(|row| (row.sha256(), row.number()));
        let found: HashMap<Digest, u32> = found.collect();
        // Of what was received whole, nothing has to be requested.
        let is_whole = |digest, size| left.parts.get(&digest) == Some(&size);
        let asking = |&number: &usize| {
            let (fetch, row) = (&fetches[number], self.selection.list.row(fetches[number].row));
            let found = found.get(&row.sha256()).map(|&row| fetch.asking(row));
            found.or_else(|| is_whole(row.sha256(), row.size()).then(|| fetch.clone()))
        };
        let asked: Vec<Fetch> = pending.iter().filter_map(asking).collect();
        let all: Vec<usize> = (0..asked.len()).collect();
        self.fetch_part(&asked, &all, &mut left, staged, report)
    }

    /// Returns what an earlier pull or connection left of the pending contents.
    fn survey(&self, fetches: &[Fetch], pending: &[usize], staged: &Staged) -> Result<Leftovers, PullError> {
        let rows = pending.iter().map(|&number| self.selection.list.row(fetches[number].row));
        let sizes = rows.map(|row| (row.sha256(), row.size())).collect();
        self.stage.survey(&sizes, &staged.files.iter().map(|file| &file.name[..]).collect(), self.more_follow)
    }

    /// Fetches what the sender does not have under one name by the other names of the same content: a publisher replaces
    /// or removes one name at a time.
    fn fetch_by_other_names(
        &self,
        fetches: &[Fetch],
        part: &[usize],
        left: &mut Leftovers,
        staged: &mut Staged,
        report: &mut Report,
    ) -> Result<(), PullError> {
        let mut asked: Vec<Fetch> = part.iter().map(|&number| fetches[number].clone()).collect();
        for _ in 1..MAX_NAMES {
            asked.retain(|fetch| staged.failed.get(&fetch.row).is_some_and(|why| why.is_of_senders_file()));
            asked = asked.iter().filter_map(Fetch::by_next_name).collect();
            if asked.is_empty() {
                break;
            }
            for (row, sha256) in asked.iter().map(|fetch| self.row_of(fetch)) {
                staged.failed.remove(&row);
                // Whatever was there of it was removed when the sender failed.
                left.parts.remove(&sha256);
            }
            let all: Vec<usize> = (0..asked.len()).collect();
            self.fetch_part(&asked, &all, left, staged, report)?;
        }
        Ok(())
    }

    /// Stages the contents of some of the fetches.
    fn fetch_part(
        &self,
        fetches: &[Fetch],
        pending: &[usize],
        left: &mut Leftovers,
        staged: &mut Staged,
        report: &mut Report,
    ) -> Result<(), PullError> {
        let list = self.selection.list;
        let reused = self.pool.install(|| self.reuse_all(fetches, pending, &left.parts))?;
        let mut missing = Vec::new();
        for (&number, reused) in pending.iter().zip(reused) {
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
            // A local file that was copied without success used the part's name, so the part is gone.
            let sha256 = list.row(row).sha256();
            if left.parts.contains_key(&sha256) && !self.stage.has_part(sha256)? {
                left.parts.remove(&sha256);
            }
        }
        if !missing.is_empty() {
            self.transfer(fetches, missing, left, staged, report)?;
        }
        Ok(())
    }

    fn row_of(&self, fetch: &Fetch) -> (u32, Digest) {
        (fetch.row, self.selection.list.row(fetch.row).sha256())
    }

    /// Takes whole contents from local files where possible.
    fn reuse_all(
        &self,
        fetches: &[Fetch],
        pending: &[usize],
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
            // Copying what may be wrong would cost the part of an earlier pull. The file then serves as a basis.
            let has_part = parts.contains_key(&row.sha256());
            for reuse in fetch.reuse.iter().filter(|reuse| reuse.is_certain || !has_part) {
                let reused = self.reuse(fetch.row, reuse)?;
                if reused.is_some() {
                    self.progress.advance(1, row.size());
                    return Ok(reused);
                }
            }
            Ok(None)
        };
        pending.par_iter().map(reuse).collect()
    }

    fn reuse(&self, row: u32, reuse: &Reuse) -> Result<Option<Reused>, PullError> {
        let shown = || self.roots.shown(&reuse.at);
        let metadata = self.metadata(row);
        let sha256 = self.selection.list.row(row).sha256();
        if reuse.is_certain
            && reuse.disappears
            && let Some(link) = self.stage.link(self.roots.dest, reuse, sha256, &metadata).at("link", shown())?
        {
            return Ok(Some(Reused { linked: link == Link::Alone, record: None }));
        }
        if reuse.is_certain && self.stage.clone_blocks(&self.roots, reuse, sha256, &metadata).at("clone", shown())? {
            return Ok(Some(Reused { linked: false, record: None }));
        }
        let whole = Piece::Copy { target: 0, len: reuse.size, basis: 0, offset: 0 };
        let is_cloned = self.stage.clone_part(&self.roots, reuse, sha256).at("clone", shown())?;
        let task = Task {
            number: 0,
            sha256,
            size: reuse.size,
            metadata,
            keep: if is_cloned { reuse.size } else { 0 },
            pieces: if reuse.size > 0 && !is_cloned { vec![whole] } else { Vec::new() },
            bases: vec![reuse.at.clone()],
            keep_in_store: self.policy(row),
        };
        let mut building = Building::new(self.stage, self.roots, task);
        building.copy().at("copy", shown())?;
        match building.finish().at("copy", shown())? {
            Built::Right(kept) => Ok(Some(Reused { linked: false, record: self.keep(sha256, &kept)? })),
            Built::Wrong => {
                // It has no more in common with the wanted content than the file that it was copied from.
                self.stage.forget_wrong(sha256)?;
                Ok(None)
            }
        }
    }

    /// Returns what the store keeps of a row's content. Contents that not everybody may read are not kept
    /// whole.
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
        Metadata { mode: self.attributes.mode(row), owner: self.attributes.owner(row), mtime: row.mtime() }
    }

    /// Copies contents that several rows want.
    pub(crate) fn copy_all(
        &self,
        fetches: &[Fetch],
        staged: &mut Staged,
        report: &mut Report,
    ) -> Result<(), PullError> {
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
                    return Err(PullError::protocol(format!("a list with two sizes for the digest {sha256}")));
                }
                let shown = self.roots.dest.shown(&self.selection.path(row));
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

    /// Fetches the contents that no local file has as a whole.
    fn transfer(
        &self,
        fetches: &[Fetch],
        missing: Vec<usize>,
        left: &Leftovers,
        staged: &mut Staged,
        report: &mut Report,
    ) -> Result<(), PullError> {
        let checksums = AtomicU64::new(0);
        let matcher = Matcher {
            source: self.source,
            handle: self.handle,
            roots: self.roots,
            pool: self.pool,
            log: self.sums,
            checksums: &checksums,
        };
        let tasks = Tasks { fetcher: self, fetches, left, matcher, idle: Idle::new() };
        let (batches, long, whole) = tasks.split(&missing);
        let (batches, pot) = (Mutex::new(batches), Pot::new(WAITING));
        let (long, open) = (Mutex::new(long), Pot::new(RESUMED));
        let (events, incoming) = mpsc::channel();
        let unflushed = Unflushed::default();
        let result = thread::scope(|scope| {
            // Dropped with the scope's closure, which ends the flushes.
            let (_open, over) = mpsc::channel();
            if self.sync {
                let unflushed = &unflushed;
                scope.spawn(move || unflushed.flush_until(&over, self.stage));
            }
            if !batches.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                for _ in 0..MATCHERS {
                    let events = events.clone();
                    let (batches, tasks, pot) = (&batches, &tasks, &pot);
                    scope.spawn(move || tasks.match_all(batches, pot, &events));
                }
            }
            if !long.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                for _ in 0..self.threads.div_ceil(2).max(1) {
                    let events = events.clone();
                    let (long, tasks, open) = (&long, &tasks, &open);
                    scope.spawn(move || tasks.resume_all(long, open, &events));
                }
            }
            let builders = Builders::spawn(self.threads.max(1), |orders| {
                let (events, unflushed) = (events.clone(), &unflushed);
                scope.spawn(move || self.build_all(&orders, &events, unflushed));
            });
            drop(events);
            let transfer = Transfer::new(&tasks, builders, incoming, whole, missing.len(), staged, report);
            let result = transfer.run();
            tasks.idle.set();
            if result.is_err() {
                // Threads that wait for the sender stop waiting.
                self.source.close();
            }
            result
        });
        report.bytes_checksums += checksums.into_inner();
        result
    }
}

impl Staged {
    /// Returns the numbers of the fetches that have no outcome.
    fn pending(&self, fetches: &[Fetch]) -> Vec<usize> {
        let done = self.rows();
        (0..fetches.len()).filter(|&number| !done.contains(&fetches[number].row)).collect()
    }

    /// Returns whether each fetch has an outcome.
    pub(crate) fn is_complete(&self, fetches: &[Fetch]) -> bool {
        self.pending(fetches).is_empty()
    }

    /// Returns the rows whose fetch is done, whether it succeeded or failed.
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

/// An event that a matcher or builder reports to the transfer.
enum WorkerEvent<'a> {
    /// How to build a file is known.
    Ready(Box<Task>, Grant),
    /// A matcher or resumer cannot continue.
    Failed(PullError),
    /// What an earlier pull left of a content is read, and the rest can be requested.
    Resumed(Box<Building<'a>>, Grant),
    /// Tasks that ended, each with its number.
    Built(Vec<(usize, Result<Outcome, PullError>)>),
}

/// Maximum number of pieces of matched files that wait to be requested. A piece takes some 40 bytes.
const WAITING: usize = 64 << 10;
/// Maximum number of contents that are read from an earlier pull's parts, and wait for the rest. Each has an open file.
const RESUMED: usize = 32;
/// Maximum number of names by which the sender is asked for a content.
const MAX_NAMES: usize = 4;
/// Number of matching threads. Each has two requests in flight besides those of the transfer.
const MATCHERS: usize = 2;
