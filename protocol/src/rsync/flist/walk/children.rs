//! The children of one directory that a view has something to say of, in the order of the list. A symlink that stands for a
//! directory is in its place among the directories.

use std::collections::VecDeque;
use std::ops::Range;

use super::{Entry, Position};
use crate::list::{Dir, ListRef};
use crate::order;
use crate::rsync::selection::{
    ASKED, CHILDREN, Hides, IMPLIED, LINKS, LISTED, Lost, RECURSE, ROW, Selection, Standing, View,
};

/// Where a walk goes in: a directory, and what is asked for of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Into {
    /// The number of the directory.
    pub(super) dir: u32,
    /// [`RECURSE`], [`CHILDREN`], or nothing but marked children.
    pub(super) asked: u32,
    /// The view whose marks hold in it; none behind a symlink that no path leads through.
    pub(super) view: Option<u32>,
    /// Symlinks on the way to it.
    pub(super) links: u32,
    /// Elements of its name in the list.
    pub(super) depth: usize,
}

impl Into {
    /// What to tell of a directory that is listed as `entry` if too many symlinks lead to it, or its contents may not be
    /// listed: nothing in it is.
    pub(super) fn unopened(&self, list: ListRef<'_>, hides: &impl Hides, entry: &Entry) -> Option<Entry> {
        let lost = match entry.contents {
            true if self.links > LINKS => Lost::Unopened,
            true if !hides.may_list(list.row(list.dir(self.dir).row())) => Lost::Closed,
            _ => return None,
        };
        Some(Entry { position: Position::Lost(lost), ..*entry })
    }
}

/// Children that are still to come.
#[derive(Debug)]
pub(super) struct Children {
    into: Into,
    files: MarkedRows,
    dirs: MarkedRows,
    /// Symlinks that stand for directories.
    linked: VecDeque<Child>,
    /// Whether any symlink may stand for something else.
    follows: bool,
}

/// Rows, and the marks among them.
#[derive(Debug, Clone)]
struct MarkedRows {
    rows: Range<u32>,
    marks: Range<usize>,
}

/// One child.
#[derive(Debug, Clone, Copy)]
pub(super) struct Child {
    /// The row that it has its name from.
    pub(super) name: u32,
    /// The row of what is listed under that name.
    pub(super) row: u32,
    /// The bits of its mark, if it has one.
    pub(super) mark: Option<u32>,
    /// Whether it is a directory, or stands for one.
    pub(super) is_dir: bool,
    /// What a symlink that is to be followed lacks.
    pub(super) lost: Option<Lost>,
    view: Option<u32>,
    /// Whether it comes whole if the directory that it is in does.
    inherits: bool,
    links: u32,
}

impl Children {
    /// Of a directory.
    pub(super) fn of(list: ListRef<'_>, selection: &Selection, hides: &impl Hides, into: Into) -> Self {
        let dir = list.dir(into.dir);
        let view = into.view.map(|view| selection.view(view));
        let run = |rows: Range<u32>| MarkedRows {
            marks: view.map_or(0..0, |view| view.marks_in(&rows)),
            rows: if into.asked != 0 { rows } else { rows.end..rows.end },
        };
        let mut children = Self {
            into,
            files: run(dir.files()),
            dirs: run(dir.subdirs()),
            linked: VecDeque::new(),
            follows: selection.follow().any() || view.is_some_and(View::has_grafts),
        };
        if children.follows {
            let files = children.files.clone();
            while let Some(child) = children.next_file_or_link(list, selection, hides) {
                if child.is_dir {
                    children.linked.push_back(child);
                }
            }
            children.files = files;
            let name = |child: &Child| dir.name_of(child.name);
            children.linked.make_contiguous().sort_unstable_by(|a, b| order::directories(name(a), name(b)));
        }
        children
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.dirs.is_empty() && self.linked.is_empty()
    }

    /// The directory.
    pub(super) fn dir<'a>(&self, list: ListRef<'a>) -> Dir<'a> {
        list.dir(self.into.dir)
    }

    /// The next child.
    #[inline]
    pub(super) fn next(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides) -> Option<Child> {
        self.next_file(list, selection, hides).or_else(|| self.next_dir(list, selection))
    }

    /// The next child that is no directory.
    #[inline]
    pub(super) fn next_file(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides) -> Option<Child> {
        loop {
            let child = self.next_file_or_link(list, selection, hides)?;
            // A symlink to a directory comes among the directories.
            if !child.is_dir {
                return Some(child);
            }
        }
    }

    /// The next child that is a directory, or stands for one.
    #[inline]
    pub(super) fn next_dir(&mut self, list: ListRef<'_>, selection: &Selection) -> Option<Child> {
        let mut rest = self.dirs.clone();
        let next = rest.next(self.marks(selection));
        let dir = self.dir(list);
        let is_first = |linked: &Child| {
            next.is_none_or(|(row, _)| order::directories(dir.name_of(linked.name), dir.name_of(row)).is_lt())
        };
        if self.linked.front().is_some_and(is_first) {
            return self.linked.pop_front();
        }
        self.dirs = rest;
        let Into { view, links, .. } = self.into;
        next.map(|(row, mark)| Child { name: row, row, mark, is_dir: true, lost: None, view, inherits: true, links })
    }

    #[inline]
    fn next_file_or_link(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides) -> Option<Child> {
        let (row, mark) = self.files.next(self.marks(selection))?;
        let links = self.into.links;
        let itself = Child { name: row, row, mark, is_dir: false, lost: None, view: None, inherits: true, links };
        if !self.follows {
            return Some(itself);
        }
        // Stock rsync looks at what is in a directory from within it, so that symlinks on the way there do not count.
        let standing = selection.follow().standing(list, hides, self.into.dir, row, (self.into.depth, 0));
        if let Some(view) = self.into.view.and_then(|view| selection.view(view).graft(row)) {
            let into = selection.view(view);
            // A symlink that is not to be followed is a directory for what is named below it alone.
            let inherits = matches!(standing, Standing::For(_));
            let row = list.dir(into.base).row();
            return Some(Child { row, is_dir: true, links: into.links, view: Some(view), inherits, ..itself });
        }
        Some(match standing {
            Standing::Itself => itself,
            Standing::For(target) => {
                let (row, links) = (target.row, links + target.links);
                Child { row, is_dir: list.row(row).is_dir(), links, ..itself }
            }
            Standing::Lost(lost) => Child { lost: Some(lost), ..itself },
        })
    }

    fn marks<'a>(&self, selection: &'a Selection) -> &'a [u32] {
        self.into.view.map_or(&[], |view| &selection.view(view).marks)
    }

    /// Whether the module's rules hide a child by the path that is its own: behind a symlink it is listed by another one.
    pub(super) fn hides_itself(&self, list: ListRef<'_>, hides: &impl Hides, child: &Child) -> bool {
        self.into.links > 0 && hides.module_hides_row(list, list.row(child.name))
    }

    /// Whether a child is listed, rather than on the way to others.
    pub(super) fn lists(&self, child: &Child) -> bool {
        self.into.asked != 0 || child.mark.unwrap_or(0) & LISTED != 0
    }

    /// Where a walk goes on that enters a child.
    pub(super) fn entered(&self, list: ListRef<'_>, child: &Child) -> Option<Into> {
        let dir = list.row(child.row).dir_number()?;
        // Directories in a directory have higher numbers: so a way down has an end, even if the list has rotted.
        if child.name == child.row && dir <= self.into.dir {
            return None;
        }
        let (view, links, depth) = (child.view, child.links, self.into.depth + 1);
        Some(Into { dir, asked: self.asks(child), view, links, depth })
    }

    fn asks(&self, child: &Child) -> u32 {
        let inherited = if child.inherits { self.into.asked & RECURSE } else { 0 };
        inherited | (child.mark.unwrap_or(0) & (RECURSE | CHILDREN))
    }

    pub(super) fn entry(&self, child: &Child) -> Entry {
        let (contents, mark) = (self.asks(child) != 0, child.mark.unwrap_or(0));
        let top = match self.into.asked {
            // Below what comes whole an entry is like others there, even if it is also asked for by name.
            RECURSE => false,
            _ if contents => mark & ASKED != 0,
            asked => asked == 0 && mark & LISTED == IMPLIED,
        };
        let position = child.lost.map_or(Position::Here, Position::Lost);
        Entry { row: child.row, top, contents, position }
    }
}

impl MarkedRows {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.marks.is_empty()
    }

    /// The next row and the bits of its mark, if it has one. `marks` are all marks of the view.
    #[inline]
    fn next(&mut self, marks: &[u32]) -> Option<(u32, Option<u32>)> {
        let marked = marks.get(self.marks.clone()).and_then(|marks| marks.first());
        match marked {
            Some(&mark) if self.rows.is_empty() || mark & ROW == self.rows.start => {
                self.marks.start += 1;
                self.rows.start += u32::from(!self.rows.is_empty());
                Some((mark & ROW, Some(mark & !ROW)))
            }
            _ => self.rows.next().map(|row| (row, None)),
        }
    }
}
