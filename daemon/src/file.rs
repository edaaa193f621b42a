//! A repository's files: opened beneath its root, known to be the indexed ones, read in aligned pieces.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rustix::fs::{Advice, AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use stillmirror_protocol::entry::Time;
use stillmirror_protocol::local::Identity;
use stillmirror_protocol::path;
use stillmirror_protocol::wire::ItemFailure;
use stillmirror_store::{Generation, open_beneath};

use crate::config::DirectPolicy;
use crate::direct::{self, ALIGNMENT};

/// The state in which a file was indexed. Only a file in exactly this state is ever sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileState {
    identity: Identity,
    mtime: Time,
    size: u64,
}

impl FileState {
    /// What a generation says of the regular file at `row`, which must be below its list's length.
    pub(crate) fn indexed(generation: &Generation, row: u32) -> Self {
        let entry = generation.list().row(row);
        Self { identity: generation.local().identity(row), mtime: entry.mtime(), size: entry.size() }
    }

    /// Bytes of the file.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// What the disk says of an open file; none for anything but a regular one.
    fn of(file: &OwnedFd) -> Result<Option<Self>, Errno> {
        let stat = rustix::fs::fstat(file)?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
            return Ok(None);
        }
        let time = |sec, nsec| Time { sec, nsec };
        Ok(Some(Self {
            identity: Identity {
                device: stat.st_dev,
                inode: stat.st_ino,
                ctime: time(stat.st_ctime, stat.st_ctime_nsec as u32),
            },
            mtime: time(stat.st_mtime, stat.st_mtime_nsec as u32),
            size: stat.st_size.cast_unsigned(),
        }))
    }
}

/// A repository's tree: the one directory beneath which its files are opened.
pub(crate) struct Tree {
    repository: String,
    root: OwnedFd,
    policy: DirectPolicy,
    /// What direct reads must be aligned to (bytes), by device; `None` where they are refused.
    alignments: RwLock<Vec<(u64, Option<usize>)>>,
    refusal_told: AtomicBool,
}

impl Tree {
    /// Opens the root directory.
    pub(crate) fn open(repository: &str, root: &Path, policy: DirectPolicy) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        Ok(Self {
            repository: repository.to_owned(),
            root,
            policy,
            alignments: RwLock::default(),
            refusal_told: AtomicBool::new(false),
        })
    }

    /// Opens the file at `path` if it is in the indexed state.
    pub(crate) fn open_file(self: &Arc<Self>, path: &[u8], indexed: FileState) -> Result<OpenFile, ItemFailure> {
        let plain = self.open_beneath(path, OFlags::empty()).map_err(|errno| self.failure(path, errno))?;
        let file = OpenFile { tree: Arc::clone(self), path: path.into(), indexed, plain, direct: OnceLock::new() };
        file.check(&file.plain)?;
        Ok(file)
    }

    /// No symlink is followed anywhere in the path, and nothing outside the root is reached, whatever
    /// happens to the tree meanwhile.
    fn open_beneath(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        open_beneath(&self.root, path, flags)
    }

    /// What direct reads of this file must be aligned to; none where its file system refuses them.
    fn alignment(&self, file: &OwnedFd, device: u64) -> Option<usize> {
        let known = |alignments: &[(u64, Option<usize>)]| alignments.iter().find(|(of, _)| *of == device).copied();
        if let Some((_, alignment)) = known(&self.alignments.read().unwrap_or_else(PoisonError::into_inner)) {
            return alignment;
        }
        let alignment = probe_alignment(file);
        self.learn(device, alignment);
        alignment
    }

    fn learn(&self, device: u64, alignment: Option<usize>) {
        let mut alignments = self.alignments.write().unwrap_or_else(PoisonError::into_inner);
        alignments.retain(|(of, _)| *of != device);
        alignments.push((device, alignment));
        drop(alignments);
        if alignment.is_none() && !self.refusal_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                repository = self.repository,
                "the file system refuses direct reads: files are read through the page cache and dropped from it"
            );
        }
    }

    fn failure(&self, path: &[u8], errno: Errno) -> ItemFailure {
        match errno {
            Errno::NOENT | Errno::NOTDIR => ItemFailure::Vanished,
            // A symlink, a mount or a socket now stands where a file was indexed.
            Errno::LOOP | Errno::XDEV | Errno::NXIO | Errno::NODEV => ItemFailure::Stale,
            errno => {
                let path = path::Escaped(path);
                tracing::warn!(repository = self.repository, %path, error = %errno, "cannot read a file");
                ItemFailure::Unreadable
            }
        }
    }
}

/// What the kernel says of direct reads of a file: 4096 bytes where it says nothing, none where it says
/// that there are none, or wants more than a buffer's own alignment.
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

/// A file that was in its indexed state when it was opened.
pub(crate) struct OpenFile {
    tree: Arc<Tree>,
    path: Box<[u8]>,
    indexed: FileState,
    plain: OwnedFd,
    /// Opened when something is to be read directly; `None` where that is refused.
    direct: OnceLock<Option<OwnedFd>>,
}

impl OpenFile {
    /// The room that [`OpenFile::read`] needs for a range, from a start aligned to [`ALIGNMENT`].
    pub(crate) fn room(offset: u64, len: usize) -> usize {
        ((offset % ALIGNMENT as u64) as usize + len).next_multiple_of(ALIGNMENT)
    }

    /// Reads `len` bytes at `offset` and says where in `buffer` they are. `buffer` begins on a multiple
    /// of [`ALIGNMENT`] and has [`OpenFile::room`]. Fails unless the file was in its indexed state before
    /// and after.
    pub(crate) fn read(&self, offset: u64, len: usize, buffer: &mut [u8]) -> Result<Range<usize>, ItemFailure> {
        let range = match self.read_directly(offset, len, buffer) {
            Some(result) => result,
            None => self.read_through_cache(offset, len, buffer),
        };
        let range = range.map_err(|errno| self.tree.failure(&self.path, errno))?;
        self.check(&self.plain)?;
        if range.len() < len {
            // The file ends before its indexed size, and yet has that size: its disk is at odds with itself.
            return Err(ItemFailure::Unreadable);
        }
        Ok(range)
    }

    /// `None` when the bytes should come through the page cache.
    fn read_directly(&self, offset: u64, len: usize, buffer: &mut [u8]) -> Option<Result<Range<usize>, Errno>> {
        match self.tree.policy {
            _ if len == 0 => return Some(Ok(0..0)),
            DirectPolicy::Never => return None,
            DirectPolicy::Auto if direct::is_cached(&self.plain, offset, len as u64) => return None,
            DirectPolicy::Auto | DirectPolicy::Always => {}
        }
        let alignment = self.tree.alignment(&self.plain, self.indexed.identity.device)?;
        let file = self.direct.get_or_init(|| self.open_directly()).as_ref()?;
        let skip = (offset % alignment as u64) as usize;
        let room = &mut buffer[..(skip + len).next_multiple_of(alignment)];
        match read_aligned(file, offset - skip as u64, skip + len, room, alignment) {
            Ok(filled) => Some(Ok(skip.min(filled)..filled.min(skip + len))),
            Err(Errno::INVAL) => {
                self.tree.learn(self.indexed.identity.device, None);
                None
            }
            Err(errno) => Some(Err(errno)),
        }
    }

    fn open_directly(&self) -> Option<OwnedFd> {
        match self.tree.open_beneath(&self.path, OFlags::DIRECT) {
            Ok(file) => self.check(&file).is_ok().then_some(file),
            Err(Errno::INVAL) => {
                self.tree.learn(self.indexed.identity.device, None);
                None
            }
            // It was there a moment ago: the check after the read will tell what became of it.
            Err(_) => None,
        }
    }

    fn read_through_cache(&self, offset: u64, len: usize, buffer: &mut [u8]) -> Result<Range<usize>, Errno> {
        // Asked before the read: pages that others put into the cache are theirs to keep.
        let drop_after = self.tree.policy != DirectPolicy::Never && !direct::is_cached(&self.plain, offset, len as u64);
        let filled = read_full(&self.plain, offset, &mut buffer[..len])?;
        if drop_after {
            let _ = rustix::fs::fadvise(&self.plain, offset, std::num::NonZero::new(len as u64), Advice::DontNeed);
        }
        Ok(0..filled)
    }

    fn check(&self, file: &OwnedFd) -> Result<(), ItemFailure> {
        match FileState::of(file) {
            Ok(Some(state)) if state == self.indexed => Ok(()),
            Ok(_) => Err(ItemFailure::Stale),
            Err(errno) => Err(self.tree.failure(&self.path, errno)),
        }
    }
}

/// Reads until `want` bytes are there or the file ends; every read begins and ends aligned.
fn read_aligned(file: &OwnedFd, start: u64, want: usize, room: &mut [u8], alignment: usize) -> Result<usize, Errno> {
    let mut filled = 0;
    loop {
        match rustix::io::pread(file, &mut room[filled..], start + filled as u64) {
            Ok(0) => return Ok(filled),
            Ok(read) if filled + read >= want => return Ok(filled + read),
            // Short of what was asked: the tail of a file, or an interruption. Go on at the last whole block.
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

fn read_full(file: &OwnedFd, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(file, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(filled)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::direct::AlignedBytes;

    /// The state of some file.
    pub(crate) fn state(inode: u64) -> FileState {
        let identity = Identity { device: 1, inode, ctime: Time::default() };
        FileState { identity, mtime: Time::default(), size: 1 << 30 }
    }

    /// A tree with one file of `len` bytes, and what is in it.
    fn tree(policy: DirectPolicy, len: usize) -> (TempDir, Arc<Tree>, FileState, Vec<u8>) {
        let dir = tempfile::Builder::new().prefix("direct").tempdir().unwrap();
        let content: Vec<u8> = (0..len).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect();
        let mut file = std::fs::File::create(dir.path().join("file")).unwrap();
        file.write_all(&content).unwrap();
        let indexed = FileState::of(&OwnedFd::from(file)).unwrap().unwrap();
        let tree = Arc::new(Tree::open("repo", dir.path(), policy).unwrap());
        (dir, tree, indexed, content)
    }

    fn read(file: &OpenFile, offset: u64, len: usize) -> Result<Vec<u8>, ItemFailure> {
        let mut buffer = AlignedBytes::slab(2 << 20).remove(0);
        let range = file.read(offset, len, &mut buffer[..OpenFile::room(offset, len)])?;
        Ok(buffer[range].to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn direct_reads_of_odd_ranges_give_what_plain_reads_give(
            size in 1..200_000usize,
            ranges in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 8),
        ) {
            let (_dir, tree, indexed, content) = tree(DirectPolicy::Always, size);
            let file = tree.open_file(b"file", indexed).unwrap();
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
        let open = tree.open_file(b"file", indexed).unwrap();
        assert!(read(&open, 0, content.len()).as_deref() == Ok(&content));
        if open.direct.get().is_some_and(Option::is_some) {
            assert!(!direct::is_cached(&file, 0, 4096));
        }
    }

    #[test]
    fn where_direct_reads_are_refused_files_are_read_all_the_same() {
        let (_dir, tree, indexed, content) = tree(DirectPolicy::Always, 10_001);
        tree.learn(indexed.identity.device, None);
        let file = tree.open_file(b"file", indexed).unwrap();
        assert_eq!(read(&file, 5_000, 5_001).as_deref(), Ok(&content[5_000..]));
    }

    #[test]
    fn a_file_that_changes_after_it_was_opened_gives_no_bytes() {
        let (dir, tree, indexed, _) = tree(DirectPolicy::Auto, 10_000);
        let file = tree.open_file(b"file", indexed).unwrap();
        let mut other = std::fs::OpenOptions::new().append(true).open(dir.path().join("file")).unwrap();
        other.write_all(b"x").unwrap();
        assert_eq!(read(&file, 0, 100), Err(ItemFailure::Stale));
    }
}
