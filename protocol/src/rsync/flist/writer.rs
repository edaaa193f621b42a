//! From rows to bytes, a piece at a time.

use super::Class;
use super::depth::{Depth, Event};
use super::entry::EntryEncoder;
use super::gone::Gone;
use super::merge::Merge;
use super::numbers::Numbers;
use super::walk::{Entry, Position, Walk};
use crate::limits;
use crate::list::{FileType, ListRef};
use crate::rsync::codec::{NDX_FLIST_EOF, NDX_FLIST_OFFSET, NdxEncoder};
use crate::rsync::selection::{Hides, Lost, Missing, Selection};

/// Hidden entries after which [`ListWriter::write`] returns, so that filters that hide much keep nobody waiting.
const HIDDEN: usize = 16 << 10;

/// Steps of comparison after which it returns too: some two milliseconds.
const STEPS: u64 = 1 << 20;

/// As how many of them a symlink counts that leads nowhere: it is a message to the client.
const LOST: usize = 64;

/// Writes one list, piece by piece.
///
/// It borrows nothing, so that a session can keep it while its client stalls; every call must be given
/// the list and the filters that it was made for.
#[derive(Debug)]
pub struct ListWriter {
    class: Class,
    selection: Selection,
    route: Route,
    gone: Gone,
    /// A step that a name which is not there comes before.
    waiting: Option<Event>,
    /// Symlinks that lead nowhere, and were not taken yet.
    lost: Vec<Missing>,
    io_error: i32,
    encoder: EntryEncoder,
    indices: NdxEncoder,
    is_computed: bool,
    is_damaged: bool,
    lists: u32,
    entries: u32,
    bytes: u64,
    finished: (u32, u32),
    done: bool,
}

/// In which order the entries come.
#[derive(Debug)]
enum Route {
    /// One view, one list.
    Walk(Walk),
    /// Several views, one list.
    Merge(Merge),
    /// A list a directory.
    Depth(Depth),
    /// One list, of which all entries are written.
    Ended,
}

/// What [`ListWriter::write`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The list is complete.
    pub done: bool,
    /// The last place in the output, of this call, at which one list of an incremental list ends: other
    /// data of the stream may stand there.
    pub boundary: Option<usize>,
}

impl ListWriter {
    /// A writer at the start of the list.
    pub fn new(list: ListRef<'_>, class: Class, mut selection: Selection, hides: &impl Hides) -> Self {
        let order = class.version.facts().order;
        let gone = Gone::new(std::mem::take(&mut selection.gone), order);
        let route = match selection.roots() {
            _ if class.incremental => Route::Depth(Depth::new(list, &selection)),
            [_] => Route::Walk(Walk::new(list, &selection, 0, hides, order)),
            _ => Route::Merge(Merge::new(list, &selection, hides, order)),
        };
        Self {
            route,
            gone,
            waiting: None,
            lost: Vec::new(),
            io_error: selection.io_error(),
            encoder: EntryEncoder::new(list, class),
            indices: NdxEncoder::new(class.version),
            lists: 0,
            entries: 0,
            bytes: 0,
            finished: (0, 0),
            done: false,
            is_computed: class.incremental && hides.nothing(),
            is_damaged: false,
            class,
            selection,
        }
    }

    /// Whether rows by index are [computed](Numbers::computed). Otherwise they are a table of what
    /// [`ListWriter::write`] adds to `rows`.
    pub fn is_computed(&self) -> bool {
        self.is_computed
    }

    /// Appends to `out` until it holds `limit` bytes or an entry more, the list is complete, many entries in it
    /// were hidden, or the filters took many steps: then maybe nothing. Rows by index are appended to `rows`, unless they are
    /// [computed](ListWriter::is_computed).
    pub fn write(
        &mut self,
        list: ListRef<'_>,
        hides: &impl Hides,
        out: &mut Vec<u8>,
        rows: &mut Vec<u32>,
        limit: usize,
    ) -> Written {
        let begin = out.len();
        let mut boundary = None;
        if self.lists == 0 {
            self.lists = 1;
            if let Route::Depth(depth) = &self.route {
                self.put_row(depth.first_dir().unwrap_or(Numbers::NO_ROW), rows);
            }
        }
        let (mut hidden, before) = (0, hides.steps());
        while !self.done && out.len() < limit && hidden < HIDDEN && hides.steps().wrapping_sub(before) < STEPS {
            let step = match self.waiting.take() {
                Some(step) => step,
                None => self.route.next(list, &self.selection, hides),
            };
            if !self.gone.is_empty() && self.put_gone_before(list, &step, out, rows) {
                self.waiting = Some(step);
                continue;
            }
            match step {
                Event::Entry(entry) => {
                    if matches!(entry.position, Position::Here | Position::Early) {
                        self.is_damaged |= !is_sound(list, entry.row, self.route.name());
                        self.encoder.put(list, entry, self.route.name(), out);
                        self.entries += 1;
                    }
                    if matches!(entry.position, Position::Here | Position::Late) {
                        self.put_row(entry.row, rows);
                    }
                    if let Position::Lost(lost) = entry.position {
                        self.put_lost(lost);
                    }
                    hidden += match entry.position {
                        Position::Hidden => 1,
                        Position::Lost(_) => LOST,
                        _ => 0,
                    };
                    continue;
                }
                Event::List(index, row) => {
                    self.indices.put(out, NDX_FLIST_OFFSET - index.cast_signed());
                    self.lists += 1;
                    self.put_row(row, rows);
                    continue;
                }
                Event::End => self.encoder.put_end(self.io_error_of_this_list(), out),
                Event::Done => self.finish(list, out),
            }
            self.finished = (self.lists, self.entries);
            boundary = self.class.incremental.then_some(out.len());
        }
        self.bytes += (out.len() - begin) as u64;
        Written { done: self.done, boundary }
    }

    /// Lists begun: 1, and the sub-lists so far. When the list is complete: the number of DONEs that end it.
    pub fn lists(&self) -> u32 {
        self.lists
    }

    /// Entries written so far.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Bytes of the files and of the targets of symlinks that were listed so far, every name of a link group counted.
    pub fn total(&self) -> u64 {
        self.encoder.total
    }

    /// Lists that are complete, and the entries in them: what stands before [`Written::boundary`].
    pub fn finished(&self) -> (u32, u32) {
        self.finished
    }

    /// Takes the symlinks that lead nowhere, of those that the client wants to be followed. It must be told of them.
    pub fn take_lost(&mut self) -> Vec<Missing> {
        std::mem::take(&mut self.lost)
    }

    /// Whether an entry was written that no valid list has: the disk has changed it since it was checked, and what was
    /// written is not to be believed.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    /// Whether the same entries are listed over and over, and no more may be.
    pub fn is_too_long(&self, list: ListRef<'_>) -> bool {
        self.entries > list.len().saturating_add(limits::REPEATED_ENTRIES)
    }

    /// Bits of rsync's I/O error so far: what the end of the list carries.
    pub fn io_error(&self) -> i32 {
        self.io_error
    }

    /// Bytes that it takes for as long as the list goes out.
    pub fn memory(&self) -> usize {
        let route = if let Route::Merge(merge) = &self.route { merge.memory() } else { 0 };
        self.selection.memory() + self.encoder.links.memory() + route
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes a name that is not there, if its turn is before a step.
    fn put_gone_before(&mut self, list: ListRef<'_>, step: &Event, out: &mut Vec<u8>, rows: &mut Vec<u32>) -> bool {
        let name = match step {
            Event::Entry(Entry { position: Position::Hidden | Position::Early | Position::Lost(_), .. }) => None,
            Event::Entry(entry) => self.gone.next_before(self.route.name(), list.row(entry.row).is_dir()),
            Event::End | Event::List(..) | Event::Done => self.gone.next(),
        };
        let Some(name) = name else { return false };
        self.encoder.put_gone(&name, out);
        self.entries += 1;
        self.put_row(Numbers::NO_ROW, rows);
        true
    }

    /// Notes that the entry which was given last is a symlink that leads nowhere.
    fn put_lost(&mut self, lost: Lost) {
        let missing = Missing::referent(self.route.path(), lost);
        self.io_error |= missing.io_error();
        self.lost.push(missing);
    }

    fn put_row(&self, row: u32, rows: &mut Vec<u32>) {
        if !self.is_computed {
            rows.push(row);
        }
    }

    /// A missing directory is an error of the list that would have held it: the first.
    fn io_error_of_this_list(&self) -> i32 {
        if self.lists == 1 { self.io_error } else { 0 }
    }

    fn finish(&mut self, list: ListRef<'_>, out: &mut Vec<u8>) {
        if self.class.incremental {
            self.indices.put(out, NDX_FLIST_EOF);
        } else {
            self.encoder.put_trailer(list, self.io_error, out);
        }
        self.done = true;
    }
}

/// Whether a valid list can have such an entry.
fn is_sound(list: ListRef<'_>, row: u32, name: &[u8]) -> bool {
    let (row, is_root) = (list.row(row), name == b".");
    let has_name = name.last().is_some_and(|&byte| byte != b'/') && (!is_root || row.is_dir());
    has_name && FileType::from_mode(u32::from(row.mode())).is_some() && row.owner_number() < list.owners()
}

impl Route {
    #[inline]
    fn next(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides) -> Event {
        let entry = match self {
            Self::Walk(walk) => walk.next(list, selection, hides),
            Self::Merge(merge) => merge.next(list, selection, hides),
            Self::Depth(depth) => return depth.next(list, hides),
            Self::Ended => return Event::Done,
        };
        entry.map_or_else(
            || {
                *self = Self::Ended;
                Event::End
            },
            Event::Entry,
        )
    }

    /// The path, below the module, of the entry that was given last. Incremental lists have no use for it.
    fn path(&self) -> &[u8] {
        match self {
            Self::Walk(walk) => walk.path(),
            Self::Merge(merge) => merge.path(),
            Self::Depth(_) | Self::Ended => b"",
        }
    }

    /// The name of the entry that was given last.
    fn name(&self) -> &[u8] {
        match self {
            Self::Walk(walk) => walk.name(),
            Self::Merge(merge) => merge.name(),
            Self::Depth(depth) => depth.name(),
            Self::Ended => b"",
        }
    }
}
