//! Protocol 29 and later: the order of [`crate::order`], so that of the rows, a directory's contents right
//! after it.

use super::{Children, Entry, Path, base_entry};
use crate::list::ListRef;
use crate::rsync::selection::{Hides, View};

#[derive(Debug)]
pub(in super::super) struct Walk {
    pub(super) path: Path,
    stack: Vec<Frame>,
    dot: Option<Entry>,
}

/// A directory whose children are being listed.
#[derive(Debug)]
struct Frame {
    children: Children,
    /// The row of its first directory.
    dirs_from: u32,
    path_len: usize,
}

impl Walk {
    pub(super) fn new(list: ListRef<'_>, view: &View) -> Self {
        let (dot, asked) = base_entry(list, view);
        let mut walk = Self { path: Path::base(list, view.base), stack: Vec::new(), dot };
        walk.descend(list, view, list.dir(view.base).row(), asked);
        walk
    }

    pub(super) fn next(&mut self, list: ListRef<'_>, view: &View, hides: &impl Hides) -> Option<Entry> {
        if let Some(dot) = self.dot.take() {
            return Some(dot);
        }
        loop {
            let frame = self.stack.last_mut()?;
            let Some((row, mark)) = frame.children.next(view) else {
                self.stack.pop();
                continue;
            };
            self.path.set(frame.path_len, list.dir(frame.children.dir).name_of(row));
            let is_dir = row >= frame.dirs_from;
            // What was asked for by name has been through the filters.
            if mark.is_none() && self.path.hidden(hides, is_dir) {
                return Some(Entry::hidden(row));
            }
            let (lists, asks) = (frame.children.lists(mark), frame.children.asks(mark));
            let entry = frame.children.entry(row, mark);
            if is_dir {
                self.descend(list, view, row, asks);
            }
            if lists {
                return Some(entry);
            }
        }
    }

    fn descend(&mut self, list: ListRef<'_>, view: &View, row: u32, asked: u32) {
        let children = Children::of(list, view, row, asked);
        if !children.is_empty() {
            let dirs_from = list.dir(children.dir).subdirs().start;
            self.stack.push(Frame { children, dirs_from, path_len: self.path.len() });
        }
    }
}
