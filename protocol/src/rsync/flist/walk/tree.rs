//! The order from protocol 29 on: that of [`crate::order`] and of the rows. A directory's contents come right
//! after it.

use super::children::{Child, Children, Visit};
use super::{Entry, Path, base_entry, hides_unresolved};
use crate::list::ListRef;
use crate::rsync::selection::{Hides, Selection};

#[derive(Debug)]
pub(in super::super) struct Walk {
    pub(super) path: Path,
    stack: Vec<Frame>,
    dot: Option<Entry>,
    /// The directory that was returned last, if it cannot be opened.
    unopened: Option<Entry>,
}

/// A directory whose children are being listed.
#[derive(Debug)]
struct Frame {
    children: Children,
    path_len: usize,
}

impl Walk {
    pub(super) fn new(list: ListRef<'_>, selection: &Selection, number: u32, hides: &impl Hides) -> Self {
        let view = selection.view(number);
        let (dot, requested) = base_entry(list, view);
        let mut walk = Self { path: Path::base(list, view.base), stack: Vec::new(), dot, unopened: None };
        let visit = Visit { dir: view.base, requested, view: Some(number), links: 0, depth: 0 };
        walk.unopened = dot.as_ref().and_then(|dot| visit.unopened(list, hides, dot));
        if walk.unopened.is_none() {
            walk.descend(list, selection, hides, visit);
        }
        walk
    }

    pub(super) fn next(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides) -> Option<Entry> {
        if let Some(dot) = self.dot.take() {
            return Some(dot);
        }
        if let Some(unopened) = self.unopened.take() {
            return Some(unopened);
        }
        loop {
            let frame = self.stack.last_mut()?;
            let Some(child) = frame.children.next(list, selection, hides) else {
                self.stack.pop();
                continue;
            };
            let Child { name, row, mark, is_dir, error, .. } = child;
            self.path.set(frame.path_len, frame.children.dir(list).name_of(name));
            // Requested entries have already been checked against the filters.
            let hides_it = || self.path.hidden(hides, is_dir) || frame.children.hides_itself(list, hides, &child);
            let is_hidden = mark.is_none() && hides_it();
            if is_hidden || error.is_some() && hides_unresolved(&self.path, hides) {
                return Some(Entry::hidden(row));
            }
            let (lists, entry) = (frame.children.lists(&child), frame.children.entry(&child));
            if is_dir && let Some(visit) = frame.children.entered(list, &child) {
                match visit.unopened(list, hides, &entry) {
                    Some(unopened) => self.unopened = Some(unopened),
                    None => self.descend(list, selection, hides, visit),
                }
            }
            if lists {
                return Some(entry);
            }
        }
    }

    fn descend(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides, visit: Visit) {
        let children = Children::of(list, selection, hides, visit);
        if !children.is_empty() {
            self.stack.push(Frame { children, path_len: self.path.len() });
        }
    }
}
