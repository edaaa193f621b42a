//! What only this host knows of a list's entries: where the files are on disk, and where the packs hold what is
//! kept of them. The layout is in `docs/index-format.md`.

use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};
use thiserror::Error;
use twox_hash::XxHash3_128;

use crate::codec::{DecodeError, Reader};
use crate::entry::{Digest, Time};

/// First bytes of an encoded table.
pub const MAGIC: [u8; 8] = *b"SMLOCAL\n";
/// The version of the format.
pub const VERSION: u16 = 4;
/// The version before, which is still read: it has absolute device numbers, and no link counts.
pub const ABSOLUTE_DEVICES: u16 = 3;
/// Bytes of the header; the archived body begins here.
pub const HEADER_BYTES: usize = 80;

/// The device that an entry lies on, as seen from the root. Device numbers themselves change when a host starts
/// anew or a file system is attached again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum RelativeDevice {
    /// The root's own.
    #[default]
    Roots,
    /// Another one: a mount below the root, or a subvolume.
    Another,
}

impl RelativeDevice {
    /// Where an entry on `device` lies, both numbers as the system gives them (`st_dev`).
    pub fn of(device: u64, root: u64) -> Self {
        if device == root { Self::Roots } else { Self::Another }
    }
}

/// The identity of a file's state on this host: what must be equal for the content to be the indexed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Identity {
    /// The device, relative to the root's.
    pub device: RelativeDevice,
    /// Inode number.
    pub inode: u64,
    /// Last change of the inode. `sec` of [`i64::MIN`] stands for "unknown: never equal to any".
    pub ctime: Time,
}

impl Identity {
    /// The identity of a file about which nothing is known.
    pub const UNKNOWN: Identity =
        Identity { device: RelativeDevice::Roots, inode: 0, ctime: Time { sec: i64::MIN, nsec: 0 } };

    /// What the names of one inode have in common, as far as relative devices can tell.
    pub fn inode_key(&self) -> (RelativeDevice, u64) {
        (self.device, self.inode)
    }
}

/// Where an entry lies, how many names its inode has and whether it is rotten, in one column.
#[derive(Debug, Clone, Copy)]
struct Standing(u64);

impl Standing {
    const ANOTHER_DEVICE: u64 = 1 << 32;
    const ROTTEN: u64 = 1 << 33;

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

    fn links(self) -> Option<u32> {
        Some(self.0 as u32).filter(|&links| links > 0)
    }
}

/// Bytes of one check in a record.
pub const CHECK_BYTES: u64 = 8;
/// Bytes of block checksums that one check covers. A receiver asks for ranges of them, and a range costs no more
/// reading than its own bytes and the rest of two such parts.
pub const SUMS_PER_CHECK: u64 = 64 << 10;

/// Where the record of a file lies among the store's packs: its block checksums, and behind them the content of a
/// small file, each followed by its checks. Either may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct RecordAt {
    /// The pack's number; 0 stands for "no record".
    pub pack: u32,
    /// Bytes from the pack's start.
    pub offset: u64,
    /// Bytes of block checksums.
    pub sums: u64,
    /// Bytes of content: all of the file, or 0.
    pub content: u32,
}

impl RecordAt {
    /// Bytes of the record, checks included.
    pub fn len(&self) -> u64 {
        let content = if self.content == 0 { 0 } else { u64::from(self.content) + CHECK_BYTES };
        self.content_start().saturating_add(content)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.sums == 0 && self.content == 0
    }

    /// Bytes of the record before the content.
    pub fn content_start(&self) -> u64 {
        let checks = self.sums.div_ceil(SUMS_PER_CHECK).saturating_mul(CHECK_BYTES);
        self.sums.saturating_add(checks)
    }
}

/// Local facts as columns, one element per row of the list; those of records one per regular file.
#[derive(Debug, Default, Archive, Serialize)]
pub struct LocalTable {
    /// Each a [`Standing`]; in a table of [`ABSOLUTE_DEVICES`] a device number.
    standing: Vec<u64>,
    inode: Vec<u64>,
    ctime_sec: Vec<i64>,
    ctime_nsec: Vec<u32>,
    record_pack: Vec<u32>,
    record_offset: Vec<u64>,
    record_sums: Vec<u64>,
    record_content: Vec<u32>,
}

/// A table that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LocalError {
    /// Not a table at all, or one of another format version.
    #[error("not a table of local facts of format {VERSION}")]
    Format,
    /// The header does not decode.
    #[error("local facts header: {0}")]
    Header(#[from] DecodeError),
    /// Damaged, or cut short.
    #[error("local facts are damaged (checksum or length differs)")]
    Checksum,
    /// The body is no archived table, or its columns do not fit the list.
    #[error("local facts do not fit the file list")]
    Columns,
}

/// The fixed header of an encoded table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The format: [`VERSION`] or [`ABSOLUTE_DEVICES`].
    pub version: u16,
    /// Bytes after the header.
    pub body_len: u64,
    /// XXH3-128 of the body.
    pub checksum: u128,
    /// The list that the rows belong to.
    pub list_digest: Digest,
}

impl Header {
    /// Reads the first [`HEADER_BYTES`] of a table.
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
    /// An empty table with room for so many rows, of which so many are regular files.
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

    /// Appends the facts of the next row. `links` is how many names its inode had, where that is known, and `record`
    /// is `Some` exactly for regular files.
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

    /// Notes of the file that was appended last that its content is not the list's, although it is in the state that was
    /// given for it: [`LocalRef::identity`] is unknown from now on.
    pub fn mark_rotten(&mut self) {
        if let Some(last) = self.standing.last_mut() {
            *last |= Standing::ROTTEN;
        }
    }

    /// The encoded table for the list with that digest.
    pub fn encode(&self, list_digest: Digest) -> AlignedVec {
        let mut out = AlignedVec::with_capacity(28 * self.inode.len() + 24 * self.record_pack.len() + 1024);
        out.extend_from_slice(&[0; HEADER_BYTES]);
        // Serializing plain columns into memory has no way to fail.
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

/// Checks an archived body, whose header and checksum the caller has checked, against its list's number
/// of entries and of regular files. `version` is the header's.
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
    /// The root's device number, in a table that has such numbers.
    root_device: Option<u64>,
}

impl<'a> LocalRef<'a> {
    /// A view of a table that [`open_body`] has checked, with the [`LocalRef::root_device`] that it had then.
    pub fn new(table: &'a ArchivedLocalTable, root_device: Option<u64>) -> Self {
        Self { table, root_device }
    }

    /// The root's device number, in a table of [`ABSOLUTE_DEVICES`].
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

    /// How many names the inode of the entry at `row` had, where that is known.
    pub fn links(&self, row: u32) -> Option<u32> {
        self.standing(row).links()
    }

    /// Whether the file at `row` was found to have another content than the list says, in the state that
    /// [`LocalRef::last_seen`] gives.
    pub fn is_rotten(&self, row: u32) -> bool {
        self.standing(row).is_rotten()
    }

    /// The identity that the entry at `row` has while it is the indexed one; unknown for a rotten file.
    pub fn identity(&self, row: u32) -> Identity {
        if self.is_rotten(row) { Identity::UNKNOWN } else { self.last_seen(row) }
    }

    /// The identity that the entry at `row` had when it was last looked at, rotten or not.
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

    /// Where the record of a regular file lies, by [`crate::list::Row::file_number`].
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

    /// The table's body, mapped as a table of `version`.
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
    fn the_same_devices_under_other_numbers_are_the_same_table() {
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
    fn device_and_link_count_come_back() {
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
    fn a_rotten_file_is_never_the_indexed_one() {
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
    fn absolute_devices_are_read_relative_to_the_first_row() {
        let mut table = LocalTable::default();
        [40, 40, 41].iter().for_each(|_| table.push(identity(0, 0), None, None));
        table.standing = vec![40, 40, 41];
        let read = facts(&table, ABSOLUTE_DEVICES);
        assert_eq!(read, [(identity(40, 40), None), (identity(40, 40), None), (identity(41, 40), None)]);
    }
}
