//! The entries of one view, depth first, in the order in which clients number them.
//!
//! A walk borrows nothing: every step is given the list, the selection and the filters, always the same.

mod children;
mod paths;
mod tree;

use crate::list::ListRef;
use crate::rsync::selection::{CHILDREN, Hides, LISTED, Lost, RECURSE, Selection, View};
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
    pub(super) position: Position,
}

impl Entry {
    pub(super) fn hidden(row: u32) -> Self {
        Self { row, top: false, contents: false, position: Position::Hidden }
    }
}

/// The position of an entry in the list. Clients number what they sorted, in whatever order it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    /// Written and numbered here.
    Here,
    /// Written here, before its turn.
    Early,
    /// Written before, numbered here.
    Late,
    /// Nowhere: filters hide it. Given all the same, so that looking for the next that is not hidden can be broken
    /// off.
    Hidden,
    /// Nowhere: it is a symlink that is to be followed, and leads nowhere. The client is told.
    Lost(Lost),
}

/// A place in a walk.
#[derive(Debug)]
pub(super) enum Walk {
    Tree(tree::Walk),
    Paths(paths::Walk),
}

impl Walk {
    /// A walk through one of the selection's views, by its place.
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

    /// The next entry.
    #[inline]
    pub(super) fn next(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides) -> Option<Entry> {
        match self {
            Self::Tree(walk) => walk.next(list, selection, hides),
            Self::Paths(walk) => walk.next(list, selection, hides),
        }
    }

    /// The path, below the module, of the entry that was given last.
    pub(super) fn path(&self) -> &[u8] {
        match self {
            Self::Tree(walk) => &walk.path.bytes,
            Self::Paths(walk) => &walk.path.bytes,
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

/// The base's own entry, and what is asked for of it.
fn base_entry(list: ListRef<'_>, view: &View) -> (Option<Entry>, u32) {
    let row = list.dir(view.base).row();
    let mark = view.mark_of(row).unwrap_or(0);
    let asked = mark & (RECURSE | CHILDREN);
    let entry = Entry { row, top: asked != 0, contents: asked != 0, position: Position::Here };
    ((mark & LISTED != 0).then_some(entry), asked)
}

/// Whether the name of a symlink that leads nowhere is hidden: as whatever it was to be.
fn hides_lost(path: &Path, hides: &impl Hides) -> bool {
    path.hidden(hides, false) || path.hidden(hides, true)
}
