//! The data lane of a session, whatever its dialect: byte ranges of files, read ahead of what is being
//! sent, sent in order.
//!
//! ```text
//! Framing   the dialect: which items come next, and what is said before, between and after their bytes
//! plan      cuts an order of items into pieces of one buffer each
//! part      a range of a file, or words, and where its bytes come from
//! layout    where in the buffer the parts of a piece go: what the store has of small files as it lies there
//! load      brings a piece into memory: from disk, or out of the cache that all sessions share
//! pump      reads extents and sends each at once, on one thread
//! frames    what goes out for a piece: the dialect's own bytes, and the files' where they were read to
//! writer    the sending half of the connection
//! ```
//!
//! No byte of a file is copied between the read and the send, but of small files that the cache takes or
//! gives; and a session whose peer does not read gives all buffers back while others wait for them.

mod frames;
mod layout;
mod load;
mod part;
mod plan;
mod pump;
mod writer;

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use stillmirror_protocol::wire::ItemFailure;
use tokio::sync::Mutex;

use crate::ended::Ended;
use crate::networks::Network;
use crate::pace::Pace;
use crate::pinned::Pinned;
use crate::shared::Shared;
pub(crate) use frames::Frames;
use load::{Arriving, LargeFile, Load, Loaded, read_batch};
use plan::{Piece, Plan};
pub(crate) use writer::Writer;

/// Pieces that are read while another one is sent: with it they make the most that one session holds.
const AHEAD: usize = 1;

/// Items that are answered one after the other, all of one generation.
pub(crate) trait Order: Send + Sync + 'static {
    /// The generation.
    fn pinned(&self) -> &Arc<Pinned>;
    /// Items.
    fn len(&self) -> u32;
    /// What the item at that place, which is below `len`, asks for.
    fn asked(&self, item: u32) -> Asked;
}

/// What an item asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// No file: the dialect's own words are the whole answer.
    Words,
    /// A range within the regular file at `row`. An empty one still needs the file to be the indexed one. A redo, for
    /// whom what came before did not match its digest, is not served out of the store again.
    Bytes { row: u32, offset: u64, len: u64, is_redo: bool },
}

/// What came of a part of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Got {
    /// The item's place in its order.
    pub(crate) item: u32,
    /// Bytes of the item that came before. A failure ends the item.
    pub(crate) before: u64,
    /// Where in the piece's memory its bytes are; an empty range for words.
    pub(crate) bytes: Result<Range<usize>, ItemFailure>,
}

/// A dialect: where orders come from, and what the wire says around the bytes of files.
pub(crate) trait Framing: Send + 'static {
    /// Items with what the dialect has to know about them.
    type Order: Order;
    /// What the dialect has to remember once a piece is sent.
    type After: Send;

    /// The next order; with `wait` not set, only one that is there already. `None` when there is none.
    fn next_order(&mut self, wait: bool) -> impl Future<Output = Result<Option<Self::Order>, Ended>> + Send;

    /// What to send for the parts of a piece, whose bytes lie in `memory`; `is_last` when the order ends
    /// with it. The same piece may be asked for again, when its first part was sent and memory had to be
    /// given back: the answer must be the same then.
    fn frames(&self, order: &Self::Order, parts: &[Got], memory: &[u8], is_last: bool) -> (Frames, Self::After);

    /// Whether the words depend on the bytes of that item: these must be in memory then.
    fn looks_at_bytes(&self, order: &Self::Order, item: u32) -> bool;

    /// A piece is sent.
    fn settle(&mut self, order: &Self::Order, frames: &Frames, after: Self::After, is_last: bool);
}

/// One session's data lane.
pub(crate) struct Lane<F: Framing> {
    shared: Arc<Shared>,
    writer: Arc<Mutex<Writer>>,
    /// The dialect.
    pub(crate) framing: F,
    /// Orders that are not read to their end yet.
    plans: VecDeque<Plan<F::Order>>,
    /// What is being read, in the order of sending.
    ahead: VecDeque<Load<F::Order>>,
    /// The item of the order in hand of which nothing more is sent.
    failed: Option<u32>,
    /// The large file that was opened last.
    file: Option<Arc<LargeFile>>,
    /// Whose session it is.
    network: Network,
    pace: Pace,
}

/// A piece of which not everything is sent.
struct Stuck<F: Framing> {
    load: Load<F::Order>,
    loaded: Loaded,
    frames: Frames,
    after: F::After,
    sent: usize,
}

impl<F: Framing> Lane<F> {
    /// A lane that sends through `writer`.
    pub(crate) fn new(shared: Arc<Shared>, writer: Arc<Mutex<Writer>>, network: Network, framing: F) -> Self {
        let (plans, ahead) = (VecDeque::new(), VecDeque::new());
        Self { shared, writer, framing, plans, ahead, failed: None, file: None, network, pace: Pace::new() }
    }

    /// Answers one order after the other until there are no more.
    pub(crate) async fn run(mut self) -> Result<Self, Ended> {
        while self.open_next().await? {
            if self.is_at_extent() {
                self = self.pump().await?;
            } else if let Some(load) = self.next().await? {
                self.send(load).await?;
            }
            self.pace.step().await;
        }
        Ok(self)
    }

    /// Sees to it that there is an order to read for, and waits for one if nothing else is to do. False
    /// when nothing is left to do, or to be read.
    async fn open_next(&mut self) -> Result<bool, Ended> {
        if self.plans.is_empty() {
            match self.framing.next_order(self.ahead.is_empty()).await? {
                Some(order) => self.plans.push_back(Plan::new(Arc::new(order))),
                None => return Ok(!self.ahead.is_empty()),
            }
        }
        Ok(true)
    }

    /// The next piece to send, with those behind it on their way.
    async fn next(&mut self) -> Result<Option<Load<F::Order>>, Ended> {
        while self.ahead.len() <= AHEAD && self.open_next().await? {
            // Extents are read when it is their turn, and sent at once.
            if !self.ahead.is_empty() && self.comes_to_extent() {
                break;
            }
            let Some(mut load) = self.plan_next(Plan::next) else { break };
            // Only a session that holds nothing waits: so nobody waits for who waits.
            let may_wait = self.ahead.is_empty();
            match self.start(&load.order, &load.piece, may_wait).await {
                Some(coming) => load.coming = coming,
                None => {
                    self.put_back(load);
                    break;
                }
            }
            self.ahead.push_back(load);
        }
        Ok(self.ahead.pop_front())
    }

    /// Takes the next piece off the plan, without reading it.
    fn plan_next(&mut self, next: impl FnOnce(&mut Plan<F::Order>) -> Piece) -> Option<Load<F::Order>> {
        let plan = self.plans.front_mut()?;
        let (order, before) = (Arc::clone(plan.order()), plan.cursor());
        let (piece, is_last) = (next(plan), plan.is_done());
        if is_last {
            self.plans.pop_front();
        }
        Some(Load { order, before, piece, is_last, coming: Arriving::Words })
    }

    /// Puts the piece that was taken last back.
    fn put_back(&mut self, load: Load<F::Order>) {
        match self.plans.front_mut() {
            Some(plan) if Arc::ptr_eq(plan.order(), &load.order) => plan.rewind(load.before),
            _ => {
                let mut plan = Plan::new(load.order);
                plan.rewind(load.before);
                self.plans.push_front(plan);
            }
        }
    }

    /// Starts reading a piece; `None` when that takes a buffer and there is none without waiting.
    async fn start(&mut self, order: &Arc<F::Order>, piece: &Piece, may_wait: bool) -> Option<Arriving> {
        let shared = Arc::clone(&self.shared);
        match piece {
            Piece::Batch(parts) if parts.iter().all(part::Part::is_words) => Some(Arriving::Words),
            Piece::Batch(parts) => {
                let pinned = Arc::clone(order.pinned());
                let is_scattered = part::is_scattered(parts);
                if !is_scattered && let Some(loaded) = load::map_batch(&pinned, parts) {
                    return Some(Arriving::Loaded(loaded));
                }
                let turn = match &pinned.edition.gates.scattered {
                    _ if !is_scattered => None,
                    pot if may_wait => Some(pot.take(self.network, 1).await?),
                    pot => Some(pot.try_take(self.network, 1)?),
                };
                let (pass, buffer) = load::room_to_read(&shared, &pinned, may_wait).await?;
                let parts = parts.clone();
                let read = {
                    let shared = Arc::clone(&shared);
                    move || {
                        let _turn = turn;
                        let mapped = if is_scattered { load::map_batch(&pinned, &parts) } else { None };
                        mapped.unwrap_or_else(|| read_batch(&shared, &pinned, &parts, buffer))
                    }
                };
                Some(Arriving::Batch(pass.run(read)))
            }
            Piece::Extent(extent) => {
                let file = self.large_file(order, extent.row, extent.key);
                load::start_extent(&shared, file, extent, may_wait).await.map(Arriving::Extent)
            }
        }
    }

    async fn send(&mut self, mut load: Load<F::Order>) -> Result<(), Ended> {
        let loaded = load.coming.take().wait(&load.piece).await;
        let (frames, after) = self.frames(&load, &loaded);
        let mut writer = Arc::clone(&self.writer).lock_owned().await;
        self.finish(&mut writer, Stuck { load, loaded, frames, after, sent: 0 }).await
    }

    /// Sends the rest of a piece. When the peer stops reading while others wait for buffers, this gives
    /// all of the session's own back, and reads again once the peer goes on.
    async fn finish(&mut self, writer: &mut Writer, stuck: Stuck<F>) -> Result<(), Ended> {
        let Stuck { mut load, mut loaded, mut frames, mut after, mut sent } = stuck;
        let shared = Arc::clone(&self.shared);
        loop {
            let is_piped = loaded.is_piped();
            let patient = || if is_piped { !shared.pipes.is_short() } else { !shared.pool.is_short() };
            sent += loaded.send_while(writer, &frames, sent, patient).await?;
            if sent == frames.len() {
                break;
            }
            drop(loaded);
            self.give_back();
            writer.writable().await?;
            load.coming = self.restart(&load).await;
            loaded = load.coming.take().wait(&load.piece).await;
            let (again, after_again) = self.frames(&load, &loaded);
            if sent > 0 && !again.continues(&frames) {
                return Err(Ended::Torn);
            }
            (frames, after) = (again, after_again);
        }
        self.settle(&load, &frames, after);
        Ok(())
    }

    async fn restart(&mut self, load: &Load<F::Order>) -> Arriving {
        loop {
            if let Some(coming) = self.start(&load.order, &load.piece, true).await {
                return coming;
            }
        }
    }

    /// Forgets what was read ahead; it is planned again.
    fn give_back(&mut self) {
        while let Some(load) = self.ahead.pop_back() {
            self.put_back(load);
        }
    }

    /// What to send for a piece: nothing of an item behind its failure.
    fn frames(&self, load: &Load<F::Order>, loaded: &Loaded) -> (Frames, F::After) {
        let mut failed = self.failed;
        let mut parts = loaded.parts.clone();
        parts.retain(|part| {
            let is_said = failed != Some(part.item);
            if part.bytes.is_err() {
                failed = Some(part.item);
            }
            is_said
        });
        self.framing.frames(&load.order, &parts, loaded.bytes(), load.is_last)
    }

    fn settle(&mut self, load: &Load<F::Order>, frames: &Frames, after: F::After) {
        for &(item, _) in frames.failures() {
            self.failed = Some(item);
            if let Some(plan) = self.plans.front_mut().filter(|plan| Arc::ptr_eq(plan.order(), &load.order)) {
                plan.skip(item);
            }
        }
        if let (Piece::Extent(extent), Some(file)) = (&load.piece, &self.file)
            && file.state == extent.key.file
        {
            // The end of the half that came last may lie within the extent.
            let end = extent.span.start + extent.within.end as u64;
            file.convoy.advance(extent.key.number + u64::from(end == extent.span.end), Instant::now());
        }
        if load.is_last {
            self.failed = None;
        }
        self.framing.settle(&load.order, frames, after, load.is_last);
    }
}
