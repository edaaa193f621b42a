//! Maps the file indices that a client sends to rows.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::list::{Dir, ListRef};
use crate::rsync::selection::{Selection, Top};

/// The rows of a list by file index.
#[derive(Debug, Clone)]
pub enum Numbers {
    /// An incremental list without filters. Rows are computed with a few binary searches.
    Computed(Computed),
    /// The row of each index, or [`Numbers::NO_ROW`] for an index without a row.
    Table(Vec<u32>),
    /// Like `Table`, but stored elsewhere.
    Shared(Arc<dyn RowTable>),
}

/// The rows by index of a list that was encoded before.
pub trait RowTable: fmt::Debug + Send + Sync {
    /// Returns the row of an index. `None` for an index that clients must not use.
    fn row(&self, ndx: u32) -> Option<u32>;
}

impl Numbers {
    /// Marks an index without a row in a table.
    pub const NO_ROW: u32 = u32::MAX;

    /// Returns the row of an index. `None` for an index that clients must not use.
    pub fn row(&self, list: ListRef<'_>, ndx: u32) -> Option<u32> {
        match self {
            Self::Computed(computed) => computed.row(list, ndx),
            Self::Table(rows) => rows.get(ndx as usize).copied().filter(|&row| row != Self::NO_ROW),
            Self::Shared(rows) => rows.row(ndx).filter(|&row| row < list.len()),
        }
    }

    /// Returns the numbers of a selection's incremental list without filters. `sub_lists` must belong to the
    /// same list.
    pub fn computed(list: ListRef<'_>, selection: &Selection, sub_lists: &Arc<SubLists>) -> Self {
        Self::Computed(Computed { top: selection.top(list), sub_lists: Arc::clone(sub_lists) })
    }
}

/// The position of every directory's sub-list when the whole list is sent incrementally, without filters.
///
/// For each directory, by its number, this holds how many indices come before that of its own sub-list's
/// directory in a depth-first walk from the root. A sub-list takes one index for its directory and one for
/// each entry. Everything below a directory is one consecutive range, so the same numbers serve every session
/// that requests any directory of the list.
#[derive(Debug, PartialEq, Eq)]
pub struct SubLists {
    starts: Vec<u32>,
}

impl SubLists {
    /// Computes the positions for a list, in two passes over its directories.
    pub fn of(list: ListRef<'_>) -> Self {
        let count = list.directories();
        let mut starts = vec![0u32; count as usize];
        // First pass: the number of indices of each directory and everything below it. The directories in a
        // directory follow those in the directory before it.
        let mut end = count;
        for number in (0..count).rev() {
            let dir = list.dir(number);
            let first = end.saturating_sub(dir.subdirs().len() as u32);
            let below = starts[first as usize..end as usize].iter().fold(0, |sum: u32, part| sum.saturating_add(*part));
            starts[number as usize] = below.saturating_add(own_indices(dir));
            end = first;
        }
        // Second pass: replace that number by the position of the directory.
        if let Some(root) = starts.first_mut() {
            *root = 0;
        }
        let mut first = count.min(1);
        for number in 0..count {
            let dir = list.dir(number);
            let mut next = starts[number as usize].saturating_add(own_indices(dir));
            let end = first.saturating_add(dir.subdirs().len() as u32).min(count);
            for start in &mut starts[first as usize..end as usize] {
                next = next.saturating_add(std::mem::replace(start, next));
            }
            first = end;
        }
        Self { starts }
    }

    fn start(&self, dir: u32) -> u32 {
        self.starts.get(dir as usize).copied().unwrap_or(u32::MAX)
    }

    /// Returns the row that is `behind` indices after the start of the directory `first`.
    fn row(&self, list: ListRef<'_>, first: u32, behind: u32) -> Option<u32> {
        let ndx = self.start(first).checked_add(behind)?;
        let mut at = first;
        loop {
            let dir = list.dir(at);
            let children = subdirs(list, dir);
            let after = partition_point(children.clone(), |child| self.start(child) <= ndx);
            if after == children.start || children.start <= at {
                return match ndx - self.start(at) {
                    0 => Some(dir.row()),
                    child => Some(dir.rows().start + child - 1).filter(|row| dir.rows().contains(row)),
                };
            }
            at = after - 1;
        }
    }
}

/// Returns the number of indices of a directory's own sub-list: one for itself and one for each child.
fn own_indices(dir: Dir<'_>) -> u32 {
    1 + dir.rows().len() as u32
}

/// Returns the numbers of the directories in a directory.
fn subdirs(list: ListRef<'_>, dir: Dir<'_>) -> Range<u32> {
    let rows = dir.subdirs();
    let first = if rows.is_empty() { None } else { list.row(rows.start).dir_number() };
    first.map_or(0..0, |first| first..first + rows.len() as u32)
}

/// Returns the first number in a run for which `is_before` is false.
fn partition_point(mut run: Range<u32>, is_before: impl Fn(u32) -> bool) -> u32 {
    while !run.is_empty() {
        let middle = run.start + (run.end - run.start) / 2;
        run = if is_before(middle) { middle + 1..run.end } else { run.start..middle };
    }
    run.start
}

/// The indices of an unfiltered incremental list.
#[derive(Debug, Clone)]
pub struct Computed {
    top: Option<Top>,
    sub_lists: Arc<SubLists>,
}

impl Computed {
    fn row(&self, list: ListRef<'_>, ndx: u32) -> Option<u32> {
        let top = self.top?;
        // A directory's contents are in the first list, right after it. Otherwise the first list is a single entry.
        let begin = if top.is_dot { 1 } else { 2 };
        match (ndx, list.row(top.row).dir_number().filter(|_| top.contents)) {
            (0, _) => top.is_dot.then_some(top.row),
            (1, _) => Some(top.row),
            (_, Some(dir)) => self.sub_lists.row(list, dir, ndx - begin),
            (_, None) => None,
        }
    }
}
