//! Access to a repository's files: opens them beneath the root, checks that they are the indexed ones, and
//! reads them in aligned pieces.
//!
//! [`Tree`] is the root directory, [`OpenFile`] a file that stays open for many reads, [`Wanted`] a range in
//! a batch of reads, and [`Stored`] the place of a small file's content in the store. A file's state is
//! checked before and after every read.

mod batch;
mod look;
mod open;
mod pooled;
mod sample;
mod stored;
mod touched;

use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, AtFlags, FileType, FsWord, Mode, OFlags, Stat, StatxFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use stillmirror_protocol::entry::{Digest, Time};
use stillmirror_protocol::local::{Identity, RelativeDevice};
use stillmirror_protocol::path;
use stillmirror_protocol::wire::ItemFailure;
use stillmirror_store::{Generation, open_beneath};

use crate::config::DirectPolicy;
use crate::direct::{self, ALIGNMENT};
use crate::mounted::is_unmounted;
use crate::pool::EXTENT;
use crate::source::Source;
pub(crate) use batch::Wanted;
pub(crate) use open::OpenFile;
pub(crate) use pooled::Pooled;
pub use sample::{Reading, Sample};
pub(crate) use stored::Stored;
use touched::Touched;

/// The file systems that know the state of a cached inode without asking anybody: ext2 to ext4, XFS, btrfs,
/// ZFS, F2FS, tmpfs, overlayfs. Others may ask a server that does not answer.
const LOCAL: [FsWord; 7] = [0xef53, 0x5846_5342, 0x9123_683e, 0x2fc1_2fc1, 0xf2f5_2010, 0x0102_1994, 0x794c_7630];
/// How long to wait for a free descriptor.
const DESCRIPTOR_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between attempts to get a descriptor.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(10);

/// The indexed state of a file. A file is sent only if it is in exactly this state, or if only its ctime
/// differs and its content was read again and found to be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileState {
    state: OnDisk,
    content: Digest,
}

impl FileState {
    /// Returns the size of the file in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.state.size
    }
}

/// The state of a regular file on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct OnDisk {
    /// The root of its tree. Inode numbers are unique only within a file system.
    root: Directory,
    identity: Identity,
    mtime: Time,
    size: u64,
}

impl OnDisk {
    /// Returns the state of a file in the tree with root `root`. `None` for anything but a regular file.
    fn of(stat: &Stat, root: Directory) -> Option<Self> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let time = |sec, nsec| Time { sec, nsec };
        Some(Self {
            root,
            identity: Identity {
                device: RelativeDevice::of(stat.st_dev, root.device),
                inode: stat.st_ino,
                ctime: time(stat.st_ctime, stat.st_ctime_nsec as u32),
            },
            mtime: time(stat.st_mtime, stat.st_mtime_nsec as u32),
            size: stat.st_size.cast_unsigned(),
        })
    }

    /// Returns whether this is the indexed state. The time that was pulled may be finer than what the file system keeps.
    fn is_same(&self, indexed: &Self) -> bool {
        *self == Self { mtime: self.mtime, ..*indexed } && indexed.mtime.is_kept_as(self.mtime)
    }

    /// Returns whether this state differs from the indexed one at most in the ctime, for example because a hard link was
    /// made or removed.
    fn is_same_except_ctime(&self, indexed: &Self) -> bool {
        let identity = Identity { ctime: self.identity.ctime, ..indexed.identity };
        self.is_same(&Self { identity, ..*indexed })
    }
}

/// Identifies a directory, whatever paths lead to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Directory {
    device: u64,
    inode: u64,
}

impl Directory {
    /// Returns the directory that a path leads to.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&rustix::fs::stat(path)?))
    }

    fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// A repository's tree: the one directory beneath which its files are opened.
pub(crate) struct Tree {
    repository: String,
    root: OwnedFd,
    directory: Directory,
    /// Whether its file system needs no other host or process to answer.
    is_local: bool,
    policy: DirectPolicy,
    /// The alignment for direct reads, in bytes, by device. `None` where direct reads are refused.
    alignments: RwLock<Vec<(u64, Option<usize>)>>,
    /// Whether it was logged that direct reads are refused.
    refusal_logged: AtomicBool,
    /// Whether a different ctime alone makes a file stale.
    strict_ctime: bool,
    touched: Touched,
    /// Whether it was logged that files were touched.
    touch_logged: AtomicBool,
}

impl Tree {
    /// Opens the root directory.
    pub(crate) fn open(repository: &str, root: &Path, policy: DirectPolicy, strict_ctime: bool) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        let directory = Directory::of(&rustix::fs::fstat(&root)?);
        let is_local = LOCAL.contains(&rustix::fs::fstatfs(&root)?.f_type);
        Ok(Self {
            repository: repository.to_owned(),
            root,
            directory,
            is_local,
            policy,
            alignments: RwLock::default(),
            refusal_logged: AtomicBool::new(false),
            strict_ctime,
            touched: Touched::default(),
            touch_logged: AtomicBool::new(false),
        })
    }

    /// Returns the root directory.
    pub(crate) fn directory(&self) -> Directory {
        self.directory
    }

    /// Returns whether the generation describes the directory at the root. Also `true` if the generation does
    /// not know its root, which can be the case for one that a receiver wrote.
    pub(crate) fn is_root_of(&self, generation: &Generation) -> bool {
        let root = generation.local().identity(0);
        root == Identity::UNKNOWN || root.inode == self.directory.inode
    }

    /// Returns whether no path will ever lead to the root again, because it was removed or its disk was
    /// unmounted.
    pub(crate) fn is_gone(&self) -> bool {
        rustix::fs::fstat(&self.root).is_ok_and(|stat| stat.st_nlink == 0) || is_unmounted(&self.root)
    }

    /// Opens the file at `path` if it is in the indexed state, or else its content in the pool.
    pub(crate) fn open_file(
        self: &Arc<Self>,
        path: &[u8],
        indexed: FileState,
        pooled: Option<Pooled>,
    ) -> Result<OpenFile, ItemFailure> {
        match (self.checked(path, indexed, self.open_waiting(path, OFlags::empty())), pooled) {
            (Ok((file, device)), pooled) => {
                Ok(OpenFile::new(Arc::clone(self), path, indexed, file, device).with_pooled(pooled))
            }
            (Err(reason), Some(pooled)) => OpenFile::of_pool(self, path, indexed, &pooled).ok_or(reason),
            (Err(reason), None) => Err(reason),
        }
    }

    /// Returns a file that was just opened, and its device number. Fails unless it is in the indexed state.
    fn checked(
        &self,
        path: &[u8],
        indexed: FileState,
        opened: Result<OwnedFd, Errno>,
    ) -> Result<(OwnedFd, u64), ItemFailure> {
        let file = opened.map_err(|errno| self.failure(path, errno))?;
        let device = self.check(path, indexed, &file)?;
        Ok((file, device))
    }

    /// Returns the indexed state of the regular file at `row` of a generation of this tree. `row` must be
    /// within the list.
    pub(crate) fn indexed(&self, generation: &Generation, row: u32) -> FileState {
        let (entry, identity) = (generation.list().row(row), generation.local().identity(row));
        let state = OnDisk { root: self.directory, identity, mtime: entry.mtime(), size: entry.size() };
        FileState { state, content: entry.sha256() }
    }

    /// Checks that an open file is the indexed one, and returns its device number. If only its ctime differs,
    /// the file is read completely, once for all sessions.
    fn check(&self, path: &[u8], indexed: FileState, file: &OwnedFd) -> Result<u64, ItemFailure> {
        let stat = rustix::fs::fstat(file).map_err(|errno| self.failure(path, errno))?;
        match self.compare(&stat, indexed) {
            Comparison::Same => Ok(stat.st_dev),
            Comparison::Touched(state) => {
                let content = self.touched.content(state, || self.hash(file, state, stat.st_dev));
                let content = content.map_err(|errno| self.failure(path, errno))?;
                if content == Some(indexed.content) { Ok(stat.st_dev) } else { Err(ItemFailure::Stale) }
            }
            Comparison::Other => Err(ItemFailure::Stale),
        }
    }

    /// Like [`Self::check`], but never reads the file: if it would have to be read, this fails.
    fn check_at_once(&self, path: &[u8], indexed: FileState, file: &OwnedFd) -> Result<(), ItemFailure> {
        let stat = rustix::fs::fstat(file).map_err(|errno| self.failure(path, errno))?;
        let is_indexed = match self.compare(&stat, indexed) {
            Comparison::Same => true,
            Comparison::Touched(state) => self.touched.known_content(state) == Some(indexed.content),
            Comparison::Other => false,
        };
        if is_indexed { Ok(()) } else { Err(ItemFailure::Stale) }
    }

    fn compare(&self, stat: &Stat, indexed: FileState) -> Comparison {
        match OnDisk::of(stat, self.directory) {
            Some(state) if state.is_same(&indexed.state) => Comparison::Same,
            Some(state) if state.is_same_except_ctime(&indexed.state) => {
                match (indexed.state.identity.ctime == Identity::NO_CTIME, self.strict_ctime) {
                    (true, false) => Comparison::Same,
                    (true, true) | (false, false) => Comparison::Touched(state),
                    (false, true) => Comparison::Other,
                }
            }
            _ => Comparison::Other,
        }
    }

    /// Like [`Self::digest`], for a file in the tree: says once that files were touched.
    fn hash(&self, file: &OwnedFd, state: OnDisk, device: u64) -> Result<Option<Digest>, Errno> {
        if !self.touch_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                repository = self.repository,
                "files were touched since they were indexed: each is read once before it is sent; run \
                 `stillmirror index` to avoid that"
            );
        }
        self.digest(file, state, device)
    }

    /// Returns the SHA-256 of an open file. `None` if it does not stay in `state` meanwhile.
    fn digest(&self, file: &OwnedFd, state: OnDisk, device: u64) -> Result<Option<Digest>, Errno> {
        // Aligned, since the file may be open for direct reads, and no larger than the file: most are small.
        let len = (state.size.min(EXTENT as u64) as usize).next_multiple_of(ALIGNMENT);
        let mut memory = vec![0; len + ALIGNMENT];
        let skip = memory.as_ptr().align_offset(ALIGNMENT);
        let Some(buffer) = memory.get_mut(skip..skip.saturating_add(len)) else { return Ok(None) };
        let (mut hasher, mut done) = (Sha256::new(), 0);
        while done < state.size {
            let way = match self.way(file, device, done, buffer.len()) {
                Way::Directly(_) => Way::ThroughCacheAndOut,
                way => way,
            };
            let read = read_full(file, done, buffer, way)?;
            if read == 0 {
                return Ok(None);
            }
            hasher.update(&buffer[..read]);
            done += read as u64;
        }
        let is_same = OnDisk::of(&rustix::fs::fstat(file)?, self.directory) == Some(state);
        Ok((is_same && done == state.size).then(|| Digest(hasher.finalize().into())))
    }

    /// Opens a file beneath the root. No symlink is followed anywhere in the path, and nothing outside the
    /// root can be reached, whatever happens to the tree meanwhile.
    fn open_beneath(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        open_beneath(&self.root, path, flags)
    }

    /// Like [`Self::open_beneath`], but waits for a free descriptor.
    fn open_waiting(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        wait_for_descriptor(|| self.open_beneath(path, flags))
    }

    /// Returns the alignment for direct reads of this file, in bytes. `None` if its file system refuses them.
    fn alignment(&self, file: &OwnedFd, device: u64) -> Option<usize> {
        let known = |alignments: &[(u64, Option<usize>)]| alignments.iter().find(|(of, _)| *of == device).copied();
        if let Some((_, alignment)) = known(&self.alignments.read().unwrap_or_else(PoisonError::into_inner)) {
            return alignment;
        }
        let alignment = probe_alignment(file);
        self.learn(device, alignment);
        alignment
    }

    /// Returns how a range of a file on `device` is best read.
    fn way(&self, file: &OwnedFd, device: u64, offset: u64, len: usize) -> Way {
        let is_cached = || direct::is_cached(file, offset, len as u64);
        match self.policy {
            DirectPolicy::Never => return Way::ThroughCache,
            DirectPolicy::Auto if len == 0 || is_cached() => return Way::ThroughCache,
            DirectPolicy::Auto | DirectPolicy::Always => {}
        }
        match self.alignment(file, device) {
            Some(alignment) => Way::Directly(alignment),
            // Pages that others put into the cache must stay there.
            None if self.policy == DirectPolicy::Always && is_cached() => Way::ThroughCache,
            None => Way::ThroughCacheAndOut,
        }
    }

    fn learn(&self, device: u64, alignment: Option<usize>) {
        let mut alignments = self.alignments.write().unwrap_or_else(PoisonError::into_inner);
        alignments.retain(|(of, _)| *of != device);
        alignments.push((device, alignment));
        drop(alignments);
        if alignment.is_none() && !self.refusal_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                repository = self.repository,
                "the file system refuses direct reads: files are read through the page cache and dropped from it"
            );
        }
    }

    fn failure(&self, path: &[u8], errno: Errno) -> ItemFailure {
        match errno {
            Errno::NOENT | Errno::NOTDIR => ItemFailure::Vanished,
            // A symlink, a mount or a socket has taken the place of the indexed file.
            Errno::LOOP | Errno::XDEV | Errno::NXIO | Errno::NODEV => ItemFailure::Stale,
            errno => {
                let path = path::Escaped(path);
                tracing::warn!(repository = self.repository, %path, error = %errno, "cannot read a file");
                ItemFailure::Unreadable
            }
        }
    }
}

/// The result of comparing a file on disk with the index.
enum Comparison {
    Same,
    /// Only the ctime differs.
    Touched(OnDisk),
    Other,
}

/// Returns whether an open failed because the process or the whole host has no descriptors left.
fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE)
}

/// Retries `open` until there is a free descriptor, or a timeout has passed. The caller must hold no
/// descriptor that others wait for.
fn wait_for_descriptor(open: impl Fn() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    let began = Instant::now();
    loop {
        match open() {
            Err(errno) if is_shortage(errno) && began.elapsed() < DESCRIPTOR_TIMEOUT => sleep(DESCRIPTOR_PAUSE),
            result => return result,
        }
    }
}

/// How a range of a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// With direct I/O. Offsets and memory are aligned to this many bytes.
    Directly(usize),
    /// Through the page cache, because the range is there or the operator wants it there.
    ThroughCache,
    /// Through the page cache, from which the range is dropped afterwards, because the file system has no
    /// direct I/O.
    ThroughCacheAndOut,
}

impl Way {
    /// Returns where the bytes then come from.
    fn source(self) -> Source {
        match self {
            Self::Directly(_) => Source::Direct,
            Self::ThroughCache => Source::PageCache,
            Self::ThroughCacheAndOut => Source::Buffered,
        }
    }
}

/// A range of a file in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InMemory {
    /// Where in the buffer it is.
    pub(crate) range: Range<usize>,
    /// Where it was read from.
    pub(crate) source: Source,
}

/// Returns the size of the buffer that reading a range needs, in bytes. The buffer must be aligned to
/// [`ALIGNMENT`].
pub(crate) fn room(offset: u64, len: usize) -> usize {
    ((offset % ALIGNMENT as u64) as usize + len).next_multiple_of(ALIGNMENT)
}

/// Asks the kernel for the alignment of direct reads of a file. 4096 bytes if it does not tell. `None` if the
/// file has no direct reads, or needs more than the alignment of buffers.
fn probe_alignment(file: &OwnedFd) -> Option<usize> {
    let Ok(statx) = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return Some(ALIGNMENT);
    };
    if statx.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Some(ALIGNMENT);
    }
    let alignment = statx.stx_dio_offset_align.max(statx.stx_dio_mem_align) as usize;
    (statx.stx_dio_offset_align != 0 && alignment.is_power_of_two() && alignment <= ALIGNMENT).then_some(alignment)
}

/// Reads until the buffer holds `want` bytes or the file ends. Every read begins and ends aligned.
fn read_aligned(file: &OwnedFd, start: u64, want: usize, room: &mut [u8], alignment: usize) -> Result<usize, Errno> {
    let mut filled = 0;
    loop {
        match rustix::io::pread(file, &mut room[filled..], start + filled as u64) {
            Ok(0) => return Ok(filled),
            Ok(read) if filled + read >= want => return Ok(filled + read),
            // A short read: the end of the file, or an interruption. Continue at the last whole block.
            Ok(read) => {
                let whole = (filled + read) / alignment * alignment;
                if whole == filled {
                    return Ok(filled + read);
                }
                filled = whole;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Fills the buffer, or reads to the end of the file, without direct I/O.
fn read_full(file: &OwnedFd, offset: u64, buffer: &mut [u8], way: Way) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(file, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    if way == Way::ThroughCacheAndOut {
        let _ = rustix::fs::fadvise(file, offset, NonZero::new(buffer.len() as u64), Advice::DontNeed);
    }
    Ok(filled)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Seek, Write};

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::direct::AlignedBytes;

    /// Returns an arbitrary indexed state with the given inode.
    pub(crate) fn state(inode: u64) -> FileState {
        let identity = Identity { device: RelativeDevice::Roots, inode, ctime: Time::default() };
        let state = OnDisk { root: Directory { device: 1, inode: 1 }, identity, mtime: Time::default(), size: 1 << 30 };
        FileState { state, content: Digest([1; 32]) }
    }

    #[test]
    fn a_state_is_the_indexed_one_if_its_time_is_only_coarser_and_nothing_else_differs() {
        let indexed = OnDisk { mtime: Time { sec: 5, nsec: 123_456_789 }, ..state(7).state };
        for nsec in [123_456_789, 123_456_700, 123_456_000, 120_000_000, 0] {
            let found = OnDisk { mtime: Time { sec: 5, nsec }, ..indexed };
            assert!(found.is_same(&indexed), "{nsec}");
            let ctime = Time { sec: 9, nsec: 0 };
            let touched = OnDisk { identity: Identity { ctime, ..found.identity }, ..found };
            assert!(!touched.is_same(&indexed) && touched.is_same_except_ctime(&indexed), "{nsec}");
            assert!(!OnDisk { size: 3, ..found }.is_same(&indexed));
            assert!(!OnDisk { size: 3, ..touched }.is_same_except_ctime(&indexed));
        }
        for mtime in [Time { sec: 4, nsec: 0 }, Time { sec: 5, nsec: 123_000_000 }, Time { sec: 6, nsec: 0 }] {
            assert!(!OnDisk { mtime, ..indexed }.is_same(&indexed), "{mtime:?}");
        }
    }

    /// Returns the state of an open file, as an index would record it.
    fn of(tree: &Tree, mut file: &std::fs::File) -> FileState {
        let state = OnDisk::of(&rustix::fs::fstat(file).unwrap(), tree.directory).unwrap();
        let mut content = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        FileState { state, content: Digest(Sha256::digest(&content).into()) }
    }

    /// Creates a tree with one file of `len` bytes. Returns the directory, the tree, the file's state and its
    /// content.
    fn tree(policy: DirectPolicy, len: usize) -> (TempDir, Arc<Tree>, FileState, Vec<u8>) {
        let dir = tempfile::Builder::new().prefix("direct").tempdir().unwrap();
        let content: Vec<u8> = (0..len).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect();
        let mut file = std::fs::File::create_new(dir.path().join("file")).unwrap();
        file.write_all(&content).unwrap();
        let tree = Arc::new(Tree::open("repo", dir.path(), policy, false).unwrap());
        let indexed = of(&tree, &file);
        (dir, tree, indexed, content)
    }

    fn read(file: &OpenFile, offset: u64, len: usize) -> Result<Vec<u8>, ItemFailure> {
        let mut buffer = AlignedBytes::slab(2 << 20).remove(0);
        let read = file.read(offset, len, &mut buffer[..room(offset, len)])?;
        Ok(buffer[read.range].to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn direct_reads_of_odd_ranges_return_the_same_as_plain_reads(
            size in 1..200_000usize,
            ranges in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 8),
        ) {
            let (_dir, tree, indexed, content) = tree(DirectPolicy::Always, size);
            let file = tree.open_file(b"file", indexed, None).unwrap();
            for (start, end) in ranges {
                let (start, end) = (start.index(size + 1), end.index(size + 1));
                let (start, end) = (start.min(end), start.max(end));
                let bytes = read(&file, start as u64, end - start);
                prop_assert!(bytes.as_deref() == Ok(&content[start..end]), "{start}..{end} of {size}: {bytes:?}");
            }
        }
    }

    #[test]
    fn direct_reads_leave_nothing_in_the_page_cache() {
        let (dir, tree, indexed, content) = tree(DirectPolicy::Always, 1 << 20);
        let file = std::fs::File::open(dir.path().join("file")).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let open = tree.open_file(b"file", indexed, None).unwrap();
        assert!(read(&open, 0, content.len()).as_deref() == Ok(&content));
        if open.reads_directly() {
            assert!(!direct::is_cached(&file, 0, 4096));
        }
    }

    #[test]
    fn files_are_read_through_the_cache_if_direct_reads_are_refused() {
        let (_dir, tree, indexed, content) = tree(DirectPolicy::Always, 10_001);
        tree.learn(tree.directory.device, None);
        let file = tree.open_file(b"file", indexed, None).unwrap();
        assert_eq!(read(&file, 5_000, 5_001).as_deref(), Ok(&content[5_000..]));
    }

    #[test]
    fn a_file_that_changed_after_it_was_opened_is_not_read() {
        let (dir, tree, indexed, _) = tree(DirectPolicy::Auto, 10_000);
        let file = tree.open_file(b"file", indexed, None).unwrap();
        let mut other = std::fs::OpenOptions::new().append(true).open(dir.path().join("file")).unwrap();
        other.write_all(b"x").unwrap();
        assert_eq!(read(&file, 0, 100), Err(ItemFailure::Stale));
    }

    /// Reads ranges (row, offset, length) of the files `0`, `1`, … of a tree. `states` are their indexed
    /// states.
    fn read_batch(
        tree: &Tree,
        states: &[FileState],
        ranges: &[(u32, u64, usize)],
    ) -> Vec<Result<Vec<u8>, ItemFailure>> {
        let mut buffers: Vec<_> = ranges.iter().map(|_| AlignedBytes::slab(2 << 20).remove(0)).collect();
        let wanted = ranges.iter().zip(&mut buffers).map(|(&(row, offset, len), buffer)| {
            let room = &mut buffer[..room(offset, len)];
            Wanted { row, indexed: states[row as usize], offset, len, room }
        });
        let outcomes = tree.read_batch(|row| row.to_string().into_bytes(), |_| None, &mut wanted.collect::<Vec<_>>());
        let bytes = outcomes.into_iter().zip(&buffers);
        bytes.map(|(outcome, buffer)| outcome.map(|read| buffer[read.range].to_vec())).collect()
    }

    #[test]
    fn a_batch_reads_every_range_and_fails_for_files_that_changed_or_vanished() {
        for policy in [DirectPolicy::Always, DirectPolicy::Auto, DirectPolicy::Never] {
            for is_refused in [false, true] {
                let dir = tempfile::Builder::new().prefix("direct").tempdir().unwrap();
                let content = |row: u32| vec![row as u8; 4095 + row as usize];
                let tree = Tree::open("repo", dir.path(), policy, false).unwrap();
                let states: Vec<FileState> = (0..12)
                    .map(|row| {
                        let mut file = std::fs::File::create_new(dir.path().join(row.to_string())).unwrap();
                        file.write_all(&content(row)).unwrap();
                        file.sync_all().unwrap();
                        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
                        of(&tree, &file)
                    })
                    .collect();
                if is_refused {
                    tree.learn(tree.directory.device, None);
                }
                std::fs::write(dir.path().join("3"), "another").unwrap();
                std::fs::remove_file(dir.path().join("5")).unwrap();
                let whole = (0..12).map(|row| (row, 0, content(row).len()));
                let ranges: Vec<_> = whole.chain([(7, 0, 0), (7, 4000, 100), (7, 1, 3000), (8, 4102, 1)]).collect();
                for (&(row, offset, len), got) in ranges.iter().zip(read_batch(&tree, &states, &ranges)) {
                    let expected = match row {
                        3 => Err(ItemFailure::Stale),
                        5 => Err(ItemFailure::Vanished),
                        _ => Ok(content(row)[offset as usize..offset as usize + len].to_vec()),
                    };
                    assert!(got == expected, "{policy:?}, refused: {is_refused}: {len} bytes at {offset} of {row}");
                }
            }
        }
    }
}
