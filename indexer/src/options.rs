//! What a caller chooses.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use stillmirror_protocol::filter::Filter;
use stillmirror_protocol::limits;
use stillmirror_protocol::sums::SumsPolicy;
use stillmirror_store::Retention;

/// The receiver's staging directory at a root. Never indexed: it holds files that are not there yet.
pub const STAGING: &str = ".stillmirror-stage";

/// How to index one repository.
#[derive(Debug, Clone)]
pub struct Options {
    /// The repository's root. Symlinks below it are never followed.
    pub root: PathBuf,
    /// The store. Below the root it is left out of the index.
    pub store: PathBuf,
    /// The repository's name.
    pub name: String,
    /// What is indexed. A change here shows at the next whole walk.
    pub filter: Filter,
    /// Whether XXH128 is computed too, for stock clients. Turning it on reads every file once, and waits for
    /// a run in which all of them can be read ([`Unreadable::LeaveOut`]: all that can be).
    pub xxh128: bool,
    /// Whether MD5 is computed too, for stock clients. Costs about as much time as SHA-256.
    pub md5: bool,
    /// Block checksums of files read from now on.
    pub sums: SumsPolicy,
    /// Files that have block checksums at all; for the excluded ones a delta never pays.
    pub sums_for: Filter,
    /// Files up to this size (bytes) are kept in the store with their content, of those read from now on; 0 for
    /// none, and none above [`limits::KEPT_CONTENT`]. Default [`stillmirror_store::KEEP_CONTENTS`].
    pub keep_contents: u64,
    /// What happens to devices, fifos and sockets.
    pub specials: Specials,
    /// What happens to the entries of files and directories that cannot be read.
    pub unreadable: Unreadable,
    /// When a file counts as unchanged although its ctime differs.
    pub ctime: CtimeRule,
    /// How much of the tree is read again in a whole walk although nothing says that it changed: the share that was
    /// not read for the longest time. It stands in the store where the next run goes on.
    pub scrub: Option<Share>,
    /// Which older generations are kept.
    pub retention: Retention,
    /// Threads for walking and hashing; by default one per core.
    pub threads: Option<NonZeroUsize>,
    /// Whether large files are dropped from the page cache once read, so that a first index does not
    /// evict what the host is using.
    pub drop_cache: bool,
    /// All that changed since the last run, when the caller knows: paths relative to the root, files or
    /// whole directories, gone ones too. Nothing else is looked at. None: everything is walked. Without
    /// an earlier generation everything is walked in any case.
    pub changed_from: Option<Vec<Vec<u8>>>,
    /// Whether a root without any entry is published although the current generation has files. Otherwise it
    /// is an error: most likely the root is not mounted.
    pub allow_empty: bool,
    /// Whether all that the store keeps is read and checked first; the files of which something is damaged are read
    /// again.
    pub verify_store: bool,
}

/// What happens to devices, fifos and sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Specials {
    /// They are indexed.
    #[default]
    Keep,
    /// They are left out.
    Skip,
}

/// What happens to the entries of files and directories that cannot be read. They are reported in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unreadable {
    /// The entry of the last generation stays, with all below it. A new one is left out.
    #[default]
    KeepOld,
    /// They are left out, so mirrors that delete lose them.
    LeaveOut,
}

/// When a file that is the indexed inode, with the indexed size and mtime, is not read although its ctime differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CtimeRule {
    /// Never: a file is read whenever its ctime differs.
    Strict,
    /// When a change of mode, owner, link count or names shows why. A content that was rewritten in place is missed
    /// if its mtime was put back and one of these was changed too.
    #[default]
    Explained,
    /// Always. A content that was rewritten in place is missed if its mtime was put back.
    Ignored,
}

/// A part of a whole: more than nothing, and at most all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    parts: u32,
    of: NonZeroU32,
}

impl Share {
    /// All of it.
    pub const ALL: Share = Share { parts: 1, of: NonZeroU32::MIN };

    /// So many parts of so many; none when that is nothing, or more than all.
    pub fn new(parts: u32, of: u32) -> Option<Self> {
        let of = NonZeroU32::new(of)?;
        (1..=of.get()).contains(&parts).then_some(Self { parts, of })
    }

    /// That share of a number, rounded up.
    pub(crate) fn of(self, whole: u128) -> u128 {
        whole.saturating_mul(u128::from(self.parts)).div_ceil(u128::from(self.of.get()))
    }
}

impl Options {
    /// The defaults: everything is indexed, with block checksums and without the optional digests; 24
    /// generations of at most 30 days are kept.
    pub fn new(root: impl Into<PathBuf>, store: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self {
            root: root.into(),
            store: store.into(),
            name: name.into(),
            filter: Filter::default(),
            xxh128: false,
            md5: false,
            sums: SumsPolicy::default(),
            sums_for: Filter::default(),
            keep_contents: stillmirror_store::KEEP_CONTENTS,
            specials: Specials::default(),
            unreadable: Unreadable::default(),
            ctime: CtimeRule::default(),
            scrub: None,
            retention: Retention { count: 24, age: Some(Duration::from_secs(30 * 24 * 3600)) },
            threads: None,
            drop_cache: true,
            changed_from: None,
            allow_empty: false,
            verify_store: false,
        }
    }

    /// The largest file that is kept; 0 for none.
    pub(crate) fn kept_content(&self) -> u64 {
        self.keep_contents.min(u64::from(limits::KEPT_CONTENT))
    }

    pub(crate) fn thread_count(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.threads.map_or(cores, NonZeroUsize::get)
    }
}
