//! Packs, which hold records (block checksums and contents of small files), and the table of packs that a
//! generation refers to.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use stillmirror_protocol::codec::Reader;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::local::{LocalRef, RecordAt};
use twox_hash::XxHash3_128;

use crate::error::{At, Damage, StoreError};
use crate::map::Map;
use crate::records;

const PACK_MAGIC: [u8; 8] = *b"SMPACK\r\n";
const USES_MAGIC: [u8; 8] = *b"SMUSES\r\n";
const PACK_VERSION: u16 = 2;
/// The format version of the table of packs.
const USES_VERSION: u16 = 1;
/// The size of a pack's header, in bytes. The first record follows.
pub(crate) const HEADER_BYTES: u64 = 64;
/// Records begin at multiples of this many bytes, so that their columns can be read in place.
const ALIGN: u64 = 8;

/// What a generation uses of one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackUse {
    /// The pack's number, which is the number of the generation that it was written for.
    pub pack: u32,
    /// Total size of the records that files of this generation refer to, in bytes. A record that several
    /// files share counts once for each.
    pub live: u64,
}

/// Files up to this size (in bytes) are kept with their content by default. In a package archive these are a
/// fifth of the files, and a thousandth of the bytes.
pub const KEEP_CONTENTS: u64 = 16 << 10;

/// A file's part of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Record<'a> {
    /// The encoded block checksums. Empty if there are none.
    pub sums: &'a [u8],
    /// The whole content, up to [`stillmirror_protocol::limits::KEPT_CONTENT`] bytes. Empty if it is not kept.
    pub content: &'a [u8],
}

/// A mapped pack.
#[derive(Debug)]
pub struct Pack {
    map: Map,
    path: PathBuf,
    /// Device and inode.
    inode: (u64, u64),
}

impl Pack {
    /// Opens the pack's file once more, for callers that do not read contents through the map. Fails if the
    /// pack has been removed, or if another file has its name now.
    pub fn open(&self) -> io::Result<File> {
        let file = File::open(&self.path)?;
        if inode(&file)? == self.inode { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// The bytes of the whole pack.
    pub fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }
}

/// Returns the name of a pack's file in `sums/`.
pub(crate) fn file_name(pack: u32) -> String {
    format!("{pack}.pack")
}

/// Parses the name of a pack's file. `None` if the name is not a pack's.
pub(crate) fn number_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".pack")?;
    digits.parse().ok().filter(|number| file_name(*number) == name)
}

/// A pack that is being written.
#[derive(Debug)]
pub(crate) struct PackWriter {
    path: PathBuf,
    file: BufWriter<File>,
    pack: u32,
    end: u64,
}

impl PackWriter {
    pub(crate) fn create(sums: &Path, pack: u32) -> Result<Self, StoreError> {
        let path = path(sums, pack);
        let file = File::create_new(&path).at("create", &path)?;
        let mut writer = Self { file: BufWriter::with_capacity(1 << 18, file), path, pack, end: 0 };
        let mut header = [0; HEADER_BYTES as usize];
        header[..8].copy_from_slice(&PACK_MAGIC);
        header[8..10].copy_from_slice(&PACK_VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&pack.to_le_bytes());
        writer.write(&header)?;
        Ok(writer)
    }

    /// Appends the record of the file with digest `file`, and its checks. Returns the record's location.
    pub(crate) fn append(&mut self, file: Digest, record: Record<'_>) -> Result<RecordAt, StoreError> {
        let Record { sums, content } = record;
        let offset = self.end.next_multiple_of(ALIGN);
        let padding = [0; ALIGN as usize];
        self.write(&padding[..(offset - self.end) as usize])?;
        self.write(sums)?;
        for check in records::of_sums(file, sums) {
            self.write(&check)?;
        }
        if !content.is_empty() {
            self.write(content)?;
            self.write(&records::of_content(file, content))?;
        }
        Ok(RecordAt { pack: self.pack, offset, sums: sums.len() as u64, content: content.len() as u32 })
    }

    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        self.file.flush().at("write", &self.path)?;
        self.file.get_ref().sync_all().at("sync", &self.path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).at("write", &self.path)?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// Returns the path of a pack in the directory `sums`.
pub(crate) fn path(sums: &Path, pack: u32) -> PathBuf {
    sums.join(file_name(pack))
}

/// Opens a pack. `None` if the file is missing or is not a valid pack with that number. That is no error,
/// because receivers can do without block checksums, and contents are in the tree too.
pub(crate) fn open(sums: &Path, pack: u32) -> Option<Pack> {
    let path = path(sums, pack);
    let file = File::open(&path).ok()?;
    let mut header = [0; HEADER_BYTES as usize];
    file.read_exact_at(&mut header, 0).ok()?;
    let version = u16::from_le_bytes([header[8], header[9]]);
    let number = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
    if header[..8] != PACK_MAGIC || version != PACK_VERSION || number != pack {
        return None;
    }
    Some(Pack { map: Map::of(&file).ok()?, path, inode: inode(&file).ok()? })
}

fn inode(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|facts| (facts.dev(), facts.ino()))
}

/// Determines which packs a generation's files refer to.
pub(crate) fn count_uses(local: LocalRef<'_>, files: u32) -> Vec<PackUse> {
    let mut live = BTreeMap::new();
    for at in (0..files).filter_map(|file| local.record(file)) {
        let live: &mut u64 = live.entry(at.pack).or_default();
        *live = live.saturating_add(at.len());
    }
    live.into_iter().map(|(pack, live)| PackUse { pack, live }).collect()
}

/// Encodes the table of packs, which is the content of a generation's file `packs`.
pub(crate) fn encode_uses(uses: &[PackUse]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&USES_MAGIC);
    out.extend_from_slice(&USES_VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(uses.len() as u32).to_le_bytes());
    for PackUse { pack, live } in uses {
        out.extend_from_slice(&pack.to_le_bytes());
        out.extend_from_slice(&live.to_le_bytes());
    }
    out.extend_from_slice(&XxHash3_128::oneshot(&out).to_le_bytes());
    out
}

pub(crate) fn decode_uses(bytes: &[u8]) -> Result<Vec<PackUse>, Damage> {
    let damaged = Damage::Other("the table of packs is damaged");
    let Some((fields, checksum)) = bytes.split_last_chunk::<16>() else { return Err(damaged) };
    let mut reader = Reader::new(fields);
    if reader.array("magic").ok() != Some(USES_MAGIC) {
        return Err(Damage::Other("not a table of packs (wrong magic)"));
    }
    if reader.u16("version").ok() != Some(USES_VERSION) {
        return Err(Damage::Other("the table of packs has another format version"));
    }
    if XxHash3_128::oneshot(fields).to_le_bytes() != *checksum {
        return Err(damaged);
    }
    let mut uses = Vec::new();
    let mut read = || {
        reader.u16("reserved")?;
        for _ in 0..reader.u32("packs")? {
            uses.push(PackUse { pack: reader.u32("pack")?, live: reader.u64("live")? });
        }
        reader.finish("table of packs")
    };
    match read() {
        Ok(()) => Ok(uses),
        Err(_) => Err(damaged),
    }
}

/// Reads a small file, up to `limit` + 1 bytes: a longer file is then invalid because of its length.
pub(crate) fn read_small(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
