//! Before protocol 29: the order of full paths as bytes. A directory's entry and its contents stand
//! apart, with `name-x` between `name` and `name/x`.
//!
//! `.` is written first all the same, though names such as `+x` are numbered before it: a client takes
//! those directories for sent with their contents (and deletes in them) that come after a directory that
//! is marked so.

use super::{Children, Entry, Path, Place, base_entry};
use crate::list::{Dir, ListRef};
use crate::rsync::selection::{Hides, View};

#[derive(Debug)]
pub(in super::super) struct Walk {
    pub(super) path: Path,
    stack: Vec<Frame>,
    /// `.`, to be written.
    first: Option<Entry>,
}

/// A directory being listed: three runs that are merged by name, and `.` in the topmost.
#[derive(Debug)]
struct Frame {
    path_len: usize,
    dot: Option<Entry>,
    files: Children,
    file: Option<(u32, Option<u32>)>,
    /// Directories with their marks, in the order of their contents.
    dirs: Vec<(u32, Option<u32>)>,
    dirs_at: usize,
    /// Places in `dirs`, in the order of the directories' own entries.
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
    pub(super) fn new(list: ListRef<'_>, view: &View, hides: &impl Hides) -> Self {
        let (dot, asked) = base_entry(list, view);
        let mut walk = Self { path: Path::base(list, view.base), stack: Vec::new(), first: None };
        let at = |place| dot.map(|dot| Entry { place, ..dot });
        walk.descend(list, view, hides, list.dir(view.base).row(), asked, at(Place::Late));
        walk.path = Path::base(list, view.base);
        walk.first = at(Place::Early);
        walk
    }

    pub(super) fn next(&mut self, list: ListRef<'_>, view: &View, hides: &impl Hides) -> Option<Entry> {
        if let Some(dot) = self.first.take() {
            return Some(dot);
        }
        loop {
            let frame = self.stack.last_mut()?;
            let dir = list.dir(frame.files.dir);
            let Some(next) = frame.peek(dir) else {
                self.stack.pop();
                continue;
            };
            let (row, mark) = match next {
                Next::Dot => {
                    self.path.set(frame.path_len, b"");
                    return frame.dot.take();
                }
                Next::File => std::mem::replace(&mut frame.file, frame.files.next(view))?,
                Next::Entry => {
                    frame.entries_at += 1;
                    frame.dirs[frame.entries[frame.entries_at - 1] as usize]
                }
                Next::Contents => {
                    frame.dirs_at += 1;
                    frame.dirs[frame.dirs_at - 1]
                }
            };
            self.path.set(frame.path_len, dir.name_of(row));
            match next {
                Next::Contents => {
                    let asks = frame.files.asks(mark);
                    self.descend(list, view, hides, row, asks, None);
                }
                Next::File if mark.is_none() && self.path.hidden(hides, false) => return Some(Entry::hidden(row)),
                _ if frame.files.lists(mark) => return Some(frame.files.entry(row, mark)),
                _ => {}
            }
        }
    }

    fn descend(
        &mut self,
        list: ListRef<'_>,
        view: &View,
        hides: &impl Hides,
        row: u32,
        asked: u32,
        dot: Option<Entry>,
    ) {
        let path_len = self.path.len();
        let children = Children::of(list, view, row, asked);
        if children.is_empty() && dot.is_none() {
            return;
        }
        let dir = list.dir(children.dir);
        let (mut files, mut subdirs) = children.split(view, dir.subdirs().start);
        let mut dirs = Vec::new();
        while let Some((row, mark)) = subdirs.next(view) {
            self.path.set(path_len, dir.name_of(row));
            if mark.is_some() || !self.path.hidden(hides, true) {
                dirs.push((row, mark));
            }
        }
        let mut entries: Vec<u32> = (0..dirs.len() as u32).collect();
        entries.sort_unstable_by_key(|&at| dir.name_of(dirs[at as usize].0));
        let file = files.next(view);
        self.stack.push(Frame { path_len, dot, files, file, dirs, dirs_at: 0, entries, entries_at: 0 });
    }
}

impl Frame {
    /// Which of the runs has the least name; none when all are at their end.
    fn peek(&self, dir: Dir<'_>) -> Option<Next> {
        let name = |row| dir.name_of(row);
        let entry = self.entries.get(self.entries_at).map(|&at| name(self.dirs[at as usize].0));
        let runs = [
            (Next::Dot, self.dot.map(|_| &b"."[..])),
            (Next::File, self.file.map(|(row, _)| name(row))),
            (Next::Entry, entry),
            (Next::Contents, self.dirs.get(self.dirs_at).map(|&(row, _)| name(row))),
        ];
        let present = runs.into_iter().filter_map(|(next, name)| Some((next, name?)));
        let slash = |next| if matches!(next, Next::Contents) { &b"/"[..] } else { b"" };
        let least = present.min_by(|(a, x), (b, y)| x.iter().chain(slash(*a)).cmp(y.iter().chain(slash(*b))));
        least.map(|(next, _)| next)
    }
}
