//! Bringing contents into the staging directory: from local files where they are, by matching and
//! ranges where parts of them are, else whole.
//!
//! Three kinds of threads. *Matchers* search local files and hand out tasks. The caller's thread turns
//! tasks into requests, keeps several under way, and deals the bytes that come to the *builders*, which
//! hash and write. Queues are bounded, so that memory is; a builder that lags behind stops the reading.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use rayon::prelude::*;
use stillmirror_protocol::delta::{Assembly, Piece};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::local::SumsAt;
use stillmirror_protocol::path::Escaped;
use stillmirror_protocol::sums::SumsPolicy;
use stillmirror_protocol::wire::{Item, ItemFailure, Reply, Request, items_that_fit};
use stillmirror_store::Draft;
use tokio_util::sync::CancellationToken;

use crate::error::{At as _, PullError};
use crate::local::Tree;
use crate::matching::{Candidate, MIN_DELTA, Matcher};
use crate::owners::OwnerMap;
use crate::plan::{Fetch, Reuse};
use crate::report::{Failure, Progress, Report};
use crate::selection::Selection;
use crate::source::{Answer, Event, Source};
use crate::stage::{self, Building, Built, Metadata, Stage, Task};

/// What is needed to bring contents.
pub(crate) struct Fetcher<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) handle: u32,
    pub(crate) tree: &'a Tree,
    pub(crate) stage: &'a Stage,
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) owners: &'a OwnerMap,
    /// Where block checksums go, when there is a store.
    pub(crate) draft: Option<&'a Draft>,
    pub(crate) sums: SumsPolicy,
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
    /// Block checksums of the rows whose content was read on its way here.
    pub(crate) sums: HashMap<u32, SumsAt>,
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
    /// Stages the contents of all fetches, and counts what they took into the report.
    pub(crate) fn fetch(&self, fetches: &[Fetch], report: &mut Report) -> Result<Staged, PullError> {
        let list = self.selection.list;
        let sizes = fetches.iter().map(|fetch| (list.row(fetch.row).sha256(), list.row(fetch.row).size()));
        let parts = self.stage.survey(&sizes.collect())?;
        let mut staged = Staged::default();
        let reused = self.pool.install(|| self.reuse_all(fetches, &parts))?;
        let mut missing = Vec::new();
        for (number, reused) in reused.into_iter().enumerate() {
            match reused {
                Some(reused) => {
                    report.files_updated += 1;
                    report.files_reused += 1;
                    report.bytes_matched += list.row(fetches[number].row).size();
                    staged.add(self.row_of(&fetches[number]), reused);
                }
                None => missing.push(number),
            }
        }
        if !missing.is_empty() {
            self.transfer(fetches, missing, &parts, &mut staged, report)?;
        }
        self.copy_all(fetches, &mut staged, report)?;
        Ok(staged)
    }

    fn row_of(&self, fetch: &Fetch) -> (u32, Digest) {
        (fetch.row, self.selection.list.row(fetch.row).sha256())
    }

    /// Takes whole contents from local files, where that works.
    fn reuse_all(&self, fetches: &[Fetch], parts: &HashMap<Digest, u64>) -> Result<Vec<Option<Reused>>, PullError> {
        let reuse = |fetch: &Fetch| {
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
        fetches.par_iter().map(reuse).collect()
    }

    fn reuse(&self, row: u32, reuse: &Reuse) -> Result<Option<Reused>, PullError> {
        let shown = || self.tree.shown(&reuse.path);
        let metadata = self.metadata(row);
        let sha256 = self.selection.list.row(row).sha256();
        if reuse.sure && reuse.goes && self.stage.link(self.tree, reuse, sha256).at("link", shown())? {
            return Ok(Some(Reused { linked: true, sums: None }));
        }
        if reuse.sure && self.stage.clone_blocks(self.tree, reuse, sha256, &metadata).at("clone", shown())? {
            return Ok(Some(Reused { linked: false, sums: None }));
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
        };
        let mut building = Building::new(self.stage, self.tree, task, self.policy());
        building.copy().at("copy", shown())?;
        match building.finish().at("copy", shown())? {
            Built::Right(record) => Ok(Some(Reused { linked: false, sums: self.keep_sums(record)? })),
            Built::Wrong => Ok(None),
        }
    }

    fn policy(&self) -> Option<&SumsPolicy> {
        self.draft.is_some().then_some(&self.sums)
    }

    fn keep_sums(&self, record: Option<Vec<u8>>) -> Result<Option<SumsAt>, PullError> {
        match (self.draft, record) {
            (Some(draft), Some(record)) => Ok(Some(draft.append_sums(&record)?)),
            _ => Ok(None),
        }
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
                let shown = self.tree.shown(&self.selection.path(row));
                let name = self.stage.duplicate(sha256, copy, &self.metadata(row)).at("copy to", shown)?;
                if let Some(sums) = staged.sums.get(&fetch.row).copied() {
                    staged.sums.insert(row, sums);
                }
                staged.files.push(StagedFile { row, name, linked: false });
                report.files_updated += 1;
                report.files_reused += 1;
                report.bytes_matched += size;
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
        let batches = Mutex::new(batches);
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
                    let (matcher, batches, tasks) = (&matcher, &batches, &tasks);
                    scope.spawn(move || tasks.match_all(matcher, batches, &events));
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
            let transfer = Transfer {
                tasks: &tasks,
                builders,
                incoming,
                ready: VecDeque::new(),
                whole: whole.into(),
                items: VecDeque::new(),
                under_way: VecDeque::new(),
                open: HashMap::new(),
                again: HashSet::new(),
                left: missing.len(),
                staged,
                report,
            };
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
            Order::Begin(task) => Building::new(self.stage, self.tree, *task, self.policy()),
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
        let outcome = match building.finish().at("write", &shown)? {
            Built::Right(record) => Outcome::Right(self.keep_sums(record)?),
            Built::Wrong => Outcome::Wrong,
        };
        Ok(Some(Ok(outcome)))
    }
}

impl Staged {
    fn add(&mut self, (row, sha256): (u32, Digest), Reused { linked, sums }: Reused) {
        self.files.push(StagedFile { row, name: stage::final_name(sha256), linked });
        self.sums.extend(sums.map(|sums| (row, sums)));
    }
}

/// A content that a local file had.
struct Reused {
    linked: bool,
    sums: Option<SumsAt>,
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
    Ready(Box<Task>),
    /// A matcher could not go on.
    MatchingFailed(PullError),
    Built(usize, Result<Outcome, PullError>),
}

enum Outcome {
    Right(Option<SumsAt>),
    Wrong,
}

/// Makes tasks of fetches.
struct Tasks<'a> {
    fetcher: &'a Fetcher<'a>,
    fetches: &'a [Fetch],
    parts: &'a HashMap<Digest, u64>,
}

impl Tasks<'_> {
    /// Splits fetches into batches to search for, and those that are fetched whole.
    fn split(&self, missing: &[usize]) -> (VecDeque<Vec<usize>>, Vec<usize>) {
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

    fn part(&self, number: usize) -> u64 {
        let row = self.fetcher.selection.list.row(self.fetches[number].row);
        self.parts.get(&row.sha256()).copied().unwrap_or(0)
    }

    /// Matches batch after batch.
    fn match_all(&self, matcher: &Matcher<'_>, batches: &Mutex<VecDeque<Vec<usize>>>, events: &Sender<Happened>) {
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
                        if events.send(Happened::Ready(Box::new(task))).is_err() {
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
    fn whole(&self, number: usize, keep: u64) -> Task {
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

/// The network's side: tasks become requests, answers become builders' orders.
struct Transfer<'a> {
    tasks: &'a Tasks<'a>,
    builders: Vec<SyncSender<Order>>,
    incoming: Receiver<Happened>,
    ready: VecDeque<Box<Task>>,
    /// Fetches that nothing was searched for.
    whole: VecDeque<usize>,
    /// Ranges of begun tasks that are not asked for yet.
    items: VecDeque<(Item, usize)>,
    under_way: VecDeque<(Answer, Progressing)>,
    /// Begun tasks.
    open: HashMap<usize, Open>,
    /// Fetches whose content came wrong once.
    again: HashSet<usize>,
    /// Fetches without an outcome.
    left: usize,
    staged: &'a mut Staged,
    report: &'a mut Report,
}

/// A task that a builder has.
struct Open {
    /// False once the sender failed to deliver it.
    alive: bool,
    /// Bytes that local files have.
    matched: u64,
}

/// One data request, and how far its answer has come.
struct Progressing {
    items: Vec<(Item, usize)>,
    at: usize,
    /// Bytes of the item at `at` that came.
    done: u64,
}

impl Transfer<'_> {
    fn run(mut self) -> Result<(), PullError> {
        while self.left > 0 {
            while let Ok(happened) = self.incoming.try_recv() {
                self.happened(happened)?;
            }
            while self.under_way.len() < REQUESTS && self.ask()? {}
            match self.under_way.pop_front() {
                Some((mut answer, mut request)) => {
                    // Events of the oldest request first: the sender answers in that order.
                    let event = answer.wait()?;
                    if !self.event(&mut request, event)? {
                        self.under_way.push_front((answer, request));
                    }
                }
                None if self.left > 0 => {
                    let ended = || PullError::offence("a fetch that came to no end");
                    let happened = self.incoming.recv().map_err(|_| ended())?;
                    self.happened(happened)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Sends one more request, if there is anything to ask for.
    fn ask(&mut self) -> Result<bool, PullError> {
        let mut items = Vec::new();
        let mut room = REQUEST_BYTES;
        while room > 0 && items.len() < items_that_fit() {
            if self.items.is_empty() && !self.begin_next()? {
                break;
            }
            let Some((mut item, number)) = self.items.pop_front() else { continue };
            if item.len > room {
                let rest = Item { offset: item.offset + room, len: item.len - room, ..item };
                self.items.push_front((rest, number));
                item.len = room;
            }
            room -= item.len;
            items.push((item, number));
        }
        if items.is_empty() {
            return Ok(false);
        }
        let request =
            Request::Data { handle: self.tasks.fetcher.handle, items: items.iter().map(|(item, _)| *item).collect() };
        let answer = self.tasks.fetcher.source.ask(request)?;
        self.under_way.push_back((answer, Progressing { items, at: 0, done: 0 }));
        Ok(true)
    }

    /// Hands the next task to a builder and queues its ranges. False: there is none now.
    fn begin_next(&mut self) -> Result<bool, PullError> {
        let task = match self.ready.pop_front() {
            Some(task) => task,
            None => match self.whole.pop_front() {
                Some(number) => Box::new(self.tasks.whole(number, self.tasks.part(number))),
                None => return Ok(false),
            },
        };
        let row = self.tasks.fetches[task.number].row;
        let literals = task.pieces.iter().filter_map(|piece| match *piece {
            Piece::Literal { target, len } => Some((Item { row, offset: target, len }, task.number)),
            Piece::Copy { .. } => None,
        });
        let before = self.items.len();
        self.items.extend(literals);
        let literal: u64 = self.items.range(before..).map(|(item, _)| item.len).sum();
        self.open.insert(task.number, Open { alive: true, matched: task.size - literal });
        self.order(task.number, Order::Begin(task))?;
        Ok(true)
    }

    fn order(&mut self, number: usize, order: Order) -> Result<(), PullError> {
        // A builder ends only by a panic, which the scope passes on.
        let lost = |_| PullError::offence("a builder ended");
        self.builders[number % self.builders.len()].send(order).map_err(lost)
    }

    /// Takes one event of an answer. True: the answer is whole.
    fn event(&mut self, request: &mut Progressing, event: Event) -> Result<bool, PullError> {
        match event {
            Event::Bytes(mut bytes) => {
                self.report.bytes_literal += bytes.len() as u64;
                while !bytes.is_empty() {
                    let (number, part) = request.take(&mut bytes)?;
                    if self.open.get(&number).is_some_and(|open| open.alive) {
                        self.order(number, Order::Bytes(number, part))?;
                    }
                }
                Ok(false)
            }
            Event::Reply(Reply::ItemFailed { item, reason }) => {
                let number = request.fail(item)?;
                self.failed(number, reason)?;
                Ok(false)
            }
            Event::Reply(Reply::End) => {
                if request.at < request.items.len() {
                    return Err(PullError::offence("an answer that ends before the bytes asked for"));
                }
                Ok(true)
            }
            Event::Reply(_) => Err(PullError::offence("a strange reply to a request for data")),
        }
    }

    /// The sender does not deliver a content.
    fn failed(&mut self, number: usize, reason: ItemFailure) -> Result<(), PullError> {
        match self.open.get_mut(&number) {
            Some(open) if open.alive => open.alive = false,
            _ => return Ok(()),
        }
        self.order(number, Order::Abandon(number))?;
        // What is not asked for yet need not be.
        self.items.retain(|(_, other)| *other != number);
        let why = match reason {
            ItemFailure::Stale => Failure::Stale,
            ItemFailure::Vanished => Failure::Vanished,
            ItemFailure::Unreadable => Failure::Unreadable,
        };
        self.staged.failed.insert(self.tasks.fetches[number].row, why);
        self.left -= 1;
        Ok(())
    }

    fn happened(&mut self, happened: Happened) -> Result<(), PullError> {
        match happened {
            Happened::Ready(task) => self.ready.push_back(task),
            Happened::MatchingFailed(error) => return Err(error),
            Happened::Built(number, outcome) => {
                let fetch = &self.tasks.fetches[number];
                match outcome? {
                    Outcome::Right(sums) => {
                        let matched = self.open.remove(&number).map_or(0, |open| open.matched);
                        self.left -= 1;
                        self.report.files_updated += 1;
                        self.report.bytes_matched += matched;
                        self.tasks.fetcher.progress.advance(1, matched);
                        self.staged.add(self.tasks.fetcher.row_of(fetch), Reused { linked: false, sums });
                    }
                    Outcome::Wrong if self.again.insert(number) => {
                        // A wrong match, a damaged part, or a file that changed on its way: once more, whole.
                        self.ready.push_back(Box::new(self.tasks.whole(number, 0)));
                    }
                    Outcome::Wrong => {
                        let path = self.tasks.fetcher.selection.path(fetch.row);
                        return Err(PullError::offence(format!(
                            "the data of '{}' do not have the digest that its list names",
                            Escaped(&path)
                        )));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Progressing {
    /// Takes the next bytes of the item that is due.
    fn take(&mut self, bytes: &mut Bytes) -> Result<(usize, Bytes), PullError> {
        let Some(&(item, number)) = self.items.get(self.at) else {
            return Err(PullError::offence("more bytes than were asked for"));
        };
        let left = item.len - self.done;
        let part = bytes.split_to(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        self.done += part.len() as u64;
        if self.done == item.len {
            (self.at, self.done) = (self.at + 1, 0);
        }
        Ok((number, part))
    }

    /// Notes that the item that is due does not come.
    fn fail(&mut self, item: u32) -> Result<usize, PullError> {
        match self.items.get(self.at) {
            Some(&(_, number)) if self.at == item as usize => {
                (self.at, self.done) = (self.at + 1, 0);
                Ok(number)
            }
            _ => Err(PullError::offence(format!("the failure of item {item}, which is not due"))),
        }
    }
}

/// Bytes of file data in one request.
const REQUEST_BYTES: u64 = 2 << 20;
/// Data requests under way. With [`REQUEST_BYTES`]: what may be on its way, and so the speed of a long link.
const REQUESTS: usize = 12;
/// Threads that match. Each has two requests under way, which makes 16 with [`REQUESTS`].
const MATCHERS: usize = 2;
/// Files that are matched side by side, so that a round trip serves all of them.
const BATCH: usize = 512;
/// Bytes of new files that are matched side by side: their checksums are held in memory.
const BATCH_BYTES: u64 = 256 << 20;
/// Orders that wait for one builder: at most so many frames' parts.
const BUILDER_QUEUE: usize = 64;

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

    #[test]
    fn bytes_of_an_answer_are_dealt_to_the_items_in_their_order() {
        let item = |len| Item { row: 0, offset: 0, len };
        let mut request = Progressing { items: vec![(item(3), 7), (item(2), 8)], at: 0, done: 0 };
        let mut bytes = Bytes::from_static(b"abcd");
        assert_eq!(request.take(&mut bytes).unwrap(), (7, Bytes::from_static(b"abc")));
        assert_eq!(request.take(&mut bytes).unwrap(), (8, Bytes::from_static(b"d")));
        assert!(request.fail(0).is_err(), "that one came");
        assert_eq!(request.fail(1).unwrap(), 8);
        assert!(request.take(&mut Bytes::from_static(b"e")).is_err());
    }
}
