//! One entry of a file list, as an owned value.

use std::fmt;

/// The SHA-256 digest of a file's content or of an encoded list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// All zero bytes, which stand for "no digest". No known content has this digest.
    pub const NONE: Digest = Digest([0; 32]);

    /// Returns whether this is a digest, and not [`Digest::NONE`].
    pub fn is_some(&self) -> bool {
        *self != Self::NONE
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names of staged files are digests, so one call per byte would show in a pull of many small files.
        let digits = self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let mut hex = [0; 64];
        hex.iter_mut().zip(digits).for_each(|(hex, digit)| *hex = b"0123456789abcdef"[usize::from(digit)]);
        f.write_str(std::str::from_utf8(&hex).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds since 1970-01-01 00:00:00 UTC, negative before.
    pub sec: i64,
    /// Nanoseconds within the second, 0 to 999,999,999.
    pub nsec: u32,
}

impl Time {
    /// Returns whether `stored` is what a file system keeps of this time. Some keep seconds only, others multiples of
    /// 10 ms (exFAT), 1 µs or 100 ns (NTFS, SMB).
    pub fn is_kept_as(self, stored: Self) -> bool {
        let kept = |granularity: u32| self.nsec / granularity * granularity;
        self.sec == stored.sec && GRANULARITIES.map(kept).contains(&stored.nsec)
    }
}

/// The granularities of file times, in nanoseconds.
const GRANULARITIES: [u32; 5] = [1, 100, 1000, 10_000_000, 1_000_000_000];

/// A user and a group, by number and by name. A name is empty if the sender does not know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Owner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The user's name, up to [`crate::limits::OWNER_NAME`] bytes.
    pub user: Vec<u8>,
    /// The group's name, up to [`crate::limits::OWNER_NAME`] bytes.
    pub group: Vec<u8>,
}

/// The digests of the whole content of one regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Digests {
    /// SHA-256. Two contents are equal if their SHA-256 is.
    pub sha256: Digest,
    /// XXH128 (the low 64 bits, then the high 64 bits, each little-endian), for stock clients. Zero if the list does
    /// not carry it.
    pub xxh128: [u8; 16],
    /// MD5, for stock clients. Zero if the list does not carry it.
    pub md5: [u8; 16],
}

/// The type of an entry, with the data that belongs to the type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File {
        /// The size in bytes.
        size: u64,
        /// The digests of the content.
        digests: Digests,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// The target, 1 to [`crate::limits::TARGET`] bytes.
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

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Device {
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

/// The mode bits other than the type: permissions, setuid, setgid, sticky.
pub const PERMISSIONS: u16 = 0o7777;
/// The mode bit that allows everybody to read a file.
pub const READ_BY_OTHERS: u16 = 0o004;
/// The mode bit that allows everybody to traverse a directory.
pub const PASSED_BY_OTHERS: u16 = 0o001;

impl Kind {
    /// Returns the `S_IFMT` bits of `st_mode`.
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

    /// Returns whether this is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self, Kind::Directory)
    }
}

/// One entry, without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The permission bits only ([`PERMISSIONS`]).
    pub mode: u16,
    /// The modification time.
    pub mtime: Time,
    /// The owner.
    pub owner: Owner,
    /// The link group, if this inode has more than one name in the repository. `None` for directories. The number only
    /// joins the names within one set of changes; it is not kept.
    pub link: Option<u64>,
    /// The type, with the data that belongs to it.
    pub kind: Kind,
}

#[cfg(test)]
mod tests {
    use super::Digest;

    #[test]
    fn a_digest_is_shown_as_64_hexadecimal_digits() {
        let digest = Digest(std::array::from_fn(|at| if at == 0 { 0x0f } else { at as u8 * 8 }));
        assert_eq!(digest.to_string(), "0f08101820283038404850586068707880889098a0a8b0b8c0c8d0d8e0e8f0f8");
    }
}
