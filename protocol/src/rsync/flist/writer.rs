//! Encodes rows as a file list, in pieces.

use super::Class;
use super::deletions::Deletions;
use super::entry::EntryEncoder;
use super::incremental::{Event, IncrementalWalk};
use super::merge::Merge;
use super::numbers::Numbers;
use super::walk::{Entry, Position, Walk};
use crate::limits;
use crate::list::{FileType, ListRef};
use crate::rsync::codec::{NDX_FLIST_EOF, NDX_FLIST_OFFSET, NdxEncoder};
use crate::rsync::selection::{Hides, LookupError, Missing, Selection};

/// Number of hidden entries after which [`ListWriter::write`] returns, so that filters that hide many entries
/// do not delay other sessions.
const HIDDEN_LIMIT: usize = 16 << 10;

/// Number of comparison steps after which [`ListWriter::write`] returns as well: about two milliseconds.
const STEP_LIMIT: u64 = 1 << 20;

/// Number of hidden entries that an unresolved symlink counts as, because it costs a message to the client.
const UNRESOLVED_COST: usize = 64;

/// Writes one list in pieces.
///
/// A writer borrows nothing, so that a session can keep it while its client stalls. Every call must pass the
/// list and the filters for which the writer was created.
#[derive(Debug)]
pub struct ListWriter {
    class: Class,
    selection: Selection,
    route: Route,
    deletions: Deletions,
    /// An event that must wait because a deletion comes before it.
    pending: Option<Event>,
    /// Symlinks that could not be resolved and have not been taken yet.
    unresolved: Vec<Missing>,
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

/// The source of the entries.
#[derive(Debug)]
enum Route {
    /// One view in one list.
    Walk(Walk),
    /// Several views in one list.
    Merge(Merge),
    /// One list per directory.
    Incremental(IncrementalWalk),
    /// A single list whose entries have all been written.
    Ended,
}

/// The result of one call of [`ListWriter::write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Whether the list is complete.
    pub done: bool,
    /// The last offset in this call's output at which one list of an incremental list ends. Other data of the
    /// stream may be inserted there.
    pub boundary: Option<usize>,
}

impl ListWriter {
    /// Creates a writer at the start of the list.
    pub fn new(list: ListRef<'_>, class: Class, mut selection: Selection, hides: &impl Hides) -> Self {
        let order = class.version.facts().order;
        let deletions = Deletions::new(std::mem::take(&mut selection.deletions), order);
        let route = match selection.roots() {
            _ if class.incremental => Route::Incremental(IncrementalWalk::new(list, &selection)),
            [_] => Route::Walk(Walk::new(list, &selection, 0, hides, order)),
            _ => Route::Merge(Merge::new(list, &selection, hides, order)),
        };
        Self {
            route,
            deletions,
            pending: None,
            unresolved: Vec::new(),
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

    /// Returns whether rows are [computed](Numbers::computed) from indices. Otherwise the rows that
    /// [`ListWriter::write`] appends are the table.
    pub fn is_computed(&self) -> bool {
        self.is_computed
    }

    /// Appends a piece of the list to `out`, and its rows by index to `rows` unless they are
    /// [computed](ListWriter::is_computed). Stops when `out` holds at least `limit` bytes, the list is
    /// complete, many entries were hidden, or the filters took many steps. In the last two cases it may
    /// append nothing.
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
            if let Route::Incremental(walk) = &self.route {
                self.put_row(walk.first_dir().unwrap_or(Numbers::NO_ROW), rows);
            }
        }
        let (mut hidden, before) = (0, hides.steps());
        while !self.done
            && out.len() < limit
            && hidden < HIDDEN_LIMIT
            && hides.steps().wrapping_sub(before) < STEP_LIMIT
        {
            let event = match self.pending.take() {
                Some(event) => event,
                None => self.route.next(list, &self.selection, hides),
            };
            if !self.deletions.is_empty() && self.put_deletion_before(list, &event, out, rows) {
                self.pending = Some(event);
                continue;
            }
            match event {
                Event::Entry(entry) => {
                    if matches!(entry.position, Position::Here | Position::Early) {
                        self.is_damaged |= !is_sound(list, entry.row, self.route.name());
                        self.encoder.put(list, entry, self.route.name(), out);
                        self.entries += 1;
                    }
                    if matches!(entry.position, Position::Here | Position::Late) {
                        self.put_row(entry.row, rows);
                    }
                    if let Position::Unresolved(error) = entry.position {
                        self.record_unresolved(error);
                    }
                    hidden += match entry.position {
                        Position::Hidden => 1,
                        Position::Unresolved(_) => UNRESOLVED_COST,
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

    /// Returns the number of lists begun: 1 plus the sub-lists so far. For a complete list this is the number
    /// of DONEs that end it.
    pub fn lists(&self) -> u32 {
        self.lists
    }

    /// Returns the number of entries written so far.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Returns the total size of the listed files and symlink targets so far, in bytes. Every name of a hard
    /// link group counts.
    pub fn total(&self) -> u64 {
        self.encoder.total
    }

    /// Returns the number of complete lists and of the entries in them, which is what precedes [`Written::boundary`].
    pub fn finished(&self) -> (u32, u32) {
        self.finished
    }

    /// Takes the symlinks that the client wants followed but that could not be resolved. The client must be
    /// notified of them.
    pub fn take_lost(&mut self) -> Vec<Missing> {
        std::mem::take(&mut self.unresolved)
    }

    /// Returns whether an entry was written that no valid list can hold. The stored list has changed since it
    /// was checked, and the output must not be used.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    /// Returns whether the list exceeds its limit because the same entries are listed repeatedly.
    pub fn is_too_long(&self, list: ListRef<'_>) -> bool {
        self.entries > list.len().saturating_add(limits::REPEATED_ENTRIES)
    }

    /// Returns the bits of rsync's I/O error so far, which the end of the list carries.
    pub fn io_error(&self) -> i32 {
        self.io_error
    }

    /// Returns the memory used while the list is being sent, in bytes.
    pub fn memory(&self) -> usize {
        let route = if let Route::Merge(merge) = &self.route { merge.memory() } else { 0 };
        self.selection.memory() + self.encoder.links.memory() + route
    }

    /// Returns the number of bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes the next deletion if it comes before this event. Returns whether it did.
    fn put_deletion_before(
        &mut self,
        list: ListRef<'_>,
        event: &Event,
        out: &mut Vec<u8>,
        rows: &mut Vec<u32>,
    ) -> bool {
        let name = match event {
            Event::Entry(Entry { position: Position::Hidden | Position::Early | Position::Unresolved(_), .. }) => None,
            Event::Entry(entry) => self.deletions.next_before(self.route.name(), list.row(entry.row).is_dir()),
            Event::End | Event::List(..) | Event::Done => self.deletions.next(),
        };
        let Some(name) = name else { return false };
        self.encoder.put_deletion(&name, out);
        self.entries += 1;
        self.put_row(Numbers::NO_ROW, rows);
        true
    }

    /// Records that the last entry is a symlink that cannot be resolved.
    fn record_unresolved(&mut self, error: LookupError) {
        let missing = Missing::referent(self.route.path(), error);
        self.io_error |= missing.io_error();
        self.unresolved.push(missing);
    }

    fn put_row(&self, row: u32, rows: &mut Vec<u32>) {
        if !self.is_computed {
            rows.push(row);
        }
    }

    /// Returns the I/O error for the current list. A missing directory is an error of the first list, which
    /// would have held it.
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

/// Returns whether a valid list can hold this entry.
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
            Self::Incremental(walk) => return walk.next(list, hides),
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

    /// Returns the path, below the module, of the last entry. Empty for incremental lists, which do not need it.
    fn path(&self) -> &[u8] {
        match self {
            Self::Walk(walk) => walk.path(),
            Self::Merge(merge) => merge.path(),
            Self::Incremental(_) | Self::Ended => b"",
        }
    }

    /// Returns the name of the last entry.
    fn name(&self) -> &[u8] {
        match self {
            Self::Walk(walk) => walk.name(),
            Self::Merge(merge) => merge.name(),
            Self::Incremental(walk) => walk.name(),
            Self::Ended => b"",
        }
    }
}
