//! One entry, read from the columns.

use super::{ArchivedFileList, FLAG_LINKED, ListRef};
use crate::entry::{Device, Digest, Digests, Entry, Kind, Owner, PERMISSIONS, Time};

/// One entry of a list.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    list: &'a ArchivedFileList,
    row: usize,
}

impl<'a> Row<'a> {
    /// Returns the entry at `row`, which must be less than the list's length.
    pub(super) fn new(list: &'a ArchivedFileList, row: u32) -> Self {
        Self { list, row: row as usize }
    }

    /// Returns the entry's position in the list.
    pub fn number(&self) -> u32 {
        self.row as u32
    }

    /// Returns `st_mode`: type and permissions.
    pub fn mode(&self) -> u16 {
        self.list.mode.get(self.row).map_or(0, |mode| mode.to_native())
    }

    /// Returns the permission bits only.
    pub fn permissions(&self) -> u16 {
        self.mode() & PERMISSIONS
    }

    /// Returns the entry's type.
    pub fn file_type(&self) -> FileType {
        // A validated list has known types only. If the disk has changed a mapped page of it since, the entry counts as
        // a socket, which has nothing to send.
        FileType::from_mode(u32::from(self.mode())).unwrap_or(FileType::Socket)
    }

    /// Returns whether the entry is a regular file.
    pub fn is_file(&self) -> bool {
        self.file_type() == FileType::File
    }

    /// Returns whether the entry is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Returns the size of a regular file in bytes; 0 for other types.
    pub fn size(&self) -> u64 {
        self.list.size.get(self.row).map_or(0, |size| size.to_native())
    }

    /// Returns the modification time.
    pub fn mtime(&self) -> Time {
        let sec = self.list.mtime_sec.get(self.row).map_or(0, |sec| sec.to_native());
        Time { sec, nsec: self.list.mtime_nsec.get(self.row).map_or(0, |nsec| nsec.to_native()) }
    }

    /// Returns the number of the entry's owner, for [`ListRef::owner`].
    pub fn owner_number(&self) -> u32 {
        self.list.owner.get(self.row).map_or(0, |owner| owner.to_native())
    }

    /// Returns the entry's owner.
    pub fn owner(&self) -> Owner {
        ListRef::new(self.list).owner(self.owner_number())
    }

    /// Returns the number of this directory. `None` for other types.
    pub fn dir_number(&self) -> Option<u32> {
        self.is_dir().then(|| self.aux()).filter(|&dir| (dir as usize) < self.list.dir_row.len())
    }

    /// Returns the index of this regular file among the list's files. `None` for other types.
    pub fn file_number(&self) -> Option<u32> {
        self.is_file().then(|| self.aux()).filter(|&file| (file as usize) < self.list.sha256.len())
    }

    /// Returns the SHA-256 of a regular file's content; [`Digest::NONE`] for other types.
    pub fn sha256(&self) -> Digest {
        self.file_number().map_or(Digest::NONE, |file| ListRef::new(self.list).sha256(file))
    }

    /// Returns all digests of a regular file. `None` for other types.
    pub fn digests(&self) -> Option<Digests> {
        let file = self.file_number()? as usize;
        Some(Digests {
            sha256: self.sha256(),
            xxh128: self.list.xxh128.get(file).copied().unwrap_or_default(),
            md5: self.list.md5.get(file).copied().unwrap_or_default(),
        })
    }

    /// Returns a symlink's target. `None` for other types.
    pub fn target(&self) -> Option<&'a [u8]> {
        if self.file_type() != FileType::Symlink {
            return None;
        }
        let at = self.aux() as usize;
        let end = |at: usize| self.list.target_end.get(at).map_or(0, |end| end.to_native() as usize);
        let start = at.checked_sub(1).map_or(0, end);
        Some(self.list.targets.get(start..end(at)).unwrap_or_default())
    }

    /// Returns the number of a device. `None` for other types.
    pub fn device(&self) -> Option<Device> {
        matches!(self.file_type(), FileType::CharDevice | FileType::BlockDevice).then(|| {
            let at = self.aux() as usize;
            let major = self.list.major.get(at).map_or(0, |major| major.to_native());
            Device { major, minor: self.list.minor.get(at).map_or(0, |minor| minor.to_native()) }
        })
    }

    /// Returns whether two entries have the same type and content, as all names of one inode do.
    pub fn has_content_of(&self, other: Row<'_>) -> bool {
        self.file_type() == other.file_type()
            && self.size() == other.size()
            && self.sha256() == other.sha256()
            && self.target() == other.target()
            && self.device() == other.device()
    }

    /// Returns the row of the first name of this inode. `None` if the list has only one name of it.
    pub fn link_leader(&self) -> Option<u32> {
        if self.list.flags.get(self.row).is_none_or(|flags| flags & FLAG_LINKED == 0) {
            return None;
        }
        let row = self.row as u32;
        let at = self.list.link_row.partition_point(|other| other.to_native() < row);
        self.list.link_leader.get(at).map(|leader| leader.to_native())
    }

    /// Returns the entry as an owned value. `link` is the leader's row.
    pub fn to_entry(&self) -> Entry {
        let device = || self.device().unwrap_or_default();
        Entry {
            mode: self.permissions(),
            mtime: self.mtime(),
            owner: self.owner(),
            link: self.link_leader().map(u64::from),
            kind: match self.file_type() {
                FileType::File => Kind::File { size: self.size(), digests: self.digests().unwrap_or_default() },
                FileType::Directory => Kind::Directory,
                FileType::Symlink => Kind::Symlink { target: self.target().unwrap_or_default().to_vec() },
                FileType::CharDevice => Kind::CharDevice(device()),
                FileType::BlockDevice => Kind::BlockDevice(device()),
                FileType::Fifo => Kind::Fifo,
                FileType::Socket => Kind::Socket,
            },
        }
    }

    fn aux(&self) -> u32 {
        self.list.aux.get(self.row).map_or(0, |aux| aux.to_native())
    }
}

impl std::fmt::Debug for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Row").field(&self.row).finish()
    }
}

/// The type of an entry, without the data that belongs to the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
}

impl FileType {
    /// Returns the type in `st_mode`. `None` if it is unknown.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o100_000 => Self::File,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Symlink,
            0o020_000 => Self::CharDevice,
            0o060_000 => Self::BlockDevice,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            _ => return None,
        })
    }

    /// Returns whether this is a device, a fifo or a socket. Creating these takes privileges, or they mean nothing on
    /// another host.
    pub fn is_special(self) -> bool {
        !matches!(self, Self::File | Self::Directory | Self::Symlink)
    }
}
