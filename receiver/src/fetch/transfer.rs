//! The network side of a fetch: turns tasks into requests, and answers into orders for the builders.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::Receiver;

use bytes::Bytes;
use stillmirror_protocol::delta::Piece;
use stillmirror_protocol::path::Escaped;
use stillmirror_protocol::wire::{Item, ItemFailure, Reply, Request, items_that_fit};

use super::builder::{Builders, Order, Outcome};
use super::pot::Grant;
use super::tasks::Tasks;
use super::{Reused, Staged, WorkerEvent};
use crate::error::PullError;
use crate::report::{Failure, Report};
use crate::source::{Answer, Event};
use crate::stage::Task;

/// The state of a transfer.
pub(super) struct Transfer<'a> {
    tasks: &'a Tasks<'a>,
    builders: Builders<'a>,
    incoming: Receiver<WorkerEvent<'a>>,
    /// Tasks that wait to be requested, with their grants. Tasks that are fetched a second time have none.
    ready: VecDeque<(Box<Task>, Option<Grant>)>,
    /// Fetches that need no search.
    whole: VecDeque<usize>,
    /// For each builder, the ranges of its begun tasks that are not requested yet.
    items: Vec<VecDeque<(Item, usize)>>,
    /// The builder whose ranges are requested next.
    turn: usize,
    in_flight: VecDeque<(Answer, DataRequest)>,
    /// Tasks that builders work on.
    begun: HashMap<usize, Begun>,
    /// What is being done about fetches whose content had a wrong digest.
    retried: HashMap<usize, Retry>,
    /// Number of fetches without an outcome.
    remaining: usize,
    staged: &'a mut Staged,
    report: &'a mut Report,
}

/// A task that a builder works on.
struct Begun {
    builder: usize,
    /// False if the sender failed to deliver it.
    alive: bool,
    /// Number of bytes that local files have.
    matched: u64,
    /// The right to keep an open file, if the content is one that an earlier pull began.
    open: Option<Grant>,
}

/// A data request, and the progress of its answer.
struct DataRequest {
    items: Vec<(Item, usize)>,
    at: usize,
    /// Number of bytes received of the item at `at`.
    done: u64,
}

impl<'a> Transfer<'a> {
    /// Creates a transfer of `remaining` fetches; those in `whole` need no search.
    pub(super) fn new(
        tasks: &'a Tasks<'a>,
        builders: Builders<'a>,
        incoming: Receiver<WorkerEvent<'a>>,
        whole: Vec<usize>,
        remaining: usize,
        staged: &'a mut Staged,
        report: &'a mut Report,
    ) -> Self {
        Self {
            tasks,
            items: (0..builders.len()).map(|_| VecDeque::new()).collect(),
            turn: 0,
            builders,
            incoming,
            ready: VecDeque::new(),
            whole: whole.into(),
            in_flight: VecDeque::new(),
            begun: HashMap::new(),
            retried: HashMap::new(),
            remaining,
            staged,
            report,
        }
    }

    /// Runs until every fetch has an outcome.
    pub(super) fn run(mut self) -> Result<(), PullError> {
        // If the connection breaks, what arrived before is still used.
        let mut broken = None;
        while self.remaining > 0 {
            while let Ok(event) = self.incoming.try_recv() {
                self.worker_event(event)?;
            }
            while self.in_flight.len() < REQUESTS && broken.is_none() {
                match self.ask() {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(PullError::Interrupted) => return Err(PullError::Interrupted),
                    Err(error) => broken = Some(error),
                }
            }
            self.builders.pass_on()?;
            match self.in_flight.pop_front() {
                Some((mut answer, mut request)) => {
                    // Wait for the oldest request: the sender answers in order.
                    let event = answer.wait()?;
                    if !self.event(&mut request, event)? {
                        self.in_flight.push_front((answer, request));
                    }
                }
                None if broken.is_some() => break,
                None if self.remaining > 0 => {
                    let ended = || PullError::protocol("a fetch did not end");
                    self.tasks.idle.set();
                    let event = self.incoming.recv().map_err(|_| ended())?;
                    self.worker_event(event)?;
                }
                None => {}
            }
        }
        match broken {
            Some(error) if self.remaining > 0 => Err(error),
            _ => Ok(()),
        }
    }

    /// Sends one more request. Returns false if there is nothing to request. Builders take turns, so that all of them
    /// have something to do, even if the files are large.
    fn ask(&mut self) -> Result<bool, PullError> {
        for _ in 0..self.builders.len() {
            let builder = self.turn;
            self.turn = (builder + 1) % self.builders.len();
            if self.ask_for(builder)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sends a request for a builder's files. Returns false if there is nothing to request.
    fn ask_for(&mut self, builder: usize) -> Result<bool, PullError> {
        let mut items = Vec::new();
        let mut room = REQUEST_BYTES;
        while room > 0 && items.len() < items_that_fit() {
            if self.items[builder].is_empty() && !self.begin_next(builder) {
                break;
            }
            let Some((mut item, number)) = self.items[builder].pop_front() else { continue };
            if item.len > room {
                let rest = Item { offset: item.offset + room, len: item.len - room, ..item };
                self.items[builder].push_front((rest, number));
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
        self.in_flight.push_back((answer, DataRequest { items, at: 0, done: 0 }));
        Ok(true)
    }

    /// Hands the next task to a builder and queues its ranges. Returns false if no task is ready.
    fn begin_next(&mut self, builder: usize) -> bool {
        let task = match self.ready.pop_front() {
            Some((task, _)) => task,
            None => match self.whole.pop_front() {
                Some(number) => Box::new(self.tasks.whole(number, self.tasks.part(number))),
                None => return false,
            },
        };
        self.begin(&task, builder, None);
        self.builders.order(builder, Order::Begin(task));
        true
    }

    /// Queues the ranges of a task for a builder.
    fn begin(&mut self, task: &Task, builder: usize, open: Option<Grant>) {
        let row = self.tasks.fetches[task.number].asked_row();
        let literals = task.pieces.iter().filter_map(|piece| match *piece {
            Piece::Literal { target, len } => Some((Item { row, offset: target, len }, task.number)),
            Piece::Copy { .. } => None,
        });
        let items = &mut self.items[builder];
        let before = items.len();
        items.extend(literals);
        let literal: u64 = items.range(before..).map(|(item, _)| item.len).sum();
        let counted = if self.tasks.fetcher.resumed { task.keep } else { 0 };
        let matched = task.size.saturating_sub(literal).saturating_sub(counted);
        self.begun.insert(task.number, Begun { builder, alive: true, matched, open });
    }

    /// Handles one event of an answer. Returns true if the answer is complete.
    fn event(&mut self, request: &mut DataRequest, event: Event) -> Result<bool, PullError> {
        match event {
            Event::Bytes(mut bytes) => {
                self.report.bytes_literal += bytes.len() as u64;
                while !bytes.is_empty() {
                    let (number, part) = request.take(&mut bytes)?;
                    if let Some(begun) = self.begun.get(&number).filter(|begun| begun.alive) {
                        self.builders.order(begun.builder, Order::Bytes(number, part));
                    }
                }
                Ok(false)
            }
            Event::Reply(Reply::ItemFailed { item, reason }) => {
                let number = request.fail(item)?;
                self.failed(number, reason);
                Ok(false)
            }
            Event::Reply(Reply::End) => {
                if request.at < request.items.len() {
                    return Err(PullError::protocol("an answer ends before all requested bytes"));
                }
                Ok(true)
            }
            Event::Reply(_) => Err(PullError::protocol("an unexpected reply to a request for data")),
        }
    }

    /// Handles a content that the sender does not deliver.
    fn failed(&mut self, number: usize, reason: ItemFailure) {
        let Some(begun) = self.begun.get_mut(&number).filter(|begun| begun.alive) else { return };
        begun.alive = false;
        drop(begun.open.take());
        let builder = begun.builder;
        self.builders.order(builder, Order::Abandon(number));
        // Ranges that are not requested yet are not needed any more.
        self.items[builder].retain(|(_, other)| *other != number);
        let why = match reason {
            ItemFailure::Stale => Failure::Stale,
            ItemFailure::Vanished => Failure::Vanished,
            ItemFailure::Unreadable => Failure::Unreadable,
        };
        self.staged.failed.insert(self.tasks.fetches[number].row, why);
        self.remaining -= 1;
    }

    /// Returns the next task for a content that has a wrong digest, because of a wrong match, a damaged part, or an error
    /// in transit.
    fn retry(&mut self, number: usize) -> Result<Task, PullError> {
        if !self.retried.contains_key(&number)
            && let Some(task) = self.tasks.repair(number)?
        {
            self.retried.insert(number, Retry::Repair);
            return Ok(task);
        }
        self.retried.insert(number, Retry::Whole);
        Ok(self.tasks.whole(number, 0))
    }

    fn worker_event(&mut self, event: WorkerEvent<'a>) -> Result<(), PullError> {
        match event {
            WorkerEvent::Ready(task, grant) => self.ready.push_back((task, Some(grant))),
            WorkerEvent::Failed(error) => return Err(error),
            WorkerEvent::Resumed(building, grant) => {
                let builder = building.task().number % self.builders.len();
                self.begin(building.task(), builder, Some(grant));
                self.builders.order(builder, Order::Continue(building));
            }
            WorkerEvent::Built(built) => {
                for (number, outcome) in built {
                    self.built(number, outcome?)?;
                }
            }
        }
        Ok(())
    }

    fn built(&mut self, number: usize, outcome: Outcome) -> Result<(), PullError> {
        let fetch = &self.tasks.fetches[number];
        match outcome {
            Outcome::Right(record) => {
                if self.retried.contains_key(&number) {
                    self.tasks.forget_wrong(number)?;
                }
                let matched = self.begun.remove(&number).map_or_else(|| self.tasks.kept(number), |begun| begun.matched);
                self.remaining -= 1;
                self.report.files_updated += 1;
                self.report.add_matched(matched);
                self.tasks.fetcher.progress.advance(1, matched);
                self.staged.add(self.tasks.fetcher.row_of(fetch), Reused { linked: false, record });
            }
            Outcome::Wrong if self.retried.get(&number) != Some(&Retry::Whole) => {
                let task = self.retry(number)?;
                self.ready.push_back((Box::new(task), None));
            }
            Outcome::Wrong => {
                self.tasks.forget_wrong(number)?;
                let path = self.tasks.fetcher.selection.path(fetch.row);
                tracing::error!(
                    path = %Escaped(&path),
                    "the content does not match its digest in the file list, even when fetched again; check the \
                     file at the sender"
                );
                self.begun.remove(&number);
                self.staged.failed.insert(fetch.row, Failure::Damaged);
                self.remaining -= 1;
            }
        }
        Ok(())
    }
}

/// What is done about a wrong content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// What is right in it is kept.
    Repair,
    /// It is fetched whole.
    Whole,
}

impl DataRequest {
    /// Takes the next bytes for the current item.
    fn take(&mut self, bytes: &mut Bytes) -> Result<(usize, Bytes), PullError> {
        let Some(&(item, number)) = self.items.get(self.at) else {
            return Err(PullError::protocol("more bytes than requested"));
        };
        let left = item.len - self.done;
        let part = bytes.split_to(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        self.done += part.len() as u64;
        if self.done == item.len {
            (self.at, self.done) = (self.at + 1, 0);
        }
        Ok((number, part))
    }

    /// Marks the current item as failed.
    fn fail(&mut self, item: u32) -> Result<usize, PullError> {
        match self.items.get(self.at) {
            Some(&(_, number)) if self.at == item as usize => {
                (self.at, self.done) = (self.at + 1, 0);
                Ok(number)
            }
            _ => Err(PullError::protocol(format!("the failure of item {item}, which is not the current one"))),
        }
    }
}

/// Maximum number of bytes of file data in one request.
const REQUEST_BYTES: u64 = 8 << 20;
/// Maximum number of data requests in flight. Together with those of the matchers, it does not exceed what a
/// sender reads ahead. Times [`REQUEST_BYTES`], it limits the data in flight, and so the speed over a long
/// link.
const REQUESTS: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_an_answer_are_passed_to_the_items_in_order() {
        let item = |len| Item { row: 0, offset: 0, len };
        let mut request = DataRequest { items: vec![(item(3), 7), (item(2), 8)], at: 0, done: 0 };
        let mut bytes = Bytes::from_static(b"abcd");
        assert_eq!(request.take(&mut bytes).unwrap(), (7, Bytes::from_static(b"abc")));
        assert_eq!(request.take(&mut bytes).unwrap(), (8, Bytes::from_static(b"d")));
        assert!(request.fail(0).is_err(), "that one came");
        assert_eq!(request.fail(1).unwrap(), 8);
        assert!(request.take(&mut Bytes::from_static(b"e")).is_err());
    }
}
