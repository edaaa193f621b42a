//! A run's progress, and the report at its end.

use std::io;
use std::time::Duration;

use stillmirror_protocol::head::Counts;

/// Receives a run's progress. Called from many threads, up to a few thousand times a second.
pub trait Progress: Sync {
    /// A directory with this many entries was walked.
    fn walked(&self, _entries: u64) {}
    /// The walk has ended, and this many files and bytes will be read.
    fn to_hash(&self, _files: u64, _bytes: u64) {}
    /// This many more files and bytes were read.
    fn hashed(&self, _files: u64, _bytes: u64) {}
    /// All files were read, and the generation is now built and written.
    fn publishing(&self) {}
}

/// Ignores all progress.
impl Progress for () {}

/// The result of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// The number in the store of the generation that is now current.
    pub generation: u64,
    /// Whether this run published the current generation. False if nothing had changed.
    pub published: bool,
    /// The numbers of entries in the current generation.
    pub counts: Counts,
    /// Entries that are new since the previous generation.
    pub added: u64,
    /// Entries that differ from the previous generation. A directory of which only the time differs is not
    /// counted, because that happens whenever something in it is added or removed.
    pub changed: u64,
    /// Entries that were removed since the previous generation.
    pub removed: u64,
    /// Files whose record in the store is damaged. 0 unless the run checks the store.
    pub damaged: u64,
    /// Files read.
    pub hashed_files: u64,
    /// Bytes read.
    pub hashed_bytes: u64,
    /// Files and directories that could not be read, sorted by path.
    pub unreadable: Vec<Problem>,
    /// Files that kept changing while they were read. Their entries stay as in the previous generation, and
    /// new ones are left out.
    pub torn: Vec<Vec<u8>>,
    /// Files whose content differs from the indexed one, although size, times and inode are the indexed ones:
    /// the disk has rotted. The list keeps the indexed content, and the daemon does not send these files
    /// until they have it again.
    pub rotten: Vec<Vec<u8>>,
    /// Contents that were put into the pool.
    pub pooled: u64,
    /// Files of the current generation whose content the pool does not have, although it should: most are on other file
    /// systems than the root.
    pub unpooled: u64,
    /// Files whose content could not be put into the pool in this run, except those on other file systems, sorted by path.
    pub refused: Vec<Problem>,
    /// Whether the requested optional digests are still missing from the list. Every file must be read to add
    /// them, and some files whose entries must stay could not be read. The next run tries again.
    pub digests_postponed: bool,
    /// The time taken by each phase.
    pub time: Phases,
}

/// A path that could not be read.
#[derive(Debug)]
pub struct Problem {
    /// Relative to the root.
    pub path: Vec<u8>,
    /// The system's error.
    pub error: io::Error,
}

/// Wall-clock time by phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Opening and checking the previous generation.
    pub open: Duration,
    /// Walking the tree.
    pub walk: Duration,
    /// Reading and hashing files.
    pub hash: Duration,
    /// Building, writing and syncing the generation, and removing old ones.
    pub publish: Duration,
    /// The whole run.
    pub total: Duration,
}
