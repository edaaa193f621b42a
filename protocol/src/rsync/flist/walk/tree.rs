//! Protocol 29 and later: the order of [`crate::order`], so that of the rows, a directory's contents right
//! after it.

use super::children::{Child, Children, Into};
use super::{Entry, Path, base_entry, hides_lost};
use crate::list::ListRef;
use crate::rsync::selection::{Hides, Selection};

#[derive(Debug)]
pub(in super::super) struct Walk {
    pub(super) path: Path,
    stack: Vec<Frame>,
    dot: Option<Entry>,
    /// The directory that was given last, if too many symlinks lead to it.
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
        let (dot, asked) = base_entry(list, view);
        let mut walk = Self { path: Path::base(list, view.base), stack: Vec::new(), dot, unopened: None };
        let into = Into { dir: view.base, asked, view: Some(number), links: 0, depth: 0 };
        walk.unopened = dot.as_ref().and_then(|dot| into.unopened(list, hides, dot));
        if walk.unopened.is_none() {
            walk.descend(list, selection, hides, into);
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
            let Child { name, row, mark, is_dir, lost, .. } = child;
            self.path.set(frame.path_len, frame.children.dir(list).name_of(name));
            // What was asked for by name has been through the filters.
            let hides_it = || self.path.hidden(hides, is_dir) || frame.children.hides_itself(list, hides, &child);
            let is_hidden = mark.is_none() && hides_it();
            if is_hidden || lost.is_some() && hides_lost(&self.path, hides) {
                return Some(Entry::hidden(row));
            }
            let (lists, entry) = (frame.children.lists(&child), frame.children.entry(&child));
            if is_dir && let Some(into) = frame.children.entered(list, &child) {
                match into.unopened(list, hides, &entry) {
                    Some(unopened) => self.unopened = Some(unopened),
                    None => self.descend(list, selection, hides, into),
                }
            }
            if lists {
                return Some(entry);
            }
        }
    }

    fn descend(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides, into: Into) {
        let children = Children::of(list, selection, hides, into);
        if !children.is_empty() {
            self.stack.push(Frame { children, path_len: self.path.len() });
        }
    }
}
