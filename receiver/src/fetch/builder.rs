//! The builders: threads that hash and write the bytes that arrive, each for files of its own.
//!
//! Orders travel in batches, because waking a thread costs as much as building a small file.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};

use bytes::Bytes;
use stillmirror_protocol::local::RecordAt;

use super::flush::Unflushed;
use super::{Fetcher, WorkerEvent};
use crate::error::{At as _, PullError};
use crate::stage::{Building, Built, Task};

/// An order to a builder.
pub(super) enum Order<'a> {
    Begin(Box<Task>),
    /// A content whose beginning is read.
    Continue(Box<Building<'a>>),
    Bytes(usize, Bytes),
    Abandon(usize),
}

impl Order<'_> {
    /// Returns the number of bytes that come with the order.
    fn bytes(&self) -> usize {
        if let Order::Bytes(_, bytes) = self { bytes.len() } else { 0 }
    }
}

/// What became of a task.
pub(super) enum Outcome {
    Right(Option<RecordAt>),
    Wrong,
}

/// The queues of all builders, and the orders that are collected for them.
pub(super) struct Builders<'a> {
    queues: Vec<SyncSender<Vec<Order<'a>>>>,
    collected: Vec<Vec<Order<'a>>>,
}

impl<'a> Builders<'a> {
    /// Starts `count` builders. `spawn` gets the receiving end of each one's queue.
    pub(super) fn spawn(count: usize, mut spawn: impl FnMut(Receiver<Vec<Order<'a>>>)) -> Self {
        let queues = (0..count).map(|_| {
            let (queue, orders) = mpsc::sync_channel(QUEUE);
            spawn(orders);
            queue
        });
        Self { queues: queues.collect(), collected: (0..count).map(|_| Vec::new()).collect() }
    }

    /// Returns the number of builders.
    pub(super) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Collects an order for a builder.
    pub(super) fn order(&mut self, builder: usize, order: Order<'a>) {
        self.collected[builder].push(order);
    }

    /// Passes on what was collected. Waits while a queue is full.
    pub(super) fn pass_on(&mut self) -> Result<(), PullError> {
        for (queue, collected) in self.queues.iter().zip(&mut self.collected) {
            if !collected.is_empty() {
                // A builder ends early only if it panics, and the scope propagates that.
                let lost = |_| PullError::protocol("a builder ended early");
                queue.send(std::mem::take(collected)).map_err(lost)?;
            }
        }
        Ok(())
    }
}

impl Fetcher<'_> {
    /// Runs a builder: processes its tasks and bytes until there are no more.
    pub(super) fn build_all<'s>(
        &'s self,
        batches: &Receiver<Vec<Order<'s>>>,
        events: &Sender<WorkerEvent<'s>>,
        unflushed: &Unflushed,
    ) {
        let mut buildings: HashMap<usize, Building<'s>> = HashMap::new();
        for batch in batches {
            let bytes = batch.iter().map(Order::bytes).sum();
            let built = batch.into_iter().filter_map(|order| self.carry_out(order, &mut buildings));
            let built: Vec<_> = built.collect();
            unflushed.add(bytes);
            if !built.is_empty() {
                let _ = events.send(WorkerEvent::Built(built));
            }
        }
    }

    /// Carries out an order. Returns the task's number and outcome if the task ends with it.
    fn carry_out<'s>(
        &'s self,
        order: Order<'s>,
        buildings: &mut HashMap<usize, Building<'s>>,
    ) -> Option<(usize, Result<Outcome, PullError>)> {
        let (number, result) = match order {
            Order::Begin(task) => (task.number, self.advance(Building::new(self.stage, self.roots, *task), None)),
            Order::Continue(building) => (building.task().number, self.advance(*building, None)),
            Order::Bytes(number, bytes) => (number, self.advance(buildings.remove(&number)?, Some(&bytes))),
            Order::Abandon(number) => {
                let sha256 = buildings.remove(&number)?.task().sha256;
                return self.stage.forget(sha256).err().map(|error| (number, Err(error)));
            }
        };
        match result {
            Ok(Step::Waits(building)) => {
                buildings.insert(number, *building);
                None
            }
            Ok(Step::Ended(outcome)) => Some((number, Ok(outcome))),
            Err(error) => Some((number, Err(error))),
        }
    }

    /// Adds bytes to a content, and finishes it if nothing more is to come.
    fn advance<'s>(&'s self, mut building: Building<'s>, bytes: Option<&Bytes>) -> Result<Step<'s>, PullError> {
        let sha256 = building.task().sha256;
        let shown = || self.stage.shown_part(sha256);
        if let Some(bytes) = bytes {
            building.literal(bytes).or_else(|error| Err(error).at("write", shown()))?;
            self.progress.advance(0, bytes.len() as u64);
        }
        if building.wants_literals() {
            return Ok(Step::Waits(Box::new(building)));
        }
        self.finish(building).map(Step::Ended)
    }

    /// Completes a content for which nothing more has to arrive.
    pub(super) fn finish(&self, mut building: Building<'_>) -> Result<Outcome, PullError> {
        let sha256 = building.task().sha256;
        let shown = || self.stage.shown_part(sha256);
        building.copy().or_else(|error| Err(error).at("write", shown()))?;
        debug_assert!(building.is_complete());
        Ok(match building.finish().or_else(|error| Err(error).at("write", shown()))? {
            Built::Right(kept) => Outcome::Right(self.keep(sha256, &kept)?),
            Built::Wrong => Outcome::Wrong,
        })
    }
}

/// The state of a content after an order.
enum Step<'a> {
    /// It waits for more bytes.
    Waits(Box<Building<'a>>),
    Ended(Outcome),
}

/// Maximum number of batches that wait for one builder. The bytes of a batch were read from the socket at once.
const QUEUE: usize = 64;
