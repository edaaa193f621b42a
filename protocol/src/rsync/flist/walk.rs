//! Walks the entries of one view depth first, in the order in which clients number them.
//!
//! A walk borrows nothing. Every call must pass the same list, selection and filters.

mod children;
mod paths;
mod tree;

use crate::list::ListRef;
use crate::rsync::selection::{CHILDREN, Hides, LISTED, LookupError, RECURSE, Selection, View};
use crate::rsync::version::ListOrder;

/// An entry to be listed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) row: u32,
    /// For a directory: whether it is a requested entry whose contents are listed, or a directory above a
    /// requested entry whose contents are not.
    pub(super) top: bool,
    /// For a directory: whether its contents are listed too.
    pub(super) contents: bool,
    /// Where it is written, and where it is numbered.
    pub(super) position: Position,
}

impl Entry {
    pub(super) fn hidden(row: u32) -> Self {
        Self { row, top: false, contents: false, position: Position::Hidden }
    }
}

/// Where an entry is written and numbered in the list. Clients number the entries after sorting them,
/// regardless of the order in which they arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    /// Written and numbered here.
    Here,
    /// Written here, before the position at which it is numbered.
    Early,
    /// Numbered here, but written earlier.
    Late,
    /// Neither written nor numbered, because filters hide it. It is returned anyway, so that the search for
    /// the next visible entry can be interrupted.
    Hidden,
    /// Neither written nor numbered: a symlink that must be followed but cannot be resolved. The client is notified.
    Unresolved(LookupError),
}

/// A position in a walk.
#[derive(Debug)]
pub(super) enum Walk {
    Tree(tree::Walk),
    Paths(paths::Walk),
}

impl Walk {
    /// Starts a walk through the view at this position of the selection.
    pub(super) fn new(
        list: ListRef<'_>,
        selection: &Selection,
        view: u32,
        hides: &impl Hides,
        order: ListOrder,
    ) -> Self {
        match order {
            ListOrder::Tree => Self::Tree(tree::Walk::new(list, selection, view, hides)),
            ListOrder::Paths => Self::Paths(paths::Walk::new(list, selection, view, hides)),
        }
    }

    /// Returns the next entry.
    #[inline]
    pub(super) fn next(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides) -> Option<Entry> {
        match self {
            Self::Tree(walk) => walk.next(list, selection, hides),
            Self::Paths(walk) => walk.next(list, selection, hides),
        }
    }

    /// Returns the path, below the module, of the last entry.
    pub(super) fn path(&self) -> &[u8] {
        match self {
            Self::Tree(walk) => &walk.path.bytes,
            Self::Paths(walk) => &walk.path.bytes,
        }
    }

    /// Returns the name in the list of the last entry.
    pub(super) fn name(&self) -> &[u8] {
        match self {
            Self::Tree(walk) => walk.path.name(),
            Self::Paths(walk) => walk.path.name(),
        }
    }
}

/// The path of the current entry.
#[derive(Debug)]
pub(super) struct Path {
    /// The path below the module.
    bytes: Vec<u8>,
    /// The offset at which the name in the list begins.
    name_at: usize,
}

impl Path {
    /// Returns the path of a view's base.
    pub(super) fn base(list: ListRef<'_>, number: u32) -> Self {
        let mut bytes = list.dir(number).path();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        Self { name_at: bytes.len(), bytes }
    }

    /// Returns the name in the list.
    pub(super) fn name(&self) -> &[u8] {
        match &self.bytes[self.name_at..] {
            b"" => b".",
            name => name,
        }
    }

    /// Sets the path to that of a row below the base.
    pub(super) fn go(&mut self, list: ListRef<'_>, row: u32) {
        self.bytes = list.path(row);
    }

    /// Returns the length of the path, in bytes. It is the `parent_len` of [`Path::set`] for the children of
    /// this entry.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Sets the path to that of a child.
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

/// Returns the entry of the base itself, if it is listed, and which of its contents are requested.
fn base_entry(list: ListRef<'_>, view: &View) -> (Option<Entry>, u32) {
    let row = list.dir(view.base).row();
    let mark = view.mark_of(row).unwrap_or(0);
    let requested = mark & (RECURSE | CHILDREN);
    let entry = Entry { row, top: requested != 0, contents: requested != 0, position: Position::Here };
    ((mark & LISTED != 0).then_some(entry), requested)
}

/// Returns whether filters hide the name of an unresolved symlink, either as a file or as a directory.
fn hides_unresolved(path: &Path, hides: &impl Hides) -> bool {
    path.hidden(hides, false) || path.hidden(hides, true)
}
