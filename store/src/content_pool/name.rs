//! The names of contents in a pool.

use std::fmt::Write as _;

use stillmirror_protocol::codec::{DecodeError, Reader};
use stillmirror_protocol::entry::{Digest, PASSED_BY_OTHERS, READ_BY_OTHERS, Time};
use stillmirror_protocol::list::ListRef;
use stillmirror_protocol::local::{LocalRef, Pooled, RecordAt};
use twox_hash::XxHash3_64;

/// The directories of a pool by whether everybody on the host may read what is in them.
pub(super) const CLASSES: [(&str, bool); 2] = [("public", true), ("private", false)];

/// The name of a file's content in a pool. Files with equal copies share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolName {
    /// Whether everybody on the host may read the file.
    is_public: bool,
    key: Key,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Copy(Digest),
    Link { inode: u64, mtime: Time, size: u64 },
}

impl PoolName {
    /// The name of a copy.
    pub fn of_copy(digest: Digest, is_public: bool) -> Self {
        Self { is_public, key: Key::Copy(digest) }
    }

    /// The name of a hard link to a file in this state. A link to another state of the same inode has another name,
    /// because whoever writes to the file in place writes to the link.
    pub fn of_link(inode: u64, mtime: Time, size: u64, is_public: bool) -> Self {
        Self { is_public, key: Key::Link { inode, mtime, size } }
    }

    /// Returns the name of the file at `row` of a generation with this list and these local facts. `None` if the pool
    /// does not have it: because it could not be put there, or because the packs have the content of this small file.
    pub fn of_row(list: ListRef<'_>, local: LocalRef<'_>, row: u32) -> Option<Self> {
        Self::of(list, local, row, list.is_public(row))
    }

    fn of(list: ListRef<'_>, local: LocalRef<'_>, number: u32, is_public: bool) -> Option<Self> {
        let row = list.row(number);
        let record = local.record(row.file_number()?).unwrap_or_default();
        if has_packed(&record, row.size(), is_public) {
            return None;
        }
        match local.pooled(number) {
            Pooled::Copy => Some(Self::of_copy(row.sha256(), is_public)),
            Pooled::Link => Some(Self::of_link(local.last_seen(number).inode, row.mtime(), row.size(), is_public)),
            Pooled::No => None,
        }
    }

    /// Returns whether it is the name of a hard link.
    pub fn is_link(&self) -> bool {
        matches!(self.key, Key::Link { .. })
    }

    /// Returns the path in the pool's directory.
    pub(super) fn path(&self) -> String {
        let mut path = String::from(if self.is_public { "public/" } else { "private/" });
        // Writing to a string cannot fail.
        let _ = match self.key {
            Key::Copy(digest) => digest.0.iter().enumerate().try_for_each(|(at, byte)| {
                if at == 0 { write!(path, "{byte:02x}/{byte:02x}") } else { write!(path, "{byte:02x}") }
            }),
            Key::Link { inode, mtime: Time { sec, nsec }, size } => {
                write!(path, "{:02x}/{inode},{sec},{nsec},{size}", inode & 0xff)
            }
        };
        path
    }

    /// Parses the last component of a path in the pool.
    pub(super) fn parse(name: &str, is_public: bool) -> Option<Self> {
        let parsed = if name.len() == 64 {
            let mut digest = [0; 32];
            for (at, byte) in digest.iter_mut().enumerate() {
                *byte = u8::from_str_radix(name.get(2 * at..2 * at + 2)?, 16).ok()?;
            }
            Self::of_copy(Digest(digest), is_public)
        } else {
            let mut fields = name.split(',');
            let mut next = || fields.next();
            let (inode, sec) = (next()?.parse().ok()?, next()?.parse().ok()?);
            let (nsec, size) = (next()?.parse().ok()?, next()?.parse().ok()?);
            Self::of_link(inode, Time { sec, nsec }, size, is_public)
        };
        parsed.path().ends_with(&format!("/{name}")).then_some(parsed)
    }

    /// Appends the encoded name.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let public = if self.is_public { PUBLIC } else { 0 };
        match self.key {
            Key::Copy(digest) => {
                out.push(public);
                out.extend_from_slice(&digest.0);
            }
            Key::Link { inode, mtime, size } => {
                out.push(public | LINK);
                out.extend_from_slice(&inode.to_le_bytes());
                out.extend_from_slice(&mtime.sec.to_le_bytes());
                out.extend_from_slice(&mtime.nsec.to_le_bytes());
                out.extend_from_slice(&size.to_le_bytes());
            }
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let [flags] = reader.array("flags")?;
        let is_public = flags & PUBLIC != 0;
        if flags & LINK == 0 {
            return Ok(Self::of_copy(Digest(reader.array("digest")?), is_public));
        }
        let (inode, sec) = (reader.u64("inode")?, reader.u64("seconds")?.cast_signed());
        let mtime = Time { sec, nsec: reader.u32("nanoseconds")? };
        Ok(Self::of_link(inode, mtime, reader.u64("size")?, is_public))
    }

    /// Returns a number that differs between names, except for a chance of 2⁻⁶⁴.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut encoded = Vec::with_capacity(33);
        self.encode(&mut encoded);
        XxHash3_64::oneshot(&encoded)
    }
}

/// Returns whether the packs have the whole content of a file, and the daemon sends it from there.
pub fn has_packed(record: &RecordAt, size: u64, is_public: bool) -> bool {
    is_public && size > 0 && record.pack != 0 && u64::from(record.content) == size
}

/// Calls `each` with the name of every file in a list that has one.
pub(crate) fn for_each_name(list: ListRef<'_>, local: LocalRef<'_>, mut each: impl FnMut(PoolName)) {
    // A directory's parent has a lower number.
    let mut passed = Vec::with_capacity(list.directories() as usize);
    for dir in list.dirs() {
        let is_passed = list.row(dir.row()).permissions() & PASSED_BY_OTHERS != 0;
        let above = dir.number() == 0 || passed.get(dir.parent() as usize).copied().unwrap_or(false);
        passed.push(is_passed && above);
        for row in dir.files() {
            let is_public = is_passed && above && list.row(row).permissions() & READ_BY_OTHERS != 0;
            PoolName::of(list, local, row, is_public).into_iter().for_each(&mut each);
        }
    }
}

const PUBLIC: u8 = 1;
const LINK: u8 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> impl Strategy<Value = PoolName> {
        let copy = any::<([u8; 32], bool)>().prop_map(|(digest, public)| PoolName::of_copy(Digest(digest), public));
        let link = any::<(u64, i64, u32, u64, bool)>();
        let link = link
            .prop_map(|(inode, sec, nsec, size, public)| PoolName::of_link(inode, Time { sec, nsec }, size, public));
        prop_oneof![copy, link]
    }

    proptest! {
        #[test]
        fn a_name_is_read_back_from_its_path_and_from_its_encoded_form(name in names()) {
            let path = name.path();
            let (directory, last) = path.rsplit_once('/').unwrap();
            prop_assert_eq!(directory.starts_with("public/"), name.is_public);
            prop_assert_eq!(PoolName::parse(last, name.is_public), Some(name));
            let mut encoded = Vec::new();
            name.encode(&mut encoded);
            let mut reader = Reader::new(&encoded);
            prop_assert_eq!(PoolName::decode(&mut reader).unwrap(), name);
            prop_assert!(reader.finish("name").is_ok());
        }

        #[test]
        fn what_is_not_a_name_is_not_read_as_one(name in "[0-9a-f,+-]{0,66}") {
            if let Some(parsed) = PoolName::parse(&name, true) {
                prop_assert!(parsed.path().ends_with(&name));
            }
        }
    }
}
