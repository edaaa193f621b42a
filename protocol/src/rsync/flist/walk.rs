//! The entries of one view, depth first, in the order in which clients number them.
//!
//! A walk borrows nothing: every step is given the list, the view and the filters, always the same.

mod paths;
mod tree;

use std::ops::Range;

use crate::list::ListRef;
use crate::rsync::selection::{ASKED, CHILDREN, Hides, IMPLIED, LISTED, RECURSE, ROW, View};
use crate::rsync::version::ListOrder;

/// An entry that is to be listed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Its row.
    pub(super) row: u32,
    /// Of a directory: asked for by name and its contents are listed; or above what was asked for, and they
    /// are not.
    pub(super) top: bool,
    /// Of a directory: its contents are listed too.
    pub(super) contents: bool,
    /// Where it is written, and where it is numbered.
    pub(super) place: Place,
}

impl Entry {
    pub(super) fn hidden(row: u32) -> Self {
        Self { row, top: false, contents: false, place: Place::Hidden }
    }
}

/// The place of an entry in the list. Clients number what they sorted, in whatever order it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Written and numbered here.
    Here,
    /// Written here, before its turn.
    Early,
    /// Written before, numbered here.
    Late,
    /// Nowhere: filters hide it. Given all the same, so that looking for the next that is not hidden can be broken
    /// off.
    Hidden,
}

/// A place in a walk.
#[derive(Debug)]
pub(super) enum Walk {
    Tree(tree::Walk),
    Paths(paths::Walk),
}

impl Walk {
    pub(super) fn new(list: ListRef<'_>, view: &View, hides: &impl Hides, order: ListOrder) -> Self {
        match order {
            ListOrder::Tree => Self::Tree(tree::Walk::new(list, view)),
            ListOrder::Paths => Self::Paths(paths::Walk::new(list, view, hides)),
        }
    }

    /// The next entry.
    #[inline]
    pub(super) fn next(&mut self, list: ListRef<'_>, view: &View, hides: &impl Hides) -> Option<Entry> {
        match self {
            Self::Tree(walk) => walk.next(list, view, hides),
            Self::Paths(walk) => walk.next(list, view, hides),
        }
    }

    /// The name in the list of the entry that was given last.
    pub(super) fn name(&self) -> &[u8] {
        match self {
            Self::Tree(walk) => walk.path.name(),
            Self::Paths(walk) => walk.path.name(),
        }
    }
}

/// The current entry's path.
#[derive(Debug)]
pub(super) struct Path {
    /// Below the module.
    bytes: Vec<u8>,
    /// Where the name in the list begins.
    name_at: usize,
}

impl Path {
    /// The path of a view's base.
    pub(super) fn base(list: ListRef<'_>, number: u32) -> Self {
        let mut bytes = list.dir(number).path();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        Self { name_at: bytes.len(), bytes }
    }

    /// The name in the list.
    pub(super) fn name(&self) -> &[u8] {
        match &self.bytes[self.name_at..] {
            b"" => b".",
            name => name,
        }
    }

    /// Makes it the path of a row below the base.
    pub(super) fn go(&mut self, list: ListRef<'_>, row: u32) {
        self.bytes = list.path(row);
    }

    /// Bytes so far: what [`Path::set`] wants for the children of the entry that this is the path of.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Makes it the path of a child.
    #[inline]
    pub(super) fn set(&mut self, parent_len: usize, name: &[u8]) {
        self.bytes.truncate(parent_len);
        if parent_len > self.name_at {
            self.bytes.push(b'/');
        }
        self.bytes.extend_from_slice(name);
    }

    #[inline]
    pub(super) fn hidden(&self, hides: &impl Hides, is_dir: bool) -> bool {
        hides.hides(&self.bytes, self.name_at, is_dir)
    }
}

/// The children of one directory that the view has something to say of, in row order.
#[derive(Debug)]
struct Children {
    dir: u32,
    /// What is asked for of the directory: [`RECURSE`], [`CHILDREN`], or nothing but marked children.
    asked: u32,
    rows: Range<u32>,
    marks: Range<usize>,
}

impl Children {
    /// Of the directory at `row`.
    fn of(list: ListRef<'_>, view: &View, row: u32, asked: u32) -> Self {
        let Some(number) = list.row(row).dir_number() else {
            return Self { dir: 0, asked: 0, rows: 0..0, marks: 0..0 };
        };
        let rows = list.dir(number).rows();
        let marks = view.marks_in(&rows);
        let rows = if asked != 0 { rows } else { rows.end..rows.end };
        Self { dir: number, asked, rows, marks }
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.marks.is_empty()
    }

    /// The children before a row, and the others.
    fn split(self, view: &View, at: u32) -> (Self, Self) {
        let marks_at = self.marks.start + view.marks[self.marks.clone()].partition_point(|mark| mark & ROW < at);
        let rows = |from: u32, to: u32| self.rows.start.clamp(from, to)..self.rows.end.clamp(from, to);
        let before = Self { rows: rows(0, at), marks: self.marks.start..marks_at, ..self };
        let after = Self { rows: rows(at, u32::MAX), marks: marks_at..self.marks.end, ..self };
        (before, after)
    }

    /// The next child and the bits of its mark, if it has one.
    #[inline]
    fn next(&mut self, view: &View) -> Option<(u32, Option<u32>)> {
        let marked = view.marks.get(self.marks.clone()).and_then(|marks| marks.first());
        match marked {
            Some(&mark) if self.rows.is_empty() || mark & ROW == self.rows.start => {
                self.marks.start += 1;
                self.rows.start += u32::from(!self.rows.is_empty());
                Some((mark & ROW, Some(mark & !ROW)))
            }
            _ => self.rows.next().map(|row| (row, None)),
        }
    }

    /// Whether a child with such a mark is listed, rather than on the way to others.
    fn lists(&self, mark: Option<u32>) -> bool {
        self.asked != 0 || mark.unwrap_or(0) & LISTED != 0
    }

    /// What is asked for of a child that is a directory.
    fn asks(&self, mark: Option<u32>) -> u32 {
        (self.asked & RECURSE) | (mark.unwrap_or(0) & (RECURSE | CHILDREN))
    }

    fn entry(&self, row: u32, mark: Option<u32>) -> Entry {
        let (contents, mark) = (self.asks(mark) != 0, mark.unwrap_or(0));
        let top = match self.asked {
            // Below what comes whole an entry is like others there, even if it is also asked for by name.
            RECURSE => false,
            _ if contents => mark & ASKED != 0,
            asked => asked == 0 && mark & LISTED == IMPLIED,
        };
        Entry { row, top, contents, place: Place::Here }
    }
}

/// The base's own entry, and what is asked for of it.
fn base_entry(list: ListRef<'_>, view: &View) -> (Option<Entry>, u32) {
    let row = list.dir(view.base).row();
    let mark = view.mark_of(row).unwrap_or(0);
    let asked = mark & (RECURSE | CHILDREN);
    let entry = Entry { row, top: asked != 0, contents: asked != 0, place: Place::Here };
    ((mark & LISTED != 0).then_some(entry), asked)
}
