//! Copies a tree by hard links to its files.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;
use stillmirror_protocol::list::FileType;
use stillmirror_protocol::path;
use tokio_util::sync::CancellationToken;

use crate::error::{At as _, PullError};
use crate::local::{self, Stat, Tree};
use crate::report::Progress;
use crate::selection::STAGE;
use crate::stage::{self, Metadata};

/// Fills the empty tree `to` with hard links to what `from` has, in directories with the same modes, owners, times and
/// extended attributes. Runs on all threads of the current rayon pool.
pub(super) fn copy(
    from: &Tree,
    to: &Tree,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<(), PullError> {
    let copy = Copy { from, to, progress, cancel, copies_told: AtomicBool::new(false) };
    // By depth, and not by recursion, because a tree may be deeper than a stack.
    let mut levels = vec![vec![Vec::new()]];
    while let Some(level) = levels.last().filter(|level| !level.is_empty()) {
        let below: Vec<Vec<Vec<u8>>> = level.par_iter().map(|path| copy.directory(path)).collect::<Result<_, _>>()?;
        levels.push(below.concat());
    }
    // A directory gets its time after the names in it, and its mode, which may forbid changes, after everything below.
    levels.iter().rev().try_for_each(|level| level.par_iter().try_for_each(|path| copy.metadata(path)))
}

struct Copy<'a> {
    from: &'a Tree,
    to: &'a Tree,
    progress: &'a dyn Progress,
    cancel: &'a CancellationToken,
    /// Whether it was logged that a file was copied.
    copies_told: AtomicBool,
}

impl Copy<'_> {
    /// Links what is in a directory, and makes its subdirectories. Returns the paths of these.
    fn directory(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, PullError> {
        if self.cancel.is_cancelled() {
            return Err(PullError::Interrupted);
        }
        let (from, to) = self.open(path)?;
        self.refuse_store(path, &from)?;
        let names = local::names(from.as_fd()).at("read", self.from.shown(path))?;
        let mut directories = Vec::new();
        let mut linked = 0;
        for (name, kind) in names.iter().filter(|(name, _)| !path.is_empty() || name != STAGE) {
            let below = path::join(path, name);
            if *kind == Some(FileType::Directory) {
                rustix::fs::mkdirat(&to, &name[..], Mode::RWXU).at("create", self.to.shown(&below))?;
                directories.push(below);
            } else {
                self.link(&below, name, &from, &to)?;
                linked += 1;
            }
        }
        self.progress.advance(linked, 0);
        Ok(directories)
    }

    /// Gives a directory the metadata of the original.
    fn metadata(&self, path: &[u8]) -> Result<(), PullError> {
        let (from, to) = self.open(path)?;
        let stat = local::stat(from.as_fd(), b".").at("stat", self.from.shown(path))?;
        set_metadata(&from, &to, &stat).at("set the mode of", self.to.shown(path))
    }

    fn open(&self, path: &[u8]) -> Result<(OwnedFd, OwnedFd), PullError> {
        let from = self.from.dir(path).at("open", self.from.shown(path))?;
        Ok((from, self.to.dir(path).at("open", self.to.shown(path))?))
    }

    fn link(&self, path: &[u8], name: &[u8], from: &OwnedFd, to: &OwnedFd) -> Result<(), PullError> {
        match rustix::fs::linkat(from, name, to, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::XDEV) => Err(PullError::usage(format!(
                "{} is on another file system than the rest of the destination, and cannot be shared by snapshots: pull \
                 without --switch",
                self.from.shown(path).display()
            ))),
            // The inode has its maximum number of names, or this host allows no link to it.
            Err(error @ (Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP)) => {
                if !self.copies_told.swap(true, Ordering::Relaxed) {
                    let path = self.from.shown(path);
                    tracing::warn!(path = %path.display(), %error, "files that cannot get another hard link are copied");
                }
                self.file(path, name, from, to)
            }
            Err(error) => Err(error).at("link", self.from.shown(path)),
        }
    }

    /// Copies what cannot be linked: a file, or a symlink. Shares the blocks of a file where the file system can.
    fn file(&self, path: &[u8], name: &[u8], from: &OwnedFd, to: &OwnedFd) -> Result<(), PullError> {
        let shown = self.from.shown(path);
        let stat = local::stat(from.as_fd(), name).at("stat", &shown)?;
        if stat.kind == FileType::File {
            let metadata = Metadata { mode: stat.mode, owner: owner(&stat), mtime: stat.mtime };
            let source = local::open_file(from.as_fd(), name, OFlags::RDONLY).at("read", &shown)?;
            return stage::copy_into(to.as_fd(), &source, name, &metadata).at("copy", shown).map(drop);
        }
        if stat.kind == FileType::Symlink {
            let target = local::target(from.as_fd(), name).at("read", &shown)?;
            rustix::fs::symlinkat(&target[..], to, name).at("create", self.to.shown(path))?;
            return rustix::fs::utimensat(to, name, &local::times(stat.mtime), AtFlags::SYMLINK_NOFOLLOW)
                .at("set the time of", self.to.shown(path));
        }
        // The pull makes specials anew.
        Ok(())
    }

    fn refuse_store(&self, path: &[u8], dir: impl AsFd) -> Result<(), PullError> {
        match stillmirror_store::is_store(dir).at("read", self.from.shown(path))? {
            false => Ok(()),
            true => Err(PullError::usage(format!(
                "the store {} is inside the destination: with --switch, keep stores outside of it",
                self.from.shown(path).display()
            ))),
        }
    }
}

fn owner(stat: &Stat) -> Option<(u32, u32)> {
    rustix::process::geteuid().is_root().then_some((stat.uid, stat.gid))
}

/// Sets extended attributes, owner, mode and time of a directory, in this order: changing the owner may clear bits of the
/// mode.
fn set_metadata(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<()> {
    copy_attributes(from, to);
    if let Some((user, group)) = owner(stat) {
        let to = to.as_fd();
        rustix::fs::chownat(to, ".", Some(Uid::from_raw(user)), Some(Gid::from_raw(group)), AtFlags::empty())?;
    }
    local::set_mode(to.as_fd(), stat.mode)?;
    Ok(rustix::fs::utimensat(to, ".", &local::times(stat.mtime), AtFlags::empty())?)
}

/// Copies access control lists and security labels, as far as this host and the file system allow it.
fn copy_attributes(from: &OwnedFd, to: &OwnedFd) {
    let mut names = vec![0_u8; MAX_ATTRIBUTES];
    let Ok(len) = rustix::fs::flistxattr(from, &mut names[..]) else { return };
    let mut value = vec![0_u8; MAX_ATTRIBUTES];
    for name in names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if let Ok(len) = rustix::fs::fgetxattr(from, name, &mut value[..]) {
            // Best effort: without privileges, most of them cannot be set.
            let _ = rustix::fs::fsetxattr(to, name, &value[..len], XattrFlags::empty());
        }
    }
}

/// Maximum length of an extended attribute, and of the list of their names, in bytes.
const MAX_ATTRIBUTES: usize = 64 << 10;
