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
/// Another layout, or another encoding of the same list, is another version.
const VERSION: u16 = 2;
pub(super) const HEADER_BYTES: usize = 112;
pub(super) const MARK_BYTES: usize = 16;

/// The fixed header: what the file is and how long its parts are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Of the key.
    pub(super) key: [u8; 32],
    /// Bytes of the stream.
    pub(super) stream: u64,
    /// Bytes of the files and targets that are listed.
    pub(super) total: u64,
    pub(super) marks: u32,
    /// Rows by index; 0 when they are computed.
    pub(super) rows: u32,
    pub(super) lists: u32,
    pub(super) entries: u32,
    /// XXH3-128 of everything after the header.
    pub(super) checksum: u128,
}

/// A place in the stream at which one list ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Bytes before it.
    pub offset: u64,
    /// Lists before it.
    pub lists: u32,
    /// Entries before it.
    pub entries: u32,
}

/// Bytes that share one checksum while the file is mapped. Looking up one row reads as many.
const BLOCK: usize = 4096;

/// An encoded list, mapped. It never changes, and stays readable after its file was removed.
#[derive(Debug)]
pub struct CachedList {
    map: Map,
    header: Header,
    marks: Vec<Mark>,
    /// The checksums of all blocks of the file when it was opened: a disk may rot under the map.
    blocks: Vec<u64>,
    is_damaged: AtomicBool,
    /// Taken for as long as it is mapped.
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

    /// Where the marks and the rows begin, and the file ends.
    fn layout(&self) -> Option<[u64; 3]> {
        let marks = padded(self.stream.checked_add(HEADER_BYTES as u64)?)?;
        let rows = marks.checked_add(u64::from(self.marks) * MARK_BYTES as u64)?;
        Some([marks, rows, rows.checked_add(u64::from(self.rows) * 4)?])
    }
}

/// The next multiple of 8.
pub(super) fn padded(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(8)
}

impl CachedList {
    /// Maps a file and checks it wholly. The inner error says what is wrong with it.
    pub(super) fn open(file: &File, key: &Digest, space: Arc<Space>) -> io::Result<Result<Self, &'static str>> {
        let map = Map::of(file)?;
        let Some((head, body)) = map.bytes().split_at_checked(HEADER_BYTES) else {
            return Ok(Err("the file is cut short"));
        };
        let Ok(header) = Header::decode(head) else { return Ok(Err("no encoded list of this version")) };
        if header.key != key.0 {
            return Ok(Err("another list than its name says"));
        }
        if header.layout().is_none_or(|[.., end]| end != map.bytes().len() as u64) {
            return Ok(Err("the file's length is not what its header says"));
        }
        if XxHash3_128::oneshot(body) != header.checksum {
            return Ok(Err("its checksum differs"));
        }
        let blocks = map.bytes().chunks(BLOCK).map(XxHash3_64::oneshot).collect();
        let marks = marks_of(&map, &header);
        let list = Self { map, header, marks, blocks, is_damaged: AtomicBool::new(false), _space: space };
        if !list.marks_are_right() {
            return Ok(Err("its marks are not those of its stream"));
        }
        list.map.forget_pages();
        Ok(Ok(list))
    }

    /// The whole list as it is sent.
    pub fn stream(&self) -> &[u8] {
        &self.map.bytes()[HEADER_BYTES..HEADER_BYTES + self.header.stream as usize]
    }

    /// Whether a range of the stream is what it was when the file was opened. Reads it, and what shares a block.
    pub fn is_right(&self, range: Range<usize>) -> bool {
        self.bytes(range.start + HEADER_BYTES..range.end + HEADER_BYTES).is_some()
    }

    /// Whether something of it was found to be damaged since it was opened.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Relaxed)
    }

    /// A range of the file, if that is what it was when the file was opened.
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

    /// Places in the stream at which lists end, some tens of KiB apart, ascending; the last is its end. Of a
    /// list that is not incremental: its end alone.
    pub fn marks(&self) -> impl ExactSizeIterator<Item = Mark> {
        self.marks.iter().copied()
    }

    /// Whether the marks ascend to the end of the stream.
    fn marks_are_right(&self) -> bool {
        let Header { stream, lists, entries, .. } = self.header;
        let numbers = |mark: Mark| [mark.offset, mark.lists.into(), mark.entries.into()];
        let ascend = |(one, next): (Mark, Mark)| numbers(one).iter().zip(numbers(next)).all(|(one, next)| *one <= next);
        self.marks().zip(self.marks().skip(1)).all(ascend)
            && self.marks().last() == Some(Mark { offset: stream, lists, entries })
    }

    /// Lists in the stream.
    pub fn lists(&self) -> u32 {
        self.header.lists
    }

    /// Entries in the stream.
    pub fn entries(&self) -> u32 {
        self.header.entries
    }

    /// Bytes of the files and of the targets of symlinks that are listed.
    pub fn total(&self) -> u64 {
        self.header.total
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.map.bytes().len() as u64
    }
}

/// The marks in a file of that header, whose length is right.
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
