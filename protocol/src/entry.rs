//! One entry of a file list, as an owned value.

use std::fmt;

/// SHA-256, 32 bytes, of a file's content or of an encoded list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// All zero bytes: "none". No known content has it.
    pub const NONE: Digest = Digest([0; 32]);

    /// Whether this is a digest at all.
    pub fn is_some(&self) -> bool {
        *self != Self::NONE
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A point in time: seconds since 1970 (negative before), nanoseconds 0..=999,999,999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds since 1970-01-01 00:00:00 UTC.
    pub sec: i64,
    /// Nanoseconds within the second.
    pub nsec: u32,
}

/// User and group, by number and, where the sender knows it, by name (else empty).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Owner {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// User name, at most [`crate::limits::OWNER_NAME`] bytes.
    pub user: Vec<u8>,
    /// Group name, likewise.
    pub group: Vec<u8>,
}

/// The digests of one regular file's whole content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Digests {
    /// SHA-256: decides what content is.
    pub sha256: Digest,
    /// XXH128 (low 64 bits little-endian, then the high ones), for stock clients; zero when the list
    /// does not carry it.
    pub xxh128: [u8; 16],
    /// MD5, for stock clients; zero when the list does not carry it.
    pub md5: [u8; 16],
}

/// What an entry is: its type and its content.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Digests of the content.
        digests: Digests,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// The target's bytes, 1 to [`crate::limits::TARGET`].
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
}

/// A device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// Mode bits beside the type: permissions, setuid, setgid, sticky.
pub const PERMISSIONS: u16 = 0o7777;
/// Everybody may read the file.
pub const READ_BY_OTHERS: u16 = 0o004;
/// Everybody may go through the directory.
pub const PASSED_BY_OTHERS: u16 = 0o001;

impl Kind {
    /// The `S_IFMT` bits of `st_mode`.
    pub fn type_bits(&self) -> u16 {
        match self {
            Kind::File { .. } => 0o100_000,
            Kind::Directory => 0o040_000,
            Kind::Symlink { .. } => 0o120_000,
            Kind::CharDevice(_) => 0o020_000,
            Kind::BlockDevice(_) => 0o060_000,
            Kind::Fifo => 0o010_000,
            Kind::Socket => 0o140_000,
        }
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self, Kind::Directory)
    }
}

/// One entry, without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Permission bits only ([`PERMISSIONS`]).
    pub mode: u16,
    /// Modification time.
    pub mtime: Time,
    /// Owner.
    pub owner: Owner,
    /// The link group, when this inode has more than one name in the repository; never of a directory. The
    /// number only joins the names within one set of changes; it is not kept.
    pub link: Option<u64>,
    /// Type, and what belongs to it.
    pub kind: Kind,
}
