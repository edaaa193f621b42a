//! The file of one encoded list.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stillmirror_protocol::codec::{DecodeError, Reader};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::rsync::flist::{Numbers, RowTable};
use twox_hash::{XxHash3_64, XxHash3_128};

use super::space::Space;
use crate::map::Map;

const MAGIC: [u8; 8] = *b"SMFLIST\n";
/// The format version. A change of the layout, or of the encoding of a list, needs a new one.
const VERSION: u16 = 2;
pub(super) const HEADER_BYTES: usize = 112;
pub(super) const MARK_BYTES: usize = 16;

/// The fixed header: the file's key and the lengths of its parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// The digest of the list's [`Key`](super::Key).
    pub(super) key: [u8; 32],
    /// The length of the stream, in bytes.
    pub(super) stream: u64,
    /// Total size of the listed files and symlink targets, in bytes.
    pub(super) total: u64,
    pub(super) marks: u32,
    /// The number of rows in the table of rows by index. 0 if rows are computed.
    pub(super) rows: u32,
    pub(super) lists: u32,
    pub(super) entries: u32,
    /// XXH3-128 of everything after the header.
    pub(super) checksum: u128,
}

/// A position in the stream where one list ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The position's offset in the stream, in bytes.
    pub offset: u64,
    /// The number of lists before this position.
    pub lists: u32,
    /// The number of entries before this position.
    pub entries: u32,
}

/// Bytes that share one checksum while the file is mapped. Looking up one row reads this many bytes.
const BLOCK: usize = 4096;

/// A mapped encoded list. It never changes, and stays readable after its file has been removed.
#[derive(Debug)]
pub struct CachedList {
    map: Map,
    header: Header,
    marks: Vec<Mark>,
    /// The checksums of the file's blocks when it was opened, because the disk may rot under the map.
    blocks: Vec<u64>,
    is_damaged: AtomicBool,
    /// Counts the file's disk space while it is mapped.
    _space: Arc<Space>,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&self.stream.to_le_bytes());
        out.extend_from_slice(&self.total.to_le_bytes());
        for count in [self.marks, self.rows, self.lists, self.entries] {
            out.extend_from_slice(&count.to_le_bytes());
        }
        out.extend_from_slice(&self.checksum.to_le_bytes());
        out.resize(HEADER_BYTES, 0);
        out.try_into().unwrap_or([0; HEADER_BYTES])
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let is = |right: bool, field| if right { Ok(()) } else { Err(DecodeError::Invalid(field)) };
        is(reader.array::<8>("magic")? == MAGIC, "magic")?;
        is(reader.u16("version")? == VERSION, "version")?;
        is(reader.array("reserved")? == [0; 6], "reserved")?;
        let header = Self {
            key: reader.array("key")?,
            stream: reader.u64("stream")?,
            total: reader.u64("total")?,
            marks: reader.u32("marks")?,
            rows: reader.u32("rows")?,
            lists: reader.u32("lists")?,
            entries: reader.u32("entries")?,
            checksum: u128::from_le_bytes(reader.array("checksum")?),
        };
        is(reader.rest().iter().all(|&byte| byte == 0), "reserved")?;
        Ok(header)
    }

    /// Returns the offsets where the marks begin, where the rows begin, and where the file ends. `None` if
    /// one of them overflows.
    fn layout(&self) -> Option<[u64; 3]> {
        let marks = padded(self.stream.checked_add(HEADER_BYTES as u64)?)?;
        let rows = marks.checked_add(u64::from(self.marks) * MARK_BYTES as u64)?;
        Some([marks, rows, rows.checked_add(u64::from(self.rows) * 4)?])
    }
}

/// Rounds up to a multiple of 8. `None` if the result overflows.
pub(super) fn padded(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(8)
}

impl CachedList {
    /// Maps a file and checks all of it. The inner error says how the file is damaged.
    pub(super) fn open(file: &File, key: &Digest, space: Arc<Space>) -> io::Result<Result<Self, &'static str>> {
        let map = Map::of(file)?;
        let Some((head, body)) = map.bytes().split_at_checked(HEADER_BYTES) else {
            return Ok(Err("the file is truncated"));
        };
        let Ok(header) = Header::decode(head) else { return Ok(Err("not an encoded list of this version")) };
        if header.key != key.0 {
            return Ok(Err("its key does not match its name"));
        }
        if header.layout().is_none_or(|[.., end]| end != map.bytes().len() as u64) {
            return Ok(Err("its length does not match its header"));
        }
        if XxHash3_128::oneshot(body) != header.checksum {
            return Ok(Err("its checksum does not match"));
        }
        let blocks = map.bytes().chunks(BLOCK).map(XxHash3_64::oneshot).collect();
        let marks = marks_of(&map, &header);
        let list = Self { map, header, marks, blocks, is_damaged: AtomicBool::new(false), _space: space };
        if !list.marks_are_right() {
            return Ok(Err("its marks do not match its stream"));
        }
        list.map.forget_pages();
        Ok(Ok(list))
    }

    /// The whole list, as it is sent.
    pub fn stream(&self) -> &[u8] {
        &self.map.bytes()[HEADER_BYTES..HEADER_BYTES + self.header.stream as usize]
    }

    /// Returns whether a range of the stream is what it was when the file was opened. Reads all blocks that
    /// the range touches.
    pub fn is_right(&self, range: Range<usize>) -> bool {
        self.bytes(range.start + HEADER_BYTES..range.end + HEADER_BYTES).is_some()
    }

    /// Returns whether damage was found since the file was opened.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Relaxed)
    }

    /// Returns a range of the file. `None` if the range has changed since the file was opened.
    fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        let bytes = self.map.bytes();
        let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
        let found = bytes.get(blocks.start * BLOCK..bytes.len().min(blocks.end * BLOCK))?.chunks(BLOCK);
        if !self.blocks.get(blocks)?.iter().copied().eq(found.map(XxHash3_64::oneshot)) {
            self.is_damaged.store(true, Ordering::Relaxed);
            return None;
        }
        bytes.get(range)
    }

    /// The positions in the stream where lists end, some tens of KiB apart, in ascending order. The last one
    /// is the end of the stream. A list that is not incremental has only that one.
    pub fn marks(&self) -> impl ExactSizeIterator<Item = Mark> {
        self.marks.iter().copied()
    }

    /// Returns whether the marks ascend and the last one is the end of the stream.
    fn marks_are_right(&self) -> bool {
        let Header { stream, lists, entries, .. } = self.header;
        let numbers = |mark: Mark| [mark.offset, mark.lists.into(), mark.entries.into()];
        let ascend = |(one, next): (Mark, Mark)| numbers(one).iter().zip(numbers(next)).all(|(one, next)| *one <= next);
        self.marks().zip(self.marks().skip(1)).all(ascend)
            && self.marks().last() == Some(Mark { offset: stream, lists, entries })
    }

    /// The number of lists in the stream.
    pub fn lists(&self) -> u32 {
        self.header.lists
    }

    /// The number of entries in the stream.
    pub fn entries(&self) -> u32 {
        self.header.entries
    }

    /// Total size of the listed files and symlink targets, in bytes.
    pub fn total(&self) -> u64 {
        self.header.total
    }

    /// The size of the file, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.map.bytes().len() as u64
    }
}

/// Decodes the marks of a file. The file's length must match its header.
fn marks_of(map: &Map, header: &Header) -> Vec<Mark> {
    let [marks, rows, _] = header.layout().unwrap_or_default();
    let mark = |bytes: &[u8]| {
        let mut reader = Reader::new(bytes);
        Mark {
            offset: reader.u64("offset").unwrap_or_default(),
            lists: reader.u32("lists").unwrap_or_default(),
            entries: reader.u32("entries").unwrap_or_default(),
        }
    };
    map.bytes()[marks as usize..rows as usize].chunks_exact(MARK_BYTES).map(mark).collect()
}

impl RowTable for CachedList {
    fn row(&self, ndx: u32) -> Option<u32> {
        let [_, rows, end] = self.header.layout()?;
        let at = (rows as usize).checked_add(usize::try_from(ndx).ok()?.checked_mul(4)?)?;
        let row = self.bytes(at..at + 4).filter(|_| at < end as usize)?;
        row.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).filter(|&row| row != Numbers::NO_ROW)
    }
}
