//! The data lane: byte ranges of files, read ahead of what is being sent, sent in order.

mod frames;
mod plan;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use stillmirror_protocol::wire::{ErrorCode, Item, ItemFailure, Reply, Request, kind};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::writer::Writer;
use super::{Ended, Pinned, Session, UnderWay};
use crate::extents::{Begun, Coming, Extent, Key, Outcome};
use crate::file::{FileState, OpenFile};
use crate::pack::Place;
use crate::pool::Buffer;
use frames::Frames;
use plan::{Part, Piece, Plan};

/// Pieces that are read while another one is sent: with it they make the most that one session holds.
const AHEAD: usize = 1;
/// Files up to this size (bytes) are kept for the next client although nobody else wants them yet.
const KEPT: u64 = 8 << 20;
/// How long the first of a pack waits before it looks again.
const WAIT: Duration = Duration::from_millis(2);
/// Extents that are sent before the control lane gets its turn.
const PUMPED: usize = 8;

/// Bytes of a request that is checked where it is found: a few looks into mapped pages cost less than a
/// task switch, many may wait for the disk.
const CHECKED_AT_ONCE: usize = 128;

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

impl Session {
    /// Sends what is asked for, one request after the other.
    pub(super) async fn answer_data(self: &Arc<Self>, jobs: mpsc::Receiver<Job>) -> Result<(), Ended> {
        let session = Arc::clone(self);
        let mut lane = Lane { session, jobs, plans: VecDeque::new(), ahead: VecDeque::new(), failed: None, file: None };
        while lane.open_next().await? {
            if lane.is_at_extent() {
                lane = lane.pump().await?;
            } else if let Some(load) = lane.next().await? {
                lane.send(load).await?;
            }
        }
        Ok(())
    }
}

struct Lane {
    session: Arc<Session>,
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

/// A piece of which not everything is sent.
struct Stuck {
    load: Load,
    loaded: Loaded,
    frames: Frames,
    sent: usize,
}

impl Lane {
    /// Whether the next thing to send is an extent that nobody has read.
    fn is_at_extent(&self) -> bool {
        self.ahead.is_empty() && self.comes_to_extent()
    }

    /// Whether the next thing to read is an extent that nobody has read.
    fn comes_to_extent(&self) -> bool {
        let key = self.plans.front().and_then(Plan::peek_extent);
        key.is_some_and(|key| self.session.shared.extents.find(key).is_none())
    }

    /// Reads extents and sends each at once, on one thread, for as long as the peer takes them and at
    /// most [`PUMPED`]. While it takes no more, the socket's own buffer is what is read ahead: so most
    /// bytes cost neither a task switch nor a buffer that waits.
    async fn pump(self) -> Result<Self, Ended> {
        let shared = Arc::clone(&self.session.shared);
        if self.should_wait() {
            sleep(WAIT).await;
            return Ok(self);
        }
        let buffer = shared.pool.take().await;
        let writer = Arc::clone(&self.session.writer).lock_owned().await;
        let pumped = shared.extents.run(move || {
            let (mut lane, mut writer) = (self, writer);
            let result = lane.pump_now(&mut writer, buffer);
            (lane, writer, result)
        });
        let Ok(Some((mut lane, mut writer, result))) = pumped.await else { return Err(Ended::Panicked) };
        if let Some(stuck) = result? {
            lane.finish(&mut writer, stuck).await?;
        }
        Ok(lane)
    }

    /// Whether to let the rest of the pack come closer before the next extent is read.
    fn should_wait(&self) -> bool {
        let Some(key) = self.plans.front().and_then(Plan::peek_extent) else { return false };
        self.file
            .as_ref()
            .is_some_and(|file| file.state == key.file && file.place.should_wait(key.number, Instant::now()))
    }

    /// As much of it as goes without waiting for the peer or another reader.
    fn pump_now(&mut self, writer: &mut Writer, buffer: Buffer) -> Result<Option<Stuck>, Ended> {
        let shared = Arc::clone(&self.session.shared);
        let mut buffer = Some(buffer);
        for _ in 0..PUMPED {
            if self.plans.front().and_then(Plan::peek_extent).is_none() {
                break;
            }
            let Some(mut load) = self.plan_next() else { break };
            let Piece::Extent { row, key, span, .. } = &load.piece else { break };
            let file = self.large_file(&load.order, *row, *key);
            let wait = file.place.should_wait(key.number, Instant::now()) && shared.extents.find(*key).is_none();
            let Some(free) = buffer.take().or_else(|| shared.pool.try_take()).filter(|_| !wait) else {
                self.put_back(load);
                break;
            };
            let outcome = match shared.extents.begin(*key) {
                Begun::Mine(lead) => lead.read(free, file.is_kept(), |buffer| file.read(span, buffer)),
                Begun::Coming(coming) => {
                    buffer = Some(free);
                    match coming {
                        Coming::Ready(extent) => Ok(extent),
                        coming => {
                            load.coming = Arriving::Extent(coming);
                            self.ahead.push_back(load);
                            break;
                        }
                    }
                }
            };
            let loaded = Loaded::extent(&load.piece, outcome);
            let frames = self.frames(&load, &loaded);
            let sent = writer.send_now(&mut frames.slices(loaded.bytes(), 0).as_mut_slice())?;
            if sent < frames.len() {
                return Ok(Some(Stuck { load, loaded, frames, sent }));
            }
            self.settle(&load, &frames);
        }
        Ok(None)
    }

    /// Takes the next piece off the plan, without reading it.
    fn plan_next(&mut self) -> Option<Load> {
        let plan = self.plans.front_mut()?;
        let (order, before) = (Arc::clone(plan.order()), plan.cursor());
        let (piece, is_last) = (plan.next(), plan.is_done());
        if is_last {
            self.plans.pop_front();
        }
        Some(Load { order, before, piece, is_last, coming: Arriving::Nothing })
    }

    /// Puts the piece that was taken last back.
    fn put_back(&mut self, load: Load) {
        match self.plans.front_mut() {
            Some(plan) if Arc::ptr_eq(plan.order(), &load.order) => plan.rewind(load.before),
            _ => {
                let mut plan = Plan::new(load.order);
                plan.rewind(load.before);
                self.plans.push_front(plan);
            }
        }
    }

    /// The next piece to send, with those behind it on their way.
    async fn next(&mut self) -> Result<Option<Load>, Ended> {
        while self.ahead.len() <= AHEAD && self.open_next().await? {
            // Extents are read when it is their turn, and sent at once.
            if !self.ahead.is_empty() && self.comes_to_extent() {
                break;
            }
            let Some(mut load) = self.plan_next() else { break };
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

    /// Sees to it that there is a request to read for, and waits for one if nothing else is to do. False
    /// when nothing is left to do, or to be read.
    async fn open_next(&mut self) -> Result<bool, Ended> {
        while self.plans.is_empty() {
            let job = if self.ahead.is_empty() { self.jobs.recv().await } else { self.jobs.try_recv().ok() };
            let Some(Job { under_way, pinned, request }) = job else { return Ok(!self.ahead.is_empty()) };
            let number = under_way.number;
            let checked = if request.len() <= CHECKED_AT_ONCE {
                check(&pinned, &request)
            } else {
                let checked = self.session.blocking(&pinned, move |pinned| check(pinned, &request)).await;
                checked.unwrap_or_else(|| Err((ErrorCode::Internal, "the daemon failed to answer".to_owned())))
            };
            match checked {
                Ok(items) => self.plans.push_back(Plan::new(Arc::new(Order { under_way, pinned, items }))),
                Err((code, message)) => self.session.reply(number, &Reply::Error { code, message }).await?,
            }
        }
        Ok(true)
    }

    /// Starts reading a piece; `None` when that takes a buffer and there is none without waiting.
    async fn start(&mut self, order: &Arc<Order>, piece: &Piece, may_wait: bool) -> Option<Arriving> {
        let shared = Arc::clone(&self.session.shared);
        if let Piece::Extent { key, row, .. } = piece {
            self.large_file(order, *row, *key);
            if let Some(coming) = shared.extents.find(*key) {
                return Some(Arriving::Extent(coming));
            }
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
            Piece::Extent { row, key, span, .. } => match shared.extents.begin(*key) {
                Begun::Coming(coming) => Arriving::Extent(coming),
                Begun::Mine(lead) => {
                    let (file, span) = (self.large_file(order, *row, *key), span.clone());
                    let coming = lead.coming();
                    drop(
                        shared
                            .extents
                            .run(move || lead.read(buffer, file.is_kept(), |buffer| file.read(&span, buffer))),
                    );
                    Arriving::Extent(coming)
                }
            },
        })
    }

    /// The file of an extent, which stays the same from extent to extent.
    fn large_file(&mut self, order: &Arc<Order>, row: u32, key: Key) -> Arc<LargeFile> {
        match &self.file {
            Some(file) if file.row == row && Arc::ptr_eq(&file.pinned, &order.pinned) => Arc::clone(file),
            _ => {
                let pinned = Arc::clone(&order.pinned);
                let place = self.session.shared.packs.join(key.file, key.number, Instant::now());
                let file = Arc::new(LargeFile { pinned, row, state: key.file, place, open: OnceLock::new() });
                self.file = Some(Arc::clone(&file));
                file
            }
        }
    }

    async fn send(&mut self, mut load: Load) -> Result<(), Ended> {
        let loaded = load.coming.take().wait(&load.piece).await;
        let frames = self.frames(&load, &loaded);
        let mut writer = Arc::clone(&self.session.writer).lock_owned().await;
        self.finish(&mut writer, Stuck { load, loaded, frames, sent: 0 }).await
    }

    /// Sends the rest of a piece. When the peer stops reading while others wait for buffers, this gives
    /// all of the session's own back, and reads again once the peer goes on.
    async fn finish(&mut self, writer: &mut Writer, stuck: Stuck) -> Result<(), Ended> {
        let Stuck { mut load, mut loaded, mut frames, mut sent } = stuck;
        let shared = Arc::clone(&self.session.shared);
        loop {
            let patient = || !shared.pool.is_short();
            sent += writer.send_while(&mut frames.slices(loaded.bytes(), sent), patient).await?;
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
            self.put_back(load);
        }
    }

    fn settle(&mut self, load: &Load, frames: &Frames) {
        let request = load.order.under_way.number;
        let session = Arc::clone(&self.session);
        let mut tally = session.tally();
        tally.literal += frames.literal();
        for &(item, reason) in frames.failures() {
            let list = load.order.pinned.edition.generation.list();
            tally.failed(&list.path(load.order.items[item as usize].row), reason);
            self.failed = Some((request, item));
            if let Some(plan) = self.plans.front_mut().filter(|plan| Arc::ptr_eq(plan.order(), &load.order)) {
                plan.skip(item);
            }
        }
        if let (Piece::Extent { key, .. }, Some(file)) = (&load.piece, &self.file)
            && file.state == key.file
        {
            file.place.advance(key.number + 1, Instant::now());
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
            (Self::Extent(coming), piece) => Loaded::extent(piece, coming.wait().await),
            _ => Loaded { memory: Memory::Nothing, parts: Vec::new() },
        }
    }
}

impl Loaded {
    fn extent(piece: &Piece, outcome: Outcome) -> Self {
        let Piece::Extent { item, within, .. } = piece else {
            return Self { memory: Memory::Nothing, parts: Vec::new() };
        };
        let part = outcome.as_ref().map(|_| within.clone()).map_err(|reason| *reason);
        Self { memory: outcome.map_or(Memory::Nothing, Memory::Shared), parts: vec![(*item, part)] }
    }

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
    place: Place,
    open: OnceLock<Result<OpenFile, ItemFailure>>,
}

impl LargeFile {
    /// Whether its extents are kept for others: somebody else is on the way through it, or it is so
    /// small that the next one may well come while it is still there.
    fn is_kept(&self) -> bool {
        self.state.size() <= KEPT || self.place.has_company()
    }

    fn read(&self, span: &Range<u64>, buffer: &mut [u8]) -> Result<Range<usize>, ItemFailure> {
        self.open()?.read(span.start, (span.end - span.start) as usize, buffer)
    }

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
