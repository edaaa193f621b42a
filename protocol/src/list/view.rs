//! Access to a list in place: its entries, its directories, and lookups by path.

use std::ops::Range;

use super::{ArchivedFileList, Row};
use crate::entry::{Digest, Owner, PASSED_BY_OTHERS, READ_BY_OTHERS};
use crate::{order, path};

/// A list in its archived form. Cheap to copy.
///
/// The accessors are right for a list that is [valid](super::validate): one from [`open`](super::open), or from a store
/// that has run the same checks on it. If a disk changes bytes of a mapped list later, they return some value; they do not
/// panic, and following them does not loop forever.
#[derive(Clone, Copy)]
pub struct ListRef<'a> {
    list: &'a ArchivedFileList,
}

impl<'a> ListRef<'a> {
    /// Creates a view of an archived list that has been validated or is about to be.
    pub fn new(list: &'a ArchivedFileList) -> Self {
        Self { list }
    }

    /// Returns the number of entries, including the root.
    pub fn len(&self) -> u32 {
        self.list.mode.len() as u32
    }

    /// Returns whether there are no entries. A valid list has at least the root.
    pub fn is_empty(&self) -> bool {
        self.list.mode.is_empty()
    }

    /// Returns the number of directories, including the root.
    pub fn directories(&self) -> u32 {
        self.list.dir_row.len() as u32
    }

    /// Returns the number of regular files.
    pub fn files(&self) -> u32 {
        self.list.sha256.len() as u32
    }

    /// Returns the SHA-256 of a regular file, given its [`Row::file_number`].
    pub fn sha256(&self, file: u32) -> Digest {
        self.list.sha256.get(file as usize).map_or(Digest::NONE, |digest| Digest(*digest))
    }

    /// Returns whether the list carries XXH128 digests.
    pub fn has_xxh128(&self) -> bool {
        !self.list.xxh128.is_empty()
    }

    /// Returns whether the list carries MD5 digests.
    pub fn has_md5(&self) -> bool {
        !self.list.md5.is_empty()
    }

    /// Returns the entry at `row`, which must be less than [`ListRef::len`].
    pub fn row(&self, row: u32) -> Row<'a> {
        Row::new(self.list, row)
    }

    /// Returns the directory with this number, which must be less than [`ListRef::directories`].
    pub fn dir(&self, number: u32) -> Dir<'a> {
        Dir { list: self.list, number: number as usize }
    }

    /// Returns all directories, breadth first.
    pub fn dirs(self) -> impl ExactSizeIterator<Item = Dir<'a>> {
        (0..self.directories()).map(move |number| self.dir(number))
    }

    /// Returns the entry at a path relative to the root; the empty path is the root. `None` if there is no such entry.
    /// The path need not be checked: an invalid one is just not found. Takes one binary search per component.
    pub fn find(&self, path: &[u8]) -> Option<Row<'a>> {
        let mut at = self.row(0);
        for name in path::components(path) {
            at = self.dir(at.dir_number()?).child(name)?;
        }
        Some(at)
    }

    /// Returns the directory that contains `row`. For the root, returns the root.
    pub fn parent_of(&self, row: u32) -> Dir<'a> {
        // `dir_first` does not decrease, and among directories with equal values all but the last are empty.
        let after = self.list.dir_first.partition_point(|first| first.to_native() <= row);
        self.dir((after.max(1) - 1) as u32)
    }

    /// Returns whether everybody on a host may read the file at `row`, by its permissions and those of its ancestors.
    pub fn is_public(&self, row: u32) -> bool {
        let mut dir = self.parent_of(row);
        let may_be_traversed = |dir: Dir<'_>| self.row(dir.row()).permissions() & PASSED_BY_OTHERS != 0;
        while dir.number() != 0 && may_be_traversed(dir) {
            dir = self.dir(dir.parent());
        }
        self.row(row).permissions() & READ_BY_OTHERS != 0 && dir.number() == 0 && may_be_traversed(dir)
    }

    /// Returns the path of `row`, relative to the root. The root's path is empty.
    pub fn path(&self, row: u32) -> Vec<u8> {
        if row == 0 {
            return Vec::new();
        }
        let dir = self.parent_of(row);
        path::join(&dir.path(), dir.name_of(row))
    }

    /// Returns the (row, leader) pairs of all link groups, in row order.
    pub fn links(&self) -> impl ExactSizeIterator<Item = (u32, u32)> + 'a {
        let list = self.list;
        (0..list.link_row.len()).map(move |at| (list.link_row[at].to_native(), list.link_leader[at].to_native()))
    }

    /// Returns the number of distinct owners.
    pub fn owners(&self) -> u32 {
        self.list.uid.len() as u32
    }

    /// Returns an owner, given its [`Row::owner_number`].
    pub fn owner(&self, number: u32) -> Owner {
        let at = number as usize;
        let end = |index: usize| self.list.owner_name_end.get(index).map_or(0, |end| end.to_native() as usize);
        let name = |range: Range<usize>| self.list.owner_names.get(range).unwrap_or_default().to_vec();
        let start = (2 * at).checked_sub(1).map_or(0, end);
        Owner {
            uid: self.list.uid.get(at).map_or(0, |uid| uid.to_native()),
            gid: self.list.gid.get(at).map_or(0, |gid| gid.to_native()),
            user: name(start..end(2 * at)),
            group: name(end(2 * at)..end(2 * at + 1)),
        }
    }

    pub(crate) fn archived(&self) -> &'a ArchivedFileList {
        self.list
    }
}

impl std::fmt::Debug for ListRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ListRef").field("entries", &self.len()).field("directories", &self.directories()).finish()
    }
}

/// A directory of a list.
#[derive(Clone, Copy)]
pub struct Dir<'a> {
    list: &'a ArchivedFileList,
    number: usize,
}

impl<'a> Dir<'a> {
    /// Returns the directory's number, breadth first. The root is 0.
    pub fn number(&self) -> u32 {
        self.number as u32
    }

    /// Returns the row of the directory's own entry.
    pub fn row(&self) -> u32 {
        self.list.dir_row.get(self.number).map_or(0, |row| row.to_native())
    }

    /// Returns the number of the parent directory. For the root, returns the root.
    pub fn parent(&self) -> u32 {
        let parent = self.list.dir_parent.get(self.number).map_or(0, |parent| parent.to_native());
        // A parent has a smaller number, so the way up ends even if the disk has changed the list.
        if (parent as usize) < self.number { parent } else { 0 }
    }

    /// Returns the rows of all children in order: first non-directories, then directories.
    pub fn rows(&self) -> Range<u32> {
        self.files().start..self.subdirs().end
    }

    /// Returns the rows of the children that are not directories.
    pub fn files(&self) -> Range<u32> {
        let rows = self.list.mode.len() as u32;
        let first = self.list.dir_first.get(self.number).map_or(0, |first| first.to_native()).min(rows);
        let files = self.list.dir_files.get(self.number).map_or(0, |files| files.to_native());
        first..first.saturating_add(files).min(rows)
    }

    /// Returns the rows of the children that are directories.
    pub fn subdirs(&self) -> Range<u32> {
        let end = self.files().end;
        let dirs = self.list.dir_dirs.get(self.number).map_or(0, |dirs| dirs.to_native());
        end..end.saturating_add(dirs).min(self.list.mode.len() as u32)
    }

    /// Returns the name of a child, given its row.
    pub fn name_of(&self, row: u32) -> &'a [u8] {
        let names = self.list.dir_names.get(self.number).map_or(0, |names| names.to_native() as usize);
        let end =
            |row: usize| self.list.name_end.get(row).map_or(0, |end| names.saturating_add(end.to_native() as usize));
        let start = if row == self.files().start { names } else { end((row as usize).wrapping_sub(1)) };
        self.list.names.get(start..end(row as usize)).unwrap_or_default()
    }

    /// Returns the children with their names, in order.
    pub fn children(self) -> impl ExactSizeIterator<Item = (&'a [u8], Row<'a>)> {
        let list = self.list;
        self.rows().map(move |row| (self.name_of(row), Row::new(list, row)))
    }

    /// Returns the child with this name.
    pub fn child(&self, name: &[u8]) -> Option<Row<'a>> {
        let row = search(self.files(), |row| self.name_of(row).cmp(name))
            .or_else(|| search(self.subdirs(), |row| order::directories(self.name_of(row), name)))?;
        Some(Row::new(self.list, row))
    }

    /// Returns the directory's path, relative to the root.
    pub fn path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = *self;
        while at.number != 0 {
            let parent = Dir { list: self.list, number: at.parent() as usize };
            names.push(parent.name_of(at.row()));
            at = parent;
        }
        names.reverse();
        names.join(&b'/')
    }
}

/// Searches sorted rows by bisection. `compare` orders a row relative to the wanted one.
pub(super) fn search(rows: Range<u32>, compare: impl Fn(u32) -> std::cmp::Ordering) -> Option<u32> {
    let (mut low, mut high) = (rows.start, rows.end);
    while low < high {
        let middle = low + (high - low) / 2;
        match compare(middle) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => return Some(middle),
        }
    }
    None
}
