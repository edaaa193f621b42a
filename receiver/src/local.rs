//! Access to the disk beneath one directory, the local tree.
//!
//! Every path is opened by `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, and every change is made
//! by an `*at` call with a single name in a directory opened that way. So nothing outside the tree is read or
//! changed, whatever a list says and whatever symlinks the tree contains.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType as RawType, Mode, OFlags, RenameFlags, StatxFlags, Timespec, Timestamps};
use rustix::io::Errno;
use stillmirror_protocol::entry::{Device, Time};
use stillmirror_protocol::list::FileType;
use stillmirror_protocol::local::{Identity, RelativeDevice};
use stillmirror_protocol::path;
use stillmirror_store::Flock;

/// An opened local tree.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    /// The number of the root's device.
    device: u64,
    path: PathBuf,
    /// Whether its files have names in other trees: it is one of several snapshots.
    shares_inodes: bool,
}

/// The exclusive right to change a tree. Dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct TreeLock {
    _flock: Option<Flock<OwnedFd>>,
}

/// The result of `statx` for one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) kind: FileType,
    /// Permission bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Number of names of the inode.
    pub(crate) names: u32,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    /// The number of the device that the entry is stored on.
    pub(crate) on_device: u64,
    pub(crate) inode: u64,
    pub(crate) ctime: Time,
    /// The device that a device file represents.
    pub(crate) device: Device,
}

impl Tree {
    /// Opens the tree. The caller chose the path, so a symlink there is followed.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let device = rustix::fs::fstat(&root)?.st_dev;
        Ok(Self { root, device, path: path.to_owned(), shares_inodes: false })
    }

    /// Opens a tree whose files have names in other trees, too. An inode's mode, owner and times must then stay as they
    /// are, and its ctime says nothing about its content.
    pub(crate) fn open_snapshot(path: &Path) -> io::Result<Self> {
        Ok(Self { shares_inodes: true, ..Self::open(path)? })
    }

    /// Returns whether the tree's files have names in other trees.
    pub(crate) fn shares_inodes(&self) -> bool {
        self.shares_inodes
    }

    /// Returns the identity of an entry of this tree.
    pub(crate) fn identity(&self, stat: &Stat) -> Identity {
        let device = RelativeDevice::of(stat.on_device, self.device);
        let ctime = if self.shares_inodes { Identity::NO_CTIME } else { stat.ctime };
        Identity { device, inode: stat.inode, ctime }
    }

    /// Locks the tree for this pull. `None` if another pull holds the lock.
    pub(crate) fn lock(&self) -> io::Result<Option<TreeLock>> {
        match Flock::take(self.root.try_clone()?) {
            Ok(flock) => Ok(flock.map(|flock| TreeLock { _flock: Some(flock) })),
            Err(error) => match Errno::from_io_error(&error) {
                // The file system has no such locks, so nobody can hold one.
                Some(Errno::BADF | Errno::NOLCK | Errno::OPNOTSUPP | Errno::INVAL) => {
                    Ok(Some(TreeLock { _flock: None }))
                }
                _ => Err(error),
            },
        }
    }

    /// Returns the root's descriptor.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Returns the path of a name in the tree, for messages.
    pub(crate) fn shown(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.path.clone() } else { self.path.join(OsStr::from_bytes(path)) }
    }

    /// Opens a directory. If it is not readable, known names in it can still be used. [`make_writable`] makes
    /// its names readable too.
    pub(crate) fn dir(&self, path: &[u8]) -> io::Result<OwnedFd> {
        open_dir(self.root.as_fd(), if path.is_empty() { b"." } else { path })
    }

    /// Opens a regular file for reading. Nothing else is opened: a FIFO would block, and a device might act.
    pub(crate) fn file(&self, path: &[u8]) -> io::Result<File> {
        let file = open_beneath(self.root.as_fd(), path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW)?;
        regular(file)
    }

    /// Returns what is at a path. `None` if nothing is, or if a component is not a directory.
    pub(crate) fn stat(&self, path: &[u8]) -> io::Result<Option<Stat>> {
        self.look().stat(path)
    }

    /// Returns a view for looking at many paths.
    pub(crate) fn look(&self) -> Look<'_> {
        Look { tree: self, open: None }
    }

    /// Returns whether the root has no names, except `lost+found`, which a new file system may have.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for entry in Dir::new(rustix::fs::openat(self.root(), ".", flags, Mode::empty())?)? {
            if ![&b"."[..], b"..", b"lost+found"].contains(&entry?.file_name().to_bytes()) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Looks at one path of a tree after the other. The directory of the last path stays open.
pub(crate) struct Look<'a> {
    tree: &'a Tree,
    /// The path of that directory, and its descriptor unless it does not exist.
    open: Option<(Vec<u8>, Option<OwnedFd>)>,
}

impl Look<'_> {
    /// Like [`Tree::stat`].
    pub(crate) fn stat(&mut self, path: &[u8]) -> io::Result<Option<Stat>> {
        let (dir, name) = path::split(path);
        let opened = match self.open.take().filter(|(path, _)| path == dir) {
            Some((_, opened)) => opened,
            None => optional(self.tree.dir(dir))?,
        };
        let name = if name.is_empty() { b"." } else { name };
        let found = opened.as_ref().map_or(Ok(None), |dir| optional(stat(dir.as_fd(), name)));
        self.open = Some((dir.to_vec(), opened));
        found
    }
}

/// Opens `path` without leaving `root` and without following any symlink.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    Ok(stillmirror_store::open_beneath(root, path, flags)?)
}

fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    match open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_beneath(root, path, OFlags::PATH | OFlags::DIRECTORY)
        }
        opened => opened,
    }
}

/// Opens a regular file by its name in a directory.
pub(crate) fn open_file(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    regular(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?)
}

fn regular(file: OwnedFd) -> io::Result<File> {
    let file = File::from(file);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// Returns the status of a name in a directory. Does not follow symlinks.
pub(crate) fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Stat> {
    let wanted = StatxFlags::BASIC_STATS;
    let found = rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, wanted)?;
    let time = |at: rustix::fs::StatxTimestamp| Time { sec: at.tv_sec, nsec: at.tv_nsec };
    Ok(Stat {
        kind: FileType::from_mode(u32::from(found.stx_mode)).ok_or_else(|| io::Error::other("an unknown file type"))?,
        mode: found.stx_mode & 0o7777,
        uid: found.stx_uid,
        gid: found.stx_gid,
        names: found.stx_nlink,
        size: found.stx_size,
        mtime: time(found.stx_mtime),
        on_device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        ctime: time(found.stx_ctime),
        device: Device { major: found.stx_rdev_major, minor: found.stx_rdev_minor },
    })
}

/// Returns the time of birth of a file, zero if the file system does not know it. Unlike an inode number, it
/// is not reused.
pub(crate) fn birth(file: BorrowedFd<'_>) -> io::Result<Time> {
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME)?;
    let known = found.stx_mask & StatxFlags::BTIME.bits() != 0;
    let time = Time { sec: found.stx_btime.tv_sec, nsec: found.stx_btime.tv_nsec };
    Ok(if known { time } else { Time::default() })
}

/// Returns the names in a directory, with their types.
pub(crate) fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Option<FileType>)>> {
    let mut names = Vec::new();
    // Opened again, because the descriptor may be an `O_PATH` one, which cannot be read.
    let opened = rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::new(opened)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            RawType::Unknown => optional(stat(dir, name))?.map(|stat| stat.kind),
            kind => FileType::from_mode(kind.as_raw_mode()),
        };
        names.push((name.to_vec(), kind));
    }
    Ok(names)
}

/// Returns a symlink's target.
pub(crate) fn target(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// Renames, replacing any non-directory that has the new name.
pub(crate) fn rename(from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::renameat(from, name, to, new)?)
}

/// Renames to a name that must not exist.
pub(crate) fn rename_new(from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> io::Result<()> {
    match rustix::fs::renameat_with(from, name, to, new, RenameFlags::NOREPLACE) {
        // Some file systems do not support the flag.
        Err(Errno::INVAL | Errno::NOSYS) => rename(from, name, to, new),
        result => Ok(result?),
    }
}

/// Removes a name that is not a directory. A missing name is not an error.
pub(crate) fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    optional(rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(io::Error::from)).map(drop)
}

/// Removes an empty directory.
pub(crate) fn rmdir(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Removes a name and everything below it except the paths (relative to the name) for which `keep` returns
/// true. Returns the number of names removed. A directory remains if anything in it is kept.
pub(crate) fn remove_all(
    dir: BorrowedFd<'_>,
    name: &[u8],
    below: &[u8],
    keep: &dyn Fn(&[u8], bool) -> bool,
) -> io::Result<u64> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => return Ok(1),
        Err(Errno::NOENT) => return Ok(0),
        // For a directory, unlink(2) returns EISDIR on Linux, and EPERM according to POSIX.
        Err(Errno::ISDIR | Errno::PERM | Errno::ACCESS) => {}
        Err(error) => return Err(error.into()),
    }
    let inner = open_dir(dir, name)?;
    make_writable(inner.as_fd());
    let mut removed = 0;
    for (child, kind) in names(inner.as_fd())? {
        let path = path::join(below, &child);
        if !keep(&path, kind == Some(FileType::Directory)) {
            removed += remove_all(inner.as_fd(), &child, &path, keep)?;
        }
    }
    match rmdir(dir, name) {
        Ok(()) => Ok(removed + 1),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(removed),
        Err(error) => Err(error),
    }
}

/// Without root, gives the owner of a directory full permissions to it. Returns whether the mode changed.
pub(crate) fn make_writable(dir: BorrowedFd<'_>) -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    // If this fails, the operation that needs it reports why.
    stat(dir, b".").is_ok_and(|stat| stat.mode & 0o700 != 0o700 && set_mode(dir, stat.mode | 0o700).is_ok())
}

/// Sets the mode of an open file or directory. The descriptor may be an `O_PATH` one, for which fchmod(2)
/// does not work.
pub(crate) fn set_mode(file: BorrowedFd<'_>, mode: u16) -> io::Result<()> {
    let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::chmod(by_descriptor, Mode::from_raw_mode(mode.into()))?)
}

/// Returns times for a call that sets the modification time and leaves the access time.
pub(crate) fn times(mtime: Time) -> Timestamps {
    let mtime = Timespec { tv_sec: mtime.sec, tv_nsec: mtime.nsec.into() };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT }, last_modification: mtime }
}

/// Returns the path of a name, and before it the paths of the directories that contain it, except the root's.
pub(crate) fn self_and_ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
    ends.chain([path.len()]).map(|end| &path[..end])
}

/// Returns whether a local time is the wanted one, as far as the file system keeps it.
pub(crate) fn same_time(local: Time, wanted: Time) -> bool {
    wanted.is_kept_as(local)
}

/// Turns the error that a path does not exist into `None`.
pub(crate) fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns whether an error means that a path does not exist: nothing has the name, or a component is a file
/// or a symlink.
fn is_absence(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn symlinks_and_dots_do_not_lead_out_of_the_tree() {
        let outer = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(outer.path().join("tree/real")).unwrap();
        std::fs::write(outer.path().join("secret"), "s").unwrap();
        symlink("..", outer.path().join("tree/up")).unwrap();
        symlink("real", outer.path().join("tree/alias")).unwrap();
        symlink("../secret", outer.path().join("tree/file")).unwrap();
        let tree = Tree::open(&outer.path().join("tree")).unwrap();
        for path in [&b"up"[..], b"alias", b"..", b"real/../..", b"/tmp"] {
            assert!(tree.dir(path).is_err(), "{}", String::from_utf8_lossy(path));
        }
        assert!(tree.file(b"file").is_err() && tree.file(b"up/secret").is_err());
        assert_eq!(tree.stat(b"up/secret").unwrap(), None);
        assert_eq!(tree.stat(b"file").unwrap().unwrap().kind, FileType::Symlink);
        assert!(tree.dir(b"real").is_ok() && tree.dir(b"").is_ok());
    }

    #[test]
    fn a_lock_ends_with_its_guard_even_while_a_child_is_started() {
        let dir = tempfile::tempdir().unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Until exec, a child has all the descriptors of its parent.
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::process::Command::new("true").status().unwrap();
                }
            });
            let refused = (0..1000).filter(|_| Tree::open(dir.path()).unwrap().lock().unwrap().is_none()).count();
            over.store(true, Ordering::Relaxed);
            assert_eq!(refused, 0);
        });
        let (one, other) = (Tree::open(dir.path()).unwrap(), Tree::open(dir.path()).unwrap());
        let held = one.lock().unwrap();
        assert!(held.is_some() && other.lock().unwrap().is_none());
    }

    #[test]
    fn removing_counts_names_and_leaves_what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        for name in ["a/one", "a/b/two", "a/b/keep"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let tree = Tree::open(dir.path()).unwrap();
        let removed = remove_all(tree.root(), b"a", b"", &|path, _| path == b"b/keep").unwrap();
        assert_eq!(removed, 2);
        assert!(dir.path().join("a/b/keep").exists() && !dir.path().join("a/one").exists());
        assert_eq!(remove_all(tree.root(), b"a", b"", &|_, _| false).unwrap(), 3);
        assert_eq!(remove_all(tree.root(), b"a", b"", &|_, _| false).unwrap(), 0);
    }
}
