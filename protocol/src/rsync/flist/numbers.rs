//! From the index that a client names to the row that it means.

use std::fmt;
use std::sync::Arc;

use crate::list::ListRef;
use crate::rsync::selection::{ASKED, RECURSE, ROW, Selection};

/// The rows of a list by file index.
#[derive(Debug, Clone)]
pub enum Numbers {
    /// An incremental list without filters: computed, in the time of a binary search.
    Levels(Levels),
    /// Row by index; [`Numbers::NO_ROW`] where the index means nothing.
    Table(Vec<u32>),
    /// As a table, kept elsewhere.
    Shared(Arc<dyn RowTable>),
}

/// Rows by index, in a list that was encoded before.
pub trait RowTable: fmt::Debug + Send + Sync {
    /// The row that an index means; none for an index that no client may name.
    fn row(&self, ndx: u32) -> Option<u32>;
}

impl Numbers {
    /// In a table: no row.
    pub const NO_ROW: u32 = u32::MAX;

    /// The row that an index means; none for an index that no client may name.
    pub fn row(&self, list: ListRef<'_>, ndx: u32) -> Option<u32> {
        match self {
            Self::Levels(levels) => levels.row(list, ndx),
            Self::Table(rows) => rows.get(ndx as usize).copied().filter(|&row| row != Self::NO_ROW),
            Self::Shared(rows) => rows.row(ndx).filter(|&row| row < list.len()),
        }
    }

    /// The numbers of a selection's incremental list without filters.
    pub fn computed(list: ListRef<'_>, selection: &Selection) -> Self {
        Self::Levels(Levels::of(list, selection))
    }
}

/// The numbers of an unfiltered incremental list. Directories of one depth below one directory are
/// consecutive, and so are their sub-lists, each with one more index than entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    /// Index 1: the path that was asked for.
    first: Option<u32>,
    /// Index 0: the same, when that is a directory's contents.
    is_dot: bool,
    levels: Vec<Level>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Level {
    /// The index before the first entry of the first sub-list, which means the directory itself.
    ndx: u32,
    /// The number of the first directory.
    dir: u32,
    /// Directories.
    dirs: u32,
}

impl Levels {
    pub(super) fn of(list: ListRef<'_>, selection: &Selection) -> Self {
        let view = selection.views.first();
        let mark = view.and_then(|view| view.marks.iter().find(|&&mark| mark & ASKED != 0));
        let (Some(view), Some(&mark)) = (view, mark) else {
            return Self { first: None, is_dot: false, levels: Vec::new() };
        };
        let row = mark & ROW;
        let is_dot = list.dir(view.base).row() == row;
        let top = list.row(row).dir_number().filter(|_| mark & RECURSE != 0);
        // The contents of `.` are in the first list, right after it; another directory has a list of its own.
        let level = top.map(|dir| Level { ndx: if is_dot { 1 } else { 2 }, dir, dirs: 1 });
        Self { first: Some(row), is_dot, levels: std::iter::successors(level, |level| level.below(list)).collect() }
    }

    fn row(&self, list: ListRef<'_>, ndx: u32) -> Option<u32> {
        match ndx {
            0 => self.first.filter(|_| self.is_dot),
            1 => self.first,
            _ => {
                let after = self.levels.partition_point(|level| level.ndx <= ndx);
                self.levels[..after].last()?.row(list, ndx)
            }
        }
    }
}

impl Level {
    fn row(&self, list: ListRef<'_>, ndx: u32) -> Option<u32> {
        let (mut low, mut high) = (0, self.dirs);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.begin(list, middle) <= ndx {
                low = middle;
            } else {
                high = middle;
            }
        }
        let dir = list.dir(self.dir + low);
        match ndx - self.begin(list, low) {
            0 => Some(dir.row()),
            child => Some(dir.rows().start + child - 1).filter(|row| dir.rows().contains(row)),
        }
    }

    /// The index before the first entry of the `at`th directory.
    fn begin(&self, list: ListRef<'_>, at: u32) -> u32 {
        let first = |dir| list.dir(dir).rows().start;
        self.ndx + (first(self.dir + at) - first(self.dir)) + at
    }

    /// The level of the directories in this one's.
    fn below(&self, list: ListRef<'_>) -> Option<Self> {
        let dirs = || (self.dir..self.dir + self.dirs).map(|dir| list.dir(dir));
        let first = dirs().find_map(|dir| (!dir.subdirs().is_empty()).then(|| dir.subdirs().start))?;
        let last = list.dir(self.dir + self.dirs - 1);
        Some(Self {
            ndx: self.begin(list, self.dirs - 1) + (last.rows().end - last.rows().start) + 1,
            dir: list.row(first).dir_number()?,
            dirs: dirs().map(|dir| dir.subdirs().len() as u32).sum(),
        })
    }
}
