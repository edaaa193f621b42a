//! The children of one directory that a view lists or walks through, in the order of the list. A symlink that
//! stands for a directory is sorted among the directories.

use std::collections::VecDeque;
use std::ops::Range;

use super::{Entry, Position};
use crate::list::{Dir, ListRef};
use crate::order;
use crate::rsync::selection::{
    CHILDREN, Followed, Hides, IMPLIED, LINKS, LISTED, LookupError, RECURSE, REQUESTED, ROW, Selection, View,
};

/// A directory to walk, and what is requested of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visit {
    /// The number of the directory.
    pub(super) dir: u32,
    /// [`RECURSE`] or [`CHILDREN`]. If 0, only marked children are listed.
    pub(super) requested: u32,
    /// The view whose marks apply in the directory. `None` behind a symlink that no path leads through.
    pub(super) view: Option<u32>,
    /// The number of symlinks on the way to the directory.
    pub(super) links: u32,
    /// The number of components of its name in the list.
    pub(super) depth: usize,
}

impl Visit {
    /// Returns the report for a directory that is listed as `entry` but cannot be opened, because too many
    /// symlinks lead to it or its contents must not be listed. None of its children is listed then.
    pub(super) fn unopened(&self, list: ListRef<'_>, hides: &impl Hides, entry: &Entry) -> Option<Entry> {
        let error = match entry.contents {
            true if self.links > LINKS => LookupError::Unopened,
            true if !hides.may_list(list.row(list.dir(self.dir).row())) => LookupError::Closed,
            _ => return None,
        };
        Some(Entry { position: Position::Unresolved(error), ..*entry })
    }
}

/// The children that have not been returned yet.
#[derive(Debug)]
pub(super) struct Children {
    visit: Visit,
    files: MarkedRows,
    dirs: MarkedRows,
    /// The symlinks that stand for directories.
    linked: VecDeque<Child>,
    /// Whether any symlink may stand for another entry.
    follows: bool,
}

/// Rows, and the marks among them.
#[derive(Debug, Clone)]
struct MarkedRows {
    rows: Range<u32>,
    marks: Range<usize>,
}

/// One child of a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Child {
    /// The row that gives it its name.
    pub(super) name: u32,
    /// The row that is listed under that name.
    pub(super) row: u32,
    /// The bits of its mark. `None` if it is not marked.
    pub(super) mark: Option<u32>,
    /// Whether it is a directory or stands for one.
    pub(super) is_dir: bool,
    /// The reason why a symlink that must be followed cannot be resolved.
    pub(super) error: Option<LookupError>,
    view: Option<u32>,
    /// Whether it is recursed if its parent is.
    inherits: bool,
    links: u32,
}

impl Children {
    /// Starts the children of a directory.
    pub(super) fn of(list: ListRef<'_>, selection: &Selection, hides: &impl Hides, visit: Visit) -> Self {
        let dir = list.dir(visit.dir);
        let view = visit.view.map(|view| selection.view(view));
        let run = |rows: Range<u32>| MarkedRows {
            marks: view.map_or(0..0, |view| view.marks_in(&rows)),
            rows: if visit.requested != 0 { rows } else { rows.end..rows.end },
        };
        let mut children = Self {
            visit,
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

    /// Returns the directory.
    pub(super) fn dir<'a>(&self, list: ListRef<'a>) -> Dir<'a> {
        list.dir(self.visit.dir)
    }

    /// Returns the next child.
    #[inline]
    pub(super) fn next(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides) -> Option<Child> {
        self.next_file(list, selection, hides).or_else(|| self.next_dir(list, selection))
    }

    /// Returns the next child that is not a directory.
    #[inline]
    pub(super) fn next_file(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides) -> Option<Child> {
        loop {
            let child = self.next_file_or_link(list, selection, hides)?;
            // A symlink to a directory is returned among the directories.
            if !child.is_dir {
                return Some(child);
            }
        }
    }

    /// Returns the next child that is a directory or stands for one.
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
        let Visit { view, links, .. } = self.visit;
        next.map(|(row, mark)| Child { name: row, row, mark, is_dir: true, error: None, view, inherits: true, links })
    }

    #[inline]
    fn next_file_or_link(&mut self, list: ListRef<'_>, selection: &Selection, hides: &impl Hides) -> Option<Child> {
        let (row, mark) = self.files.next(self.marks(selection))?;
        let links = self.visit.links;
        let itself = Child { name: row, row, mark, is_dir: false, error: None, view: None, inherits: true, links };
        if !self.follows {
            return Some(itself);
        }
        // Stock rsync resolves a symlink from within its directory, so symlinks on the way there do not count.
        let followed = selection.follow().follow_entry(list, hides, self.visit.dir, row, (self.visit.depth, 0));
        if let Some(view) = self.visit.view.and_then(|view| selection.view(view).graft(row)) {
            let target = selection.view(view);
            // A symlink that is not followed is a directory only for the names below it.
            let inherits = matches!(followed, Followed::Target(_));
            let row = list.dir(target.base).row();
            return Some(Child { row, is_dir: true, links: target.links, view: Some(view), inherits, ..itself });
        }
        Some(match followed {
            Followed::Itself => itself,
            Followed::Target(target) => {
                let (row, links) = (target.row, links + target.links);
                Child { row, is_dir: list.row(row).is_dir(), links, ..itself }
            }
            Followed::Failed(error) => Child { error: Some(error), ..itself },
        })
    }

    fn marks<'a>(&self, selection: &'a Selection) -> &'a [u32] {
        self.visit.view.map_or(&[], |view| &selection.view(view).marks)
    }

    /// Returns whether the module's rules hide a child by its own path. Behind a symlink, it is listed under
    /// another path.
    pub(super) fn hides_itself(&self, list: ListRef<'_>, hides: &impl Hides, child: &Child) -> bool {
        self.visit.links > 0 && hides.module_hides_row(list, list.row(child.name))
    }

    /// Returns whether a child is listed. Otherwise it is only on the way to others.
    pub(super) fn lists(&self, child: &Child) -> bool {
        self.visit.requested != 0 || child.mark.unwrap_or(0) & LISTED != 0
    }

    /// Returns the directory to walk in order to enter a child.
    pub(super) fn entered(&self, list: ListRef<'_>, child: &Child) -> Option<Visit> {
        let dir = list.row(child.row).dir_number()?;
        // Directories in a directory have higher numbers, so every descent ends even if the list has rotted.
        if child.name == child.row && dir <= self.visit.dir {
            return None;
        }
        let (view, links, depth) = (child.view, child.links, self.visit.depth + 1);
        Some(Visit { dir, requested: self.contents_of(child), view, links, depth })
    }

    fn contents_of(&self, child: &Child) -> u32 {
        let inherited = if child.inherits { self.visit.requested & RECURSE } else { 0 };
        inherited | (child.mark.unwrap_or(0) & (RECURSE | CHILDREN))
    }

    pub(super) fn entry(&self, child: &Child) -> Entry {
        let (contents, mark) = (self.contents_of(child) != 0, child.mark.unwrap_or(0));
        let top = match self.visit.requested {
            // In a recursed directory, an entry is like all others there, even if it is also requested by name.
            RECURSE => false,
            _ if contents => mark & REQUESTED != 0,
            requested => requested == 0 && mark & LISTED == IMPLIED,
        };
        let position = child.error.map_or(Position::Here, Position::Unresolved);
        Entry { row: child.row, top, contents, position }
    }
}

impl MarkedRows {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.marks.is_empty()
    }

    /// Returns the next row and the bits of its mark, if it is marked. `marks` are all marks of the view.
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
