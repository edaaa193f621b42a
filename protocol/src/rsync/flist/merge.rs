//! Merges several views into one list.

use std::cmp::Ordering;

use super::walk::{Entry, Position, Walk};
use crate::list::ListRef;
use crate::rsync::selection::{Hides, Selection};
use crate::rsync::version::ListOrder;

/// A k-way merge: a heap of walks, with the smallest name on top.
#[derive(Debug)]
pub(super) struct Merge {
    order: ListOrder,
    heap: Vec<Source>,
    begun: bool,
}

#[derive(Debug)]
struct Source {
    /// The number of the view. Of equal names, that of the first view comes first.
    view: u32,
    walk: Walk,
    entry: Entry,
    is_dir: bool,
}

impl Merge {
    pub(super) fn new(list: ListRef<'_>, selection: &Selection, hides: &impl Hides, order: ListOrder) -> Self {
        let views = 0..selection.roots().len() as u32;
        let sources = views.filter_map(|view| {
            let mut walk = Walk::new(list, selection, view, hides, order);
            let entry = walk.next(list, selection, hides)?;
            Some(Source { view, walk, entry, is_dir: list.row(entry.row).is_dir() })
        });
        let mut merge = Self { order, heap: sources.collect(), begun: false };
        (0..merge.heap.len() / 2).rev().for_each(|at| merge.sink(at));
        merge
    }

    /// Returns the memory used without the paths, in bytes.
    pub(super) fn memory(&self) -> usize {
        size_of::<Source>() * self.heap.capacity()
    }

    /// Returns the next entry. [`Merge::name`] is its name until the next call.
    pub(super) fn next(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides) -> Option<Entry> {
        if std::mem::replace(&mut self.begun, true) {
            let top = self.heap.first_mut()?;
            match top.walk.next(list, selection, hides) {
                Some(entry) => {
                    top.entry = entry;
                    top.is_dir = list.row(entry.row).is_dir();
                }
                None => drop(self.heap.swap_remove(0)),
            }
            self.sink(0);
        }
        self.heap.first().map(|top| top.entry)
    }

    /// Returns the path, below the module, of the last entry.
    pub(super) fn path(&self) -> &[u8] {
        self.heap.first().map_or(b"", |top| top.walk.path())
    }

    /// Returns the name of the last entry.
    pub(super) fn name(&self) -> &[u8] {
        self.heap.first().map_or(b"", |top| top.walk.name())
    }

    /// Restores the heap after the source at `at` has advanced.
    fn sink(&mut self, mut at: usize) {
        loop {
            let children = [2 * at + 1, 2 * at + 2].into_iter().filter(|&child| child < self.heap.len());
            let Some(least) = children.min_by(|&a, &b| self.compare(a, b)) else { return };
            if self.compare(at, least).is_le() {
                return;
            }
            self.heap.swap(at, least);
            at = least;
        }
    }

    fn compare(&self, a: usize, b: usize) -> Ordering {
        let (a, b) = (&self.heap[a], &self.heap[b]);
        let names = compare(self.order, (a.walk.name(), a.is_dir), (b.walk.name(), b.is_dir));
        let waits = |source: &Source| source.entry.position != Position::Early;
        waits(a).cmp(&waits(b)).then(names).then(a.view.cmp(&b.view))
    }
}

/// Compares whole names in a list, each with a flag for directories.
pub(super) fn compare(order: ListOrder, (a, a_is_dir): (&[u8], bool), (b, b_is_dir): (&[u8], bool)) -> Ordering {
    match order {
        ListOrder::Paths => a.cmp(b),
        ListOrder::Tree => tree_order(a, a_is_dir, b, b_is_dir),
    }
}

/// Compares whole names in a list by [`crate::order`]: `.` comes first, non-directories come before
/// directories at every level, and a directory compares as if it ended with `/`.
fn tree_order(a: &[u8], a_is_dir: bool, b: &[u8], b_is_dir: bool) -> Ordering {
    if a == b"." || b == b"." {
        return (b == b".").cmp(&(a == b"."));
    }
    let shared = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let start = a[..shared].iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    // The first component that differs is a directory if a slash follows it or if the entry itself is one.
    let inner = |name: &[u8], is_dir| is_dir || name[start..].contains(&b'/');
    let (a_inner, b_inner) = (inner(a, a_is_dir), inner(b, b_is_dir));
    let slash = |is_dir: bool| if is_dir { &b"/"[..] } else { b"" };
    a_inner
        .cmp(&b_inner)
        .then_with(|| a[start..].iter().chain(slash(a_is_dir)).cmp(b[start..].iter().chain(slash(b_is_dir))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_several_sources_are_in_tree_order() {
        let sorted: [(&[u8], bool); 10] = [
            (b".", true),
            (b"a-b", false),
            (b"a.txt", false),
            (b"a.d", true),
            (b"a.d/inner", false),
            (b"a", true),
            (b"a/z", false),
            (b"a/sub", true),
            (b"a/sub/deep", false),
            (b"b", true),
        ];
        for (at, &(a, a_is_dir)) in sorted.iter().enumerate() {
            for (other, &(b, b_is_dir)) in sorted.iter().enumerate() {
                assert_eq!(tree_order(a, a_is_dir, b, b_is_dir), at.cmp(&other), "{a:?} {b:?}");
            }
        }
    }
}
