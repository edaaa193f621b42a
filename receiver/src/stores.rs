//! Protects stores: no pull writes into one, and none deletes one.
//!
//! [`refuse_bad_places`] comes before anything is written: a destination must not be a store or lie in one. Below
//! the destination there may be stores, the pull's own among them. [`Stores`] finds them: they are not entered, not
//! counted, not deleted, and nothing takes their place.
//!
//! A directory is recognised by what it contains ([`stillmirror_store::is_store`]), and the pull's own store also by
//! device and inode. Only what an earlier pull took from the sender counts as a part of the tree: if the held list
//! has the file `repository` of a directory, the directory is not a store of this host.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use stillmirror_protocol::list::{FileType, ListRef, Row};
use stillmirror_protocol::path;

use crate::error::{At as _, PullError};
use crate::facts::{Extra, Facts};
use crate::local::{self, Tree, self_and_ancestors};
use crate::plan::Plan;
use crate::selection::{STAGE, Selection};

/// The device and inode of a directory.
type Id = (u64, u64);

/// Fails if the destination is a store or lies in one, or if `store`, which may not exist yet, lies in the staging
/// directory. Writes nothing.
pub(crate) fn refuse_bad_places(dest: &Path, store: Option<&Path>) -> Result<(), PullError> {
    if let Some(store) = store {
        let staging = PullError::usage(format!(
            "the store {} is inside the staging directory of {}: give the store another directory",
            store.display(),
            dest.display()
        ));
        if let Some(stage) = open(&stage_of(dest)) {
            let stage = id(stage.as_fd()).at("stat", dest)?;
            if open(store).is_some_and(|store| ancestors(store).any(|(_, id)| id == stage)) {
                return Err(staging);
            }
        }
        // Of directories that do not exist yet, only the names can be compared.
        let (dest, store) = (resolved(dest), resolved(store));
        if dest.starts_with(&store) {
            return Err(inside(&dest, &store));
        }
        if store.starts_with(stage_of(&dest)) {
            return Err(staging);
        }
    }
    let own = store.map(own_directories).transpose()?.unwrap_or_default();
    // If the destination does not exist yet, it will be created in its parent.
    let parent = dest.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (place, opened) = match open(dest) {
        Some(opened) => (dest, Some(opened)),
        None => (parent, open(parent)),
    };
    let Some(opened) = opened else { return Ok(()) };
    for (height, (dir, id)) in ancestors(opened).enumerate() {
        let is_own = own.contains(&id);
        if is_own || stillmirror_store::is_store(&dir).unwrap_or(false) {
            let real = place.canonicalize().unwrap_or_else(|_| place.to_owned());
            let found = real.ancestors().nth(height).unwrap_or(&real);
            return Err(inside(dest, store.filter(|_| is_own).unwrap_or(found)));
        }
    }
    Ok(())
}

fn stage_of(dest: &Path) -> PathBuf {
    dest.join(OsStr::from_bytes(STAGE))
}

fn inside(dest: &Path, store: &Path) -> PullError {
    let (is_same, dest, store) = (resolved(dest) == resolved(store), dest.display(), store.display());
    PullError::usage(match is_same {
        true => format!("the destination {dest} is the store {store}: pull into a directory outside of every store"),
        false => format!("the destination {dest} is inside the store {store}: pull into a directory outside of it"),
    })
}

/// Returns the directories of a store, as far as they exist and can be read: a bind mount may show any of them elsewhere.
fn own_directories(store: &Path) -> Result<HashSet<Id>, PullError> {
    let mut found = HashSet::new();
    let generations = store.join("generations");
    for dir in [store, &generations] {
        let Some(opened) = open(dir) else { continue };
        found.insert(id(opened.as_fd()).at("stat", dir)?);
        for (name, kind) in local::names(opened.as_fd()).unwrap_or_default() {
            if kind == Some(FileType::Directory)
                && let Some(stat) = local::optional(local::stat(opened.as_fd(), &name)).at("stat", dir)?
            {
                found.insert((stat.on_device, stat.inode));
            }
        }
    }
    Ok(found)
}

/// Returns a directory and all directories above it, each with its identity. Ends early at one that may not be
/// searched.
fn ancestors(dir: OwnedFd) -> impl Iterator<Item = (OwnedFd, Id)> {
    let mut next = id(dir.as_fd()).ok().map(|id| (dir, id));
    std::iter::from_fn(move || {
        let (dir, known) = next.take()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let above = rustix::fs::openat(&dir, "..", flags, Mode::empty()).ok();
        next = above.and_then(|above| id(above.as_fd()).ok().map(|id| (above, id))).filter(|&(_, id)| id != known);
        Some((dir, known))
    })
}

/// Opens a directory, following symlinks. `None` if there is none.
fn open(dir: &Path) -> Option<OwnedFd> {
    rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
}

fn id(dir: BorrowedFd<'_>) -> io::Result<Id> {
    local::stat(dir, b".").map(|stat| (stat.on_device, stat.inode))
}

/// Resolves the symlinks in a path whose last components may not exist.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let real = absolute.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    match real {
        Some((ancestor, real)) => match absolute.strip_prefix(ancestor) {
            Ok(missing) if !missing.as_os_str().is_empty() => real.join(missing),
            _ => real,
        },
        None => absolute,
    }
}

/// The stores below a local tree's root.
pub(crate) struct Stores<'a> {
    tree: Option<&'a Tree>,
    /// The pull's own store.
    own: Option<Id>,
    /// Local paths that are this mirror's own, and that no pull deletes.
    spared: Vec<Vec<u8>>,
    /// The list that the last pull left.
    held: Option<ListRef<'a>>,
    /// What is known of directories. Only [`Stores::contains`] uses it, before the first change.
    known: RefCell<HashMap<Vec<u8>, Place>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Missing,
    Plain,
    /// A store, or a directory in one.
    Store,
}

impl<'a> Stores<'a> {
    /// `own`: the pull's own store, if it has one. `held`: the list that the last pull left. `spared`: further paths that
    /// are not deleted.
    pub(crate) fn new(
        tree: Option<&'a Tree>,
        own: Option<&Path>,
        held: Option<ListRef<'a>>,
        spared: Vec<Vec<u8>>,
    ) -> Result<Self, PullError> {
        let own = match own.and_then(|dir| Some((dir, open(dir)?))) {
            Some((dir, opened)) => Some(id(opened.as_fd()).at("stat", dir)?),
            None => None,
        };
        Ok(Self { tree, own, spared, held, known: RefCell::default() })
    }

    /// Returns whether a store is at a path that is about to be deleted. A directory that cannot be examined counts as
    /// one.
    pub(crate) fn is_at(&self, path: &[u8]) -> bool {
        let Some(tree) = self.tree else { return false };
        let dir = match local::optional(tree.dir(path)) {
            Ok(Some(dir)) => dir,
            Ok(None) => return false,
            Err(_) => return true,
        };
        match self.is_store(path, dir.as_fd()) {
            // Without root, the owner of a directory may lack the permission, and deleting gives it anyway.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                local::make_writable(dir.as_fd());
                self.is_store(path, dir.as_fd()).unwrap_or(true)
            }
            found => found.unwrap_or(true),
        }
    }

    fn is_store(&self, path: &[u8], dir: BorrowedFd<'_>) -> io::Result<bool> {
        let is_own = match self.own {
            Some(own) => id(dir)? == own,
            None => false,
        };
        Ok(is_own || (stillmirror_store::is_store(dir)? && !self.was_pulled(path)))
    }

    fn was_pulled(&self, path: &[u8]) -> bool {
        let marker = path::join(path, b"repository");
        self.held.and_then(|held| held.find(&marker)).is_some_and(|row| row.is_file())
    }

    /// Returns whether a directory is a store or lies in one.
    fn contains(&self, dir: &[u8]) -> bool {
        self.place(dir) == Place::Store
    }

    fn place(&self, dir: &[u8]) -> Place {
        let Some(tree) = self.tree.filter(|_| !dir.is_empty()) else { return Place::Plain };
        if let Some(&known) = self.known.borrow().get(dir) {
            return known;
        }
        let place = match self.place(path::split(dir).0) {
            Place::Plain => match local::optional(tree.dir(dir)) {
                Ok(None) => Place::Missing,
                // What may not be searched is not entered either.
                Ok(Some(opened)) if self.is_store(dir, opened.as_fd()).unwrap_or(false) => Place::Store,
                _ => Place::Plain,
            },
            above => above,
        };
        self.known.borrow_mut().insert(dir.to_vec(), place);
        place
    }

    /// Returns whether a local name is a store or in one.
    pub(crate) fn protects(&self, extra: &Extra) -> bool {
        self.contains(if extra.is_dir { &extra.path } else { path::split(&extra.path).0 })
    }

    /// Returns the paths of the stores whose places a plan needs.
    pub(crate) fn in_the_way_of(&self, plan: &Plan, selection: &Selection<'_>) -> HashSet<Vec<u8>> {
        let mut found = HashSet::new();
        for row in plan.rows() {
            let path = selection.path(row);
            let dir = if selection.list.row(row).is_dir() { &path[..] } else { path::split(&path).0 };
            if self.contains(dir) {
                found.extend(self_and_ancestors(dir).find(|dir| self.contains(dir)).map(<[u8]>::to_vec));
            }
        }
        found
    }

    /// Returns how many names are deleted with the extras that a pull deletes.
    pub(crate) fn count_doomed(&self, facts: &Facts) -> Result<u64, PullError> {
        let count = |extra: &Extra| if extra.is_dir { self.count(&extra.path) } else { Ok(1) };
        facts.extra.iter().filter(|extra| extra.fate.is_doomed()).map(count).sum()
    }

    /// Returns how many names would be deleted with `path`: the path itself and everything visible below it, without
    /// stores, spared files and the directories that contain them.
    pub(crate) fn count(&self, path: &[u8]) -> Result<u64, PullError> {
        self.count_below(path).map(|(count, _)| count)
    }

    /// Returns whether there is a store or a spared file at or below a path.
    pub(crate) fn are_below(&self, path: &[u8]) -> Result<bool, PullError> {
        self.count_below(path).map(|(_, all)| !all)
    }

    /// Returns the count, and whether everything would be deleted.
    fn count_below(&self, path: &[u8]) -> Result<(u64, bool), PullError> {
        let Some(tree) = self.tree else { return Ok((1, true)) };
        let Ok(dir) = tree.dir(path) else { return Ok((1, true)) };
        if self.is_store(path, dir.as_fd()).unwrap_or(false) {
            return Ok((0, false));
        }
        let names = match local::names(dir.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok((1, true)),
            names => names.at("read", tree.shown(path))?,
        };
        drop(dir);
        let (mut count, mut all) = (0, true);
        for (name, kind) in names {
            let (below, whole) = match kind {
                _ if self.spared.iter().any(|spared| *spared == path::join(path, &name)) => (0, false),
                Some(FileType::Directory) => self.count_below(&path::join(path, &name))?,
                _ => (1, true),
            };
            count += below;
            all &= whole;
        }
        Ok((count + u64::from(all), all))
    }
}

/// Returns the rows of a selection that are at or below one of some paths.
pub(crate) fn rows_below(selection: &Selection<'_>, tops: &HashSet<Vec<u8>>) -> HashSet<u32> {
    let is_below = |dir: &[u8]| self_and_ancestors(dir).any(|dir| tops.contains(dir));
    let number = |row: Row<'_>| row.number();
    let places = selection.dirs.iter().filter(|place| is_below(&place.path));
    let rows = places.flat_map(|place| place.dir.children().map(|(_, row)| number(row)));
    rows.chain(tops.iter().filter_map(|top| selection.find(top).map(number))).collect()
}
