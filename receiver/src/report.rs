//! The options, progress and report of a pull.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::filter::Filter;
use stillmirror_protocol::list::FileType;
use stillmirror_protocol::path::Escaped;
use stillmirror_protocol::signature::PublicKey;
use stillmirror_protocol::sums::SumsPolicy;
use stillmirror_store::Retention;

use crate::address::Address;
use crate::limit::{MaxDelete, MinFree};
use crate::names::Names;
use crate::slice::Slice;
use crate::tls::Authorities;
use crate::trace_host::TraceHost;

/// How a pull finds out what the local tree holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Check {
    /// Compares size and modification time of every local file.
    #[default]
    Stat,
    /// Reads every local file.
    Hash,
    /// Does not look at the tree, but trusts the generation that the last pull left in the store.
    None,
}

/// The owners that files get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owners {
    /// The sender's owners, by name if this host knows the name, and by number otherwise. This needs root;
    /// without it, it means [`Owners::Ignore`].
    #[default]
    ByName,
    /// The sender's owners, by number. This needs root; without it, it means [`Owners::Ignore`].
    ByNumber,
    /// The user who pulls.
    Ignore,
}

/// What to pull, where to, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The sender.
    pub address: Address,
    /// Further senders of the same repository. The one with the newest generation is asked, and left if it
    /// fails.
    pub alternatives: Vec<Address>,
    /// Whom encrypted connections trust.
    pub authorities: Arc<Authorities>,
    /// The repository's name.
    pub repository: String,
    /// The part of the repository to pull, relative to its root. Empty for all. A single file is placed in
    /// `dest`.
    pub path: Vec<u8>,
    /// The local tree. It is created if it is missing; its parent must exist.
    pub dest: PathBuf,
    /// The receiver's own store. Without one, the state of the tree is known only from the disk.
    pub store: Option<PathBuf>,
    /// `Some` if `dest` is a symlink to a snapshot of the tree. A pull then updates a new snapshot, and switches the
    /// symlink in one step. Earlier snapshots remain for this long after they were current. A `dest` that is a directory
    /// becomes the first snapshot.
    pub keep_snapshots: Option<Duration>,
    /// Directories that may have contents or parts of them at the same relative paths: an old mirror, another mirror's
    /// copy, a mounted image. They are only read. One that does not exist is left out with a warning.
    pub bases: Vec<PathBuf>,
    /// The keys of which one must have signed the sender's head. This needs a store, which remembers what was accepted
    /// with each. Empty for no check.
    pub trust: Vec<PublicKey>,
    /// Whether to delete what the sender does not have. What the filter excludes is never deleted.
    pub delete: bool,
    /// How long a name that is to be deleted remains. A later pull deletes it. This needs a store. `None` or zero
    /// deletes at once, and deletes what still waits.
    pub delete_grace: Option<Duration>,
    /// How many names this pull may delete. If there are more, nothing is deleted.
    pub max_delete: MaxDelete,
    /// Whether to pull into an empty or missing tree although the store knows files of it. Otherwise its disk is taken
    /// for one that is not mounted.
    pub allow_empty: bool,
    /// Whether to pull a generation that is older than the one that the last pull took.
    pub allow_older: bool,
    /// Whether to pull from a sender that has only a slice, although the last pull found it whole.
    pub allow_slice: bool,
    /// How long to wait for another pull that has the tree or the store. `None` does not wait.
    pub wait: Option<Duration>,
    /// The filter, for paths relative to [`Options::path`].
    pub filter: Filter,
    /// The only names to pull, relative to [`Options::path`]. `None` pulls all. Only what is below a named directory is
    /// deleted.
    pub names: Option<Names>,
    /// The suites, architectures and components of package repositories below [`Options::path`] to pull. Their indices say
    /// which files belong to them. [`Options::names`] are pulled in addition. Everything else is deleted.
    pub slice: Option<Slice>,
    /// How much space must remain free.
    pub min_free: MinFree,
    /// The name of this mirror in the trace files below the tree. `None` writes none.
    pub trace: Option<TraceHost>,
    /// Whether to plan only, and write nothing to the tree or the store.
    pub dry_run: bool,
    /// Maximum number of bytes to receive per second.
    pub bandwidth: Option<u64>,
    /// How local files are checked.
    pub check: Check,
    /// The owners and groups that files get.
    pub owners: Owners,
    /// Whether to create FIFOs and sockets. Otherwise they are skipped.
    pub specials: bool,
    /// Whether to create device files, which needs root. Otherwise they are skipped: a device file gives access to a
    /// device of this host.
    pub devices: bool,
    /// Whether files get their setuid and setgid bits. Otherwise a program of the sender's never runs with the rights of
    /// its owner.
    pub setid: bool,
    /// Number of threads that hash, match and write. 0 uses all cores.
    pub threads: usize,
    /// Timeout for a silent sender that owes an answer.
    pub timeout: Duration,
    /// Timeout for connecting.
    pub connect_timeout: Duration,
    /// Maximum number of attempts to reconnect after the connection broke while contents arrive. The count
    /// starts again when a content has arrived. The pauses grow: half a second, one second, two.
    pub reconnects: u32,
    /// Whether to flush the file system before files are moved into place, and before the store records them.
    pub sync: bool,
    /// How long to continue with newer generations, if files of the current one are overtaken by them during the pull.
    pub patience: Duration,
    /// The block checksums to keep in the receiver's own store.
    pub sums: SumsPolicy,
    /// Size in bytes up to which that store keeps the contents of files. 0 keeps none. The default is
    /// [`stillmirror_store::KEEP_CONTENTS`].
    pub keep_contents: u64,
    /// How many generations the receiver's own store keeps.
    pub retention: Retention,
}

impl Options {
    /// Creates the options for a pull of a whole repository, with defaults for everything else.
    pub fn new(address: impl Into<Address>, repository: impl Into<String>, dest: impl Into<PathBuf>) -> Self {
        Self {
            address: address.into(),
            alternatives: Vec::new(),
            authorities: Arc::default(),
            repository: repository.into(),
            path: Vec::new(),
            dest: dest.into(),
            store: None,
            keep_snapshots: None,
            bases: Vec::new(),
            trust: Vec::new(),
            delete: false,
            delete_grace: None,
            max_delete: MaxDelete::Any,
            allow_empty: false,
            allow_older: false,
            allow_slice: false,
            wait: None,
            filter: Filter::default(),
            names: None,
            slice: None,
            min_free: MinFree::default(),
            trace: None,
            dry_run: false,
            bandwidth: None,
            check: Check::default(),
            owners: Owners::default(),
            specials: true,
            devices: false,
            setid: false,
            threads: 0,
            timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(30),
            reconnects: 5,
            sync: true,
            patience: Duration::from_secs(600),
            sums: SumsPolicy::default(),
            keep_contents: stillmirror_store::KEEP_CONTENTS,
            retention: Retention { count: 8, age: Some(Duration::from_secs(2 * 24 * 3600)) },
        }
    }
}

impl Options {
    /// Says what is pulled of the repository, if it is not all of it.
    pub(crate) fn selected(&self) -> String {
        let mut parts: Vec<String> = self.slice.iter().map(Slice::to_string).filter(|text| !text.is_empty()).collect();
        if !self.path.is_empty() {
            parts.push(format!("directory {}", Escaped(&self.path)));
        }
        if self.names.is_some() {
            parts.push("names from a file".to_owned());
        }
        if !self.filter.is_empty() {
            parts.push("filtered".to_owned());
        }
        // The staging directory of the origin, for example.
        if parts.is_empty() { "not everything".to_owned() } else { parts.join("; ") }
    }

    /// Returns whether entries of a type are pulled.
    pub(crate) fn takes(&self, kind: FileType) -> bool {
        match kind {
            FileType::CharDevice | FileType::BlockDevice => self.devices,
            FileType::Fifo | FileType::Socket => self.specials,
            FileType::File | FileType::Directory | FileType::Symlink => true,
        }
    }
}

/// A phase of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for another pull into the same tree.
    Turn,
    /// Waiting in the sender's queue, behind this many connections.
    Queued(u64),
    /// Asking for the current generation, and receiving its list.
    List,
    /// Beginning the next snapshot, by hard links.
    Snapshot,
    /// Checking the local tree.
    Check,
    /// Fetching and staging. The totals are the files and bytes to stage.
    Fetch,
    /// Moving the staged files into place.
    Commit,
    /// Writing the generation into the receiver's own store.
    Publish,
    /// Waiting for the sender's next generation.
    Follow,
    /// Comparing files with their digests.
    Verify,
}

/// Receives the progress of a pull. It is called often, from several threads.
pub trait Progress: Send + Sync {
    /// A phase begins. `files` and `bytes` are its totals, 0 if unknown.
    fn phase(&self, phase: Phase, files: u64, bytes: u64);
    /// `files` and `bytes` more of the phase are done.
    fn advance(&self, files: u64, bytes: u64);
    /// Something happened between two pulls.
    fn notice(&self, notice: &Notice<'_>) {
        let _ = notice;
    }
}

/// What happens between two pulls of a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice<'a> {
    /// This sender cannot be followed now; it is tried again.
    CannotFollow {
        /// The sender, `HOST:PORT`.
        address: &'a str,
        /// Why not.
        why: &'a str,
    },
    /// This sender does not tell what becomes current, so it is asked.
    Asks {
        /// The sender, `HOST:PORT`.
        address: &'a str,
        /// How often.
        pause: Duration,
    },
    /// This sender is followed again.
    FollowsAgain {
        /// The sender, `HOST:PORT`.
        address: &'a str,
    },
    /// The last pull was not whole, and is repeated.
    Repeats {
        /// When.
        pause: Duration,
    },
}

/// Ignores all progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _: Phase, _: u64, _: u64) {}
    fn advance(&self, _: u64, _: u64) {}
}

/// What a pull did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The number of the sender's generation.
    pub generation: u64,
    /// The fingerprint of the sender's head, by which a follower names it.
    pub head: Digest,
    /// Whether there was nothing to do.
    pub unchanged: bool,
    /// Number of files with new content: fetched, assembled or copied.
    pub files_updated: u64,
    /// Number of those files whose content a local file had under another name, so that nothing was fetched.
    pub files_reused: u64,
    /// Number of names deleted: files, symlinks, specials and directories.
    pub files_deleted: u64,
    /// Number of names not deleted, because there were too many, or because some files could not be brought.
    pub deletes_held: u64,
    /// Number of names that wait for their deletion ([`Options::delete_grace`]). A directory is one name.
    pub deletes_waiting: u64,
    /// Number of hard links made.
    pub files_linked: u64,
    /// Number of names that should be hard links but are files of their own, because the file system cannot
    /// make another hard link.
    pub links_copied: u64,
    /// Number of device files in the list that were skipped. See [`Options::devices`].
    pub devices_skipped: u64,
    /// Number of files that did not get their setuid or setgid bits. See [`Options::setid`].
    pub setid_cleared: u64,
    /// Number of directories created.
    pub directories_made: u64,
    /// Number of symlinks and specials created.
    pub others_made: u64,
    /// Number of entries of which only mode, owner or time changed.
    pub metadata_changed: u64,
    /// Bytes of file data received from the sender.
    pub bytes_literal: u64,
    /// Bytes of new files that local files had.
    pub bytes_matched: u64,
    /// Bytes of block checksums received from the sender.
    pub bytes_checksums: u64,
    /// Bytes of file lists and list deltas received from the sender, as compressed on the wire.
    pub bytes_list: u64,
    /// All bytes read from the socket.
    pub bytes_received: u64,
    /// All bytes written to the socket.
    pub bytes_sent: u64,
    /// How often the pull had to wait because no request was in flight.
    pub round_trips: u64,
    /// Wall time, in seconds.
    pub seconds: f64,
    /// Files that could not be brought.
    pub failed: Vec<Failed>,
    /// Number of names that the indices of a slice have, and the sender's list does not. The first of them are among
    /// [`Report::failed`], as [`Failure::Missing`].
    pub unlisted: u64,
    /// For a dry run: the actions that a pull would take, in order.
    pub planned: Vec<(Action, Vec<u8>)>,
    /// For a dry run: the maximum number of bytes of file data to fetch. What deltas save is not known in
    /// advance.
    pub planned_bytes: u64,
    /// The number of the generation written into the receiver's own store. `None` if none was written.
    pub published: Option<u64>,
    /// What each sender did, if there are several.
    pub senders: Vec<Served>,
    /// Whether the destination leads to a new snapshot now. See [`Options::keep_snapshots`].
    pub switched: bool,
    /// When the next deletion or snapshot is due, from the end of the pull. `None` if nothing waits.
    pub next_due: Option<Duration>,
}

impl Report {
    /// Adds bytes that local files had. The sender states the sizes, so their sum may overflow; it saturates.
    pub(crate) fn add_matched(&mut self, bytes: u64) {
        self.bytes_matched = self.bytes_matched.saturating_add(bytes);
    }

    /// Returns whether files were gone or changed at the sender, and nothing else failed. A newer generation may be whole.
    pub(crate) fn is_overtaken(&self) -> bool {
        let is_transient = |why| matches!(why, Failure::Stale | Failure::Vanished | Failure::Held);
        let mut failed = self.failed.iter().map(|failed| failed.why).filter(|&why| why != Failure::Missing).peekable();
        failed.peek().is_some() && failed.all(is_transient)
    }

    /// Adds what the same pull did for an earlier generation. Bytes on the wire are counted by the source.
    pub(crate) fn after(self, earlier: Self) -> Self {
        Self {
            unchanged: self.unchanged && (earlier.unchanged || earlier.generation == 0),
            files_updated: self.files_updated + earlier.files_updated,
            files_reused: self.files_reused + earlier.files_reused,
            files_deleted: self.files_deleted + earlier.files_deleted,
            files_linked: self.files_linked + earlier.files_linked,
            links_copied: self.links_copied + earlier.links_copied,
            directories_made: self.directories_made + earlier.directories_made,
            others_made: self.others_made + earlier.others_made,
            metadata_changed: self.metadata_changed + earlier.metadata_changed,
            bytes_literal: self.bytes_literal.saturating_add(earlier.bytes_literal),
            bytes_matched: self.bytes_matched.saturating_add(earlier.bytes_matched),
            bytes_checksums: self.bytes_checksums.saturating_add(earlier.bytes_checksums),
            bytes_list: self.bytes_list.saturating_add(earlier.bytes_list),
            seconds: self.seconds + earlier.seconds,
            published: self.published.or(earlier.published),
            switched: self.switched || earlier.switched,
            ..self
        }
    }

    /// Returns whether another sender of the same list may have what failed.
    pub(crate) fn may_be_elsewhere(&self) -> bool {
        self.failed.iter().any(|failed| failed.why.is_of_senders_file() || failed.why == Failure::Damaged)
    }

    /// Returns whether a file failed for this reason.
    pub fn has_failed(&self, why: Failure) -> bool {
        self.failed.iter().any(|failed| failed.why == why)
    }
}

/// What one of several senders did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The sender, `HOST:PORT`.
    pub address: String,
    /// Bytes received from it.
    pub received: u64,
    /// The number of the generation that it had when it was last asked. `None` if it never answered.
    pub generation: Option<u64>,
    /// Why it was left the last time.
    pub failure: Option<String>,
}

/// An action on a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Create a directory.
    MakeDirectory,
    /// Fetch the content, wholly or in part.
    Fetch,
    /// Take the content from a local file.
    Reuse,
    /// Make a hard link to another name.
    Link,
    /// Create a symlink.
    Symlink,
    /// Create a device, FIFO or socket.
    Special,
    /// Change mode, owner or time.
    Metadata,
    /// Delete the name, with everything below it.
    Delete,
}

/// A file that could not be brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Its path in the local tree.
    pub path: Vec<u8>,
    /// The reason.
    pub why: Failure,
}

/// The reason why a file could not be brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// At the sender, the file differs from its list.
    Stale,
    /// The sender no longer has the file.
    Vanished,
    /// The sender's list does not have the name.
    Missing,
    /// The sender cannot read the file.
    Unreadable,
    /// A non-empty local directory is in its place, and must not be deleted.
    InTheWay,
    /// This host refuses to create it (a device without root, for example).
    Refused,
    /// The content does not have the digest that the list gives it, even when it is fetched whole.
    Damaged,
    /// This host refuses to change the name: it is immutable, a mount point or on a read-only file system, for
    /// example.
    Stuck,
    /// The file refers to others that failed, so it keeps its old state.
    Held,
}

impl Failure {
    /// Returns whether the file at the sender is the reason.
    pub(crate) fn is_of_senders_file(self) -> bool {
        matches!(self, Self::Stale | Self::Vanished | Self::Unreadable)
    }
}
