//! A list a directory, depth first: incremental recursion.
//!
//! A client numbers directories in the order in which it is told of them, `.` included. The lists of directories come
//! depth first, because a client's generator keeps one stack of filters and one "skip what is below" mark, and both
//! go by depth alone.

use std::collections::VecDeque;
use std::ops::Range;

use super::walk::{Entry, Path, Position};
use crate::list::ListRef;
use crate::rsync::selection::{Hides, Selection};

/// A place in the lists of one recursed path.
#[derive(Debug)]
pub(super) struct Depth {
    path: Path,
    /// The entry that was asked for, until it is given.
    top: Option<Entry>,
    is_dot: bool,
    current: Option<Current>,
    /// Directories whose lists were given, each with what is below it and still to come; the deepest is last.
    pending: Vec<Pending>,
    /// The number that the next directory gets from the client.
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

/// Directories in one directory whose own lists are still to come.
#[derive(Debug, Default)]
struct Pending {
    /// Their numbers, in runs: without filters, a single one.
    dirs: VecDeque<Range<u32>>,
    /// The client's number of the first.
    index: u32,
    /// The length of their parent's path.
    path_len: usize,
}

/// What comes next in the list.
#[derive(Debug)]
pub(super) enum Event {
    /// An entry of this list.
    Entry(Entry),
    /// The end of this list.
    End,
    /// The list of a directory: the client's number of it, and its row.
    List(u32, u32),
    /// Nothing.
    Done,
}

impl Depth {
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

    /// What index 0 means: the first list's own directory.
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
            // Directories in a directory have higher numbers: so a way down has an end, even if the list has rotted.
            if is_dir && let Some(number) = list.row(row).dir_number().filter(|&number| number > current.dir) {
                current.below.push(number);
                self.next_index += 1;
            }
            return Event::Entry(Entry { row, top: false, contents: true, position: Position::Here });
        }
        self.pending.extend(self.current.take().map(|current| current.below).filter(|below| !below.dirs.is_empty()));
        Event::End
    }

    /// The first list: with the contents of `.`, or a single entry.
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

    /// Begins the list of the directory that the path is of.
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

    /// The next directory, with the client's number of it.
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
