//! What the local tree holds of what is wanted: found on the disk, or believed of the last pull.

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

use crate::error::{At as _, PullError};
use crate::local::{self, Stat, Tree, same_time};
use crate::owners::OwnerMap;
use crate::report::{Check, Progress};
use crate::selection::{Selection, WantedDir};

/// The generation that the last pull left: its list has the local tree's root as its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held<'a> {
    pub(crate) list: ListRef<'a>,
    pub(crate) local: LocalRef<'a>,
}

/// What is there.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// The tree's root.
    pub(crate) root: Option<Fact>,
    /// One element for each of [`Selection::rows`]; None: nothing has the name.
    pub(crate) rows: Vec<Option<Fact>>,
    /// Names that the list does not have, in directories that it has.
    pub(crate) extra: Vec<Extra>,
}

impl Facts {
    /// How many names it takes to delete all that the list does not have.
    pub(crate) fn count_extra(&self, tree: &Tree) -> Result<u64, PullError> {
        let count = |extra: &Extra| match extra.is_dir {
            true => tree.count(&extra.path).at("read", tree.shown(&extra.path)),
            false => Ok(1),
        };
        self.extra.iter().map(count).sum()
    }
}

/// What is at the path of a wanted row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) kind: FileType,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) identity: Identity,
    /// It is of the wanted type and has the wanted content (or target, or device number).
    pub(crate) content: bool,
    /// It has the wanted mode, owner and time.
    pub(crate) metadata: bool,
    /// Its inode has more than one name: what happens to another one changes this one's ctime.
    pub(crate) shared: bool,
}

/// A local name that the list does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extra {
    pub(crate) path: Vec<u8>,
    pub(crate) is_dir: bool,
    /// Size and time of a regular file.
    pub(crate) file: Option<(u64, Time)>,
}

/// How to look.
pub(crate) struct Looking<'a> {
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) held: Option<Held<'a>>,
    pub(crate) owners: &'a OwnerMap,
    pub(crate) check: Check,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a CancellationToken,
}

impl Looking<'_> {
    /// Looks at the disk, on all threads of the current rayon pool. None for the tree: it is not there.
    pub(crate) fn look(&self, tree: Option<&Tree>) -> Result<Facts, PullError> {
        let Some(tree) = tree else { return Ok(self.nothing()) };
        let found: Vec<Found> =
            self.selection.dirs.par_iter().map(|place| self.look_in(tree, place)).collect::<Result<_, _>>()?;
        let root = local::stat(tree.root(), b".").at("stat", tree.shown(b""))?;
        let mut facts = self.nothing();
        facts.root = Some(self.judge(tree, self.selection.list.row(self.selection.root.row()), &root, true));
        for Found { rows, extra } in found {
            facts.extra.extend(extra);
            for (index, fact) in rows {
                facts.rows[index] = Some(fact);
            }
        }
        Ok(facts)
    }

    /// Believes that the tree is as the last pull left it.
    pub(crate) fn believe(&self, held: Held<'_>) -> Facts {
        let mut facts = self.nothing();
        facts.root = Some(self.believe_row(held, held.list.row(0), self.selection.list.row(self.selection.root.row())));
        for place in &self.selection.dirs {
            let before =
                held.list.find(&place.path).and_then(|row| row.dir_number()).map(|number| held.list.dir(number));
            for pair in merge(before, place.dir) {
                match pair {
                    Pair::Old(name, row) => self.note_extra(&mut facts.extra, place, name, row),
                    Pair::New(..) => {}
                    Pair::Both(_, was, is) => {
                        if let Some(index) = self.selection.index(is.number()) {
                            facts.rows[index] = Some(self.believe_row(held, was, is));
                        }
                    }
                }
            }
        }
        facts
    }

    fn nothing(&self) -> Facts {
        Facts { rows: vec![None; self.selection.rows.len()], ..Facts::default() }
    }

    fn note_extra(&self, extra: &mut Vec<Extra>, place: &WantedDir<'_>, name: &[u8], row: Row<'_>) {
        let path = path::join(&place.path, name);
        if self.selection.owns(&path, row.is_dir()) {
            let file = row.is_file().then(|| (row.size(), row.mtime()));
            extra.push(Extra { path, is_dir: row.is_dir(), file });
        }
    }

    fn believe_row(&self, held: Held<'_>, was: Row<'_>, is: Row<'_>) -> Fact {
        Fact {
            kind: was.file_type(),
            size: was.size(),
            mtime: was.mtime(),
            identity: held.local.identity(was.number()),
            content: was.has_content_of(is),
            metadata: was.mode() == is.mode()
                && was.mtime() == is.mtime()
                && self.owners.of(is).is_none_or(|_| was.owner() == is.owner()),
            shared: was.link_leader().is_some(),
        }
    }

    /// Looks at one directory.
    fn look_in(&self, tree: &Tree, place: &WantedDir<'_>) -> Result<Found, PullError> {
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
            // The list may want it so (0311, say). What it has there, and the last pull left, has known names.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => known_names(held, place.dir),
            Err(error) => return Err(error).at("read", shown()),
        };
        let looked = names.par_iter().with_min_len(64).map(|name| self.look_at(tree, place, dir.as_fd(), held, name));
        let mut found = Found::default();
        for looked in looked.collect::<Result<Vec<_>, _>>()? {
            match looked {
                Some(Looked::Row(index, fact)) => found.rows.push((index, fact)),
                Some(Looked::Extra(extra)) => found.extra.push(extra),
                None => {}
            }
        }
        self.progress.advance(found.rows.len() as u64, 0);
        Ok(found)
    }

    fn look_at(
        &self,
        tree: &Tree,
        place: &WantedDir<'_>,
        dir: BorrowedFd<'_>,
        held: Option<Dir<'_>>,
        name: &[u8],
    ) -> Result<Option<Looked>, PullError> {
        let path = path::join(&place.path, name);
        // A name that goes while we look is not there.
        let Some(stat) = local::optional(local::stat(dir, name)).at("stat", tree.shown(&path))? else {
            return Ok(None);
        };
        let row = place.dir.child(name).and_then(|row| Some((self.selection.index(row.number())?, row)));
        let Some((index, row)) = row else {
            let is_dir = stat.kind == FileType::Directory;
            let file = (stat.kind == FileType::File).then_some((stat.size, stat.mtime));
            let owned = place.dir.child(name).is_none() && self.selection.owns(&path, is_dir);
            return Ok(owned.then_some(Looked::Extra(Extra { path, is_dir, file })));
        };
        let content = stat.kind == row.file_type()
            && match stat.kind {
                FileType::File => self.has_content(dir, name, &stat, held, row).at("read", tree.shown(&path))?,
                FileType::Symlink => row.target() == Some(&local::target(dir, name).at("read", tree.shown(&path))?),
                FileType::CharDevice | FileType::BlockDevice => row.device() == Some(stat.device),
                FileType::Directory | FileType::Fifo | FileType::Socket => true,
            };
        Ok(Some(Looked::Row(index, self.judge(tree, row, &stat, content))))
    }

    /// Whether a regular file has a row's content, as far as the check looks.
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
                // What cannot be read is not right; the sender has it.
                found => Ok(found.is_ok_and(|digest| digest == row.sha256())),
            };
        }
        // The last pull knows the digest of what it left; else the quick check decides, as with rsync.
        let held = held.and_then(|held| held.child(name)).filter(stillmirror_protocol::list::Row::is_file);
        let untouched = held.filter(|held| held.size() == stat.size && same_time(stat.mtime, held.mtime()));
        Ok(match untouched {
            Some(held) => held.sha256() == row.sha256(),
            None => same_time(stat.mtime, row.mtime()),
        })
    }

    fn judge(&self, tree: &Tree, row: Row<'_>, stat: &Stat, content: bool) -> Fact {
        let mode = stat.kind == FileType::Symlink || stat.mode == row.permissions();
        let owner = self.owners.of(row).is_none_or(|owner| owner == (stat.uid, stat.gid));
        Fact {
            kind: stat.kind,
            size: stat.size,
            mtime: stat.mtime,
            identity: tree.identity(stat),
            content,
            metadata: mode && owner && same_time(stat.mtime, row.mtime()),
            shared: stat.kind != FileType::Directory && stat.names > 1,
        }
    }
}

/// The names that a directory of the list has or that the last pull left in it.
fn known_names(held: Option<Dir<'_>>, wanted: Dir<'_>) -> Vec<Vec<u8>> {
    let name = |pair| match pair {
        Pair::Old(name, _) | Pair::New(name, _) | Pair::Both(name, ..) => name,
    };
    merge(held, wanted).into_iter().map(|pair| name(pair).to_vec()).collect()
}

/// What one directory held.
#[derive(Default)]
struct Found {
    rows: Vec<(usize, Fact)>,
    extra: Vec<Extra>,
}

enum Looked {
    Row(usize, Fact),
    Extra(Extra),
}

/// SHA-256 of all of a file.
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
