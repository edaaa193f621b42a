//! Loads pieces into memory: from the store, from the cache, or from the tree.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use stillmirror_protocol::path;
use stillmirror_protocol::wire::ItemFailure;
use stillmirror_store::Pack;
use tokio::task::JoinHandle;

use super::layout::{self, Layout, PackRange};
use super::part::{Origin, Part};
use super::plan::{Cursor, ExtentPiece, Piece, Plan};
use super::{Frames, Framing, Lane, Order, PartResult, PartlySent, Writer};
use crate::convoy::Member;
use crate::damage;
use crate::ended::Ended;
use crate::extents::{Begun, Extent, Key, Outcome, PendingExtent};
use crate::file::{FileState, InMemory, OpenFile, Wanted, room};
use crate::gate::Pass;
use crate::pinned::Pinned;
use crate::pipe::Pipe;
use crate::pool::Buffer;
use crate::shared::ServerState;
use crate::source::{BySource, Source};

/// A planned piece that is being loaded.
pub(super) struct Load<O> {
    pub(super) order: Arc<O>,
    /// The plan's cursor before this piece, for putting the piece back.
    pub(super) before: Cursor,
    pub(super) piece: Piece,
    pub(super) is_last: bool,
    pub(super) reading: Reading,
}

/// The read of a piece.
pub(super) enum Reading {
    /// There is nothing to read.
    Nothing,
    /// The piece is in memory already.
    Loaded(Loaded),
    Batch(JoinHandle<Loaded>),
    Extent(PendingExtent),
}

/// A piece in memory.
#[derive(Default)]
pub(super) struct Loaded {
    memory: Memory,
    pub(super) parts: Vec<PartResult>,
    /// The bytes of its parts, by where they come from.
    pub(super) sources: BySource,
}

#[derive(Default)]
enum Memory {
    #[default]
    Nothing,
    Own(Buffer),
    Shared(Extent),
    /// A mapped pack of the generation, by number.
    Mapped(Arc<Pinned>, u32),
    /// No memory of this process: all that is left to send, including the protocol bytes, is in the pipe.
    Piped(Pipe),
}

impl Reading {
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Nothing)
    }

    pub(super) async fn wait(self, piece: &Piece) -> Loaded {
        match (self, piece) {
            (Self::Loaded(loaded), _) => loaded,
            (Self::Extent(pending), piece) => Loaded::extent(piece, pending.wait().await),
            (Self::Batch(reading), Piece::Batch(parts)) => match reading.await {
                Ok(loaded) => loaded,
                // The reading thread panicked.
                Err(_) => Loaded::nothing(parts, Err(ItemFailure::Unreadable)),
            },
            (_, Piece::Batch(parts)) => Loaded::nothing(parts, Ok(0..0)),
            (_, Piece::Extent(_)) => Loaded::default(),
        }
    }
}

impl Loaded {
    pub(super) fn extent(piece: &Piece, outcome: Outcome) -> Self {
        let Piece::Extent(extent) = piece else {
            return Self::default();
        };
        let bytes = outcome.as_ref().map(|_| extent.within.clone()).map_err(|reason| *reason);
        let got = PartResult { item: extent.item, before: extent.before, bytes };
        let sources =
            outcome.as_ref().map_or(BySource::default(), |read| BySource::of(read.source(), extent.within.len()));
        Self { memory: outcome.map_or(Memory::Nothing, Memory::Shared), parts: vec![got], sources }
    }

    /// Returns a piece that is to be sent from the page cache through a pipe, without being read.
    fn unread(extent: &ExtentPiece) -> Self {
        let got = PartResult { item: extent.item, before: extent.before, bytes: Ok(extent.within.clone()) };
        let sources = BySource::of(Source::PageCache, extent.within.len());
        Self { memory: Memory::Nothing, parts: vec![got], sources }
    }

    /// Puts the frames of the piece into a pipe. Returns false if they do not fit, or on any error. The piece must then
    /// be read.
    fn fill(&mut self, mut pipe: Pipe, file: &LargeFile, extent: &ExtentPiece, frames: &Frames) -> bool {
        let (protocol, parts) = frames.parts(extent.span.start);
        let is_filled =
            pipe.has_room(parts.clone()) && file.open().is_ok_and(|file| file.fill(&mut pipe, protocol, parts).is_ok());
        if is_filled {
            self.memory = Memory::Piped(pipe);
        }
        is_filled
    }

    /// Returns whether the piece is in a pipe.
    pub(super) fn is_piped(&self) -> bool {
        matches!(self.memory, Memory::Piped(_))
    }

    /// Sends what follows the first `sent` bytes of its frames, as far as that is possible without waiting. Returns the
    /// number of bytes sent.
    pub(super) fn send_now(&mut self, writer: &mut Writer, frames: &Frames, sent: usize) -> Result<usize, Ended> {
        match &mut self.memory {
            Memory::Piped(pipe) => writer.send_now(pipe),
            _ => writer.send_now(&mut frames.slices(self.bytes(), sent).as_mut_slice()),
        }
    }

    /// Sends what follows the first `sent` bytes of its frames, until all is sent or `patient` returns false. Returns
    /// the number of bytes sent.
    pub(super) async fn send_while(
        &mut self,
        writer: &mut Writer,
        frames: &Frames,
        sent: usize,
        patient: impl Fn() -> bool,
    ) -> Result<usize, Ended> {
        match &mut self.memory {
            Memory::Piped(pipe) => writer.send_while(pipe, patient).await,
            _ => writer.send_while(&mut frames.slices(self.bytes(), sent).as_mut_slice(), patient).await,
        }
    }

    fn nothing(parts: &[Part], bytes: Result<Range<usize>, ItemFailure>) -> Self {
        let got = |part: &Part| {
            let bytes = match part.origin {
                Origin::NoFile => Ok(0..0),
                Origin::Denied => Err(ItemFailure::Unreadable),
                Origin::Tree(..) | Origin::Store(..) => bytes.clone(),
            };
            PartResult { item: part.item, before: part.before, bytes }
        };
        Self { parts: parts.iter().map(got).collect(), ..Self::default() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Nothing | Memory::Piped(_) => &[],
            Memory::Own(buffer) => buffer,
            Memory::Shared(extent) => extent,
            Memory::Mapped(pinned, pack) => pinned.edition.generation.pack(*pack).map_or(&[], Pack::bytes),
        }
    }
}

/// Takes a pass for a read, and then a buffer. The order ensures that a repository whose disk hangs holds no more buffers
/// than its gate has passes. `None` if one of them is not free, and `may_wait` is false.
pub(super) async fn room_to_read(shared: &Arc<ServerState>, pinned: &Pinned, may_wait: bool) -> Option<(Pass, Buffer)> {
    let gate = &pinned.edition.gates.files;
    if may_wait {
        let pass = gate.enter().await;
        return Some((pass, shared.pool.take().await));
    }
    Some((gate.try_enter()?, shared.pool.try_take()?))
}

/// Gets an extent from the cache or from a read in progress, or starts to read it. `None` if that needs a pass or a
/// buffer that is not free, and `may_wait` is false.
pub(super) async fn start_extent(
    shared: &Arc<ServerState>,
    file: Arc<LargeFile>,
    extent: &ExtentPiece,
    may_wait: bool,
) -> Option<PendingExtent> {
    if let Some(pending) = shared.extents.find(extent.key) {
        return Some(pending);
    }
    let (pass, buffer) = room_to_read(shared, &file.pinned, may_wait).await?;
    Some(match shared.extents.begin(extent.key) {
        Begun::Found(pending) => pending,
        Begun::Mine(task) => {
            let (span, number, pending) = (extent.span.clone(), extent.key.number, task.pending());
            let metrics = Arc::clone(&shared.metrics);
            let read = move || {
                task.read(buffer, file.is_kept(number), |buffer| metrics.time_read(|| file.read(&span, buffer)))
            };
            drop(pass.run(read));
            pending
        }
    })
}

/// Returns parts as they lie in a mapped pack, without reading them, without a buffer, and without waiting for the disk.
/// `None` unless all parts lie in one pack, are in the page cache, and match their checksums.
///
/// The parts are checked for every client anew, and sent from the same pages soon after. The check misses only damage
/// on the disk to a page that the kernel dropped and read again in between.
pub(super) fn map_batch(pinned: &Arc<Pinned>, parts: &[Part]) -> Option<Loaded> {
    let (tree, generation) = (&pinned.edition.tree, &pinned.edition.generation);
    let layout = if parts.iter().all(Part::is_stored) { Layout::of(parts) } else { return None };
    let pack = layout.runs().first()?.pack;
    let is_cached = |run: &PackRange| run.pack == pack && tree.is_stored_in_page_cache(generation, pack, &run.bytes);
    if !layout.runs().iter().all(is_cached) {
        return None;
    }
    let rows = stored_rows(parts);
    let is_pinned = pinned.edition.is_pinned();
    let states = if is_pinned { vec![Ok(()); rows.len()] } else { tree.look_at_once(generation, &rows)? };
    let mut states = states.into_iter();
    let mut loaded = Loaded::nothing(parts, Ok(0..0));
    let bytes = generation.pack(pack)?.bytes();
    for (part, got) in parts.iter().zip(&mut loaded.parts) {
        let Origin::Store(_, stored) = part.origin else { continue };
        let (state, place) = (states.next()?, stored.bytes());
        let place = place.start as usize..place.end as usize;
        // `read_stored` finds the damage again, reports it, and reads the file from the tree instead.
        if state.is_ok() && !generation.is_content(stored.file, bytes.get(place.clone())?) {
            return None;
        }
        got.bytes = state.map(|()| part.within(place.start));
        loaded.sources.add(Source::Pack, got.bytes.as_ref().map_or(0, Range::len));
    }
    loaded.memory = Memory::Mapped(Arc::clone(pinned), pack);
    Some(loaded)
}

/// Reads the parts of a batch into one buffer: from the store, the cache, or the tree.
pub(super) fn read_batch(shared: &ServerState, pinned: &Pinned, parts: &[Part], mut buffer: Buffer) -> Loaded {
    let mut loaded = Loaded::nothing(parts, Ok(0..0));
    let layout = Layout::of(parts);
    let (stored, rest) = buffer.split_at_mut(layout.stored());
    read_stored(pinned, parts, layout.runs(), stored, &mut loaded);
    let missing = read_tree(shared, pinned, parts, rest, layout.stored(), &mut loaded);
    let read = missing.iter().filter_map(|&at| {
        let bytes = loaded.parts[at].bytes.clone().ok()?;
        Some((parts[at].small_file()?, &buffer[bytes]))
    });
    shared.extents.shelve(read, &shared.pool);
    Loaded { memory: Memory::Own(buffer), ..loaded }
}

/// Returns the rows of the parts that come from the store.
fn stored_rows(parts: &[Part]) -> Vec<u32> {
    let row = |part: &Part| if let Origin::Store(row, _) = part.origin { Some(row) } else { None };
    parts.iter().filter_map(row).collect()
}

/// Reads the runs of stored contents to the beginning of the buffer, and checks them. A content that cannot be read, or
/// is damaged, is read from the tree instead.
fn read_stored(pinned: &Pinned, parts: &[Part], runs: &[PackRange], memory: &mut [u8], loaded: &mut Loaded) {
    let Pinned { repository, edition } = pinned;
    let (generation, mut free) = (&edition.generation, &mut *memory);
    let Loaded { parts: got, sources, .. } = loaded;
    let rows = stored_rows(parts);
    let states = if edition.is_pinned() { vec![Ok(()); rows.len()] } else { edition.tree.look(generation, &rows) };
    let mut is_read = Vec::with_capacity(runs.len());
    for run in runs {
        let (room, rest) = std::mem::take(&mut free).split_at_mut(run.room());
        is_read.push(edition.tree.read_stored(generation, run.pack, &run.bytes, room).is_ok());
        free = rest;
    }
    let stored = parts.iter().enumerate().filter_map(|(at, part)| match part.origin {
        Origin::Store(row, stored) => Some((at, part, row, stored)),
        Origin::NoFile | Origin::Denied | Origin::Tree(..) => None,
    });
    // Contents can share bytes of the buffer. So all are checked before any of them is overwritten.
    let mut damaged = Vec::new();
    for ((at, part, row, stored), state) in stored.zip(states) {
        let Some((run, place)) = layout::place(runs, stored) else { continue };
        let is_right = is_read[run] && generation.is_content(stored.file, &memory[place.clone()]);
        if state.is_ok() && !is_right {
            if is_read[run] {
                let path = generation.list().path(row);
                edition.damage_log.record(damage::Part::Content, &repository.name, generation, path::Escaped(&path));
            }
            damaged.push((at, row, part.within(place.start)));
            got[at].bytes = Err(ItemFailure::Unreadable);
        } else {
            got[at].bytes = state.map(|()| part.within(place.start));
            sources.add(Source::Pack, got[at].bytes.as_ref().map_or(0, Range::len));
        }
    }
    for (at, row, place) in damaged {
        got[at].bytes = read_instead(pinned, row, parts[at].offset, place, memory, got);
        sources.add(Source::PageCache, got[at].bytes.as_ref().map_or(0, Range::len));
    }
}

/// Reads a part from the tree to the place in the buffer where the store's bytes are unusable. Files with equal contents
/// share a place. Any other overlap means that the store is damaged, and the part fails.
fn read_instead(
    pinned: &Pinned,
    row: u32,
    offset: u64,
    place: Range<usize>,
    memory: &mut [u8],
    got: &[PartResult],
) -> Result<Range<usize>, ItemFailure> {
    let generation = &pinned.edition.generation;
    let (path, indexed) = (generation.list().path(row), pinned.edition.tree.indexed(generation, row));
    let mut bytes = vec![0; place.len()];
    pinned.edition.tree.read_instead(&path, indexed, offset, &mut bytes)?;
    let differs = |taken: &Range<usize>| {
        let overlap = taken.start.max(place.start)..taken.end.min(place.end);
        !overlap.is_empty() && memory[overlap.clone()] != bytes[overlap.start - place.start..overlap.end - place.start]
    };
    if got.iter().filter_map(|got| got.bytes.as_ref().ok()).any(differs) {
        return Err(ItemFailure::Unreadable);
    }
    memory[place.clone()].copy_from_slice(&bytes);
    Ok(place)
}

/// Puts the parts from the tree one behind the other into the rest of the buffer, which begins at `start`. Returns the
/// indices of the parts that had to be read because they were not cached.
fn read_tree(
    shared: &ServerState,
    pinned: &Pinned,
    parts: &[Part],
    mut free: &mut [u8],
    start: usize,
    loaded: &mut Loaded,
) -> Vec<usize> {
    let Loaded { parts: got, sources, .. } = loaded;
    let keys = parts.iter().filter_map(Part::place).map(|(key, _)| key);
    let mut cached = shared.extents.ready(keys).into_iter();
    let mut used = start;
    let (mut missing, mut wanted) = (Vec::with_capacity(parts.len()), Vec::with_capacity(parts.len()));
    for (at, part) in parts.iter().enumerate() {
        let (Origin::Tree(row, indexed), Some((_, within))) = (part.origin, part.place()) else { continue };
        let (room, rest) = std::mem::take(&mut free).split_at_mut(room(part.offset, part.len));
        let start = used;
        used += room.len();
        free = rest;
        let extent = cached.next().flatten();
        match extent.as_ref().and_then(|extent| extent.get(within)) {
            Some(bytes) if !bytes.is_empty() => {
                room[..part.len].copy_from_slice(bytes);
                got[at].bytes = Ok(start..start + part.len);
                sources.add(Source::Cache, part.len);
            }
            _ => {
                missing.push((at, start));
                wanted.push(Wanted { row, indexed, offset: part.offset, len: part.len, room });
            }
        }
    }
    let list = pinned.edition.generation.list();
    let outcomes = pinned.edition.tree.read_batch(|row| list.path(row), |row| pinned.edition.pooled(row), &mut wanted);
    for (&(at, start), outcome) in missing.iter().zip(outcomes) {
        got[at].bytes = outcome.map(|InMemory { range, source }| {
            sources.add(source, range.len());
            start + range.start..start + range.end
        });
    }
    missing.into_iter().map(|(at, _)| at).collect()
}

/// A large file. It is opened when the first of its extents is read.
pub(super) struct LargeFile {
    pinned: Arc<Pinned>,
    row: u32,
    pub(super) state: FileState,
    pub(super) convoy: Member,
    /// Whether the file is small enough for the cache to keep all of its extents.
    is_kept: bool,
    open: OnceLock<Result<OpenFile, ItemFailure>>,
}

impl LargeFile {
    /// Returns whether to keep an extent in the cache: another session is still to read it, or the file is so small that
    /// the next client may well come while the extent is still cached.
    pub(super) fn is_kept(&self, extent: u64) -> bool {
        self.is_kept || self.convoy.is_followed(extent)
    }

    /// Returns whether this is the file at `row` of that edition.
    pub(super) fn is_at(&self, pinned: &Arc<Pinned>, row: u32) -> bool {
        self.row == row && Arc::ptr_eq(&self.pinned, pinned)
    }

    /// Returns whether the file is open, was the indexed one, and lies on a local file system, where its state is known
    /// without waiting.
    pub(super) fn is_open_locally(&self) -> bool {
        matches!(self.open.get(), Some(Ok(file)) if file.is_local())
    }

    pub(super) fn read(&self, span: &Range<u64>, buffer: &mut [u8]) -> Result<InMemory, ItemFailure> {
        self.open()?.read(span.start, (span.end - span.start) as usize, buffer)
    }

    fn open(&self) -> Result<&OpenFile, ItemFailure> {
        let edition = &self.pinned.edition;
        let path = || edition.generation.list().path(self.row);
        let open = || edition.tree.open_file(&path(), self.state, edition.pooled(self.row));
        self.open.get_or_init(open).as_ref().map_err(|reason| *reason)
    }
}

impl<F: Framing> Lane<F> {
    /// Puts the beginning of the next extent into a pipe. `None` unless the extent lies in the page cache, and its bytes
    /// are needed for nothing else, such as encryption. A piped piece takes no memory of this process, so it is not shared with other
    /// sessions.
    pub(super) fn piped(&mut self) -> Option<PartlySent<F>> {
        if self.client.is_encrypted {
            return None;
        }
        let plan = self.plans.front()?;
        let (order, extent) = (Arc::clone(plan.order()), plan.peek_extent()?);
        if self.framing.needs_bytes(&order, extent.item) || self.shared.extents.find(extent.key).is_some() {
            return None;
        }
        let file = self.large_file(&order, extent.row, extent.key);
        if !file.open().is_ok_and(|file| file.is_in_page_cache(&extent.span)) {
            return None;
        }
        let pipe = self.shared.pipes.take()?;
        let load = self.plan_next(Plan::next_of_extent)?;
        let Piece::Extent(extent) = &load.piece else { return None };
        let mut loaded = Loaded::unread(extent);
        let (frames, next_state) = self.frames(&load, &loaded);
        if !loaded.fill(pipe, &file, extent, &frames) {
            self.put_back(load);
            return None;
        }
        Some(PartlySent { load, loaded, frames, next_state, sent: 0 })
    }

    /// Returns the file of an extent: the one that is open, or a new one.
    pub(super) fn large_file(&mut self, order: &Arc<F::Order>, row: u32, key: Key) -> Arc<LargeFile> {
        match &self.file {
            Some(file) if file.is_at(order.pinned(), row) => Arc::clone(file),
            _ => {
                let pinned = Arc::clone(order.pinned());
                let convoy = self.shared.convoys.join(key.file, key.number, Instant::now());
                let is_kept = self.shared.extents.keeps(key.file.size());
                let open = OnceLock::new();
                let file = Arc::new(LargeFile { pinned, row, state: key.file, convoy, is_kept, open });
                self.file = Some(Arc::clone(&file));
                file
            }
        }
    }
}
