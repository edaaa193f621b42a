//! Pieces on their way from disk.

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
use super::{Frames, Framing, Got, Lane, Order, Stuck, Writer};
use crate::convoy::Member;
use crate::damage;
use crate::ended::Ended;
use crate::extents::{Begun, Coming, Extent, Key, Outcome};
use crate::file::{FileState, OpenFile, Wanted, room};
use crate::gate::Pass;
use crate::pinned::Pinned;
use crate::pipe::Pipe;
use crate::pool::Buffer;
use crate::shared::Shared;

/// A piece on its way.
pub(super) struct Load<O> {
    pub(super) order: Arc<O>,
    /// Where the plan stood before this piece, to return to.
    pub(super) before: Cursor,
    pub(super) piece: Piece,
    pub(super) is_last: bool,
    pub(super) coming: Arriving,
}

/// How it comes.
pub(super) enum Arriving {
    /// There is nothing to read.
    Words,
    /// It has come.
    Loaded(Loaded),
    Batch(JoinHandle<Loaded>),
    Extent(Coming),
}

/// A piece in memory.
pub(super) struct Loaded {
    memory: Memory,
    pub(super) parts: Vec<Got>,
}

enum Memory {
    Nothing,
    Own(Buffer),
    Shared(Extent),
    /// A pack that the generation has mapped.
    Mapped(Arc<Pinned>, u32),
    /// Not in memory of this process: what is left to send, words included, is in the pipe.
    Piped(Pipe),
}

impl Arriving {
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Words)
    }

    pub(super) async fn wait(self, piece: &Piece) -> Loaded {
        match (self, piece) {
            (Self::Loaded(loaded), _) => loaded,
            (Self::Extent(coming), piece) => Loaded::extent(piece, coming.wait().await),
            (Self::Batch(reading), Piece::Batch(parts)) => match reading.await {
                Ok(loaded) => loaded,
                // The reader died: none of its parts comes.
                Err(_) => Loaded::nothing(parts, Err(ItemFailure::Unreadable)),
            },
            (_, Piece::Batch(parts)) => Loaded::nothing(parts, Ok(0..0)),
            (_, Piece::Extent(_)) => Loaded { memory: Memory::Nothing, parts: Vec::new() },
        }
    }
}

impl Loaded {
    pub(super) fn extent(piece: &Piece, outcome: Outcome) -> Self {
        let Piece::Extent(extent) = piece else {
            return Self { memory: Memory::Nothing, parts: Vec::new() };
        };
        let bytes = outcome.as_ref().map(|_| extent.within.clone()).map_err(|reason| *reason);
        let got = Got { item: extent.item, before: extent.before, bytes };
        Self { memory: outcome.map_or(Memory::Nothing, Memory::Shared), parts: vec![got] }
    }

    /// What is to come out of the page cache, without being read.
    fn unread(extent: &ExtentPiece) -> Self {
        let got = Got { item: extent.item, before: extent.before, bytes: Ok(extent.within.clone()) };
        Self { memory: Memory::Nothing, parts: vec![got] }
    }

    /// Puts all that is said of it into a pipe. False when that cannot be, or something is wrong: to be read then.
    fn fill(&mut self, mut pipe: Pipe, file: &LargeFile, extent: &ExtentPiece, frames: &Frames) -> bool {
        let (words, parts) = frames.parts(extent.span.start);
        let is_full =
            pipe.has_room(parts.clone()) && file.open().is_ok_and(|file| file.fill(&mut pipe, words, parts).is_ok());
        if is_full {
            self.memory = Memory::Piped(pipe);
        }
        is_full
    }

    /// Whether it is in a pipe.
    pub(super) fn is_piped(&self) -> bool {
        matches!(self.memory, Memory::Piped(_))
    }

    /// Sends what follows the first `sent` bytes of its frames, as far as it goes without waiting.
    pub(super) fn send_now(&mut self, writer: &mut Writer, frames: &Frames, sent: usize) -> Result<usize, Ended> {
        match &mut self.memory {
            Memory::Piped(pipe) => writer.send_now(pipe),
            _ => writer.send_now(&mut frames.slices(self.bytes(), sent).as_mut_slice()),
        }
    }

    /// Sends what follows the first `sent` bytes of its frames, for as long as `patient` says.
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
                Origin::Words => Ok(0..0),
                Origin::Denied => Err(ItemFailure::Unreadable),
                Origin::Tree(..) | Origin::Store(..) => bytes.clone(),
            };
            Got { item: part.item, before: part.before, bytes }
        };
        Self { memory: Memory::Nothing, parts: parts.iter().map(got).collect() }
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

/// A pass for a read and a buffer: in this order, so that a repository whose disk hangs holds no more buffers than its
/// gate lets through. `None` when there is none of both without waiting.
pub(super) async fn room_to_read(shared: &Arc<Shared>, pinned: &Pinned, may_wait: bool) -> Option<(Pass, Buffer)> {
    let gate = &pinned.edition.gates.files;
    if may_wait {
        let pass = gate.enter().await;
        return Some((pass, shared.pool.take().await));
    }
    Some((gate.try_enter()?, shared.pool.try_take()?))
}

/// Gets hold of an extent: out of the cache, from who reads it already, or by reading it. `None` when that
/// takes a buffer and there is none without waiting.
pub(super) async fn start_extent(
    shared: &Arc<Shared>,
    file: Arc<LargeFile>,
    extent: &ExtentPiece,
    may_wait: bool,
) -> Option<Coming> {
    if let Some(coming) = shared.extents.find(extent.key) {
        return Some(coming);
    }
    let (pass, buffer) = room_to_read(shared, &file.pinned, may_wait).await?;
    Some(match shared.extents.begin(extent.key) {
        Begun::Coming(coming) => coming,
        Begun::Mine(lead) => {
            let (span, number, coming) = (extent.span.clone(), extent.key.number, lead.coming());
            let read = move || lead.read(buffer, file.is_kept(number), |buffer| file.read(&span, buffer));
            drop(pass.run(read));
            coming
        }
    })
}

/// Parts that lie in the page cache, all in one pack, and are right: as the store has them mapped, so that nothing is
/// read, no memory is taken, and no disk waited for.
///
/// They are checked here, for every client anew, and sent from the same pages soon after. Only a disk that rots under
/// a page which the kernel has dropped and read again in between gets past that.
pub(super) fn map_batch(pinned: &Arc<Pinned>, parts: &[Part]) -> Option<Loaded> {
    let (tree, generation) = (&pinned.edition.tree, &pinned.edition.generation);
    let layout = if parts.iter().all(Part::is_stored) { Layout::of(parts) } else { return None };
    let pack = layout.runs().first()?.pack;
    let is_cached = |run: &PackRange| run.pack == pack && tree.is_stored_in_page_cache(generation, pack, &run.bytes);
    if !layout.runs().iter().all(is_cached) {
        return None;
    }
    let mut states = tree.look_at_once(generation, &stored_rows(parts))?.into_iter();
    let mut loaded = Loaded::nothing(parts, Ok(0..0));
    let bytes = generation.pack(pack)?.bytes();
    for (part, got) in parts.iter().zip(&mut loaded.parts) {
        let Origin::Store(_, stored) = part.origin else { continue };
        let (state, place) = (states.next()?, stored.bytes());
        let place = place.start as usize..place.end as usize;
        // What is wrong is met, and told, where it can be read from the tree.
        if state.is_ok() && !generation.is_content(stored.file, bytes.get(place.clone())?) {
            return None;
        }
        got.bytes = state.map(|()| part.within(place.start));
    }
    loaded.memory = Memory::Mapped(Arc::clone(pinned), pack);
    Some(loaded)
}

/// Brings parts of files into one buffer: out of the store, the cache, or the tree.
pub(super) fn read_batch(shared: &Shared, pinned: &Pinned, parts: &[Part], mut buffer: Buffer) -> Loaded {
    let mut loaded = Loaded::nothing(parts, Ok(0..0));
    let layout = Layout::of(parts);
    let (stored, rest) = buffer.split_at_mut(layout.stored());
    read_stored(pinned, parts, layout.runs(), stored, &mut loaded.parts);
    let missing = read_tree(shared, pinned, parts, rest, layout.stored(), &mut loaded.parts);
    let came = missing.iter().filter_map(|&at| {
        let bytes = loaded.parts[at].bytes.clone().ok()?;
        Some((parts[at].small_file()?, &buffer[bytes]))
    });
    shared.extents.shelve(came, &shared.pool);
    Loaded { memory: Memory::Own(buffer), parts: loaded.parts }
}

/// The rows of parts from the store.
fn stored_rows(parts: &[Part]) -> Vec<u32> {
    let row = |part: &Part| if let Origin::Store(row, _) = part.origin { Some(row) } else { None };
    parts.iter().filter_map(row).collect()
}

/// Brings what the store has, in runs, to the beginning of the buffer, and checks it. What cannot be had, or is
/// wrong, comes from the tree.
fn read_stored(pinned: &Pinned, parts: &[Part], runs: &[PackRange], memory: &mut [u8], got: &mut [Got]) {
    let Pinned { repository, edition } = pinned;
    let (generation, mut free) = (&edition.generation, &mut *memory);
    let states = edition.tree.look(generation, &stored_rows(parts));
    let mut has_come = Vec::with_capacity(runs.len());
    for run in runs {
        let (room, rest) = std::mem::take(&mut free).split_at_mut(run.room());
        has_come.push(edition.tree.read_stored(generation, run.pack, &run.bytes, room).is_ok());
        free = rest;
    }
    let stored = parts.iter().enumerate().filter_map(|(at, part)| match part.origin {
        Origin::Store(row, stored) => Some((at, part, row, stored)),
        Origin::Words | Origin::Denied | Origin::Tree(..) => None,
    });
    // All are looked at before anything is written over what a run brought.
    let mut wrong = Vec::new();
    for ((at, part, row, stored), state) in stored.zip(states) {
        let Some((run, place)) = layout::place(runs, stored) else { continue };
        let is_right = has_come[run] && generation.is_content(stored.file, &memory[place.clone()]);
        if state.is_ok() && !is_right {
            if has_come[run] {
                let path = generation.list().path(row);
                edition.damages.met(damage::Part::Content, &repository.name, generation, path::Escaped(&path));
            }
            wrong.push((at, row, part.within(place.start)));
            got[at].bytes = Err(ItemFailure::Unreadable);
        } else {
            got[at].bytes = state.map(|()| part.within(place.start));
        }
    }
    for (at, row, place) in wrong {
        got[at].bytes = read_instead(pinned, row, parts[at].offset, place, memory, got);
    }
}

/// Brings a part from the tree to a place in the buffer where the store's bytes are of no use. Equal contents share a
/// place. Places that overlap otherwise come from a damaged store; the part fails then.
fn read_instead(
    pinned: &Pinned,
    row: u32,
    offset: u64,
    place: Range<usize>,
    memory: &mut [u8],
    got: &[Got],
) -> Result<Range<usize>, ItemFailure> {
    let generation = &pinned.edition.generation;
    let (path, indexed) = (generation.list().path(row), pinned.edition.tree.indexed(generation, row));
    let mut bytes = vec![0; place.len()];
    pinned.edition.tree.read_instead(&path, indexed, offset, &mut bytes)?;
    let differs = |taken: &Range<usize>| {
        let both = taken.start.max(place.start)..taken.end.min(place.end);
        !both.is_empty() && memory[both.clone()] != bytes[both.start - place.start..both.end - place.start]
    };
    if got.iter().filter_map(|got| got.bytes.as_ref().ok()).any(differs) {
        return Err(ItemFailure::Unreadable);
    }
    memory[place.clone()].copy_from_slice(&bytes);
    Ok(place)
}

/// Brings what is in the tree, each part behind the other, to the rest of the buffer, which begins at `start`. Says
/// which parts had to be read.
fn read_tree(
    shared: &Shared,
    pinned: &Pinned,
    parts: &[Part],
    mut free: &mut [u8],
    start: usize,
    got: &mut [Got],
) -> Vec<usize> {
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
            }
            _ => {
                missing.push((at, start));
                wanted.push(Wanted { row, indexed, offset: part.offset, len: part.len, room });
            }
        }
    }
    let list = pinned.edition.generation.list();
    let outcomes = pinned.edition.tree.read_batch(|row| list.path(row), &mut wanted);
    for (&(at, start), outcome) in missing.iter().zip(outcomes) {
        got[at].bytes = outcome.map(|range| start + range.start..start + range.end);
    }
    missing.into_iter().map(|(at, _)| at).collect()
}

/// A large file, opened when the first of its extents is read.
pub(super) struct LargeFile {
    pinned: Arc<Pinned>,
    row: u32,
    pub(super) state: FileState,
    pub(super) convoy: Member,
    /// Whether it is small enough to be kept in any case.
    is_kept: bool,
    open: OnceLock<Result<OpenFile, ItemFailure>>,
}

impl LargeFile {
    /// Whether an extent is kept for others: somebody else has it still before them, or the file is so
    /// small that the next one may well come while it is still there.
    pub(super) fn is_kept(&self, extent: u64) -> bool {
        self.is_kept || self.convoy.is_followed(extent)
    }

    /// Whether it is the file at that row of that generation.
    pub(super) fn is_at(&self, pinned: &Arc<Pinned>, row: u32) -> bool {
        self.row == row && Arc::ptr_eq(&self.pinned, pinned)
    }

    /// Whether it was opened, was the indexed one, and tells its state at once.
    pub(super) fn is_open_locally(&self) -> bool {
        matches!(self.open.get(), Some(Ok(file)) if file.is_local())
    }

    pub(super) fn read(&self, span: &Range<u64>, buffer: &mut [u8]) -> Result<Range<usize>, ItemFailure> {
        self.open()?.read(span.start, (span.end - span.start) as usize, buffer)
    }

    fn open(&self) -> Result<&OpenFile, ItemFailure> {
        let path = || self.pinned.edition.generation.list().path(self.row);
        let open = || self.pinned.edition.tree.open_file(&path(), self.state);
        self.open.get_or_init(open).as_ref().map_err(|reason| *reason)
    }
}

impl<F: Framing> Lane<F> {
    /// The beginning of the extent that comes next, in a pipe: when it lies in the page cache, and nobody looks at its
    /// bytes. It takes no memory, so it need not be shared either.
    pub(super) fn piped(&mut self) -> Option<Stuck<F>> {
        let plan = self.plans.front()?;
        let (order, extent) = (Arc::clone(plan.order()), plan.peek_extent()?);
        if self.framing.looks_at_bytes(&order, extent.item) || self.shared.extents.find(extent.key).is_some() {
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
        let (frames, after) = self.frames(&load, &loaded);
        if !loaded.fill(pipe, &file, extent, &frames) {
            self.put_back(load);
            return None;
        }
        Some(Stuck { load, loaded, frames, after, sent: 0 })
    }

    /// The file of an extent, which stays the same from extent to extent.
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
