//! Contents in the pool of a generation. They are sent in place of files that the tree no longer has in their indexed
//! state.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use stillmirror_protocol::wire::ItemFailure;
use stillmirror_store::{ContentPool, Generation, PoolName};

use super::{FileState, InMemory, OnDisk, Tree, Wanted, Way, read_full, wait_for_descriptor};

/// The place of a file's content in the pool.
#[derive(Clone)]
pub(crate) struct Pooled {
    pool: Arc<ContentPool>,
    name: PoolName,
}

impl Pooled {
    /// Returns the place of the content of the regular file at `row`. `None` if the pool does not have it. A rotten file
    /// counts as one of these, because the copy shares its blocks.
    pub(crate) fn of(pool: &Arc<ContentPool>, generation: &Generation, row: u32) -> Option<Self> {
        let (list, local) = (generation.list(), generation.local());
        let name = PoolName::of_row(list, local, row).filter(|_| !local.is_rotten(row))?;
        Some(Self { pool: Arc::clone(pool), name })
    }

    pub(super) fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        wait_for_descriptor(|| self.pool.content(&self.name, flags | OFlags::NONBLOCK | OFlags::NOCTTY))
    }
}

/// An open content of the pool.
pub(super) struct OpenContent {
    pub(super) file: OwnedFd,
    /// The number of its device.
    pub(super) device: u64,
    /// The state in which it must stay.
    pub(super) state: FileState,
}

impl Tree {
    /// Opens the content of a file whose indexed state is `indexed`. A copy may have any state, because only the indexer
    /// writes to it. A hard link must be in the indexed state, because whoever writes to the file writes to the link. Its
    /// ctime usually differs, because its name in the tree was removed; so it is read once.
    pub(super) fn open_pooled(
        &self,
        path: &[u8],
        indexed: FileState,
        pooled: &Pooled,
    ) -> Result<OpenContent, ItemFailure> {
        let opened = pooled.open(OFlags::RDONLY).and_then(|file| Ok((rustix::fs::fstat(&file)?, file)));
        let (stat, file) = opened.map_err(|errno| self.failure(path, errno))?;
        let found = OnDisk::of(&stat, self.directory).ok_or(ItemFailure::Stale)?;
        let is_right = if !pooled.name.is_link() {
            found.size == indexed.size()
        } else if found.is_same_except_ctime(&indexed.state) && !found.is_same(&indexed.state) {
            let content = self.touched.content(found, || self.digest(&file, found, stat.st_dev));
            content.map_err(|errno| self.failure(path, errno))? == Some(indexed.content)
        } else {
            found.is_same(&indexed.state)
        };
        if !is_right {
            return Err(ItemFailure::Stale);
        }
        let state = FileState { state: found, ..indexed };
        let device = self.check(path, state, &file)?;
        Ok(OpenContent { file, device, state })
    }

    /// Reads a range from the pool, and returns where in its buffer it is. `None` if that fails.
    pub(super) fn read_pooled(&self, path: &[u8], pooled: &Pooled, wanted: &mut Wanted<'_>) -> Option<InMemory> {
        let content = self.open_pooled(path, wanted.indexed, pooled).ok()?;
        let way = match self.way(&content.file, content.device, wanted.offset, wanted.len) {
            Way::Directly(_) => Way::ThroughCacheAndOut,
            way => way,
        };
        let filled = read_full(&content.file, wanted.offset, &mut wanted.room[..wanted.len], way).ok()?;
        let is_right = filled == wanted.len && self.check(path, content.state, &content.file).is_ok();
        is_right.then(|| InMemory { range: 0..wanted.len, source: way.source() })
    }
}
