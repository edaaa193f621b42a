//! The data lane: byte ranges of files, read ahead of what is being sent, sent in order.

mod frames;
mod plan;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use stillmirror_protocol::wire::{ErrorCode, Item, ItemFailure, Reply, Request, kind};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Ended, Pinned, Session, UnderWay};
use crate::extents::{Coming, Extent};
use crate::file::{FileState, OpenFile};
use crate::pool::Buffer;
use frames::Frames;
use plan::{Part, Piece, Plan};

/// Pieces that are read while another one is sent: with it they make the most that one session holds.
const AHEAD: usize = 3;

/// A request for data, not decoded yet: encoded it is smaller.
pub(super) struct Job {
    pub(super) under_way: UnderWay,
    pub(super) pinned: Arc<Pinned>,
    /// The payload of a request that decodes.
    pub(super) request: Box<[u8]>,
}

/// A request whose items are known to lie within its generation.
struct Order {
    under_way: UnderWay,
    pinned: Arc<Pinned>,
    items: Vec<Item>,
}

impl Session<'_> {
    /// Sends what is asked for, one request after the other.
    pub(super) async fn answer_data(&self, jobs: mpsc::Receiver<Job>) -> Result<(), Ended> {
        let mut lane =
            Lane { session: self, jobs, plans: VecDeque::new(), ahead: VecDeque::new(), failed: None, file: None };
        while let Some(load) = lane.next().await? {
            lane.send(load).await?;
        }
        Ok(())
    }
}

struct Lane<'s, 'a> {
    session: &'s Session<'a>,
    jobs: mpsc::Receiver<Job>,
    /// Requests that are not read to their end yet.
    plans: VecDeque<Plan>,
    /// What is being read, in the order of sending.
    ahead: VecDeque<Load>,
    /// The item of which nothing more is sent: request number and place in it.
    failed: Option<(u32, u32)>,
    /// The large file that was opened last.
    file: Option<Arc<LargeFile>>,
}

/// A piece on its way from disk.
struct Load {
    order: Arc<Order>,
    /// Where the plan stood before this piece, to return to.
    before: plan::Cursor,
    piece: Piece,
    is_last: bool,
    coming: Arriving,
}

enum Arriving {
    Nothing,
    Batch(JoinHandle<Option<Loaded>>),
    Extent(Coming),
}

/// A piece in memory: by item what was read of it, and where it is.
struct Loaded {
    memory: Memory,
    parts: Vec<(u32, Result<Range<usize>, ItemFailure>)>,
}

enum Memory {
    Nothing,
    Own(Buffer),
    Shared(Arc<Extent>),
}

impl Lane<'_, '_> {
    /// The next piece to send, with those behind it on their way; `None` after the last.
    async fn next(&mut self) -> Result<Option<Load>, Ended> {
        while self.ahead.len() <= AHEAD {
            if !self.open_next().await? {
                break;
            }
            let Some(plan) = self.plans.front_mut() else { break };
            let (order, before) = (Arc::clone(plan.order()), plan.cursor());
            let piece = plan.next();
            let is_last = plan.is_done();
            // Only a session that holds nothing waits: so nobody waits for who waits.
            let may_wait = self.ahead.is_empty();
            let Some(coming) = self.start(&order, &piece, may_wait).await else {
                if let Some(plan) = self.plans.front_mut() {
                    plan.rewind(before);
                }
                break;
            };
            if is_last {
                self.plans.pop_front();
            }
            self.ahead.push_back(Load { order, before, piece, is_last, coming });
        }
        Ok(self.ahead.pop_front())
    }

    /// Sees to it that there is a request to read for, and waits for one if nothing else is to do.
    async fn open_next(&mut self) -> Result<bool, Ended> {
        while self.plans.is_empty() {
            let job = if self.ahead.is_empty() { self.jobs.recv().await } else { self.jobs.try_recv().ok() };
            let Some(Job { under_way, pinned, request }) = job else { return Ok(false) };
            let number = under_way.number;
            let checked = self.session.blocking(&pinned, move |pinned| check(pinned, &request)).await;
            match checked.unwrap_or_else(|| Err((ErrorCode::Internal, "the daemon failed to answer".to_owned()))) {
                Ok(items) => self.plans.push_back(Plan::new(Arc::new(Order { under_way, pinned, items }))),
                Err((code, message)) => self.session.reply(number, &Reply::Error { code, message }).await?,
            }
        }
        Ok(true)
    }

    /// Starts reading a piece; `None` when that takes a buffer and there is none without waiting.
    async fn start(&mut self, order: &Arc<Order>, piece: &Piece, may_wait: bool) -> Option<Arriving> {
        let shared = self.session.shared;
        if let Piece::Extent { key, .. } = piece
            && let Some(coming) = shared.extents.find(*key)
        {
            return Some(Arriving::Extent(coming));
        }
        if matches!(piece, Piece::Nothing) {
            return Some(Arriving::Nothing);
        }
        let buffer = if may_wait { shared.pool.take().await } else { shared.pool.try_take()? };
        Some(match piece {
            Piece::Nothing => Arriving::Nothing,
            Piece::Batch(parts) => {
                let (order, parts) = (Arc::clone(order), parts.clone());
                Arriving::Batch(shared.extents.run(move || read_batch(&order, parts, buffer)))
            }
            Piece::Extent { row, key, span, .. } => {
                let (file, span) = (self.large_file(order, *row, key.file), span.clone());
                let read =
                    move |buffer: &mut [u8]| file.open()?.read(span.start, (span.end - span.start) as usize, buffer);
                Arriving::Extent(shared.extents.read(*key, buffer, read))
            }
        })
    }

    fn large_file(&mut self, order: &Arc<Order>, row: u32, state: FileState) -> Arc<LargeFile> {
        match &self.file {
            Some(file) if file.row == row && Arc::ptr_eq(&file.pinned, &order.pinned) => Arc::clone(file),
            _ => {
                let pinned = Arc::clone(&order.pinned);
                let file = Arc::new(LargeFile { pinned, row, state, open: OnceLock::new() });
                self.file = Some(Arc::clone(&file));
                file
            }
        }
    }

    /// Sends a piece. When the peer stops reading while others wait for buffers, it gives all of its
    /// own back, and reads again once the peer goes on.
    async fn send(&mut self, mut load: Load) -> Result<(), Ended> {
        let mut loaded = load.coming.take().wait(&load.piece).await;
        let mut frames = self.frames(&load, &loaded);
        let mut writer = self.session.writer.lock().await;
        let mut sent = 0;
        loop {
            let pool = &self.session.shared.pool;
            sent += writer.send_while(&mut frames.slices(loaded.bytes(), sent), || !pool.is_short()).await?;
            if sent == frames.len() {
                break;
            }
            drop(loaded);
            self.give_back();
            writer.writable().await?;
            load.coming = self.restart(&load).await;
            loaded = load.coming.take().wait(&load.piece).await;
            let again = self.frames(&load, &loaded);
            if sent > 0 && !again.continues(&frames) {
                return Err(Ended::Torn);
            }
            frames = again;
        }
        drop(writer);
        self.settle(&load, &frames);
        Ok(())
    }

    /// The frames of a piece: without what follows a failure of the same item.
    fn frames(&self, load: &Load, loaded: &Loaded) -> Frames {
        let request = load.order.under_way.number;
        let mut failed = self.failed.filter(|(of, _)| *of == request).map(|(_, item)| item);
        let mut frames = Frames::new(request);
        for (item, outcome) in loaded.parts.iter().cloned() {
            if failed == Some(item) {
                continue;
            }
            match outcome {
                Ok(range) => frames.bytes(range),
                Err(reason) => {
                    frames.item_failed(item, reason);
                    failed = Some(item);
                }
            }
        }
        if load.is_last {
            frames.end();
        }
        frames
    }

    async fn restart(&mut self, load: &Load) -> Arriving {
        loop {
            if let Some(coming) = self.start(&load.order, &load.piece, true).await {
                return coming;
            }
        }
    }

    /// Forgets what was read ahead; it is planned again.
    fn give_back(&mut self) {
        while let Some(load) = self.ahead.pop_back() {
            match self.plans.front_mut() {
                Some(plan) if Arc::ptr_eq(plan.order(), &load.order) => plan.rewind(load.before),
                _ => {
                    let mut plan = Plan::new(load.order);
                    plan.rewind(load.before);
                    self.plans.push_front(plan);
                }
            }
        }
    }

    fn settle(&mut self, load: &Load, frames: &Frames) {
        let request = load.order.under_way.number;
        let mut tally = self.session.tally();
        tally.literal += frames.literal();
        for &(item, reason) in frames.failures() {
            let list = load.order.pinned.edition.generation.list();
            tally.failed(&list.path(load.order.items[item as usize].row), reason);
            self.failed = Some((request, item));
            if let Some(plan) = self.plans.front_mut().filter(|plan| Arc::ptr_eq(plan.order(), &load.order)) {
                plan.skip(item);
            }
        }
        if load.is_last {
            let rows = load.order.items.iter().map(|item| item.row);
            tally.files += rows.clone().zip(rows.skip(1)).filter(|(one, next)| one != next).count() as u64 + 1;
            self.failed = None;
        }
    }
}

impl Arriving {
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Nothing)
    }

    async fn wait(self, piece: &Piece) -> Loaded {
        match (self, piece) {
            (Self::Batch(reading), Piece::Batch(parts)) => match reading.await {
                Ok(Some(loaded)) => loaded,
                // The reader died: none of its parts comes.
                _ => Loaded {
                    memory: Memory::Nothing,
                    parts: parts.iter().map(|part| (part.item, Err(ItemFailure::Unreadable))).collect(),
                },
            },
            (Self::Extent(coming), Piece::Extent { item, within, .. }) => {
                let outcome = coming.wait().await;
                let parts = vec![(*item, outcome.as_ref().map(|_| within.clone()).map_err(|reason| *reason))];
                Loaded { memory: outcome.map_or(Memory::Nothing, Memory::Shared), parts }
            }
            _ => Loaded { memory: Memory::Nothing, parts: Vec::new() },
        }
    }
}

impl Loaded {
    fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Nothing => &[],
            Memory::Own(buffer) => buffer,
            Memory::Shared(extent) => extent,
        }
    }
}

/// A large file, opened when the first of its extents is read.
struct LargeFile {
    pinned: Arc<Pinned>,
    row: u32,
    state: FileState,
    open: OnceLock<Result<OpenFile, ItemFailure>>,
}

impl LargeFile {
    fn open(&self) -> Result<&OpenFile, ItemFailure> {
        let open = || open(&self.pinned, self.row, self.state);
        self.open.get_or_init(open).as_ref().map_err(|reason| *reason)
    }
}

fn open(pinned: &Pinned, row: u32, state: FileState) -> Result<OpenFile, ItemFailure> {
    pinned.repository.tree.open_file(&pinned.edition.generation.list().path(row), state)
}

/// Decodes a request and holds it against its generation.
fn check(pinned: &Pinned, request: &[u8]) -> Result<Vec<Item>, (ErrorCode, String)> {
    let Ok(Request::Data { items, .. }) = Request::decode(kind::DATA, request) else {
        return Err((ErrorCode::Malformed, "not a request for data".to_owned()));
    };
    let list = pinned.edition.generation.list();
    for (at, Item { row, offset, len }) in items.iter().enumerate() {
        if *row >= list.len() || !list.row(*row).is_file() {
            let message = format!("item {at}: the generation has no regular file at row {row}");
            return Err((ErrorCode::NotThere, message));
        }
        let size = list.row(*row).size();
        if offset.checked_add(*len).is_none_or(|end| end > size) {
            let message = format!("item {at}: {len} bytes at {offset} of a file of {size}");
            return Err((ErrorCode::NotThere, message));
        }
    }
    Ok(items)
}

/// Reads parts of files, each behind the other in one buffer.
fn read_batch(order: &Order, parts: Vec<Part>, mut buffer: Buffer) -> Loaded {
    let generation = &order.pinned.edition.generation;
    let mut file: Option<(u32, Result<OpenFile, ItemFailure>)> = None;
    let mut used = 0;
    let mut read = |part: &Part| {
        if file.as_ref().is_none_or(|(row, _)| *row != part.row) {
            let opened = open(&order.pinned, part.row, FileState::indexed(generation, part.row));
            file = Some((part.row, opened));
        }
        let Some((_, opened)) = &file else { return Err(ItemFailure::Unreadable) };
        let opened = opened.as_ref().map_err(|reason| *reason)?;
        let start = used;
        used += OpenFile::room(part.offset, part.len);
        let range = opened.read(part.offset, part.len, &mut buffer[start..used])?;
        Ok(start + range.start..start + range.end)
    };
    let parts = parts.iter().map(|part| (part.item, read(part))).collect();
    Loaded { memory: Memory::Own(buffer), parts }
}
