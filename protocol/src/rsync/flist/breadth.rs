//! A list a directory, breadth first: incremental recursion.
//!
//! Directories are numbered in the order in which they were listed, `.` included, so parents come before
//! children and an unfiltered repository keeps its own numbers.

use std::collections::VecDeque;
use std::ops::Range;

use super::walk::{Entry, Path, Place};
use crate::list::ListRef;
use crate::rsync::selection::{ASKED, Hides, RECURSE, ROW, Selection};

/// A place in the lists of one recursed path.
#[derive(Debug)]
pub(super) struct Breadth {
    path: Path,
    /// The entry that was asked for, until it is given.
    top: Option<Entry>,
    is_dot: bool,
    current: Option<Current>,
    /// Numbers of listed directories whose own lists are still to come, in runs.
    pending: VecDeque<Range<u32>>,
    next_index: u32,
}

/// The directory whose children are being listed.
#[derive(Debug, Default)]
struct Current {
    dir: u32,
    rows: Range<u32>,
    dirs_from: u32,
    path_len: usize,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Step {
    /// An entry of this list.
    Entry(Entry),
    /// The end of this list.
    End,
    /// The list of a directory: its number in the order of listing, and its row.
    List(u32, u32),
    /// Nothing.
    Done,
}

impl Breadth {
    pub(super) fn new(list: ListRef<'_>, selection: &Selection) -> Self {
        let view = selection.views.first();
        let mark = view.and_then(|view| view.marks.iter().copied().find(|mark| mark & ASKED != 0));
        let base = view.map_or(0, |view| view.base);
        let row = mark.map(|mark| mark & ROW);
        let contents = mark.is_some_and(|mark| mark & RECURSE != 0);
        Self {
            path: Path::base(list, base),
            top: row.map(|row| Entry { row, top: true, contents, place: Place::Here }),
            is_dot: row == Some(list.dir(base).row()),
            current: Some(Current::default()),
            pending: VecDeque::new(),
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
    pub(super) fn next(&mut self, list: ListRef<'_>, hides: &impl Hides) -> Step {
        if let Some(top) = self.top.take() {
            self.begin(list, top);
            return Step::Entry(top);
        }
        let Some(current) = &mut self.current else { return self.next_list(list) };
        if let Some(row) = current.rows.next() {
            self.path.set(current.path_len, list.dir(current.dir).name_of(row));
            let is_dir = row >= current.dirs_from;
            if self.path.hidden(hides, is_dir) {
                return Step::Entry(Entry::hidden(row));
            }
            if is_dir && let Some(number) = list.row(row).dir_number() {
                push(&mut self.pending, number);
            }
            return Step::Entry(Entry { row, top: false, contents: true, place: Place::Here });
        }
        self.current = None;
        Step::End
    }

    /// The first list: with the contents of `.`, or a single entry.
    fn begin(&mut self, list: ListRef<'_>, top: Entry) {
        let Some(number) = list.row(top.row).dir_number().filter(|_| top.contents) else {
            return self.path.go(list, top.row);
        };
        if self.is_dot {
            self.current = Some(self.enter(list, number));
            self.next_index = 1;
        } else {
            self.path.go(list, top.row);
            push(&mut self.pending, number);
        }
    }

    fn next_list(&mut self, list: ListRef<'_>) -> Step {
        let Some(run) = self.pending.front_mut() else { return Step::Done };
        let Some(number) = run.next() else {
            self.pending.pop_front();
            return self.next_list(list);
        };
        let row = list.dir(number).row();
        self.path.go(list, row);
        self.current = Some(self.enter(list, number));
        self.next_index += 1;
        Step::List(self.next_index - 1, row)
    }

    fn enter(&self, list: ListRef<'_>, number: u32) -> Current {
        let dir = list.dir(number);
        Current { dir: number, rows: dir.rows(), dirs_from: dir.subdirs().start, path_len: self.path.len() }
    }
}

/// Appends a directory; an unfiltered level is one run.
fn push(pending: &mut VecDeque<Range<u32>>, number: u32) {
    match pending.back_mut().filter(|run| run.end == number) {
        Some(run) => run.end += 1,
        None => pending.push_back(number..number + 1),
    }
}
