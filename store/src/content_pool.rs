//! Keeps the contents that the generations of a repository refer to, so that they can be sent after the files in the
//! tree were replaced or removed.
//!
//! ```text
//! <pool>/pool                       format version and the repository, with its store if the pool is not in it
//! <pool>/dirty                      there may be contents that no generation refers to
//! <pool>/public/<2 hex>/<name>      contents that everybody on the host may read
//! <pool>/private/<2 hex>/<name>     all others; only the user of the indexer may enter
//! <pool>/tmp/                       copies that are being made
//! ```
//!
//! A content is a copy that shares its blocks with the file in the tree, where the file system can do that, and otherwise
//! a hard link. Whoever changes the pool creates `dirty` before, makes contents durable before the generation that needs
//! them is published, and removes them only after the last generation that needs them is gone. So a crash can leave
//! contents too many, which the next run removes because of `dirty`, but none too few.

mod make;
mod name;
mod place;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::beneath::open_beneath;
use crate::error::{At, StoreError};
use crate::kill_point;

use make::{Abilities, DIRECTORY, DRAFTS, MARKER, PARTS, list};
pub(crate) use name::for_each_name;
pub use name::{PoolName, has_packed};
pub use place::{POOL_IN_TREE, PoolPlace};

const DIRTY: &str = "dirty";

/// The contents of one repository.
#[derive(Debug)]
pub struct ContentPool {
    dir: OwnedFd,
    path: PathBuf,
    /// The number of the next draft.
    next: AtomicU64,
    /// Whether `dirty` exists, once that is known.
    is_dirty: OnceLock<()>,
    /// What the file system can do. Only known to writers.
    can: Abilities,
}

/// How a content was put into the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// By a copy.
    Copied,
    /// By a hard link.
    Linked,
    /// It was there before.
    Present,
}

/// A copy that is not yet in the pool. Dropping it removes it.
#[derive(Debug)]
pub struct PoolDraft<'a> {
    pool: &'a ContentPool,
    drafts: OwnedFd,
    name: String,
    file: File,
}

impl ContentPool {
    /// Opens the pool at `path` for reading. Fails if there is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        let dir = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::statat(&dir, MARKER, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self::of(dir, path, Abilities::default()))
    }

    /// Opens the pool at `path` for writing, or makes it for `owner`, which is one line of text. Returns whether it is new.
    /// Fails if it belongs to another owner, if the directory contains other files, or if its file system has neither reflinks nor hard links.
    pub fn create(path: &Path, owner: &str) -> Result<(Self, bool), StoreError> {
        let opened = Self::open_dir(path);
        let is_new = match &opened {
            Ok(dir) => !make::belongs_to(dir, path, owner)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(_) => false,
        };
        if is_new {
            make::make(path, owner)?;
        }
        let dir = if is_new { Self::open_dir(path) } else { opened }.at("open the pool", path)?;
        let can = make::probe(&dir, path)?;
        Ok((Self::of(dir, path, can), is_new))
    }

    fn of(dir: OwnedFd, path: &Path, can: Abilities) -> Self {
        Self { dir, path: path.to_owned(), next: AtomicU64::new(0), is_dirty: OnceLock::new(), can }
    }

    fn open_dir(path: &Path) -> io::Result<OwnedFd> {
        let flags = DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
    }

    /// The pool's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether there may be contents that no generation refers to.
    pub fn is_dirty(&self) -> bool {
        rustix::fs::statat(&self.dir, DIRTY, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Opens a content. With [`OFlags::PATH`], to look at its state only.
    pub fn content(&self, name: &PoolName, flags: OFlags) -> Result<OwnedFd, Errno> {
        open_beneath(&self.dir, name.path().as_bytes(), flags | OFlags::NOFOLLOW)
    }

    /// Returns whether the pool has a copy of this name.
    pub fn has_copy(&self, name: &PoolName, size: u64) -> bool {
        let stat = self.content(name, OFlags::PATH).and_then(rustix::fs::fstat);
        stat.is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size.cast_unsigned() == size
        })
    }

    /// Copies a file without copying its blocks. `Err` within `Ok` says why this file cannot be copied in this way.
    pub fn copy(&self, source: &File) -> Result<Result<PoolDraft<'_>, Errno>, StoreError> {
        if !self.can.copy {
            return Ok(Err(Errno::OPNOTSUPP));
        }
        self.mark()?;
        let name = format!("{}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed));
        let drafts = open_beneath(&self.dir, DRAFTS.as_bytes(), DIRECTORY).at("open", &self.path.join(DRAFTS))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&drafts, &name, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.at("create a copy in", &self.path)?);
        let draft = PoolDraft { pool: self, drafts, name, file };
        match rustix::fs::ioctl_ficlone(&draft.file, source) {
            Ok(()) => Ok(Ok(draft)),
            Err(error) if is_of_the_file(error) => Ok(Err(error)),
            Err(error) => Err(error).at("copy a file to", &self.path),
        }
    }

    /// Makes a hard link to an open file. `Err` within `Ok` says why there can be none to this file.
    pub fn link(&self, source: &File, name: &PoolName) -> Result<Result<Put, Errno>, StoreError> {
        if !self.can.link {
            return Ok(Err(Errno::OPNOTSUPP));
        }
        self.mark()?;
        let shown = || self.path.join(name.path());
        let (shard, last) = self.shard(name)?;
        let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(source));
        for _ in 0..2 {
            match rustix::fs::linkat(CWD, &from, &shard, &last, AtFlags::SYMLINK_FOLLOW) {
                Ok(()) => {
                    kill_point("pool-content-added");
                    return Ok(Ok(Put::Linked));
                }
                Err(Errno::EXIST) => {}
                Err(error) if is_of_the_file(error) => return Ok(Err(error)),
                Err(error) => return Err(error).at("make a hard link", &shown()),
            }
            let there = rustix::fs::statat(&shard, &last, AtFlags::SYMLINK_NOFOLLOW).at("stat", &shown())?;
            let wanted = rustix::fs::fstat(source).at("stat a file for", &self.path)?;
            if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino) {
                return Ok(Ok(Put::Present));
            }
            // The number was that of another file, which is gone.
            rustix::fs::unlinkat(&shard, &last, AtFlags::empty()).at("remove", &shown())?;
        }
        Ok(Err(Errno::EXIST))
    }

    /// Opens the directory that a name lies in, and makes it if there is none. Returns the last component, too.
    fn shard(&self, name: &PoolName) -> Result<(OwnedFd, String), StoreError> {
        let path = name.path();
        let (shard, last) = path.rsplit_once('/').unwrap_or(("", &path));
        let open = || open_beneath(&self.dir, shard.as_bytes(), DIRECTORY);
        let opened = match open() {
            Err(Errno::NOENT) => {
                let (class, shard) = shard.split_once('/').unwrap_or((shard, ""));
                let class = open_beneath(&self.dir, class.as_bytes(), DIRECTORY);
                class.and_then(|class| match rustix::fs::mkdirat(&class, shard, Mode::from_raw_mode(0o755)) {
                    Err(Errno::EXIST) => open(),
                    Err(error) => Err(error),
                    Ok(()) => {
                        let shard = open()?;
                        rustix::fs::fchmod(&shard, Mode::from_raw_mode(0o755))?;
                        Ok(shard)
                    }
                })
            }
            opened => opened,
        };
        Ok((opened.at("open", &self.path.join(shard))?, last.to_owned()))
    }

    /// Removes a content, if it is there.
    pub fn remove(&self, name: &PoolName) -> Result<(), StoreError> {
        self.mark()?;
        let path = name.path();
        let (shard, last) = path.rsplit_once('/').unwrap_or(("", &path));
        let removed = open_beneath(&self.dir, shard.as_bytes(), DIRECTORY)
            .and_then(|shard| rustix::fs::unlinkat(shard, last, AtFlags::empty()));
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).at("remove", &self.path.join(&path)),
        }
    }

    /// Removes all contents for which `is_needed` is false, and everything that is being made.
    pub fn sweep(&self, is_needed: impl Fn(&PoolName) -> bool) -> Result<(), StoreError> {
        self.mark()?;
        for (class, is_public) in name::CLASSES {
            let open = open_beneath(&self.dir, class.as_bytes(), DIRECTORY).at("open", &self.path.join(class))?;
            for shard in list(&open).at("read", &self.path.join(class))? {
                let path = self.path.join(class).join(String::from_utf8_lossy(&shard).as_ref());
                let dir = match open_beneath(&open, &shard, DIRECTORY) {
                    Err(Errno::NOTDIR | Errno::LOOP) => continue,
                    opened => opened.at("open", &path)?,
                };
                for name in list(&dir).at("read", &path)? {
                    let parsed = std::str::from_utf8(&name).ok().and_then(|name| PoolName::parse(name, is_public));
                    if parsed.is_some_and(|name| !is_needed(&name)) {
                        rustix::fs::unlinkat(&dir, &name[..], AtFlags::empty()).at("remove a content in", &path)?;
                    }
                }
            }
        }
        let drafts = open_beneath(&self.dir, DRAFTS.as_bytes(), DIRECTORY).at("open", &self.path.join(DRAFTS))?;
        for name in list(&drafts).at("read", &self.path.join(DRAFTS))? {
            let _ = rustix::fs::unlinkat(&drafts, &name[..], AtFlags::empty());
        }
        Ok(())
    }

    /// Notes that there may be contents that no generation refers to. To be called before generations are removed; all
    /// other changes do it by themselves.
    pub fn mark(&self) -> Result<(), StoreError> {
        if self.is_dirty.get().is_some() {
            return Ok(());
        }
        let path = self.path.join(DIRTY);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, DIRTY, flags, Mode::RUSR | Mode::WUSR).at("create", &path)?;
        rustix::fs::fsync(file).at("sync", &path)?;
        rustix::fs::fsync(&self.dir).at("sync", &self.path)?;
        let _ = self.is_dirty.set(());
        kill_point("pool-marked");
        Ok(())
    }

    /// Makes all contents durable. To be called before a generation that needs them is published.
    pub fn sync(&self) -> Result<(), StoreError> {
        if self.is_dirty.get().is_none() {
            return Ok(());
        }
        kill_point("before-pool-sync");
        rustix::fs::syncfs(&self.dir).at("sync", &self.path)
    }

    /// Notes that all contents are referred to.
    pub fn settle(&self) -> Result<(), StoreError> {
        kill_point("before-pool-settled");
        match rustix::fs::unlinkat(&self.dir, DIRTY, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).at("remove", &self.path.join(DIRTY)),
        }
    }

    /// Removes the pool of `owner` at `path` and everything in it. Does nothing if it is not there, or is another's.
    pub fn destroy(path: &Path, owner: &str) -> Result<(), StoreError> {
        let Ok(dir) = Self::open_dir(path) else { return Ok(()) };
        match make::belongs_to(&dir, path, owner) {
            Err(StoreError::OtherPool { .. } | StoreError::NotAPool(_)) => return Ok(()),
            belongs => drop(belongs?),
        }
        // The marker goes last, so that an interrupted removal can be continued.
        for part in PARTS {
            match fs::remove_dir_all(path.join(part)) {
                Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    return Err(error).at("remove", &path.join(part));
                }
                _ => {}
            }
        }
        fs::remove_dir_all(path).at("remove", path)
    }
}

impl PoolDraft<'_> {
    /// Puts the copy into the pool.
    pub fn keep(self, name: &PoolName) -> Result<(), StoreError> {
        let mode = if name.path().starts_with("public") { 0o444 } else { 0o400 };
        let path = || self.pool.path.join(name.path());
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode)).at("set the mode of", &path())?;
        let (shard, last) = self.pool.shard(name)?;
        rustix::fs::renameat(&self.drafts, &self.name, shard, last).at("create", &path())?;
        kill_point("pool-content-added");
        Ok(())
    }
}

impl Drop for PoolDraft<'_> {
    fn drop(&mut self) {
        // If it was renamed, there is nothing of that name.
        let _ = rustix::fs::unlinkat(&self.drafts, &self.name, AtFlags::empty());
    }
}

/// Returns whether an error only means that this one file cannot be kept in this way.
fn is_of_the_file(error: Errno) -> bool {
    matches!(
        error,
        Errno::OPNOTSUPP
            | Errno::INVAL
            | Errno::XDEV
            | Errno::PERM
            | Errno::ACCESS
            | Errno::TXTBSY
            | Errno::MLINK
            | Errno::NOTTY
            | Errno::NOENT
    )
}
