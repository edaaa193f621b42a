//! Marked rows of a selection, four bytes each.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::list::ListRef;

/// The bits of a mark that hold the row. They fit [`crate::limits::ENTRIES`] rows.
pub(crate) const ROW: u32 = (1 << 28) - 1;
/// The row was requested by name.
pub(crate) const REQUESTED: u32 = 1 << 28;
/// The row is a directory that is listed with everything below it.
pub(crate) const RECURSE: u32 = 1 << 29;
/// The row is a directory that is listed with its children.
pub(crate) const CHILDREN: u32 = 1 << 30;
/// The row is a directory that is listed because it is above a requested entry. Without this bit and
/// [`REQUESTED`], a row is only on the way to other rows.
pub(crate) const IMPLIED: u32 = 1 << 31;
/// The bits that cause the row to be listed.
pub(crate) const LISTED: u32 = REQUESTED | IMPLIED;

/// The marks of the names that are relative to one directory: a root of the transfer, or a directory that a
/// symlink stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The number of the directory.
    pub(crate) base: u32,
    /// The number of symlinks on the way to it from the transfer's root.
    pub(crate) links: u32,
    /// Marked rows, in ascending order. For every row they include its parents up to the base's children.
    pub(crate) marks: Vec<u32>,
    /// Symlinks that stand for directories because paths lead through them, by ascending row.
    grafts: Vec<Graft>,
}

/// A symlink that stands for a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Graft {
    row: u32,
    /// The position of that directory's view in the selection.
    view: u32,
}

impl View {
    /// Returns the memory used, in bytes.
    pub(super) fn memory(&self) -> usize {
        size_of::<Self>() + size_of::<u32>() * self.marks.capacity() + size_of::<Graft>() * self.grafts.capacity()
    }

    /// Returns the range of the marks of these consecutive rows.
    pub(crate) fn marks_in(&self, rows: &Range<u32>) -> Range<usize> {
        let at = |row: u32| self.marks.partition_point(|mark| mark & ROW < row);
        at(rows.start)..at(rows.end)
    }

    /// Returns the position of the view of the directory that a symlink stands for. `None` if no path leads
    /// through the symlink.
    pub(crate) fn graft(&self, row: u32) -> Option<u32> {
        let at = self.grafts.binary_search_by_key(&row, |graft| graft.row).ok()?;
        Some(self.grafts[at].view)
    }

    pub(crate) fn has_grafts(&self) -> bool {
        !self.grafts.is_empty()
    }

    /// Returns the bits of a row's mark. `None` if the row is not marked.
    pub(crate) fn mark_of(&self, row: u32) -> Option<u32> {
        let found = self.marks.binary_search_by_key(&row, |mark| mark & ROW).ok()?;
        Some(self.marks[found] & !ROW)
    }
}

/// Collects marks in any order, with duplicates.
#[derive(Debug, Default)]
pub(super) struct Marks {
    marks: Vec<u32>,
    sorted_at: usize,
    /// The directory whose parents were marked last. Names come in runs of the same directory.
    parents_of: Option<u32>,
    base: u32,
    links: u32,
    /// The marks below symlinks that stand for directories, by the symlink's row.
    grafts: BTreeMap<u32, Marks>,
}

impl Marks {
    /// Creates an empty set of marks. `links` symlinks lead to the directory `base`.
    pub(super) fn new(base: u32, links: u32) -> Self {
        Self { base, links, ..Self::default() }
    }

    /// Returns the marks below a symlink that stands for a directory.
    pub(super) fn graft(&mut self, row: u32, base: u32, links: u32) -> &mut Self {
        self.grafts.entry(row).or_insert_with(|| Self::new(base, links))
    }

    /// Returns the memory used, in bytes, without that of the grafts.
    pub(super) fn memory(&self) -> usize {
        size_of::<u32>() * self.marks.capacity()
    }

    pub(super) fn has_graft(&self, row: u32) -> bool {
        self.grafts.contains_key(&row)
    }

    pub(super) fn put(&mut self, row: u32, bits: u32) {
        self.marks.push(row | bits);
        if self.marks.len() > (2 * self.sorted_at).max(1024) {
            self.sort();
        }
    }

    /// Marks the directories between the base and a row.
    pub(super) fn put_parents(&mut self, list: ListRef<'_>, row: u32, bits: u32) {
        let base = self.base;
        if row == list.dir(base).row() {
            return;
        }
        let parent = list.parent_of(row);
        if self.parents_of == Some(parent.number()) {
            return;
        }
        self.parents_of = Some(parent.number());
        let mut at = parent;
        while at.number() != base {
            self.put(at.row(), bits);
            at = list.dir(at.parent());
        }
    }

    /// Returns the view. The views of the grafts are appended to `views`.
    pub(super) fn into_view(mut self, views: &mut Vec<View>) -> View {
        self.sort();
        self.marks.shrink_to_fit();
        let grafts = self.grafts.into_iter().map(|(row, marks)| {
            let view = marks.into_view(views);
            views.push(view);
            Graft { row, view: views.len() as u32 - 1 }
        });
        View { base: self.base, links: self.links, marks: self.marks, grafts: grafts.collect() }
    }

    fn sort(&mut self) {
        self.marks.sort_unstable_by_key(|mark| mark & ROW);
        self.marks.dedup_by(|later, kept| {
            let same = *later & ROW == *kept & ROW;
            if same {
                *kept |= *later;
            }
            same
        });
        self.sorted_at = self.marks.len();
    }
}
