//! The order before protocol 29: full paths as bytes. A directory's entry and its contents are apart, with
//! `name-x` between `name` and `name/x`.
//!
//! `.` is always written first, although names such as `+x` are numbered before it. The reason is that a
//! client takes all directories after a directory with the top flag as sent with their contents, and deletes
//! in them.

use super::children::{Child, Children, Visit};
use super::{Entry, Path, Position, base_entry, hides_unresolved};
use crate::list::{Dir, ListRef};
use crate::rsync::selection::{Hides, Selection};

#[derive(Debug)]
pub(in super::super) struct Walk {
    pub(super) path: Path,
    stack: Vec<Frame>,
    /// `.`, until it is written.
    first: Option<Entry>,
    /// `.`, if its contents must not be listed.
    unopened: Option<Entry>,
}

/// A directory whose children are being listed: three sequences that are merged by name, and `.` in the
/// topmost directory.
#[derive(Debug)]
struct Frame {
    path_len: usize,
    dot: Option<Entry>,
    children: Children,
    file: Option<Child>,
    /// The subdirectories, in the order of their contents.
    dirs: Vec<Child>,
    dirs_at: usize,
    /// Positions in `dirs`, in the order of the directories' own entries.
    entries: Vec<u32>,
    entries_at: usize,
}

#[derive(Clone, Copy)]
enum Next {
    Dot,
    File,
    Entry,
    Contents,
}

impl Walk {
    pub(super) fn new(list: ListRef<'_>, selection: &Selection, number: u32, hides: &impl Hides) -> Self {
        let view = selection.view(number);
        let (dot, requested) = base_entry(list, view);
        let mut walk = Self { path: Path::base(list, view.base), stack: Vec::new(), first: None, unopened: None };
        let at = |position| dot.map(|dot| Entry { position, ..dot });
        let visit = Visit { dir: view.base, requested, view: Some(number), links: 0, depth: 0 };
        walk.unopened = dot.as_ref().and_then(|dot| visit.unopened(list, hides, dot));
        if walk.unopened.is_some() {
            walk.first = at(Position::Here);
            return walk;
        }
        walk.descend(list, selection, hides, visit, at(Position::Late));
        walk.path = Path::base(list, view.base);
        walk.first = at(Position::Early);
        walk
    }

    pub(super) fn next(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides) -> Option<Entry> {
        if let Some(dot) = self.first.take().or_else(|| self.unopened.take()) {
            return Some(dot);
        }
        loop {
            let frame = self.stack.last_mut()?;
            let dir = frame.children.dir(list);
            let Some(next) = frame.peek(dir) else {
                self.stack.pop();
                continue;
            };
            let child = match next {
                Next::Dot => {
                    self.path.set(frame.path_len, b"");
                    return frame.dot.take();
                }
                Next::File => std::mem::replace(&mut frame.file, frame.children.next_file(list, selection, hides))?,
                Next::Entry => {
                    frame.entries_at += 1;
                    frame.dirs[frame.entries[frame.entries_at - 1] as usize]
                }
                Next::Contents => {
                    frame.dirs_at += 1;
                    frame.dirs[frame.dirs_at - 1]
                }
            };
            self.path.set(frame.path_len, dir.name_of(child.name));
            if let Next::Contents = next {
                let Some(visit) = frame.children.entered(list, &child) else { continue };
                if let Some(unopened) = visit.unopened(list, hides, &frame.children.entry(&child)) {
                    return Some(unopened);
                }
                self.descend(list, selection, hides, visit, None);
                continue;
            }
            // Directories have already been checked against the filters.
            let hides_it = || self.path.hidden(hides, false) || frame.children.hides_itself(list, hides, &child);
            let is_hidden = !child.is_dir && child.mark.is_none() && hides_it();
            if is_hidden || child.error.is_some() && hides_unresolved(&self.path, hides) {
                return Some(Entry::hidden(child.row));
            }
            if frame.children.lists(&child) {
                return Some(frame.children.entry(&child));
            }
        }
    }

    fn descend(
        &mut self,
        list: ListRef<'_>,
        selection: &Selection,
        hides: &impl Hides,
        visit: Visit,
        dot: Option<Entry>,
    ) {
        let path_len = self.path.len();
        let mut children = Children::of(list, selection, hides, visit);
        if children.is_empty() && dot.is_none() {
            return;
        }
        let dir = children.dir(list);
        let mut dirs = Vec::new();
        while let Some(child) = children.next_dir(list, selection) {
            self.path.set(path_len, dir.name_of(child.name));
            let hides_it = || self.path.hidden(hides, true) || children.hides_itself(list, hides, &child);
            if child.mark.is_some() || !hides_it() {
                dirs.push(child);
            }
        }
        let mut entries: Vec<u32> = (0..dirs.len() as u32).collect();
        entries.sort_unstable_by_key(|&at| dir.name_of(dirs[at as usize].name));
        let file = children.next_file(list, selection, hides);
        self.stack.push(Frame { path_len, dot, children, file, dirs, dirs_at: 0, entries, entries_at: 0 });
    }
}

impl Frame {
    /// Returns which sequence has the smallest next name. `None` if all are finished.
    fn peek(&self, dir: Dir<'_>) -> Option<Next> {
        let name = |child: &Child| dir.name_of(child.name);
        let entry = self.entries.get(self.entries_at).map(|&at| name(&self.dirs[at as usize]));
        let runs = [
            (Next::Dot, self.dot.map(|_| &b"."[..])),
            (Next::File, self.file.as_ref().map(name)),
            (Next::Entry, entry),
            (Next::Contents, self.dirs.get(self.dirs_at).map(name)),
        ];
        let present = runs.into_iter().filter_map(|(next, name)| Some((next, name?)));
        let slash = |next| if matches!(next, Next::Contents) { &b"/"[..] } else { b"" };
        let least = present.min_by(|(a, x), (b, y)| x.iter().chain(slash(*a)).cmp(y.iter().chain(slash(*b))));
        least.map(|(next, _)| next)
    }
}
