//! The facts about a list's entries that hold on this host only: each file's identity on disk, and the place of its
//! record in the store's packs. The layout is described in `docs/index-format.md`.
//!
//! A writer fills a [`LocalTable`] row by row and encodes it. A reader checks the [`Header`] and the checksum, then calls
//! [`open_body`] to get a [`LocalRef`].

use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};
use thiserror::Error;
use twox_hash::XxHash3_128;

use crate::codec::{DecodeError, Reader};
use crate::entry::{Digest, Time};

/// The first bytes of an encoded table.
pub const MAGIC: [u8; 8] = *b"SMLOCAL\n";
/// The version of the format.
pub const VERSION: u16 = 4;
/// The previous version of the format, which can still be read. It has absolute device numbers and no link counts.
pub const ABSOLUTE_DEVICES: u16 = 3;
/// The length of the header in bytes. The archived body begins here.
pub const HEADER_BYTES: usize = 80;

/// The device of an entry, relative to the root's device. Absolute device numbers change when a host reboots or a file
/// system is mounted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum RelativeDevice {
    /// The root's own device.
    #[default]
    Roots,
    /// Another device: a mount below the root, or a subvolume.
    Another,
}

impl RelativeDevice {
    /// Compares an entry's device with the root's. Both are `st_dev` numbers.
    pub fn of(device: u64, root: u64) -> Self {
        if device == root { Self::Roots } else { Self::Another }
    }
}

/// The identity of a file's state on this host. The content can be the indexed one only if the identity is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Identity {
    /// The device, relative to the root's.
    pub device: RelativeDevice,
    /// The inode number.
    pub inode: u64,
    /// The time of the inode's last change, or [`Identity::NO_CTIME`].
    pub ctime: Time,
}

impl Identity {
    /// Stands for a ctime that is not known, which no file has. With a known inode, it is of no significance: the tree is
    /// one of several snapshots that share inodes, and the ctime changes whenever one of them is made or removed.
    pub const NO_CTIME: Time = Time { sec: i64::MIN, nsec: 0 };

    /// The identity of a file of which nothing is known.
    pub const UNKNOWN: Identity = Identity { device: RelativeDevice::Roots, inode: 0, ctime: Self::NO_CTIME };

    /// Returns a key that all names of one inode share. Two inodes on different devices below the root may have the same
    /// key, because relative devices do not tell them apart.
    pub fn inode_key(&self) -> (RelativeDevice, u64) {
        (self.device, self.inode)
    }
}

/// How the pool of a generation keeps a file's content. It is of no significance in a generation without a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Pooled {
    /// As a copy that shares its blocks with the file, by the content's digest.
    #[default]
    Copy,
    /// As a hard link to the file, by its inode and its state. The link counts among the inode's names.
    Link,
    /// Not at all, although it should.
    No,
}

/// One element of the column `standing`: the entry's device, the number of names of its inode, whether it is rotten, and
/// how the pool keeps it.
#[derive(Debug, Clone, Copy)]
struct Standing(u64);

impl Standing {
    const ANOTHER_DEVICE: u64 = 1 << 32;
    const ROTTEN: u64 = 1 << 33;
    const LINKED: u64 = 1 << 34;
    const UNPOOLED: u64 = 1 << 35;

    fn of(device: RelativeDevice, links: Option<u32>) -> Self {
        let device = if device == RelativeDevice::Another { Self::ANOTHER_DEVICE } else { 0 };
        Self(u64::from(links.unwrap_or(0)) | device)
    }

    fn device(self) -> RelativeDevice {
        if self.0 & Self::ANOTHER_DEVICE == 0 { RelativeDevice::Roots } else { RelativeDevice::Another }
    }

    fn is_rotten(self) -> bool {
        self.0 & Self::ROTTEN != 0
    }

    fn pooled(self) -> Pooled {
        match (self.0 & Self::LINKED != 0, self.0 & Self::UNPOOLED != 0) {
            (_, true) => Pooled::No,
            (true, false) => Pooled::Link,
            (false, false) => Pooled::Copy,
        }
    }

    fn links(self) -> Option<u32> {
        Some(self.0 as u32).filter(|&links| links > 0)
    }
}

/// The length of one check in a record, in bytes.
pub const CHECK_BYTES: u64 = 8;
/// The number of bytes of block checksums that one check covers. Receivers ask for ranges of block checksums. To check a
/// range, only the rest of the parts at its two ends has to be read in addition.
pub const SUMS_PER_CHECK: u64 = 64 << 10;

/// The place of a file's record in the store's packs. A record consists of the file's block checksums, followed by the
/// content of a small file, each followed by its checks. Either may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct RecordAt {
    /// The pack's number. 0 stands for "no record".
    pub pack: u32,
    /// The offset in the pack, in bytes.
    pub offset: u64,
    /// The number of bytes of block checksums.
    pub sums: u64,
    /// The number of bytes of content: the file's size, or 0 if the content is not kept.
    pub content: u32,
}

impl RecordAt {
    /// Returns the length of the record in bytes, including its checks.
    pub fn len(&self) -> u64 {
        let content = if self.content == 0 { 0 } else { u64::from(self.content) + CHECK_BYTES };
        self.content_start().saturating_add(content)
    }

    /// Returns whether the record has neither block checksums nor content.
    pub fn is_empty(&self) -> bool {
        self.sums == 0 && self.content == 0
    }

    /// Returns the offset of the content in the record, in bytes.
    pub fn content_start(&self) -> u64 {
        let checks = self.sums.div_ceil(SUMS_PER_CHECK).saturating_mul(CHECK_BYTES);
        self.sums.saturating_add(checks)
    }
}

/// Local facts as columns. They have one element per row of the list, or per regular file for the columns of records.
#[derive(Debug, Default, Archive, Serialize)]
pub struct LocalTable {
    /// [`Standing`]s. In a table of version [`ABSOLUTE_DEVICES`], device numbers.
    standing: Vec<u64>,
    inode: Vec<u64>,
    ctime_sec: Vec<i64>,
    ctime_nsec: Vec<u32>,
    record_pack: Vec<u32>,
    record_offset: Vec<u64>,
    record_sums: Vec<u64>,
    record_content: Vec<u32>,
}

/// Why an encoded table is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LocalError {
    /// The bytes are not a table, or one of another format version.
    #[error("not a table of local facts of format {VERSION}")]
    Format,
    /// The header does not decode.
    #[error("local facts header: {0}")]
    Header(#[from] DecodeError),
    /// The table is damaged or truncated.
    #[error("local facts are damaged (checksum or length differs)")]
    Checksum,
    /// The body is not an archived table, or its columns do not fit the list.
    #[error("local facts do not fit the file list")]
    Columns,
}

/// The fixed header of an encoded table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The version of the format: [`VERSION`] or [`ABSOLUTE_DEVICES`].
    pub version: u16,
    /// The length of the body, which follows the header, in bytes.
    pub body_len: u64,
    /// The XXH3-128 checksum of the body.
    pub checksum: u128,
    /// The digest of the list that the rows belong to.
    pub list_digest: Digest,
}

impl Header {
    /// Decodes the header from the first [`HEADER_BYTES`] bytes of a table.
    pub fn decode(bytes: &[u8]) -> Result<Self, LocalError> {
        let mut reader = Reader::new(bytes);
        if reader.array("magic")? != MAGIC {
            return Err(LocalError::Format);
        }
        let version = reader.u16("version")?;
        if !matches!(version, VERSION | ABSOLUTE_DEVICES) {
            return Err(LocalError::Format);
        }
        reader.take("reserved", 6)?;
        Ok(Self {
            version,
            body_len: reader.u64("body length")?,
            checksum: u128::from_le_bytes(reader.array("checksum")?),
            list_digest: Digest(reader.array("list digest")?),
        })
    }
}

impl LocalTable {
    /// Creates an empty table with room for `rows` rows, of which `files` are regular files.
    pub fn with_capacity(rows: usize, files: usize) -> Self {
        Self {
            standing: Vec::with_capacity(rows),
            inode: Vec::with_capacity(rows),
            ctime_sec: Vec::with_capacity(rows),
            ctime_nsec: Vec::with_capacity(rows),
            record_pack: Vec::with_capacity(files),
            record_offset: Vec::with_capacity(files),
            record_sums: Vec::with_capacity(files),
            record_content: Vec::with_capacity(files),
        }
    }

    /// Appends the facts of the next row. `links` is the number of names of its inode, if known. `record` must be `Some`
    /// for regular files and `None` for all other types.
    pub fn push(&mut self, identity: Identity, links: Option<u32>, record: Option<RecordAt>) {
        self.standing.push(Standing::of(identity.device, links).0);
        self.inode.push(identity.inode);
        self.ctime_sec.push(identity.ctime.sec);
        self.ctime_nsec.push(identity.ctime.nsec);
        if let Some(RecordAt { pack, offset, sums, content }) = record {
            self.record_pack.push(pack);
            self.record_offset.push(offset);
            self.record_sums.push(sums);
            self.record_content.push(content);
        }
    }

    /// Marks the row that was appended last as rotten: the file is in the state given for it, but its content is not the
    /// one in the list. [`LocalRef::identity`] is unknown for such a row.
    pub fn mark_rotten(&mut self) {
        if let Some(last) = self.standing.last_mut() {
            *last |= Standing::ROTTEN;
        }
    }

    /// Sets how the pool keeps the row that was appended last.
    pub fn mark_pooled(&mut self, pooled: Pooled) {
        if let Some(last) = self.standing.last_mut() {
            *last |= match pooled {
                Pooled::Copy => 0,
                Pooled::Link => Standing::LINKED,
                Pooled::No => Standing::UNPOOLED,
            };
        }
    }

    /// Encodes the table for the list with this digest.
    pub fn encode(&self, list_digest: Digest) -> AlignedVec {
        let mut out = AlignedVec::with_capacity(28 * self.inode.len() + 24 * self.record_pack.len() + 1024);
        out.extend_from_slice(&[0; HEADER_BYTES]);
        // Serializing plain columns into memory cannot fail.
        let Ok(mut out) = rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Panic>(self, out);
        let (header, body) = out.split_at_mut(HEADER_BYTES);
        header[..8].copy_from_slice(&MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&(body.len() as u64).to_le_bytes());
        header[24..40].copy_from_slice(&XxHash3_128::oneshot(body).to_le_bytes());
        header[40..72].copy_from_slice(&list_digest.0);
        out
    }
}

/// Opens an archived body whose header and checksum the caller has checked. `version` is the header's; `entries` and
/// `files` are the list's numbers of entries and of regular files. Fails if the columns do not have these lengths.
pub fn open_body(body: &[u8], version: u16, entries: u32, files: u32) -> Result<LocalRef<'_>, LocalError> {
    let table = rkyv::access::<ArchivedLocalTable, rkyv::rancor::Error>(body).map_err(|_| LocalError::Columns)?;
    let rows = [table.standing.len(), table.inode.len(), table.ctime_sec.len(), table.ctime_nsec.len()];
    let records =
        [table.record_pack.len(), table.record_offset.len(), table.record_sums.len(), table.record_content.len()];
    if rows.iter().any(|&len| len != entries as usize) || records.iter().any(|&len| len != files as usize) {
        return Err(LocalError::Columns);
    }
    let first = table.standing.first().map_or(0, |device| device.to_native());
    Ok(LocalRef::new(table, (version == ABSOLUTE_DEVICES).then_some(first)))
}

impl std::fmt::Debug for LocalRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalRef").field("rows", &self.table.inode.len()).finish()
    }
}

/// Local facts in their archived form.
#[derive(Clone, Copy)]
pub struct LocalRef<'a> {
    table: &'a ArchivedLocalTable,
    /// The root's device number, if the table has absolute device numbers.
    root_device: Option<u64>,
}

impl<'a> LocalRef<'a> {
    /// Creates a view of a table that [`open_body`] has checked, with the [`LocalRef::root_device`] from that call.
    pub fn new(table: &'a ArchivedLocalTable, root_device: Option<u64>) -> Self {
        Self { table, root_device }
    }

    /// Returns the root's device number, if the table is of version [`ABSOLUTE_DEVICES`].
    pub fn root_device(&self) -> Option<u64> {
        self.root_device
    }

    fn standing(&self, row: u32) -> Standing {
        let stored = self.table.standing.get(row as usize).map_or(0, |standing| standing.to_native());
        match self.root_device {
            Some(root) => Standing::of(RelativeDevice::of(stored, root), None),
            None => Standing(stored),
        }
    }

    /// Returns the number of names that the inode of the entry at `row` had. `None` if it is unknown.
    pub fn links(&self, row: u32) -> Option<u32> {
        self.standing(row).links()
    }

    /// Returns whether the file at `row` is rotten: it was found in the state [`LocalRef::last_seen`], but with a
    /// different content than the list says.
    pub fn is_rotten(&self, row: u32) -> bool {
        self.standing(row).is_rotten()
    }

    /// Returns how the pool keeps the file at `row`.
    pub fn pooled(&self, row: u32) -> Pooled {
        self.standing(row).pooled()
    }

    /// Returns the identity that the entry at `row` has as long as it is the indexed one. It is
    /// [`Identity::UNKNOWN`] for a rotten file.
    pub fn identity(&self, row: u32) -> Identity {
        if self.is_rotten(row) { Identity::UNKNOWN } else { self.last_seen(row) }
    }

    /// Returns the identity that the entry at `row` had when the indexer last looked at it, rotten or not.
    pub fn last_seen(&self, row: u32) -> Identity {
        let at = row as usize;
        let sec = self.table.ctime_sec.get(at).map_or(0, |sec| sec.to_native());
        let nsec = self.table.ctime_nsec.get(at).map_or(0, |nsec| nsec.to_native());
        Identity {
            device: self.standing(row).device(),
            inode: self.table.inode.get(at).map_or(0, |inode| inode.to_native()),
            ctime: Time { sec, nsec },
        }
    }

    /// Returns the place of a regular file's record, given its [`crate::list::Row::file_number`]. `None` if it has none.
    pub fn record(&self, file: u32) -> Option<RecordAt> {
        let at = file as usize;
        let pack = self.table.record_pack.get(at)?.to_native();
        let offset = self.table.record_offset.get(at)?.to_native();
        let sums = self.table.record_sums.get(at)?.to_native();
        let content = self.table.record_content.get(at)?.to_native();
        (pack != 0).then_some(RecordAt { pack, offset, sums, content })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes the table and reads its rows back as a table of `version`.
    fn facts(table: &LocalTable, version: u16) -> Vec<(Identity, Option<u32>)> {
        let encoded = table.encode(Digest::NONE);
        let rows = table.inode.len() as u32;
        let facts = open_body(&encoded[HEADER_BYTES..], version, rows, 0).unwrap();
        (0..rows).map(|row| (facts.identity(row), facts.links(row))).collect()
    }

    fn identity(device: u64, root: u64) -> Identity {
        Identity { device: RelativeDevice::of(device, root), inode: 7, ctime: Time { sec: -1, nsec: 9 } }
    }

    #[test]
    fn the_table_does_not_depend_on_absolute_device_numbers() {
        let table = |root: u64, mount: u64| {
            let mut table = LocalTable::default();
            table.push(identity(root, root), Some(3), None);
            table.push(identity(mount, root), None, None);
            table.encode(Digest::NONE).to_vec()
        };
        assert_eq!(table(0x801, 0x802), table(0x1_0000_0007, 0));
        assert_ne!(table(1, 1), table(1, 2));
    }

    #[test]
    fn device_and_link_count_survive_encoding() {
        let mut table = LocalTable::default();
        let rows = [
            (identity(1, 1), Some(1)),
            (identity(2, 1), Some(u32::MAX)),
            (identity(2, 1), None),
            (Identity::UNKNOWN, None),
        ];
        rows.iter().for_each(|(identity, links)| table.push(*identity, *links, None));
        assert_eq!(facts(&table, VERSION), rows);
    }

    #[test]
    fn the_identity_of_a_rotten_file_is_unknown() {
        let mut table = LocalTable::default();
        table.push(identity(2, 1), Some(5), None);
        table.mark_rotten();
        table.push(identity(1, 1), Some(5), None);
        let encoded = table.encode(Digest::NONE);
        let facts = open_body(&encoded[HEADER_BYTES..], VERSION, 2, 0).unwrap();
        assert_eq!((facts.is_rotten(0), facts.identity(0)), (true, Identity::UNKNOWN));
        assert_eq!((facts.last_seen(0), facts.links(0)), (identity(2, 1), Some(5)));
        assert_eq!((facts.is_rotten(1), facts.identity(1)), (false, identity(1, 1)));
    }

    #[test]
    fn how_the_pool_keeps_a_file_survives_encoding_and_changes_nothing_else() {
        let mut table = LocalTable::default();
        let all = [Pooled::Copy, Pooled::Link, Pooled::No];
        for pooled in all {
            table.push(identity(2, 1), Some(5), None);
            table.mark_rotten();
            table.mark_pooled(pooled);
        }
        let encoded = table.encode(Digest::NONE);
        let facts = open_body(&encoded[HEADER_BYTES..], VERSION, 3, 0).unwrap();
        for (row, pooled) in (0..).zip(all) {
            assert_eq!((facts.pooled(row), facts.is_rotten(row)), (pooled, true));
            assert_eq!((facts.last_seen(row), facts.links(row)), (identity(2, 1), Some(5)));
        }
    }

    #[test]
    fn absolute_devices_are_read_relative_to_the_first_row() {
        let mut table = LocalTable::default();
        [40, 40, 41].iter().for_each(|_| table.push(identity(0, 0), None, None));
        table.standing = vec![40, 40, 41];
        let read = facts(&table, ABSOLUTE_DEVICES);
        assert_eq!(read, [(identity(40, 40), None), (identity(40, 40), None), (identity(41, 40), None)]);
    }
}
