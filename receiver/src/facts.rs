//! Finds out which wanted entries the local tree has: by looking at the disk, or by trusting the last pull.

mod below;
mod elsewhere;
mod waiting;

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use rayon::prelude::*;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use stillmirror_protocol::changes::{Pair, merge};
use stillmirror_protocol::entry::{Digest, Time};
use stillmirror_protocol::list::{Dir, FileType, ListRef, Row};
use stillmirror_protocol::local::{Identity, LocalRef};
use stillmirror_protocol::path;
use tokio_util::sync::CancellationToken;

use crate::attributes::Attributes;
use crate::error::{At as _, PullError};
use crate::local::{self, Stat, Tree, same_time};
use crate::report::{Check, Progress};
use crate::selection::{Selection, WantedDir};

pub(crate) use below::LocalFile;
pub(crate) use elsewhere::BasisFile;
pub(crate) use waiting::Shared;

/// The generation that the last pull left. Its root is the local tree's root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held<'a> {
    pub(crate) list: ListRef<'a>,
    pub(crate) local: LocalRef<'a>,
}

/// What the local tree has.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// The tree's root.
    pub(crate) root: Option<Fact>,
    /// One element for each of [`Selection::rows`]. `None` if the name does not exist.
    pub(crate) rows: Vec<Option<Fact>>,
    /// Names that the list does not have or the slice leaves out, in directories that are wanted.
    pub(crate) extra: Vec<Extra>,
    /// Files below those of the extra names that are directories.
    pub(crate) below: Vec<LocalFile>,
    /// What the bases have at the paths of rows that have to be brought.
    pub(crate) elsewhere: HashMap<u32, Vec<BasisFile>>,
}

/// What exists at the path of a wanted row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) kind: FileType,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) identity: Identity,
    /// Whether it has the wanted type and content (or target, or device number).
    pub(crate) content_matches: bool,
    /// Whether it has the wanted mode, owner and time.
    pub(crate) metadata_matches: bool,
    /// Whether its inode has other names. A change to another name also changes this one's ctime.
    pub(crate) has_other_names: bool,
}

/// A local name that the list does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extra {
    pub(crate) path: Vec<u8>,
    pub(crate) is_dir: bool,
    /// Size and time, if it is a regular file.
    pub(crate) file: Option<(u64, Time)>,
    /// What becomes of it.
    pub(crate) fate: Fate,
}

/// What becomes of a local name that the list does not have, if this pull deletes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Fate {
    /// It is deleted.
    #[default]
    Doomed,
    /// It has waited in the journal, and is deleted.
    Due,
    /// It waits in the journal.
    Waiting,
    /// It should wait, but the journal is full. It remains, and remains listed.
    Kept,
}

impl Fate {
    /// Returns whether this pull deletes the name.
    pub(crate) fn is_doomed(self) -> bool {
        matches!(self, Self::Doomed | Self::Due)
    }
}

/// Inspects the local tree.
pub(crate) struct Inspector<'a> {
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) held: Option<Held<'a>>,
    pub(crate) attributes: &'a Attributes,
    pub(crate) check: Check,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a CancellationToken,
}

impl Inspector<'_> {
    /// Inspects the disk, on all threads of the current rayon pool. `tree` is `None` if it does not exist.
    pub(crate) fn inspect(&self, tree: Option<&Tree>) -> Result<Facts, PullError> {
        let Some(tree) = tree else { return Ok(self.empty_facts()) };
        let found: Vec<Found> =
            self.selection.dirs.par_iter().map(|place| self.inspect_dir(tree, place)).collect::<Result<_, _>>()?;
        let root = local::stat(tree.root(), b".").at("stat", tree.shown(b""))?;
        let mut facts = self.empty_facts();
        facts.root = Some(self.compare(tree, self.selection.list.row(self.selection.root.row()), &root, true));
        for Found { rows, extra } in found {
            facts.extra.extend(extra);
            for (index, fact) in rows {
                facts.rows[index] = Some(fact);
            }
        }
        Ok(facts)
    }

    /// Returns the facts of a tree that is as the last pull left it. Does not look at the disk.
    pub(crate) fn assume_unchanged(&self, held: Held<'_>) -> Facts {
        let mut facts = self.empty_facts();
        facts.root = Some(self.assume_row(held, held.list.row(0), self.selection.list.row(self.selection.root.row())));
        for place in &self.selection.dirs {
            let before =
                held.list.find(&place.path).and_then(|row| row.dir_number()).map(|number| held.list.dir(number));
            for pair in merge(before, place.dir) {
                match pair {
                    Pair::Old(name, row) => self.note_extra(&mut facts.extra, place, name, row),
                    Pair::New(..) => {}
                    Pair::Both(name, old, new) => {
                        if let Some(index) = self.selection.index(new.number()) {
                            facts.rows[index] = Some(self.assume_row(held, old, new));
                        } else if self.selection.leaves_out(new.number()) {
                            self.note_extra(&mut facts.extra, place, name, old);
                        }
                    }
                }
            }
        }
        facts
    }

    fn empty_facts(&self) -> Facts {
        Facts { rows: vec![None; self.selection.rows.len()], ..Facts::default() }
    }

    fn note_extra(&self, extra: &mut Vec<Extra>, place: &WantedDir<'_>, name: &[u8], row: Row<'_>) {
        let path = path::join(&place.path, name);
        if self.selection.owns(&path, row.is_dir()) {
            let file = row.is_file().then(|| (row.size(), row.mtime()));
            extra.push(Extra { path, is_dir: row.is_dir(), file, fate: Fate::default() });
        }
    }

    fn assume_row(&self, held: Held<'_>, old: Row<'_>, new: Row<'_>) -> Fact {
        Fact {
            kind: old.file_type(),
            size: old.size(),
            mtime: old.mtime(),
            identity: held.local.identity(old.number()),
            content_matches: old.has_content_of(new),
            metadata_matches: old.permissions() == self.attributes.mode(new)
                && old.mtime() == new.mtime()
                && self.attributes.owner(new).is_none_or(|_| old.owner() == new.owner()),
            has_other_names: old.link_leader().is_some(),
        }
    }

    /// Inspects one directory.
    fn inspect_dir(&self, tree: &Tree, place: &WantedDir<'_>) -> Result<Found, PullError> {
        if self.cancel.is_cancelled() {
            return Err(PullError::Interrupted);
        }
        let shown = || tree.shown(&place.path);
        let Some(dir) = local::optional(tree.dir(&place.path)).at("open", shown())? else {
            return Ok(Found::default());
        };
        let held = self.held.and_then(|held| Some(held.list.dir(held.list.find(&place.path)?.dir_number()?)));
        let names: Vec<Vec<u8>> = match local::names(dir.as_fd()) {
            Ok(names) => names.into_iter().map(|(name, _)| name).collect(),
            // The list may want the directory to be unreadable (0311, say). The names in it are then those
            // that the list has and those that the last pull left.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => known_names(held, place.dir),
            Err(error) => return Err(error).at("read", shown()),
        };
        let inspected =
            names.par_iter().with_min_len(64).map(|name| self.inspect_name(tree, place, dir.as_fd(), held, name));
        let mut found = Found::default();
        for inspected in inspected.collect::<Result<Vec<_>, _>>()? {
            match inspected {
                Some(Inspected::Row(index, fact)) => found.rows.push((index, fact)),
                Some(Inspected::Extra(extra)) => found.extra.push(extra),
                None => {}
            }
        }
        self.progress.advance(found.rows.len() as u64, 0);
        Ok(found)
    }

    fn inspect_name(
        &self,
        tree: &Tree,
        place: &WantedDir<'_>,
        dir: BorrowedFd<'_>,
        held: Option<Dir<'_>>,
        name: &[u8],
    ) -> Result<Option<Inspected>, PullError> {
        let path = path::join(&place.path, name);
        // A name that was removed meanwhile does not exist.
        let Some(stat) = local::optional(local::stat(dir, name)).at("stat", tree.shown(&path))? else {
            return Ok(None);
        };
        let row = place.dir.child(name).and_then(|row| Some((self.selection.index(row.number())?, row)));
        let Some((index, row)) = row else {
            let is_dir = stat.kind == FileType::Directory;
            let file = (stat.kind == FileType::File).then_some((stat.size, stat.mtime));
            let is_free = place.dir.child(name).is_none_or(|row| self.selection.leaves_out(row.number()));
            let owned = is_free && self.selection.owns(&path, is_dir);
            let fate = Fate::default();
            return Ok(owned.then_some(Inspected::Extra(Extra { path, is_dir, file, fate })));
        };
        let content = stat.kind == row.file_type()
            && match stat.kind {
                FileType::File => self.has_content(dir, name, &stat, held, row).at("read", tree.shown(&path))?,
                FileType::Symlink => row.target() == Some(&local::target(dir, name).at("read", tree.shown(&path))?),
                FileType::CharDevice | FileType::BlockDevice => row.device() == Some(stat.device),
                FileType::Directory | FileType::Fifo | FileType::Socket => true,
            };
        Ok(Some(Inspected::Row(index, self.compare(tree, row, &stat, content))))
    }

    /// Returns whether a regular file has a row's content, as far as the check can tell.
    fn has_content(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        held: Option<Dir<'_>>,
        row: Row<'_>,
    ) -> io::Result<bool> {
        if stat.size != row.size() {
            return Ok(false);
        }
        if self.check == Check::Hash {
            let found = local::open_file(dir, name, OFlags::RDONLY).and_then(|file| hash(file, self.cancel));
            return match found {
                Err(error) if self.cancel.is_cancelled() => Err(error),
                // A file that cannot be read counts as wrong; the sender has its content.
                found => Ok(found.is_ok_and(|digest| digest == row.sha256())),
            };
        }
        // The last pull knows the digest of what it left. Otherwise size and time decide, as in rsync's quick
        // check.
        let held = held.and_then(|held| held.child(name)).filter(stillmirror_protocol::list::Row::is_file);
        let untouched = held.filter(|held| held.size() == stat.size && same_time(stat.mtime, held.mtime()));
        Ok(match untouched {
            Some(held) => held.sha256() == row.sha256(),
            None => same_time(stat.mtime, row.mtime()),
        })
    }

    fn compare(&self, tree: &Tree, row: Row<'_>, stat: &Stat, content_matches: bool) -> Fact {
        let mode = stat.kind == FileType::Symlink || stat.mode == self.attributes.mode(row);
        let owner = self.attributes.owner(row).is_none_or(|owner| owner == (stat.uid, stat.gid));
        Fact {
            kind: stat.kind,
            size: stat.size,
            mtime: stat.mtime,
            identity: tree.identity(stat),
            content_matches,
            metadata_matches: mode && owner && same_time(stat.mtime, row.mtime()),
            has_other_names: stat.kind != FileType::Directory && stat.names > 1,
        }
    }
}

/// Returns the names that the list has in a directory, and those that the last pull left there.
fn known_names(held: Option<Dir<'_>>, wanted: Dir<'_>) -> Vec<Vec<u8>> {
    let name = |pair| match pair {
        Pair::Old(name, _) | Pair::New(name, _) | Pair::Both(name, ..) => name,
    };
    merge(held, wanted).into_iter().map(|pair| name(pair).to_vec()).collect()
}

/// What one directory contains.
#[derive(Default)]
struct Found {
    rows: Vec<(usize, Fact)>,
    extra: Vec<Extra>,
}

enum Inspected {
    Row(usize, Fact),
    Extra(Extra),
}

/// Returns the SHA-256 of a whole file.
pub(crate) fn hash(mut file: std::fs::File, cancel: &CancellationToken) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(Digest(hasher.finalize().into()));
        }
        if cancel.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        hasher.update(&buffer[..read]);
    }
}
