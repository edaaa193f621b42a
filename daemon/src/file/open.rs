//! [`OpenFile`]: a file that stays open across reads, for several readers.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use rustix::fs::OFlags;
use rustix::io::Errno;
use stillmirror_protocol::wire::ItemFailure;

use super::pooled::{OpenContent, Pooled};
use super::{FileState, InMemory, Tree, Way, read_aligned, read_full};
use crate::pipe::{Part, Pipe};

/// A file that was in its indexed state when it was opened.
pub(crate) struct OpenFile {
    tree: Arc<Tree>,
    path: Box<[u8]>,
    indexed: FileState,
    plain: OwnedFd,
    /// The number of the file's device.
    device: u64,
    /// A descriptor for direct reads, opened when it is first needed. `None` where direct reads are refused.
    direct: OnceLock<Option<OwnedFd>>,
    /// Set if the file is a content of the pool.
    content: Option<Pooled>,
    /// Where its content is in the pool, if the file is in the tree.
    pooled: Option<Pooled>,
    /// The content from the pool, opened when the file in the tree turns out to have changed. `None` if that failed.
    instead: OnceLock<Option<Box<OpenFile>>>,
}

impl OpenFile {
    /// `plain` must be open for reading, and must have been found in the indexed state.
    pub(super) fn new(tree: Arc<Tree>, path: &[u8], indexed: FileState, plain: OwnedFd, device: u64) -> Self {
        let (direct, instead) = (OnceLock::new(), OnceLock::new());
        Self { tree, path: path.into(), indexed, plain, device, direct, content: None, pooled: None, instead }
    }

    /// Sets where the content is in the pool.
    pub(super) fn with_pooled(self, pooled: Option<Pooled>) -> Self {
        Self { pooled, ..self }
    }

    /// Opens a content of the pool. `None` if that fails.
    pub(super) fn of_pool(tree: &Arc<Tree>, path: &[u8], indexed: FileState, pooled: &Pooled) -> Option<Self> {
        let OpenContent { file, device, state } = tree.open_pooled(path, indexed, pooled).ok()?;
        let open = Self::new(Arc::clone(tree), path, state, file, device);
        Some(Self { content: Some(pooled.clone()), ..open })
    }

    /// Returns the file that is read: this one, or the content from the pool if the tree's file has changed.
    fn source(&self) -> &Self {
        self.instead.get().and_then(Option::as_deref).unwrap_or(self)
    }

    /// Reads `len` bytes at `offset`, and returns where in `buffer` they are. `buffer` must be aligned to
    /// [`crate::direct::ALIGNMENT`] and as large as [`super::room`] says. Fails unless the file is in its
    /// indexed state before and after the read, or its content is in the pool.
    pub(crate) fn read(&self, offset: u64, len: usize, buffer: &mut [u8]) -> Result<InMemory, ItemFailure> {
        let source = self.source();
        source.read_here(offset, len, buffer).or_else(|reason| {
            let pooled = source.pooled.as_ref().ok_or(reason)?;
            let open = || Self::of_pool(&self.tree, &self.path, self.indexed, pooled).map(Box::new);
            self.instead.get_or_init(open).as_deref().ok_or(reason)?.read_here(offset, len, buffer)
        })
    }

    fn read_here(&self, offset: u64, len: usize, buffer: &mut [u8]) -> Result<InMemory, ItemFailure> {
        let mut way = self.tree.way(&self.plain, self.device, offset, len);
        let directly = match way {
            Way::Directly(alignment) => self.read_directly(offset, len, buffer, alignment),
            Way::ThroughCache | Way::ThroughCacheAndOut => None,
        };
        let range = directly.unwrap_or_else(|| {
            if matches!(way, Way::Directly(_)) {
                way = Way::ThroughCacheAndOut;
            }
            self.read_through_cache(offset, len, buffer, way)
        });
        let range = range.map_err(|errno| self.tree.failure(&self.path, errno))?;
        self.tree.check(&self.path, self.indexed, &self.plain)?;
        if range.len() < len {
            // The file ends before its indexed size, but `fstat` reports that size. Its disk contradicts
            // itself.
            return Err(ItemFailure::Unreadable);
        }
        Ok(InMemory { range, source: way.source() })
    }

    /// Returns whether its file system needs no other host or process to answer.
    pub(crate) fn is_local(&self) -> bool {
        self.tree.is_local
    }

    /// Returns whether a range is best taken from the page cache.
    pub(crate) fn is_in_page_cache(&self, range: &Range<u64>) -> bool {
        let (len, source) = ((range.end - range.start) as usize, self.source());
        self.tree.way(&source.plain, source.device, range.start, len) == Way::ThroughCache
    }

    /// Puts protocol bytes and ranges of the file into a pipe. Fails unless the file is in its indexed state
    /// after that.
    pub(crate) fn fill(
        &self,
        pipe: &mut Pipe,
        protocol: &[u8],
        parts: impl Iterator<Item = Part>,
    ) -> Result<(), ItemFailure> {
        let source = self.source();
        pipe.fill(protocol, &source.plain, parts).map_err(|_| ItemFailure::Unreadable)?;
        self.tree.check_at_once(&self.path, source.indexed, &source.plain)
    }

    /// Reads with direct I/O. `None` if direct reads turn out to be refused.
    fn read_directly(
        &self,
        offset: u64,
        len: usize,
        buffer: &mut [u8],
        alignment: usize,
    ) -> Option<Result<Range<usize>, Errno>> {
        let file = self.direct.get_or_init(|| self.open_directly()).as_ref()?;
        let skip = (offset % alignment as u64) as usize;
        let room = &mut buffer[..(skip + len).next_multiple_of(alignment)];
        match read_aligned(file, offset - skip as u64, skip + len, room, alignment) {
            Ok(filled) => Some(Ok(skip.min(filled)..filled.min(skip + len))),
            Err(Errno::INVAL) => {
                self.tree.learn(self.device, None);
                None
            }
            Err(errno) => Some(Err(errno)),
        }
    }

    fn open_directly(&self) -> Option<OwnedFd> {
        let opened = match &self.content {
            Some(content) => content.open(OFlags::DIRECT),
            None => self.tree.open_waiting(&self.path, OFlags::DIRECT),
        };
        match opened {
            Ok(file) => self.tree.check(&self.path, self.indexed, &file).is_ok().then_some(file),
            Err(Errno::INVAL) => {
                self.tree.learn(self.device, None);
                None
            }
            // The file existed a moment ago. The check after the read will tell what became of it.
            Err(_) => None,
        }
    }

    fn read_through_cache(&self, offset: u64, len: usize, buffer: &mut [u8], way: Way) -> Result<Range<usize>, Errno> {
        read_full(&self.plain, offset, &mut buffer[..len], way).map(|filled| 0..filled)
    }

    #[cfg(test)]
    pub(super) fn reads_directly(&self) -> bool {
        self.direct.get().is_some_and(Option::is_some)
    }
}
