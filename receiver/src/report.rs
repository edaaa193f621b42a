//! What a pull is asked to do, what it tells on the way, and what it did.

use std::path::PathBuf;
use std::time::Duration;

use stillmirror_protocol::filter::Filter;
use stillmirror_protocol::sums::SumsPolicy;
use stillmirror_store::Retention;

/// How a pull finds out what the local tree holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Check {
    /// By size and modification time of every local file.
    #[default]
    Stat,
    /// By reading every local file.
    Hash,
    /// Not at all: the generation that the last pull left in the store is trusted.
    None,
}

/// Whose the files become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owners {
    /// The sender's, by name where this host knows it, else by number; only root can do so, everybody
    /// else gets [`Owners::Ignore`].
    #[default]
    ByName,
    /// The sender's, by number.
    ByNumber,
    /// The user's who pulls.
    Ignore,
}

/// What to pull, where to, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The sender, `HOST:PORT`.
    pub address: String,
    /// The repository's name.
    pub repository: String,
    /// The part of it, relative to its root; empty for all. A single file lands in `dest` by its name.
    pub path: Vec<u8>,
    /// The local tree. It is made when its parent exists.
    pub dest: PathBuf,
    /// The receiver's own store. Without one the disk alone says what is there.
    pub store: Option<PathBuf>,
    /// Delete what the sender does not have. What the filter leaves out is never deleted.
    pub delete: bool,
    /// Delete nothing when more names than this would go.
    pub max_delete: Option<u64>,
    /// What to leave out, by paths relative to [`Options::path`].
    pub filter: Filter,
    /// Plan only: nothing is written, neither in the tree nor in the store.
    pub dry_run: bool,
    /// Most bytes a second to receive.
    pub bandwidth: Option<u64>,
    /// How local files are checked.
    pub check: Check,
    /// Owner and group.
    pub owners: Owners,
    /// Make devices, fifos and sockets (devices need root); else they are left out.
    pub specials: bool,
    /// Threads that hash, match and write; 0 takes all cores.
    pub threads: usize,
    /// How long the sender may be silent while it owes an answer.
    pub timeout: Duration,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How often a connection that breaks while contents come is made anew, with no content having come in
    /// between. The pauses before it grow: half a second, one second, two.
    pub reconnects: u32,
    /// Flush the file system before files get their names, and before the store says that they have them.
    pub sync: bool,
    /// Block checksums for the receiver's own store.
    pub sums: SumsPolicy,
    /// Files up to this size (bytes) are kept in that store with their content; 0 for none. Default
    /// [`stillmirror_store::KEEP_CONTENTS`].
    pub keep_contents: u64,
    /// Generations that the receiver's own store keeps.
    pub retention: Retention,
}

impl Options {
    /// A pull of a whole repository, everything else at its default.
    pub fn new(address: impl Into<String>, repository: impl Into<String>, dest: impl Into<PathBuf>) -> Self {
        Self {
            address: address.into(),
            repository: repository.into(),
            path: Vec::new(),
            dest: dest.into(),
            store: None,
            delete: false,
            max_delete: None,
            filter: Filter::default(),
            dry_run: false,
            bandwidth: None,
            check: Check::default(),
            owners: Owners::default(),
            specials: true,
            threads: 0,
            timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(30),
            reconnects: 5,
            sync: true,
            sums: SumsPolicy::default(),
            keep_contents: stillmirror_store::KEEP_CONTENTS,
            retention: Retention { count: 8, age: Some(Duration::from_secs(2 * 24 * 3600)) },
        }
    }
}

/// What a pull is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for its turn at the sender; the number of connections before it.
    Queued(u64),
    /// Asking what is current, and how it differs.
    List,
    /// Looking at the local tree.
    Check,
    /// Fetching and staging. Totals are the files and bytes to stage.
    Fetch,
    /// Giving the staged files their names.
    Commit,
    /// Writing the generation into the receiver's store.
    Publish,
    /// Reading files against their digests.
    Verify,
}

/// Who wants to know how a pull goes on. Called from several threads, often.
pub trait Progress: Send + Sync {
    /// A phase begins; `files` and `bytes` are what it will take, 0 where that is not known.
    fn phase(&self, phase: Phase, files: u64, bytes: u64);
    /// So much more of the phase is done.
    fn advance(&self, files: u64, bytes: u64);
}

/// Nobody wants to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _: Phase, _: u64, _: u64) {}
    fn advance(&self, _: u64, _: u64) {}
}

/// What a pull did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The sender's generation.
    pub generation: u64,
    /// Whether there was nothing to do.
    pub unchanged: bool,
    /// Files whose content came new: fetched, assembled or copied.
    pub files_updated: u64,
    /// Those among them whose content a local file had, under another name: nothing was fetched.
    pub files_reused: u64,
    /// Names deleted: files, symlinks, specials and directories.
    pub files_deleted: u64,
    /// Deletions not made, as names: too many, or held back because something else did not come.
    pub deletes_held: u64,
    /// Names made as a further hard link.
    pub files_linked: u64,
    /// Names that should be a further hard link, and are files of their own, because the file system makes no
    /// link (there), or none more.
    pub links_copied: u64,
    /// Directories made.
    pub directories_made: u64,
    /// Symlinks and specials made.
    pub others_made: u64,
    /// Entries of which only mode, owner or time changed.
    pub metadata_changed: u64,
    /// Bytes of file data that came from the sender.
    pub bytes_literal: u64,
    /// Bytes of new files that were found in local ones.
    pub bytes_matched: u64,
    /// Bytes of block checksums that came from the sender.
    pub bytes_checksums: u64,
    /// Bytes of file lists and list deltas that came from the sender, compressed as they came.
    pub bytes_list: u64,
    /// All bytes read from the socket.
    pub bytes_received: u64,
    /// All bytes written to the socket.
    pub bytes_sent: u64,
    /// How often the pull had to wait with nothing under way.
    pub round_trips: u64,
    /// Wall time.
    pub seconds: f64,
    /// Files that were not brought, with their paths.
    pub failed: Vec<Failed>,
    /// Of a dry run: what would be done, in order.
    pub planned: Vec<(Action, Vec<u8>)>,
    /// Of a dry run: the most bytes of file data that would be fetched. What deltas save is not known
    /// before they are made.
    pub planned_bytes: u64,
    /// The number of the generation written into the receiver's own store, if one was.
    pub published: Option<u64>,
}

impl Report {
    /// Counts bytes that local files had. Sizes are the sender's word: their sum may be anything.
    pub(crate) fn add_matched(&mut self, bytes: u64) {
        self.bytes_matched = self.bytes_matched.saturating_add(bytes);
    }

    /// Whether a file failed for this reason.
    pub fn has_failed(&self, why: Failure) -> bool {
        self.failed.iter().any(|failed| failed.why == why)
    }
}

/// What happens to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A directory is made.
    MakeDirectory,
    /// Its content is fetched, wholly or in part.
    Fetch,
    /// Its content comes from a local file.
    Reuse,
    /// It becomes a hard link of another name.
    Link,
    /// A symlink is made.
    Symlink,
    /// A device, fifo or socket is made.
    Special,
    /// Mode, owner or time change.
    Metadata,
    /// It is deleted, with everything below it.
    Delete,
}

/// A file that was not brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Its path in the local tree.
    pub path: Vec<u8>,
    /// Why.
    pub why: Failure,
}

/// Why a file was not brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The sender has another state of it than its list says.
    Stale,
    /// The sender has it no longer.
    Vanished,
    /// The sender cannot read it.
    Unreadable,
    /// A local directory with files in it stands in its place, and nothing may be deleted.
    InTheWay,
    /// This host refuses to make it (a device without root, for one).
    Refused,
}
