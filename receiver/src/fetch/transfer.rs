//! The network's side of a fetch: tasks become requests, answers become builders' orders.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::mpsc::{Receiver, SyncSender};

use bytes::Bytes;
use stillmirror_protocol::delta::Piece;
use stillmirror_protocol::path::Escaped;
use stillmirror_protocol::wire::{Item, ItemFailure, Reply, Request, items_that_fit};

use super::room::Taken;
use super::tasks::Tasks;
use super::{Happened, Order, Outcome, Reused, Staged};
use crate::error::PullError;
use crate::report::{Failure, Report};
use crate::source::{Answer, Event};
use crate::stage::Task;

/// The state of a transfer.
pub(super) struct Transfer<'a> {
    tasks: &'a Tasks<'a>,
    builders: Vec<SyncSender<Order>>,
    incoming: Receiver<Happened>,
    /// Tasks that wait, and the room that they take; those that are fetched once more take none.
    ready: VecDeque<(Box<Task>, Option<Taken>)>,
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

impl<'a> Transfer<'a> {
    /// A transfer of `left` fetches, of which `whole` need no search.
    pub(super) fn new(
        tasks: &'a Tasks<'a>,
        builders: Vec<SyncSender<Order>>,
        incoming: Receiver<Happened>,
        whole: Vec<usize>,
        left: usize,
        staged: &'a mut Staged,
        report: &'a mut Report,
    ) -> Self {
        Self {
            tasks,
            builders,
            incoming,
            ready: VecDeque::new(),
            whole: whole.into(),
            items: VecDeque::new(),
            under_way: VecDeque::new(),
            open: HashMap::new(),
            again: HashSet::new(),
            left,
            staged,
            report,
        }
    }

    /// Goes on until every fetch has come to an end.
    pub(super) fn run(mut self) -> Result<(), PullError> {
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
            Some((task, _)) => task,
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
        let counted = if self.tasks.fetcher.resumed { task.keep } else { 0 };
        let matched = task.size.saturating_sub(literal).saturating_sub(counted);
        self.open.insert(task.number, Open { alive: true, matched });
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
            Happened::Ready(task, taken) => self.ready.push_back((task, Some(taken))),
            Happened::MatchingFailed(error) => return Err(error),
            Happened::Built(number, outcome) => {
                let fetch = &self.tasks.fetches[number];
                match outcome? {
                    Outcome::Right(record) => {
                        let matched = self.open.remove(&number).map_or(0, |open| open.matched);
                        self.left -= 1;
                        self.report.files_updated += 1;
                        self.report.add_matched(matched);
                        self.tasks.fetcher.progress.advance(1, matched);
                        self.staged.add(self.tasks.fetcher.row_of(fetch), Reused { linked: false, record });
                    }
                    Outcome::Wrong if self.again.insert(number) => {
                        // A wrong match, a damaged part, or a file that changed on its way: once more, whole.
                        self.ready.push_back((Box::new(self.tasks.whole(number, 0)), None));
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
const REQUEST_BYTES: u64 = 8 << 20;
/// Data requests under way, so that with the matchers' it is no more than a sender reads at once. Times
/// [`REQUEST_BYTES`] it is what may be on its way, and so the speed over a long link.
const REQUESTS: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

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
