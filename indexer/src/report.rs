//! What a run tells: while it goes on, and at its end.

use std::io;
use std::time::Duration;

use stillmirror_protocol::head::Counts;

/// Hears how far a run is. Called from many threads, a few thousand times a second at most.
pub trait Progress: Sync {
    /// A directory was walked that has so many other entries.
    fn walked(&self, _entries: u64) {}
    /// The walk is over: so much is to be read.
    fn to_hash(&self, _files: u64, _bytes: u64) {}
    /// So much more was read.
    fn hashed(&self, _files: u64, _bytes: u64) {}
    /// Everything was read; the generation is built and written.
    fn publishing(&self) {}
}

/// Nobody listens.
impl Progress for () {}

/// What a run did.
#[derive(Debug, Default)]
pub struct Report {
    /// The store's number of the generation that is current now.
    pub generation: u64,
    /// Whether this run published it. False: nothing had changed.
    pub published: bool,
    /// What the generation holds.
    pub counts: Counts,
    /// Entries new since the generation before.
    pub added: u64,
    /// Entries that differ from the generation before. A directory whose time alone differs is not
    /// counted: it always does when something in it was added or removed.
    pub changed: u64,
    /// Entries gone since the generation before.
    pub removed: u64,
    /// Files of which the store's record was damaged, when that was looked for.
    pub damaged: u64,
    /// Files read.
    pub hashed_files: u64,
    /// Bytes read.
    pub hashed_bytes: u64,
    /// Files and directories that could not be read, by path.
    pub unreadable: Vec<Problem>,
    /// Files that kept changing while they were read; they are as in the generation before, or left out.
    pub torn: Vec<Vec<u8>>,
    /// Files with another content than their indexed one, although size, times and inode are the indexed ones: their disk has
    /// rotted. The list goes on naming the indexed content, and the daemon does not send them until they have it again.
    pub rotten: Vec<Vec<u8>>,
    /// Whether the optional digests that were asked for are still not in the list: every file must be read
    /// for them, and entries stay whose files cannot be. The next run tries again.
    pub digests_postponed: bool,
    /// Where the time went.
    pub time: Phases,
}

/// A path that could not be read.
#[derive(Debug)]
pub struct Problem {
    /// Relative to the root.
    pub path: Vec<u8>,
    /// The system's reason.
    pub error: io::Error,
}

/// Wall time by phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Opening and checking the generation before.
    pub open: Duration,
    /// Walking.
    pub walk: Duration,
    /// Reading.
    pub hash: Duration,
    /// Building the list, writing, syncing, collecting old generations.
    pub publish: Duration,
    /// All of it.
    pub total: Duration,
}
