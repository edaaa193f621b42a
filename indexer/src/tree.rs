//! Reads the tree on disk. Every path is resolved beneath the root, without following symlinks.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, Statx, StatxFlags};
use rustix::io::Errno;
use stillmirror_protocol::entry::{Device, Time};
use stillmirror_protocol::list::FileType;
use stillmirror_protocol::local::{Identity, RelativeDevice};
use stillmirror_store::{POOL_IN_TREE, open_beneath};

/// What `statx` tells about one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Type and permission bits.
    pub(crate) mode: u16,
    pub(crate) links: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) identity: Identity,
    /// The birth time of the inode. `None` if the file system does not tell. No system call can change it.
    pub(crate) born: Option<Time>,
    /// The number of the device that the inode is on. It is only valid during one run.
    on_device: u64,
    /// The device number that a device file stands for.
    pub(crate) device: Device,
}

impl Facts {
    pub(crate) fn file_type(&self) -> Option<FileType> {
        FileType::from_mode(u32::from(self.mode))
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.file_type() == Some(FileType::Directory)
    }

    pub(crate) fn is_file(&self) -> bool {
        self.file_type() == Some(FileType::File)
    }

    /// The device and inode numbers, which hard links share.
    pub(crate) fn inode(&self) -> (u64, u64) {
        (self.on_device, self.identity.inode)
    }

    /// Returns whether a file must have the same content in both states.
    pub(crate) fn same_content(&self, other: &Self) -> bool {
        self.is_file() && other.is_file() && self.content_key() == other.content_key()
    }

    /// Returns the facts that a file had in another state, as far as they matter for its content.
    pub(crate) fn in_state(self, identity: Identity, size: u64, mtime: Time) -> Self {
        Self { identity, size, mtime, ..self }
    }

    /// Returns whether a file must have the same content in both states, if the ctime was set by something else than a
    /// write to it.
    pub(crate) fn same_except_ctime(&self, other: &Self) -> bool {
        let identity = Identity { ctime: other.identity.ctime, ..self.identity };
        Self { identity, ..*self }.same_content(other)
    }

    fn content_key(&self) -> (u64, Time, Identity) {
        (self.size, self.mtime, self.identity)
    }
}

impl Facts {
    fn of(stat: &Statx, root_device: u64) -> Self {
        let on_device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        Self {
            mode: stat.stx_mode,
            links: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            mtime: Time { sec: stat.stx_mtime.tv_sec, nsec: stat.stx_mtime.tv_nsec },
            identity: Identity {
                device: RelativeDevice::of(on_device, root_device),
                inode: stat.stx_ino,
                ctime: Time { sec: stat.stx_ctime.tv_sec, nsec: stat.stx_ctime.tv_nsec },
            },
            born: (stat.stx_mask & StatxFlags::BTIME.bits() != 0)
                .then_some(Time { sec: stat.stx_btime.tv_sec, nsec: stat.stx_btime.tv_nsec }),
            on_device,
            device: Device { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor },
        }
    }
}

/// A tree, by its open root.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    /// The root's device number.
    device: u64,
}

impl Tree {
    /// Opens a tree. Symlinks in the path of the root itself are followed.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        let device = rustix::fs::fstat(&root)?.st_dev;
        Ok(Self { root, device })
    }

    /// The root's device number.
    pub(crate) fn device(&self) -> u64 {
        self.device
    }

    /// Opens a directory for listing. The empty path is the root.
    pub(crate) fn open_dir(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        open_beneath(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Returns whether the root has no entries except a pool.
    pub(crate) fn is_empty(&self) -> Result<bool, Errno> {
        let root = self.open_dir(b"")?;
        let mut buffer = [MaybeUninit::uninit(); 4 << 10];
        let mut entries = RawDir::new(root, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !is_dots(name) && name != POOL_IN_TREE.as_bytes() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens a regular file for reading. Does not block if something else, such as a fifo, has taken its name.
    pub(crate) fn open_file(&self, path: &[u8]) -> Result<File, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(File::from(open_beneath(&self.root, path, flags)?))
    }

    /// Returns the facts of what is at a path. `None` if nothing is there, or if the path leads through
    /// something that is not a directory.
    pub(crate) fn look(&self, path: &[u8]) -> Result<Option<Facts>, Errno> {
        match open_beneath(&self.root, path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(fd) => self.facts_of(&fd).map(Some),
            Err(error) if is_gone(error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the facts of an open file or directory.
    pub(crate) fn facts_of(&self, fd: impl AsFd) -> Result<Facts, Errno> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        Ok(Facts::of(&rustix::fs::statx(fd, c"", flags, WANTED)?, self.device))
    }

    /// Returns the facts of a name in an open directory. Does not follow a symlink.
    fn facts_at(&self, dir: impl AsFd, name: impl rustix::path::Arg) -> Result<Facts, Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        Ok(Facts::of(&rustix::fs::statx(dir, name, flags, WANTED)?, self.device))
    }

    /// Reads the target of the symlink at a path.
    pub(crate) fn target(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        target_at(open_beneath(&self.root, path, OFlags::PATH | OFlags::NOFOLLOW)?, b"")
    }
}

/// Returns whether the error means that the name no longer exists, or that its path leads through something
/// that is not a directory, such as a symlink.
pub(crate) fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

/// Returns whether a name is `.` or `..`.
fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// The fields that are requested for each entry.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Reads the target of a symlink in an open directory. With an empty name, `dir` is the symlink itself.
pub(crate) fn target_at(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// The names in one directory with their facts. It is reused from directory to directory, so that the walk
/// allocates nothing for each entry.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    names: Vec<u8>,
    children: Vec<Child>,
    /// Names that exist but could not be examined.
    pub(crate) unseen: Vec<(Vec<u8>, Errno)>,
}

/// One name of a [`Listing`].
#[derive(Debug, Clone)]
pub(crate) struct Child {
    name: Range<u32>,
    pub(crate) facts: Facts,
}

impl Listing {
    /// Reads a directory of `tree` into this listing. Keeps the names for which `wanted` returns true, given
    /// their facts.
    pub(crate) fn read(
        &mut self,
        tree: &Tree,
        dir: &OwnedFd,
        mut wanted: impl FnMut(&[u8], &Facts) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        self.names.clear();
        self.children.clear();
        self.unseen.clear();
        let mut buffer = [MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(dir, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            let bytes = name.to_bytes();
            if is_dots(bytes) {
                continue;
            }
            match tree.facts_at(dir, name).and_then(|facts| Ok(wanted(bytes, &facts)?.then_some(facts))) {
                Ok(Some(facts)) => {
                    let start = self.names.len() as u32;
                    self.names.extend_from_slice(bytes);
                    self.children.push(Child { name: start..self.names.len() as u32, facts });
                }
                Ok(None) => {}
                Err(error) if is_gone(error) => {}
                Err(error) => self.unseen.push((bytes.to_vec(), error)),
            }
        }
        let names = &self.names;
        let name = |child: &Child| &names[child.name.start as usize..child.name.end as usize];
        self.children.sort_unstable_by(|a, b| {
            stillmirror_protocol::order::siblings(name(a), a.facts.is_dir(), name(b), b.facts.is_dir())
        });
        Ok(())
    }

    /// Returns the children that are not directories and those that are, each in the list's order.
    pub(crate) fn split(&self) -> (&[Child], &[Child]) {
        self.children.split_at(self.children.partition_point(|child| !child.facts.is_dir()))
    }

    pub(crate) fn name(&self, child: &Child) -> &[u8] {
        &self.names[child.name.start as usize..child.name.end as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.children.len()
    }
}
