//! An open generation: its mapped list, local facts, delta and packs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rkyv::api::high::HighValidator;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use sha2::{Digest as _, Sha256};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::list::{self, ArchivedFileList, ListError, ListRef};
use stillmirror_protocol::local::{self, ArchivedLocalTable, CHECK_BYTES, LocalError, LocalRef, RecordAt};

use crate::content_pool::PoolPlace;
use crate::delta::Delta;
use crate::error::{At, Damage, StoreError};
use crate::map::{Archived, checksum};
use crate::packs::{self, Pack, PackUse, Record};
use crate::part::{ORIGIN_SIGNATURE, RecheckedMap, SIGNATURE, damaged, map, optional, read_head, read_signature};
use crate::records::{self, BadRecord};

/// The list is compressed once for all first pulls, while the publisher waits. Higher levels gain little,
/// because more than half of the bytes are digests, which do not compress at all.
pub(crate) const LIST_ZSTD_LEVEL: i32 = 1;

/// A mapped and checked generation. It never changes, and stays readable after its files have been removed.
#[derive(Debug)]
pub struct Generation {
    number: u64,
    dir: PathBuf,
    head: Head,
    head_bytes: Vec<u8>,
    signature: Option<Vec<u8>>,
    list: Archived<ArchivedFileList>,
    list_zst: RecheckedMap,
    local: Local,
    delta: Option<Arc<Delta>>,
    pool: Option<PoolPlace>,
    origin: Option<OriginParts>,
    /// The directory of the packs.
    sums: PathBuf,
    uses: Vec<PackUse>,
    packs: BTreeMap<u32, Pack>,
}

#[derive(Debug)]
struct OriginParts {
    head: Head,
    signature: Option<Vec<u8>>,
    /// `None` if it is the generation's own list.
    list: Option<Archived<ArchivedFileList>>,
}

/// The local facts, mapped and checked.
#[derive(Debug)]
pub(crate) struct Local {
    table: Archived<ArchivedLocalTable>,
    /// The root's device number. `None` if the table has no device numbers.
    root_device: Option<u64>,
}

impl Local {
    pub(crate) fn get(&self) -> LocalRef<'_> {
        LocalRef::new(self.table.get(), self.root_device)
    }
}

/// The origin's generation of which a pulled generation is a part.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The origin's head.
    pub head: &'a Head,
    /// The signature of the origin's head, if it has one.
    pub signature: Option<&'a [u8]>,
    /// The origin's whole list.
    pub list: ListRef<'a>,
}

impl Generation {
    /// Opens the generation in `dir`. Checks the head, the checksums and lengths of the list and of the local
    /// facts (reading them, not through the map), and then validates both archives once. Takes time linear in
    /// the list, and leaves no page of it resident. Does not compute the list's SHA-256; see
    /// [`Generation::digest_is_right`].
    pub(crate) fn open(dir: PathBuf, sums: &Path, number: u64) -> Result<Self, StoreError> {
        let (head, head_bytes) = read_head(&dir.join("head"))?;
        let list = open_list(&dir.join("list"), &head)?;
        let files = ListRef::new(list.get()).files();
        let local = open_local(&dir.join("local"), &head, ListRef::new(list.get()).len(), files)?;
        let origin = match optional(read_head(&dir.join("origin-head")))? {
            None => None,
            Some((origin, _)) => {
                let whole = optional(open_list(&dir.join("origin-list"), &origin))?;
                if whole.is_none() && origin.list_digest != head.list_digest {
                    return Err(damaged(&dir.join("origin-list"), Damage::Other("the file is missing")));
                }
                let signature = read_signature(&dir.join(ORIGIN_SIGNATURE))?;
                Some(OriginParts { head: origin, signature, list: whole })
            }
        };
        let signature = read_signature(&dir.join(SIGNATURE))?;
        let uses = read_uses(&dir)?;
        let packs = uses.iter().filter_map(|uses| Some((uses.pack, packs::open(sums, uses.pack)?))).collect();
        let list_zst = RecheckedMap::of(map(&dir.join("list.zst"))?);
        let delta = Delta::open(&dir, &head)?.map(Arc::new);
        let (pool, sums) = (PoolPlace::read(&dir)?, sums.to_owned());
        Ok(Self {
            number,
            dir,
            head,
            head_bytes,
            signature,
            list,
            list_zst,
            local,
            delta,
            pool,
            origin,
            sums,
            uses,
            packs,
        })
    }

    /// The store's own sequence number. At the origin it equals the head's generation number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The head as it is stored and sent.
    pub fn head_bytes(&self) -> &[u8] {
        &self.head_bytes
    }

    /// The signature of the head, as it is stored and sent. `None` if the head is not signed.
    pub fn signature(&self) -> Option<&[u8]> {
        self.signature.as_deref()
    }

    /// The file list.
    pub fn list(&self) -> ListRef<'_> {
        ListRef::new(self.list.get())
    }

    /// The file list, for a few lookups or a short range. Pages that are not in memory are read one by one,
    /// without the device's read-ahead. Callers that read much of the list use [`Generation::list`].
    pub fn list_sparsely(&self) -> ListRef<'_> {
        ListRef::new(self.list.get_sparsely())
    }

    /// The encoded list: header and body.
    pub fn list_bytes(&self) -> &[u8] {
        self.list.bytes()
    }

    /// The encoded list, compressed with zstd.
    pub fn list_zst(&self) -> &[u8] {
        self.list_zst.bytes()
    }

    /// Returns whether [`Generation::list_zst`] is the list. Every call reads all of it; the first one also
    /// decompresses it.
    pub fn list_zst_is_right(&self) -> bool {
        self.list_zst.is_right(|bytes| {
            let mut digest = HashWriter { hash: Sha256::new(), left: self.head.list_len };
            let read = zstd::stream::copy_decode(bytes, &mut digest);
            read.is_ok() && digest.left == 0 && Digest(digest.hash.finalize().into()) == self.head.list_digest
        })
    }

    /// Compresses the list again, at the level that the store uses. Fails if the list itself is damaged.
    pub fn compress_list(&self) -> io::Result<Vec<u8>> {
        if !self.digest_is_right() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        zstd::bulk::compress(self.list_bytes(), LIST_ZSTD_LEVEL)
    }

    /// The delta from the list `head().previous` to this one. `None` in a first generation, and in others
    /// that were published without a delta.
    pub fn delta(&self) -> Option<&Arc<Delta>> {
        self.delta.as_ref()
    }

    /// Where the pool with the contents of this generation is. `None` if its contents are not kept.
    pub fn pool(&self) -> Option<&PoolPlace> {
        self.pool.as_ref()
    }

    /// The local facts: what only this host knows about the list's entries.
    pub fn local(&self) -> LocalRef<'_> {
        self.local.get()
    }

    /// Returns the block checksums of a regular file by its file number
    /// ([`stillmirror_protocol::list::Row::file_number`], which must be below the list's `files()`). `None`
    /// if there are none, or if the pack is missing or truncated. The bytes are unchecked: call
    /// [`Generation::check_sums`] before sending them.
    pub fn sums(&self, file: u32) -> Option<&[u8]> {
        let at = self.local().record(file).filter(|at| at.sums > 0)?;
        self.bytes(&at)?.get(..usize::try_from(at.sums).ok()?)
    }

    /// Checks a range of a regular file's block checksums. Reads the range, and the bytes that share a check
    /// with it. Fails if they are not what was written. A file without block checksums passes.
    pub fn check_sums(&self, file: u32, range: Range<u64>) -> Result<(), BadRecord> {
        let Some(at) = self.local().record(file).filter(|at| at.sums > 0) else { return Ok(()) };
        let parts = self.bytes(&at).and_then(|bytes| bytes.split_at_checked(usize::try_from(at.sums).ok()?));
        let are_right = |(sums, checks)| records::are_sums(self.list().sha256(file), sums, checks, range);
        if parts.is_some_and(are_right) { Ok(()) } else { Err(self.bad_record(&at)) }
    }

    /// Returns the checked record of a regular file by its file number. `None` if the file has no record.
    /// Fails if the record is missing or damaged.
    pub fn record(&self, file: u32) -> Result<Option<Record<'_>>, BadRecord> {
        let Some(at) = self.local().record(file) else { return Ok(None) };
        self.check_sums(file, 0..at.sums)?;
        let parts = self.bytes(&at).and_then(|bytes| {
            let (sums, content) = bytes.split_at_checked(usize::try_from(at.content_start()).ok()?)?;
            if at.content > 0 && !self.is_content(file, content) {
                return None;
            }
            Some(Record {
                sums: sums.get(..usize::try_from(at.sums).ok()?)?,
                content: content.get(..at.content as usize)?,
            })
        });
        parts.map(Some).ok_or_else(|| self.bad_record(&at))
    }

    /// Returns where the content of a regular file of `size` bytes is kept, by its file number: the pack's
    /// number and the byte range in the pack, which includes the check behind the content ([`CHECK_BYTES`]).
    /// Reads only the local facts. `None` if the content is not kept, or if its pack is missing or truncated.
    /// [`Generation::is_content`] checks the bytes.
    pub fn content(&self, file: u32, size: u64) -> Option<(u32, Range<u64>)> {
        let at = self.local().record(file).filter(|at| at.content > 0 && u64::from(at.content) == size)?;
        let start = at.offset.checked_add(at.content_start()).filter(|&start| start >= packs::HEADER_BYTES)?;
        let end = start.checked_add(size)?.checked_add(CHECK_BYTES)?;
        (end <= self.packs.get(&at.pack)?.bytes().len() as u64).then_some((at.pack, start..end))
    }

    /// Returns whether the bytes read from the range that [`Generation::content`] gives are the content of
    /// that file.
    pub fn is_content(&self, file: u32, bytes: &[u8]) -> bool {
        records::is_content(self.list().sha256(file), bytes)
    }

    /// Returns the bytes of a record, including its checks. `None` if its pack is missing or truncated.
    fn bytes(&self, at: &RecordAt) -> Option<&[u8]> {
        let start = usize::try_from(at.offset).ok().filter(|&start| start >= packs::HEADER_BYTES as usize)?;
        self.packs.get(&at.pack)?.bytes().get(start..)?.get(..usize::try_from(at.len()).ok()?)
    }

    /// Returns the error for a damaged record.
    pub fn bad_record(&self, at: &RecordAt) -> BadRecord {
        BadRecord { path: packs::path(&self.sums, at.pack), offset: at.offset }
    }

    /// Returns the paths of the packs that this generation refers to and that are missing or invalid. Nothing
    /// is served from these.
    pub fn missing_packs(&self) -> impl Iterator<Item = PathBuf> {
        let missing = self.uses.iter().filter(|uses| !self.packs.contains_key(&uses.pack));
        missing.map(|uses| packs::path(&self.sums, uses.pack))
    }

    /// Returns a pack that this generation refers to. `None` if it is missing or invalid.
    pub fn pack(&self, number: u32) -> Option<&Pack> {
        self.packs.get(&number)
    }

    /// The packs that this generation refers to, in ascending order of their numbers.
    pub fn pack_uses(&self) -> &[PackUse] {
        &self.uses
    }

    /// Returns the packs whose records the next generation should copy to its own pack: those of which less
    /// than half is in use, and the small ones if there are many packs.
    pub fn packs_to_compact(&self) -> Vec<u32> {
        let size = |pack: u32| self.packs.get(&pack).map_or(0, |pack| pack.bytes().len() as u64);
        let total: u64 = self.uses.iter().map(|uses| size(uses.pack)).sum();
        let many = self.uses.len() >= MANY_PACKS;
        let wasteful = |uses: &&PackUse| {
            let size = size(uses.pack);
            size > 0 && (uses.live < size / 2 || (many && size < total / MANY_PACKS as u64))
        };
        self.uses.iter().filter(wasteful).map(|uses| uses.pack).collect()
    }

    /// The origin's generation, if this one was pulled and is only a part of it.
    pub fn origin(&self) -> Option<Origin<'_>> {
        let OriginParts { head, signature, list } = self.origin.as_ref()?;
        let list = ListRef::new(list.as_ref().unwrap_or(&self.list).get());
        Some(Origin { head, signature: signature.as_deref(), list })
    }

    /// Computes the list's SHA-256, which opening does not do, and returns whether it is the one in the head.
    pub fn digest_is_right(&self) -> bool {
        list::digest(self.list_bytes()) == self.head.list_digest
    }

    /// The generation's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Hashes what is written to it, and fails beyond a limit.
struct HashWriter {
    hash: Sha256,
    /// Bytes that may still be written.
    left: u64,
}

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.hash.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads which packs the generation in `dir` refers to.
pub(crate) fn read_uses(dir: &Path) -> Result<Vec<PackUse>, StoreError> {
    let path = dir.join("packs");
    let bytes = packs::read_small(&path, MAX_USES_BYTES).at("read", &path)?;
    packs::decode_uses(&bytes).map_err(|damage| damaged(&path, damage))
}

/// Maps and checks the file list of a generation with this head.
pub(crate) fn open_list(path: &Path, head: &Head) -> Result<Archived<ArchivedFileList>, StoreError> {
    let file = File::open(path).at("open", path)?;
    let found = file.metadata().at("stat", path)?.len();
    let bad = |error: ListError| damaged(path, error);
    let header = list::Header::decode(&read_header::<{ list::HEADER_BYTES }>(&file, path)?).map_err(bad)?;
    let expected = header.body_len + list::HEADER_BYTES as u64;
    if found != expected {
        return Err(bad(ListError::Length { found, expected }));
    }
    if head.list_len != found {
        return Err(damaged(path, Damage::Other("the file list does not match the generation's head")));
    }
    if checksum(&file, list::HEADER_BYTES as u64, header.body_len).at("read", path)? != header.checksum {
        return Err(bad(ListError::Checksum));
    }
    let offence = ListError::Archive("not an archived file list".to_owned());
    let mapped: Archived<ArchivedFileList> = map_archived(&file, path, list::HEADER_BYTES, offence)?;
    list::validate(ListRef::new(mapped.get())).map_err(|offence| bad(offence.into()))?;
    mapped.forget_pages();
    Ok(mapped)
}

/// Maps and checks the local facts of a generation with this head and this many entries and regular files.
pub(crate) fn open_local(path: &Path, head: &Head, entries: u32, files: u32) -> Result<Local, StoreError> {
    let file = File::open(path).at("open", path)?;
    let found = file.metadata().at("stat", path)?.len();
    let bad = |error: LocalError| damaged(path, error);
    let header = local::Header::decode(&read_header::<{ local::HEADER_BYTES }>(&file, path)?).map_err(bad)?;
    if header.list_digest != head.list_digest {
        return Err(bad(LocalError::Columns));
    }
    if header.body_len.checked_add(local::HEADER_BYTES as u64) != Some(found)
        || checksum(&file, local::HEADER_BYTES as u64, header.body_len).at("read", path)? != header.checksum
    {
        return Err(bad(LocalError::Checksum));
    }
    let table = map_archived(&file, path, local::HEADER_BYTES, LocalError::Columns)?;
    let body = &table.bytes()[local::HEADER_BYTES..];
    let root_device = local::open_body(body, header.version, entries, files).map_err(bad)?.root_device();
    table.forget_pages();
    Ok(Local { table, root_device })
}

/// Determines which packs a draft refers to. Reads its local facts from `path` and the row counts from its
/// head.
pub(crate) fn pack_uses(path: &Path, head: &Head) -> Result<Vec<PackUse>, StoreError> {
    let map = map(path)?;
    let counts = &head.counts;
    let entries = counts.files + counts.directories + counts.symlinks + counts.specials;
    let body = map.bytes().get(local::HEADER_BYTES..).unwrap_or_default();
    let version = local::VERSION;
    let facts =
        local::open_body(body, version, entries as u32, counts.files as u32).map_err(|error| damaged(path, error))?;
    Ok(packs::count_uses(facts, counts.files as u32))
}

/// Maps a file and checks the archive in it. `offence`: the damage to report if the archive is invalid.
fn map_archived<T>(
    file: &File,
    path: &Path,
    header: usize,
    offence: impl Into<Damage>,
) -> Result<Archived<T>, StoreError>
where
    T: rkyv::Portable + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>,
{
    match Archived::of(file, header) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(damaged(path, offence)),
        result => result.at("map", path),
    }
}

/// Reads the first `N` bytes. Pads a shorter file with zeros, from which no header decodes.
fn read_header<const N: usize>(file: &File, path: &Path) -> Result<[u8; N], StoreError> {
    let mut header = [0; N];
    let mut filled = 0;
    while filled < N {
        match file.read_at(&mut header[filled..], filled as u64).at("read", path)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(header)
}

/// With this many packs or more, small ones are compacted too, because each pack is a mapping in the daemon.
const MANY_PACKS: usize = 32;
/// The size limit of the file `packs`, in bytes: far more than compaction leaves.
const MAX_USES_BYTES: u64 = 1 << 20;
