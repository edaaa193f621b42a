//! Incremental recursion: one list per directory, depth first.
//!
//! A client numbers directories in the order in which it receives them, including `.`. The directories' lists
//! are sent depth first, because a client's generator keeps one stack of filters and one mark for "skip
//! everything below". Both depend on the depth alone.

use std::collections::VecDeque;
use std::ops::Range;

use super::walk::{Entry, Path, Position};
use crate::list::ListRef;
use crate::rsync::selection::{Hides, Selection};

/// A position in the lists of one recursed path.
#[derive(Debug)]
pub(super) struct IncrementalWalk {
    path: Path,
    /// The requested entry, until it is returned.
    top: Option<Entry>,
    is_dot: bool,
    current: Option<Current>,
    /// Directories whose lists have been returned, the deepest last. Each holds its subdirectories whose
    /// lists are still to come.
    pending: Vec<Pending>,
    /// The number that the client gives to the next directory.
    next_index: u32,
}

/// The directory whose children are being listed.
#[derive(Debug, Default)]
struct Current {
    dir: u32,
    rows: Range<u32>,
    dirs_from: u32,
    below: Pending,
}

/// The directories in one directory whose own lists are still to come.
#[derive(Debug, Default)]
struct Pending {
    /// Their numbers, as ranges. Without filters there is a single range.
    dirs: VecDeque<Range<u32>>,
    /// The client's number of the first directory.
    index: u32,
    /// The length of the parent's path, in bytes.
    path_len: usize,
}

/// The next element of the list.
#[derive(Debug)]
pub(super) enum Event {
    /// An entry of the current list.
    Entry(Entry),
    /// The end of the current list.
    End,
    /// The start of a directory's list: the client's number of the directory, and its row.
    List(u32, u32),
    /// The end of all lists.
    Done,
}

impl IncrementalWalk {
    pub(super) fn new(list: ListRef<'_>, selection: &Selection) -> Self {
        let top = selection.top(list);
        Self {
            path: Path::base(list, selection.roots().first().map_or(0, |view| view.base)),
            top: top.map(|top| Entry { row: top.row, top: true, contents: top.contents, position: Position::Here }),
            is_dot: top.is_some_and(|top| top.is_dot),
            current: Some(Current::default()),
            pending: Vec::new(),
            next_index: 0,
        }
    }

    /// Returns the row of index 0, which is the directory of the first list.
    pub(super) fn first_dir(&self) -> Option<u32> {
        self.top.filter(|_| self.is_dot).map(|top| top.row)
    }

    pub(super) fn name(&self) -> &[u8] {
        self.path.name()
    }

    #[inline]
    pub(super) fn next(&mut self, list: ListRef<'_>, hides: &impl Hides) -> Event {
        if let Some(top) = self.top.take() {
            self.begin(list, top);
            return Event::Entry(top);
        }
        let Some(current) = &mut self.current else { return self.next_list(list) };
        if let Some(row) = current.rows.next() {
            self.path.set(current.below.path_len, list.dir(current.dir).name_of(row));
            let is_dir = row >= current.dirs_from;
            if self.path.hidden(hides, is_dir) {
                return Event::Entry(Entry::hidden(row));
            }
            // Directories in a directory have higher numbers, so every descent ends even if the list has rotted.
            if is_dir && let Some(number) = list.row(row).dir_number().filter(|&number| number > current.dir) {
                current.below.push(number);
                self.next_index += 1;
            }
            return Event::Entry(Entry { row, top: false, contents: true, position: Position::Here });
        }
        self.pending.extend(self.current.take().map(|current| current.below).filter(|below| !below.dirs.is_empty()));
        Event::End
    }

    /// Begins the first list, which holds the contents of `.` or a single entry.
    fn begin(&mut self, list: ListRef<'_>, top: Entry) {
        let number = list.row(top.row).dir_number().filter(|_| top.contents);
        if self.is_dot
            && let Some(number) = number
        {
            self.next_index = 1;
            self.enter(list, number);
            return;
        }
        let base_len = self.path.len();
        self.path.go(list, top.row);
        if let Some(number) = number {
            let mut below = Pending { path_len: base_len, ..Pending::default() };
            below.push(number);
            self.current = Some(Current { below, ..Current::default() });
            self.next_index = 1;
        }
    }

    fn next_list(&mut self, list: ListRef<'_>) -> Event {
        while let Some(pending) = self.pending.last_mut() {
            let Some((index, number)) = pending.pop() else {
                self.pending.pop();
                continue;
            };
            let row = list.dir(number).row();
            self.path.set(pending.path_len, list.dir(list.dir(number).parent()).name_of(row));
            self.enter(list, number);
            return Event::List(index, row);
        }
        Event::Done
    }

    /// Begins the list of the directory at the current path.
    fn enter(&mut self, list: ListRef<'_>, number: u32) {
        let dir = list.dir(number);
        let below = Pending { dirs: VecDeque::new(), index: self.next_index, path_len: self.path.len() };
        self.current = Some(Current { dir: number, rows: dir.rows(), dirs_from: dir.subdirs().start, below });
    }
}

impl Pending {
    fn push(&mut self, number: u32) {
        match self.dirs.back_mut().filter(|run| run.end == number) {
            Some(run) => run.end += 1,
            None => self.dirs.push_back(number..number + 1),
        }
    }

    /// Takes the next directory: the client's number of it, and its own number.
    fn pop(&mut self) -> Option<(u32, u32)> {
        let run = self.dirs.front_mut()?;
        let number = run.next()?;
        if run.start == run.end {
            self.dirs.pop_front();
        }
        self.index += 1;
        Some((self.index - 1, number))
    }
}
