//! The data lane of a session, for both dialects: reads byte ranges of files ahead and sends them in order.
//!
//! A [`Lane`] takes one [`Order`] after the other from its [`Framing`], plans it in pieces of one buffer each,
//! reads a piece ahead, asks the framing for the protocol bytes around the files' bytes, and sends both.
//!
//! ```text
//! Framing   the dialect: the next items, and the protocol bytes before, between and after their content
//! plan      cuts an order of items into pieces of one buffer each
//! part      a range of a file, or no content at all, and where its bytes come from
//! layout    where in the buffer the parts of a piece go; small files from the store keep their order there
//! load      brings a piece into memory: from disk, or from the cache that all sessions share
//! pump      reads extents and sends each at once, on one thread
//! frames    the output for a piece: protocol bytes, and references to file bytes in the piece's memory
//! writer    the sending half of the connection
//! ```
//!
//! File bytes are not copied between the read and the send, except small files that enter or leave the cache.
//! A session whose peer does not read gives all its buffers back while others wait for them.

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

use crate::dialect::Dialect;
use crate::ended::Ended;
use crate::metrics::Meter;
use crate::networks::Network;
use crate::pace::Pace;
use crate::pinned::Pinned;
use crate::shared::ServerState;
use crate::source::BySource;
pub(crate) use frames::Frames;
use load::{LargeFile, Load, Loaded, Reading, read_batch};
use plan::{Piece, Plan};
pub(crate) use writer::Writer;

/// Pieces that are read while another one is sent. A session holds up to `READ_AHEAD + 1` pieces.
const READ_AHEAD: usize = 1;

/// A sequence of items that are answered in order, all from one generation.
pub(crate) trait Order: Send + Sync + 'static {
    /// Returns the edition that the items belong to.
    fn pinned(&self) -> &Arc<Pinned>;
    /// Returns the number of items.
    fn len(&self) -> u32;
    /// Returns the content that `item` asks for; `item` is below [`Order::len`].
    fn content(&self, item: u32) -> ItemContent;
}

/// The file content that an item asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ItemContent {
    /// No file content: the answer consists of protocol bytes only.
    NoFile,
    /// A range within the regular file at `row`. Even an empty range requires that the file is still the indexed one.
    /// `is_redo`: the client found that the bytes sent before do not match the digest, so the store is not used again.
    Bytes { row: u32, offset: u64, len: u64, is_redo: bool },
}

/// The result of loading one part of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartResult {
    /// The item's position in its order.
    pub(crate) item: u32,
    /// Bytes of the item that precede this part.
    pub(crate) before: u64,
    /// The range of the part's bytes in the piece's memory, empty if the item has no file content. A failure ends the
    /// item.
    pub(crate) bytes: Result<Range<usize>, ItemFailure>,
}

/// A dialect: the source of orders, and the protocol bytes around the bytes of files.
pub(crate) trait Framing: Send + 'static {
    /// Items with what the dialect has to know about them.
    type Order: Order;
    /// The dialect's state after a piece. It comes from `frames` and takes effect in `commit`, once the piece is sent.
    type NextState: Send;

    /// The dialect's name in metrics.
    const DIALECT: Dialect;

    /// Returns the next order. Without `wait`, returns only an order that is available already. `None` if there is
    /// none.
    fn next_order(&mut self, wait: bool) -> impl Future<Output = Result<Option<Self::Order>, Ended>> + Send;

    /// Returns what to send for the parts of a piece whose bytes lie in `memory`. `is_last` is set if the order ends
    /// with this piece. The lane asks for the same piece again if it had to give its memory back after a part of the
    /// piece was sent. The answer must then be the same.
    fn frames(
        &self,
        order: &Self::Order,
        parts: &[PartResult],
        memory: &[u8],
        is_last: bool,
    ) -> (Frames, Self::NextState);

    /// Returns whether the protocol bytes depend on the item's bytes, which must then be in memory.
    fn needs_bytes(&self, order: &Self::Order, item: u32) -> bool;

    /// Takes over the state after a piece. Called once the piece is sent.
    fn commit(&mut self, order: &Self::Order, frames: &Frames, next_state: Self::NextState, is_last: bool);
}

/// The data lane of one session.
pub(crate) struct Lane<F: Framing> {
    shared: Arc<ServerState>,
    writer: Arc<Mutex<Writer>>,
    pub(crate) framing: F,
    /// Orders that are not completely read yet.
    plans: VecDeque<Plan<F::Order>>,
    /// Pieces that are being read, in sending order.
    ahead: VecDeque<Load<F::Order>>,
    /// The item of the current order that failed. The rest of it is not sent.
    failed: Option<u32>,
    /// The large file that was opened last.
    file: Option<Arc<LargeFile>>,
    client: Client,
    /// The counters of the repository that the last piece belonged to.
    meter: Arc<Meter>,
    pace: Pace,
}

/// What a lane knows of its client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    pub(crate) network: Network,
    /// Whether the connection is encrypted.
    pub(crate) is_encrypted: bool,
}

/// A piece that is not completely sent.
struct PartlySent<F: Framing> {
    load: Load<F::Order>,
    loaded: Loaded,
    frames: Frames,
    next_state: F::NextState,
    sent: usize,
}

impl<F: Framing> Lane<F> {
    /// Creates a lane that sends through `writer`.
    pub(crate) fn new(shared: Arc<ServerState>, writer: Arc<Mutex<Writer>>, client: Client, framing: F) -> Self {
        let (plans, ahead) = (VecDeque::new(), VecDeque::new());
        let meter = shared.metrics.nameless(F::DIALECT);
        Self { shared, writer, framing, plans, ahead, failed: None, file: None, client, meter, pace: Pace::new() }
    }

    /// Answers one order after the other until the framing has no more.
    pub(crate) async fn run(mut self) -> Result<Self, Ended> {
        while self.open_next().await? {
            if self.sends_extent_next() {
                self = self.pump().await?;
            } else if let Some(load) = self.next().await? {
                self.send(load).await?;
            }
            self.pace.step().await;
        }
        Ok(self)
    }

    /// Makes sure that there is an order to read, and waits for one if there is nothing to send either. Returns false
    /// if nothing is left to read or send.
    async fn open_next(&mut self) -> Result<bool, Ended> {
        if self.plans.is_empty() {
            let may_wait = self.ahead.is_empty();
            if may_wait && self.client.is_encrypted {
                self.writer.lock().await.flush().await?;
            }
            match self.framing.next_order(may_wait).await? {
                Some(order) => self.plans.push_back(Plan::new(Arc::new(order))),
                None => return Ok(!self.ahead.is_empty()),
            }
        }
        Ok(true)
    }

    /// Returns the next piece to send, and starts reading the pieces behind it.
    async fn next(&mut self) -> Result<Option<Load<F::Order>>, Ended> {
        while self.ahead.len() <= READ_AHEAD && self.open_next().await? {
            // An extent is not read ahead: it is read when it is to be sent, and sent at once.
            if !self.ahead.is_empty() && self.reads_extent_next() {
                break;
            }
            let Some(mut load) = self.plan_next(Plan::next) else { break };
            // A session blocks only while it holds no buffer, so two sessions cannot deadlock.
            let may_wait = self.ahead.is_empty();
            match self.start(&load.order, &load.piece, may_wait).await {
                Some(reading) => load.reading = reading,
                None => {
                    self.put_back(load);
                    break;
                }
            }
            self.ahead.push_back(load);
        }
        Ok(self.ahead.pop_front())
    }

    /// Takes the next piece off the plan, but does not start reading it.
    fn plan_next(&mut self, next: impl FnOnce(&mut Plan<F::Order>) -> Piece) -> Option<Load<F::Order>> {
        let plan = self.plans.front_mut()?;
        let (order, before) = (Arc::clone(plan.order()), plan.cursor());
        let (piece, is_last) = (next(plan), plan.is_done());
        if is_last {
            self.plans.pop_front();
        }
        Some(Load { order, before, piece, is_last, reading: Reading::Nothing })
    }

    /// Puts the piece that was taken last back into the plan.
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

    /// Starts reading a piece. `None` if the read needs a buffer or a turn that is not free, and `may_wait` is false.
    async fn start(&mut self, order: &Arc<F::Order>, piece: &Piece, may_wait: bool) -> Option<Reading> {
        let shared = Arc::clone(&self.shared);
        match piece {
            Piece::Batch(parts) if parts.iter().all(part::Part::needs_no_read) => Some(Reading::Nothing),
            Piece::Batch(parts) => {
                let pinned = Arc::clone(order.pinned());
                let is_scattered = part::is_scattered(parts);
                if !is_scattered && let Some(loaded) = load::map_batch(&pinned, parts) {
                    return Some(Reading::Loaded(loaded));
                }
                let turn = match &pinned.edition.gates.scattered {
                    _ if !is_scattered => None,
                    pot if may_wait => Some(pot.take(self.client.network, 1).await?),
                    pot => Some(pot.try_take(self.client.network, 1)?),
                };
                let (pass, buffer) = load::room_to_read(&shared, &pinned, may_wait).await?;
                let parts = parts.clone();
                let read = {
                    let shared = Arc::clone(&shared);
                    move || {
                        let _turn = turn;
                        let mapped = if is_scattered { load::map_batch(&pinned, &parts) } else { None };
                        let read = || shared.metrics.time_read(|| read_batch(&shared, &pinned, &parts, buffer));
                        mapped.unwrap_or_else(read)
                    }
                };
                Some(Reading::Batch(pass.run(read)))
            }
            Piece::Extent(extent) => {
                let file = self.large_file(order, extent.row, extent.key);
                load::start_extent(&shared, file, extent, may_wait).await.map(Reading::Extent)
            }
        }
    }

    async fn send(&mut self, mut load: Load<F::Order>) -> Result<(), Ended> {
        let loaded = load.reading.take().wait(&load.piece).await;
        let (frames, next_state) = self.frames(&load, &loaded);
        let mut writer = Arc::clone(&self.writer).lock_owned().await;
        self.finish(&mut writer, PartlySent { load, loaded, frames, next_state, sent: 0 }).await
    }

    /// Sends the rest of a piece. If the peer stops reading while others wait for buffers, this gives all of the
    /// session's buffers back, and reads the piece again once the peer goes on.
    async fn finish(&mut self, writer: &mut Writer, unsent: PartlySent<F>) -> Result<(), Ended> {
        let PartlySent { mut load, mut loaded, mut frames, mut next_state, mut sent } = unsent;
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
            load.reading = self.restart(&load).await;
            loaded = load.reading.take().wait(&load.piece).await;
            let (new_frames, new_state) = self.frames(&load, &loaded);
            if sent > 0 && !new_frames.continues(&frames) {
                return Err(Ended::Torn);
            }
            (frames, next_state) = (new_frames, new_state);
        }
        self.commit(&load, &frames, next_state, loaded.sources);
        Ok(())
    }

    async fn restart(&mut self, load: &Load<F::Order>) -> Reading {
        loop {
            if let Some(reading) = self.start(&load.order, &load.piece, true).await {
                return reading;
            }
        }
    }

    /// Drops all pieces that were read ahead, and puts them back into the plan.
    fn give_back(&mut self) {
        while let Some(load) = self.ahead.pop_back() {
            self.put_back(load);
        }
    }

    /// Returns what to send for a piece. The parts of an item that follow its failure are left out.
    fn frames(&self, load: &Load<F::Order>, loaded: &Loaded) -> (Frames, F::NextState) {
        let mut failed = self.failed;
        let mut parts = loaded.parts.clone();
        parts.retain(|part| {
            let is_sent = failed != Some(part.item);
            if part.bytes.is_err() {
                failed = Some(part.item);
            }
            is_sent
        });
        self.framing.frames(&load.order, &parts, loaded.bytes(), load.is_last)
    }

    fn commit(&mut self, load: &Load<F::Order>, frames: &Frames, next_state: F::NextState, sources: BySource) {
        let repository = &load.order.pinned().repository.name;
        if self.meter.repository() != repository {
            self.meter = self.shared.metrics.meter(F::DIALECT, repository);
        }
        self.meter.add_contents(sources);
        for &(item, _) in frames.failures() {
            self.failed = Some(item);
            if let Some(plan) = self.plans.front_mut().filter(|plan| Arc::ptr_eq(plan.order(), &load.order)) {
                plan.skip(item);
            }
        }
        if let (Piece::Extent(extent), Some(file)) = (&load.piece, &self.file)
            && file.state == extent.key.file
        {
            // A piece may be only a half of its extent, and end within it.
            let end = extent.span.start + extent.within.end as u64;
            file.convoy.advance(extent.key.number + u64::from(end == extent.span.end), Instant::now());
        }
        if load.is_last {
            self.failed = None;
        }
        self.framing.commit(&load.order, frames, next_state, load.is_last);
    }
}
