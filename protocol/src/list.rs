//! The file list: columns and arenas, read in place.
//!
//! One row per entry, row 0 the repository's root. Directories are numbered breadth first, and a
//! directory's children are consecutive rows in [`crate::order`]. So the number of a row, plus one per
//! list begun, is the index that rsync's incremental recursion gives it, and the depth-first order of
//! its other mode is derived by walking.
//!
//! The encoded form, byte by byte, is in `docs/index-format.md`: a hand-written header that can be read
//! without rkyv, then one archived [`FileList`]. It is a pure function of the tree it describes, so its
//! SHA-256 names a generation on every mirror.

mod check;

use std::ops::Range;

use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use twox_hash::XxHash3_128;

use crate::codec::{DecodeError, Reader};
use crate::entry::{Device, Digest, Digests, Entry, Kind, Owner, PERMISSIONS, Time};
use crate::{limits, order, path};

pub use check::{Offence, validate};

/// First bytes of an encoded list.
pub const MAGIC: [u8; 8] = *b"SMLIST\r\n";
/// The version of the format. A reader refuses every other one.
pub const VERSION: u16 = 1;
/// Bytes of the header; the archived body begins here, so it is also the body's alignment.
pub const HEADER_BYTES: usize = 64;

/// In the column of flags: the row is a member of a link group.
pub const FLAG_LINKED: u8 = 1;

/// A whole list, as columns. Built by [`crate::changes::apply`], serialized once, then only read in
/// its archived form.
#[derive(Debug, Default, Archive, Serialize)]
pub struct FileList {
    // One element per entry.
    pub(crate) name_end: Vec<u32>,
    pub(crate) mode: Vec<u16>,
    pub(crate) flags: Vec<u8>,
    pub(crate) owner: Vec<u32>,
    pub(crate) size: Vec<u64>,
    pub(crate) mtime_sec: Vec<i64>,
    pub(crate) mtime_nsec: Vec<u32>,
    /// What the type needs: a file's number among the digests, a directory's among the directories, a
    /// symlink's among the targets, a device's among the devices; 0 for the rest.
    pub(crate) aux: Vec<u32>,
    /// Names, one directory's children after the other's. `name_end` counts from the directory's start.
    pub(crate) names: Vec<u8>,
    // One element per directory, breadth first.
    pub(crate) dir_row: Vec<u32>,
    pub(crate) dir_parent: Vec<u32>,
    pub(crate) dir_first: Vec<u32>,
    pub(crate) dir_files: Vec<u32>,
    pub(crate) dir_dirs: Vec<u32>,
    pub(crate) dir_names: Vec<u64>,
    // One element per regular file; the second and third are empty when not carried.
    pub(crate) sha256: Vec<[u8; 32]>,
    pub(crate) xxh128: Vec<[u8; 16]>,
    pub(crate) md5: Vec<[u8; 16]>,
    // One element per symlink.
    pub(crate) target_end: Vec<u64>,
    pub(crate) targets: Vec<u8>,
    // One element per device.
    pub(crate) major: Vec<u32>,
    pub(crate) minor: Vec<u32>,
    // One element per distinct owner, in order of first use; two name ends each (user, group).
    pub(crate) uid: Vec<u32>,
    pub(crate) gid: Vec<u32>,
    pub(crate) owner_name_end: Vec<u32>,
    pub(crate) owner_names: Vec<u8>,
    // One element per name in a link group, by row.
    pub(crate) link_row: Vec<u32>,
    pub(crate) link_leader: Vec<u32>,
}

/// Bytes that are not a usable list.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ListError {
    /// Not a list at all.
    #[error("not a file list (wrong magic)")]
    Magic,
    /// Written by another version of the format.
    #[error("file list format {found}; this program reads format {VERSION}")]
    Version {
        /// The version found.
        found: u16,
    },
    /// The header does not decode.
    #[error("file list header: {0}")]
    Header(#[from] DecodeError),
    /// The body is shorter or longer than the header says.
    #[error("file list of {found} bytes where the header says {expected}")]
    Length {
        /// Bytes there.
        found: u64,
        /// Bytes that the header promises.
        expected: u64,
    },
    /// The body's checksum is wrong: the bytes were damaged.
    #[error("file list is damaged (checksum differs)")]
    Checksum,
    /// The body is no archived list: a wrong or hostile writer.
    #[error("file list does not decode: {0}")]
    Archive(String),
    /// The list decodes and says something that no repository can be.
    #[error("file list: {0}")]
    Offence(#[from] Offence),
}

/// The fixed header of an encoded list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes after the header.
    pub body_len: u64,
    /// XXH3-128 of the body.
    pub checksum: u128,
}

/// How rkyv is set up; another value is another format. Bit 0: little-endian, 1: aligned, 2: 64-bit pointers.
const RKYV_SETTINGS: u16 = 0b111;

impl Header {
    /// Reads the first [`HEADER_BYTES`] of a list and the length of the whole of it.
    pub fn decode(bytes: &[u8]) -> Result<Self, ListError> {
        let mut reader = Reader::new(bytes);
        if reader.array::<8>("magic")? != MAGIC {
            return Err(ListError::Magic);
        }
        let found = reader.u16("version")?;
        if found != VERSION {
            return Err(ListError::Version { found });
        }
        if reader.u16("rkyv settings")? != RKYV_SETTINGS {
            return Err(DecodeError::Invalid("rkyv settings").into());
        }
        if reader.u32("header length")? as usize != HEADER_BYTES {
            return Err(DecodeError::Invalid("header length").into());
        }
        let body_len = reader.u64("body length")?;
        if body_len > limits::LIST_BYTES {
            return Err(
                DecodeError::TooLarge { field: "body length", value: body_len, limit: limits::LIST_BYTES }.into()
            );
        }
        let checksum = u128::from_le_bytes(reader.array("checksum")?);
        if reader.array::<24>("reserved")? != [0; 24] {
            return Err(DecodeError::Invalid("reserved").into());
        }
        Ok(Self { body_len, checksum })
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&RKYV_SETTINGS.to_le_bytes());
        out[12..16].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.body_len.to_le_bytes());
        out[24..40].copy_from_slice(&self.checksum.to_le_bytes());
        out
    }
}

impl FileList {
    /// The encoded list: header and body.
    pub fn encode(&self) -> AlignedVec {
        let mut out = AlignedVec::with_capacity(self.encoded_len());
        out.extend_from_slice(&[0; HEADER_BYTES]);
        // Serializing plain columns into memory has no way to fail.
        let Ok(mut out) = rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Panic>(self, out);
        let body = &out[HEADER_BYTES..];
        let header = Header { body_len: body.len() as u64, checksum: XxHash3_128::oneshot(body) };
        out[..HEADER_BYTES].copy_from_slice(&header.encode());
        out
    }

    /// An empty list with room for so many entries, which are mostly those of `old`.
    pub(crate) fn with_capacity(entries: usize, old: Option<ListRef<'_>>) -> Self {
        let names = old.map_or(0, |old| old.list.names.len());
        Self {
            name_end: Vec::with_capacity(entries),
            mode: Vec::with_capacity(entries),
            flags: Vec::with_capacity(entries),
            owner: Vec::with_capacity(entries),
            size: Vec::with_capacity(entries),
            mtime_sec: Vec::with_capacity(entries),
            mtime_nsec: Vec::with_capacity(entries),
            aux: Vec::with_capacity(entries),
            names: Vec::with_capacity(names + names / 8),
            sha256: Vec::with_capacity(entries),
            ..Self::default()
        }
    }

    /// Bytes that the encoded list takes, a little more than less: growing by doubling would touch, and
    /// copy, twice as many.
    fn encoded_len(&self) -> usize {
        const PER_ENTRY: usize = 4 + 2 + 1 + 4 + 8 + 8 + 4 + 4;
        const PER_DIRECTORY: usize = 5 * 4 + 8;
        let digests = 32 * self.sha256.len() + 16 * (self.xxh128.len() + self.md5.len());
        let names = self.names.len() + self.targets.len() + self.owner_names.len();
        let tables = 8 * (self.target_end.len() + self.major.len() + self.link_row.len()) + 16 * self.uid.len();
        let columns_and_padding = 4096;
        PER_ENTRY * self.len() + PER_DIRECTORY * self.dir_row.len() + digests + names + tables + columns_and_padding
    }

    /// Entries, the root included.
    pub fn len(&self) -> usize {
        self.mode.len()
    }

    /// Never true of a built list: it has a root.
    pub fn is_empty(&self) -> bool {
        self.mode.is_empty()
    }
}

/// The digest that names an encoded list.
pub fn digest(encoded: &[u8]) -> Digest {
    Digest(Sha256::digest(encoded).into())
}

/// Checks encoded bytes wholly (header, checksum, archive, meaning) and gives the list in them.
/// The bytes must be aligned to 16.
pub fn open(encoded: &[u8]) -> Result<ListRef<'_>, ListError> {
    let header = Header::decode(encoded)?;
    let body = &encoded[HEADER_BYTES..];
    if body.len() as u64 != header.body_len {
        return Err(ListError::Length { found: body.len() as u64, expected: header.body_len });
    }
    if XxHash3_128::oneshot(body) != header.checksum {
        return Err(ListError::Checksum);
    }
    open_body(body)
}

/// As [`open`], of a body whose header and checksum the caller has checked.
pub fn open_body(body: &[u8]) -> Result<ListRef<'_>, ListError> {
    let archived = rkyv::access::<ArchivedFileList, rkyv::rancor::Error>(body)
        .map_err(|error| ListError::Archive(error.to_string().lines().next().unwrap_or_default().to_owned()))?;
    let list = ListRef::new(archived);
    validate(list)?;
    Ok(list)
}

/// A list in its archived form. Cheap to copy.
///
/// The accessors index the columns and so rely on [`validate`]: a list comes from [`open`] or from a
/// store that has run the same checks on it.
#[derive(Clone, Copy)]
pub struct ListRef<'a> {
    list: &'a ArchivedFileList,
}

impl<'a> ListRef<'a> {
    /// A view of an archived list that is validated already, or is about to be.
    pub fn new(list: &'a ArchivedFileList) -> Self {
        Self { list }
    }

    /// Entries, the root included.
    pub fn len(&self) -> u32 {
        self.list.mode.len() as u32
    }

    /// Never true of a valid list: it has a root.
    pub fn is_empty(&self) -> bool {
        self.list.mode.is_empty()
    }

    /// Directories, the root included.
    pub fn directories(&self) -> u32 {
        self.list.dir_row.len() as u32
    }

    /// Regular files.
    pub fn files(&self) -> u32 {
        self.list.sha256.len() as u32
    }

    /// Whether XXH128 digests are carried.
    pub fn has_xxh128(&self) -> bool {
        !self.list.xxh128.is_empty()
    }

    /// Whether MD5 digests are carried.
    pub fn has_md5(&self) -> bool {
        !self.list.md5.is_empty()
    }

    /// The entry at `row`, which must be below [`ListRef::len`].
    pub fn row(&self, row: u32) -> Row<'a> {
        Row { list: self.list, row: row as usize }
    }

    /// The directory numbered `number`, which must be below [`ListRef::directories`].
    pub fn dir(&self, number: u32) -> Dir<'a> {
        Dir { list: self.list, number: number as usize }
    }

    /// All directories, breadth first.
    pub fn dirs(self) -> impl ExactSizeIterator<Item = Dir<'a>> {
        (0..self.directories()).map(move |number| self.dir(number))
    }

    /// The entry at a relative path (checked by the caller or not; odd paths are just not found). The
    /// empty path is the root. Costs a binary search per component.
    pub fn find(&self, path: &[u8]) -> Option<Row<'a>> {
        let mut at = self.row(0);
        for name in path::components(path) {
            at = self.dir(at.dir_number()?).child(name)?;
        }
        Some(at)
    }

    /// The directory that holds `row`; the root holds itself.
    pub fn parent_of(&self, row: u32) -> Dir<'a> {
        // `dir_first` does not decrease; of equal ones all but the last are empty.
        let after = self.list.dir_first.partition_point(|first| first.to_native() <= row);
        self.dir((after.max(1) - 1) as u32)
    }

    /// The path of `row`, relative to the root (which has the empty path).
    pub fn path(&self, row: u32) -> Vec<u8> {
        if row == 0 {
            return Vec::new();
        }
        let dir = self.parent_of(row);
        path::join(&dir.path(), dir.name_of(row))
    }

    /// All (row, leader) pairs of link groups, by row.
    pub fn links(&self) -> impl ExactSizeIterator<Item = (u32, u32)> + 'a {
        let list = self.list;
        (0..list.link_row.len()).map(move |at| (list.link_row[at].to_native(), list.link_leader[at].to_native()))
    }

    /// Distinct owners.
    pub fn owners(&self) -> u32 {
        self.list.uid.len() as u32
    }

    /// An owner by its number in the list ([`Row::owner_number`]).
    pub fn owner(&self, number: u32) -> Owner {
        let at = number as usize;
        let end = |index: usize| self.list.owner_name_end[index].to_native() as usize;
        let start = if at == 0 { 0 } else { end(2 * at - 1) };
        Owner {
            uid: self.list.uid[at].to_native(),
            gid: self.list.gid[at].to_native(),
            user: self.list.owner_names[start..end(2 * at)].to_vec(),
            group: self.list.owner_names[end(2 * at)..end(2 * at + 1)].to_vec(),
        }
    }

    pub(crate) fn archived(&self) -> &'a ArchivedFileList {
        self.list
    }
}

impl std::fmt::Debug for ListRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ListRef").field("entries", &self.len()).field("directories", &self.directories()).finish()
    }
}

/// A directory of a list.
#[derive(Clone, Copy)]
pub struct Dir<'a> {
    list: &'a ArchivedFileList,
    number: usize,
}

impl<'a> Dir<'a> {
    /// Its number, breadth first; the root is 0.
    pub fn number(&self) -> u32 {
        self.number as u32
    }

    /// The row of its own entry.
    pub fn row(&self) -> u32 {
        self.list.dir_row[self.number].to_native()
    }

    /// The number of the directory that holds it; the root's is its own.
    pub fn parent(&self) -> u32 {
        self.list.dir_parent[self.number].to_native()
    }

    /// Rows of all children, in order: files first, then directories.
    pub fn rows(&self) -> Range<u32> {
        self.files().start..self.subdirs().end
    }

    /// Rows of the children that are not directories.
    pub fn files(&self) -> Range<u32> {
        let first = self.list.dir_first[self.number].to_native();
        first..first + self.list.dir_files[self.number].to_native()
    }

    /// Rows of the children that are directories.
    pub fn subdirs(&self) -> Range<u32> {
        let end = self.files().end;
        end..end + self.list.dir_dirs[self.number].to_native()
    }

    /// The name of one of its children, by row.
    pub fn name_of(&self, row: u32) -> &'a [u8] {
        let names = self.list.dir_names[self.number].to_native() as usize;
        let start = if row == self.files().start { 0 } else { self.list.name_end[row as usize - 1].to_native() };
        let end = self.list.name_end[row as usize].to_native();
        &self.list.names[names + start as usize..names + end as usize]
    }

    /// Children with their names, in order.
    pub fn children(self) -> impl ExactSizeIterator<Item = (&'a [u8], Row<'a>)> {
        let list = self.list;
        self.rows().map(move |row| (self.name_of(row), Row { list, row: row as usize }))
    }

    /// The child of that name.
    pub fn child(&self, name: &[u8]) -> Option<Row<'a>> {
        let row = search(self.files(), |row| self.name_of(row).cmp(name))
            .or_else(|| search(self.subdirs(), |row| order::directories(self.name_of(row), name)))?;
        Some(Row { list: self.list, row: row as usize })
    }

    /// Its path, relative to the root.
    pub fn path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = *self;
        while at.number != 0 {
            let parent = Dir { list: self.list, number: at.parent() as usize };
            names.push(parent.name_of(at.row()));
            at = parent;
        }
        names.reverse();
        names.join(&b'/')
    }
}

/// Binary search over rows.
fn search(rows: Range<u32>, compare: impl Fn(u32) -> std::cmp::Ordering) -> Option<u32> {
    let (mut low, mut high) = (rows.start, rows.end);
    while low < high {
        let middle = low + (high - low) / 2;
        match compare(middle) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => return Some(middle),
        }
    }
    None
}

/// The type of an entry, without what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Fifo.
    Fifo,
    /// Socket.
    Socket,
}

impl FileType {
    /// From `st_mode`.
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

    /// Whether it is a device, a fifo or a socket: what takes privileges to make, or means nothing elsewhere.
    pub fn is_special(self) -> bool {
        !matches!(self, Self::File | Self::Directory | Self::Symlink)
    }
}

impl std::fmt::Debug for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Row").field(&self.row).finish()
    }
}

/// One entry of a list.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    list: &'a ArchivedFileList,
    row: usize,
}

impl<'a> Row<'a> {
    /// Its place in the list.
    pub fn number(&self) -> u32 {
        self.row as u32
    }

    /// `st_mode`: type and permissions.
    pub fn mode(&self) -> u16 {
        self.list.mode[self.row].to_native()
    }

    /// Permission bits alone.
    pub fn permissions(&self) -> u16 {
        self.mode() & PERMISSIONS
    }

    /// Its type.
    pub fn file_type(&self) -> FileType {
        FileType::from_mode(u32::from(self.mode())).expect("a validated list has known types only")
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.file_type() == FileType::File
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Bytes of a regular file; 0 for everything else.
    pub fn size(&self) -> u64 {
        self.list.size[self.row].to_native()
    }

    /// Modification time.
    pub fn mtime(&self) -> Time {
        Time { sec: self.list.mtime_sec[self.row].to_native(), nsec: self.list.mtime_nsec[self.row].to_native() }
    }

    /// The number of its owner ([`ListRef::owner`]).
    pub fn owner_number(&self) -> u32 {
        self.list.owner[self.row].to_native()
    }

    /// Its owner.
    pub fn owner(&self) -> Owner {
        ListRef::new(self.list).owner(self.owner_number())
    }

    /// The number of this directory; none for other types.
    pub fn dir_number(&self) -> Option<u32> {
        self.is_dir().then(|| self.aux())
    }

    /// The place of this regular file among the list's files; none for other types.
    pub fn file_number(&self) -> Option<u32> {
        self.is_file().then(|| self.aux())
    }

    /// SHA-256 of a regular file's content; [`Digest::NONE`] for other types.
    pub fn sha256(&self) -> Digest {
        self.file_number().map_or(Digest::NONE, |file| Digest(self.list.sha256[file as usize]))
    }

    /// All digests of a regular file.
    pub fn digests(&self) -> Option<Digests> {
        let file = self.file_number()? as usize;
        Some(Digests {
            sha256: Digest(self.list.sha256[file]),
            xxh128: self.list.xxh128.get(file).copied().unwrap_or_default(),
            md5: self.list.md5.get(file).copied().unwrap_or_default(),
        })
    }

    /// A symlink's target.
    pub fn target(&self) -> Option<&'a [u8]> {
        if self.file_type() != FileType::Symlink {
            return None;
        }
        let at = self.aux() as usize;
        let start = if at == 0 { 0 } else { self.list.target_end[at - 1].to_native() };
        Some(&self.list.targets[start as usize..self.list.target_end[at].to_native() as usize])
    }

    /// A device's number.
    pub fn device(&self) -> Option<Device> {
        matches!(self.file_type(), FileType::CharDevice | FileType::BlockDevice).then(|| {
            let at = self.aux() as usize;
            Device { major: self.list.major[at].to_native(), minor: self.list.minor[at].to_native() }
        })
    }

    /// Whether it is of the same type as another entry and has the same content: what names of one inode agree in.
    pub fn has_content_of(&self, other: Row<'_>) -> bool {
        self.file_type() == other.file_type()
            && self.size() == other.size()
            && self.sha256() == other.sha256()
            && self.target() == other.target()
            && self.device() == other.device()
    }

    /// The row of the first name of this inode, when it has more than one name here.
    pub fn link_leader(&self) -> Option<u32> {
        if self.list.flags[self.row] & FLAG_LINKED == 0 {
            return None;
        }
        let row = self.row as u32;
        let at = self.list.link_row.partition_point(|other| other.to_native() < row);
        Some(self.list.link_leader[at].to_native())
    }

    /// The entry as an owned value. `link` carries the leader's row.
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
        self.list.aux[self.row].to_native()
    }
}
