//! Selects the rows of a list that a pull takes, and maps them to local paths.

use std::ops::Range;

use stillmirror_protocol::filter::Filter;
use stillmirror_protocol::list::{Dir, ListRef, Row};
use stillmirror_protocol::path;

use crate::error::PullError;
use crate::names::{Child, Names};
use crate::slice::Rows;

/// The name of the staging directory in the local tree. If a repository has an entry of this name, the entry
/// is not pulled.
pub(crate) const STAGE: &[u8] = b".stillmirror-stage";

/// What is wanted of a directory of a list.
#[derive(Clone, Copy)]
pub(crate) enum Scope<'a> {
    All,
    /// What is at and below these paths. Only what is below them is the mirror's to delete.
    Names(&'a Names),
    /// These rows. Everything else in the local tree is the mirror's to delete.
    Rows(&'a Rows),
}

/// The wanted part of a list: a directory, or one file of it, without what the filter excludes.
#[derive(Clone)]
pub(crate) struct Selection<'a> {
    pub(crate) list: ListRef<'a>,
    /// The directory that becomes the local tree's root.
    pub(crate) root: Dir<'a>,
    /// The only wanted name in the root. `None` if all names are wanted.
    only: Option<Vec<u8>>,
    filter: &'a Filter,
    /// The only wanted paths. `None` if all are wanted.
    names: Option<&'a Names>,
    /// The only wanted rows. `None` if all are wanted.
    slice: Option<&'a Rows>,
    /// Local paths that are this mirror's own.
    own: Vec<Vec<u8>>,
    /// Wanted directories. The root is first, and each directory precedes those below it.
    pub(crate) dirs: Vec<WantedDir<'a>>,
    /// Wanted rows below the root, ascending.
    pub(crate) rows: Vec<u32>,
}

/// A wanted directory.
#[derive(Clone)]
pub(crate) struct WantedDir<'a> {
    pub(crate) dir: Dir<'a>,
    /// Its path in the local tree.
    pub(crate) path: Vec<u8>,
}

impl<'a> Selection<'a> {
    /// Selects the rows at and below `at`. Fails if the list has no such path.
    pub(crate) fn new(list: ListRef<'a>, at: &[u8], filter: &'a Filter) -> Result<Self, PullError> {
        Self::of(list, at, filter, Scope::All, Vec::new())
    }

    /// Like [`Selection::new`], for a pull. Of the rows at and below `at`, only those in `scope` are wanted, and the
    /// directories that lead to them. `own` are local paths that are this mirror's own.
    pub(crate) fn of(
        list: ListRef<'a>,
        at: &[u8],
        filter: &'a Filter,
        scope: Scope<'a>,
        own: Vec<Vec<u8>>,
    ) -> Result<Self, PullError> {
        let (names, slice) = match scope {
            Scope::All => (None, None),
            Scope::Names(names) => (Some(names), None),
            Scope::Rows(rows) => (None, Some(rows)),
        };
        let missing = || PullError::usage(format!("the repository has no '{}'", path::Escaped(at)));
        let found = list.find(at).ok_or_else(missing)?;
        let (root, only) = match found.dir_number() {
            Some(number) => (list.dir(number), None),
            None => (list.parent_of(found.number()), Some(path::split(at).1.to_vec())),
        };
        if only.is_some() && names.is_some() {
            return Err(PullError::usage(format!(
                "'{}' is a file, so --files-from cannot name parts of it",
                path::Escaped(at)
            )));
        }
        let mut selection = Self { list, root, only, filter, names, slice, own, dirs: Vec::new(), rows: Vec::new() };
        selection.walk();
        Ok(selection)
    }

    fn walk(&mut self) {
        self.dirs.push(WantedDir { dir: self.root, path: Vec::new() });
        // For each directory, the names that are wanted below it. `None` if all are.
        let mut wanted = vec![self.names.filter(|names| !names.name_all()).map(Names::all)];
        let mut next = 0;
        while let Some(WantedDir { dir, path }) = self.dirs.get(next).cloned() {
            next += 1;
            if let (Some(names), Some(range)) = (self.names, wanted[next - 1].clone()) {
                let children: Vec<_> = names.children(range, path.len()).collect();
                self.walk_named(&WantedDir { dir, path }, children, &mut wanted);
                continue;
            }
            for row in dir.files() {
                if !self.leaves_out(row) && self.includes(&path, dir.name_of(row), false) {
                    self.rows.push(row);
                }
            }
            for row in dir.subdirs() {
                let name = dir.name_of(row);
                if !self.leaves_out(row) && self.includes(&path, name, true) {
                    self.rows.push(row);
                    let number = self.list.row(row).dir_number().unwrap_or_default();
                    self.dirs.push(WantedDir { dir: self.list.dir(number), path: path::join(&path, name) });
                    wanted.push(None);
                }
            }
        }
        // Below one directory, breadth-first order is ascending, and the filter keeps the order.
        debug_assert!(self.rows.is_sorted());
    }

    /// Selects the children of a directory that lead to names.
    fn walk_named(&mut self, place: &WantedDir<'a>, children: Vec<Child<'_>>, wanted: &mut Vec<Option<Range<usize>>>) {
        let found = children.into_iter().filter_map(|child| Some((place.dir.child(child.name)?, child)));
        let mut found: Vec<_> = found.filter(|(row, child)| child.is_named || row.is_dir()).collect();
        found.sort_unstable_by_key(|(row, _)| row.number());
        for (row, child) in found {
            if !self.includes(&place.path, child.name, row.is_dir()) {
                continue;
            }
            self.rows.push(row.number());
            if let Some(number) = row.dir_number() {
                self.dirs.push(WantedDir { dir: self.list.dir(number), path: path::join(&place.path, child.name) });
                wanted.push((!child.is_named).then_some(child.below));
            }
        }
    }

    /// Returns the paths that are wanted by name, and that the list does not have.
    pub(crate) fn missing(&self) -> Vec<Vec<u8>> {
        let root = self.root.path();
        let is_missing = |name: &&[u8]| {
            self.list.find(&if name.is_empty() { root.clone() } else { path::join(&root, name) }).is_none()
        };
        self.names.into_iter().flat_map(Names::iter).filter(is_missing).map(<[u8]>::to_vec).collect()
    }

    /// Returns whether a row is left out because others are wanted. If it is in the tree, it is the mirror's to delete.
    pub(crate) fn leaves_out(&self, row: u32) -> bool {
        self.slice.is_some_and(|rows| !rows.contains(row))
    }

    fn includes(&self, dir: &[u8], name: &[u8], is_dir: bool) -> bool {
        if dir.is_empty() && (name == STAGE || self.only.as_ref().is_some_and(|only| only != name)) {
            return false;
        }
        self.filter.is_empty() || self.filter.keeps(&path::join(dir, name), is_dir)
    }

    /// Returns whether the mirror may delete a local name that the list does not have. It may not delete the
    /// staging directory, traces, names that the filter excludes, names that are not below a wanted one, or anything at
    /// all when a single file is pulled.
    pub(crate) fn owns(&self, path: &[u8], is_dir: bool) -> bool {
        self.may_own(path) && self.filter.keeps(path, is_dir)
    }

    fn may_own(&self, path: &[u8]) -> bool {
        let is_named = self.names.is_none_or(|names| names.cover(path));
        path != STAGE && self.only.is_none() && is_named && !self.own.iter().any(|own| own == path)
    }

    /// Like [`Selection::owns`], for a name whose parent directories have not been checked.
    pub(crate) fn owns_deep(&self, path: &[u8], is_dir: bool) -> bool {
        self.may_own(path) && self.filter.keeps_below_root(path, is_dir)
    }

    /// Returns whether there may be local names that the mirror must not delete.
    pub(crate) fn protects(&self) -> bool {
        self.only.is_some() || !self.filter.is_empty() || self.names.is_some() || !self.own.is_empty()
    }

    /// Returns whether the tree's root gets the mode, owner and time of the list's directory.
    pub(crate) fn sets_root(&self) -> bool {
        self.only.is_none()
    }

    /// Returns whether the selection is the whole list.
    pub(crate) fn is_whole(&self) -> bool {
        self.root.number() == 0 && self.rows.len() + 1 == self.list.len() as usize
    }

    /// Returns the index of a wanted row in [`Selection::rows`].
    pub(crate) fn index(&self, row: u32) -> Option<usize> {
        self.rows.binary_search(&row).ok()
    }

    /// Returns the local path of a wanted row.
    pub(crate) fn path(&self, row: u32) -> Vec<u8> {
        let whole = self.list.path(row);
        match self.root.number() {
            0 => whole,
            _ => whole.get(self.root.path().len() + 1..).unwrap_or_default().to_vec(),
        }
    }

    /// Returns the wanted row at a local path.
    pub(crate) fn find(&self, local: &[u8]) -> Option<Row<'a>> {
        let mut at = self.list.row(self.root.row());
        for name in path::components(local) {
            at = self.list.dir(at.dir_number()?).child(name)?;
        }
        self.index(at.number()).map(|_| at)
    }
}
