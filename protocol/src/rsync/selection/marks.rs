//! Rows that are asked for, four bytes each.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::list::ListRef;

/// The bits of a mark that are the row: [`crate::limits::ENTRIES`] rows fit.
pub(crate) const ROW: u32 = (1 << 28) - 1;
/// Asked for by name.
pub(crate) const ASKED: u32 = 1 << 28;
/// A directory with everything below it.
pub(crate) const RECURSE: u32 = 1 << 29;
/// A directory with its children.
pub(crate) const CHILDREN: u32 = 1 << 30;
/// A directory above what was asked for, listed for that. With neither bit it is only on the way.
pub(crate) const IMPLIED: u32 = 1 << 31;
/// Either way, the row is listed.
pub(crate) const LISTED: u32 = ASKED | IMPLIED;

/// What is asked for with names relative to one directory: of the transfer, or that a symlink stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The number of the directory.
    pub(crate) base: u32,
    /// Symlinks on the way to it from the transfer's root.
    pub(crate) links: u32,
    /// Marked rows, ascending; with every row, those of its parents up to the base's children.
    pub(crate) marks: Vec<u32>,
    /// Symlinks that stand for directories because paths lead through them, ascending by row.
    grafts: Vec<Graft>,
}

/// A symlink that stands for a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Graft {
    row: u32,
    /// The place of the view of that directory among those of the selection.
    view: u32,
}

impl View {
    /// Bytes that it takes.
    pub(super) fn memory(&self) -> usize {
        size_of::<Self>() + size_of::<u32>() * self.marks.capacity() + size_of::<Graft>() * self.grafts.capacity()
    }

    /// Where the marks of so many consecutive rows stand.
    pub(crate) fn marks_in(&self, rows: &Range<u32>) -> Range<usize> {
        let at = |row: u32| self.marks.partition_point(|mark| mark & ROW < row);
        at(rows.start)..at(rows.end)
    }

    /// The view of the directory that a symlink stands for, by its place, if paths lead through it.
    pub(crate) fn graft(&self, row: u32) -> Option<u32> {
        let at = self.grafts.binary_search_by_key(&row, |graft| graft.row).ok()?;
        Some(self.grafts[at].view)
    }

    pub(crate) fn has_grafts(&self) -> bool {
        !self.grafts.is_empty()
    }

    /// The bits of a row's mark.
    pub(crate) fn mark_of(&self, row: u32) -> Option<u32> {
        let found = self.marks.binary_search_by_key(&row, |mark| mark & ROW).ok()?;
        Some(self.marks[found] & !ROW)
    }
}

/// Collects marks, in any order and many times over.
#[derive(Debug, Default)]
pub(super) struct Marks {
    marks: Vec<u32>,
    sorted_at: usize,
    /// The directory whose parents were put last: names come in runs.
    parents_of: Option<u32>,
    base: u32,
    links: u32,
    /// By the row of the symlink.
    grafts: BTreeMap<u32, Marks>,
}

impl Marks {
    /// Of names that are relative to a directory which so many symlinks lead to.
    pub(super) fn new(base: u32, links: u32) -> Self {
        Self { base, links, ..Self::default() }
    }

    /// The marks below a symlink that stands for a directory.
    pub(super) fn graft(&mut self, row: u32, base: u32, links: u32) -> &mut Self {
        self.grafts.entry(row).or_insert_with(|| Self::new(base, links))
    }

    /// Bytes that it takes beside its grafts.
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

    /// Puts the directories between the base and a row.
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

    /// The view. Those of its grafts are appended to `views`.
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
