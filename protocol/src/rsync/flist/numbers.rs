//! From the index that a client names to the row that it means.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::list::{Dir, ListRef};
use crate::rsync::selection::{Selection, Top};

/// The rows of a list by file index.
#[derive(Debug, Clone)]
pub enum Numbers {
    /// An incremental list without filters: computed, in the time of a few binary searches.
    Computed(Computed),
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
            Self::Computed(computed) => computed.row(list, ndx),
            Self::Table(rows) => rows.get(ndx as usize).copied().filter(|&row| row != Self::NO_ROW),
            Self::Shared(rows) => rows.row(ndx).filter(|&row| row < list.len()),
        }
    }

    /// The numbers of a selection's incremental list without filters. `sub_lists` are those of the same list.
    pub fn computed(list: ListRef<'_>, selection: &Selection, sub_lists: &Arc<SubLists>) -> Self {
        Self::Computed(Computed { top: selection.top(list), sub_lists: Arc::clone(sub_lists) })
    }
}

/// Where the sub-list of every directory begins when a whole list is sent incrementally, without filters.
///
/// By the number of the directory: the indices before its own sub-list's directory, in a depth-first walk from the root. A
/// sub-list takes one index for its directory and one for each entry. What is below a directory is one
/// run, so the same column serves every session that asks for a directory of the list.
#[derive(Debug, PartialEq, Eq)]
pub struct SubLists {
    starts: Vec<u32>,
}

impl SubLists {
    /// Those of a list. Costs two passes over its directories.
    pub fn of(list: ListRef<'_>) -> Self {
        let count = list.directories();
        let mut starts = vec![0u32; count as usize];
        // First, what each directory takes with all below it. The directories in one follow those in the one before.
        let mut end = count;
        for number in (0..count).rev() {
            let dir = list.dir(number);
            let first = end.saturating_sub(dir.subdirs().len() as u32);
            let below = starts[first as usize..end as usize].iter().fold(0, |sum: u32, part| sum.saturating_add(*part));
            starts[number as usize] = below.saturating_add(own_indices(dir));
            end = first;
        }
        // Then, in its place, where it begins.
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

    /// The row that stands so many indices behind the first directory's start.
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

/// The indices of a directory's own sub-list: itself, and its children.
fn own_indices(dir: Dir<'_>) -> u32 {
    1 + dir.rows().len() as u32
}

/// The numbers of the directories in a directory.
fn subdirs(list: ListRef<'_>, dir: Dir<'_>) -> Range<u32> {
    let rows = dir.subdirs();
    let first = if rows.is_empty() { None } else { list.row(rows.start).dir_number() };
    first.map_or(0..0, |first| first..first + rows.len() as u32)
}

/// The first of a run of numbers that `is_before` says no to.
fn partition_point(mut run: Range<u32>, is_before: impl Fn(u32) -> bool) -> u32 {
    while !run.is_empty() {
        let middle = run.start + (run.end - run.start) / 2;
        run = if is_before(middle) { middle + 1..run.end } else { run.start..middle };
    }
    run.start
}

/// The numbers of an unfiltered incremental list.
#[derive(Debug, Clone)]
pub struct Computed {
    top: Option<Top>,
    sub_lists: Arc<SubLists>,
}

impl Computed {
    fn row(&self, list: ListRef<'_>, ndx: u32) -> Option<u32> {
        let top = self.top?;
        // A directory's contents are in the first list, right behind it. Otherwise the first list is a single entry.
        let begin = if top.is_dot { 1 } else { 2 };
        match (ndx, list.row(top.row).dir_number().filter(|_| top.contents)) {
            (0, _) => top.is_dot.then_some(top.row),
            (1, _) => Some(top.row),
            (_, Some(dir)) => self.sub_lists.row(list, dir, ndx - begin),
            (_, None) => None,
        }
    }
}
