//! The options of a run.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stillmirror_protocol::filter::Filter;
use stillmirror_protocol::limits;
use stillmirror_protocol::sums::SumsPolicy;
use stillmirror_store::Retention;

use crate::signer::Signer;

/// The name of the receiver's staging directory in a root. It is never indexed, because its files are not
/// part of the tree yet.
pub const STAGING: &str = ".stillmirror-stage";

/// How to index one repository.
#[derive(Debug, Clone)]
pub struct Options {
    /// The repository's root. Symlinks below it are never followed.
    pub root: PathBuf,
    /// The store's directory. If it is below the root, it is left out of the index.
    pub store: PathBuf,
    /// The repository's name.
    pub name: String,
    /// The filter for the tree. A changed filter takes effect with the next whole walk.
    pub filter: Filter,
    /// Whether to compute XXH128 too, for stock clients. To add it, a run must read every file. It is
    /// postponed until a run can read all of them; with [`Unreadable::LeaveOut`], unreadable files do not
    /// count.
    pub xxh128: bool,
    /// Whether to compute MD5 too, for stock clients. Takes about as much time as SHA-256.
    pub md5: bool,
    /// The key that signs the head. `None` leaves it unsigned.
    pub signer: Option<Arc<Signer>>,
    /// The policy for block checksums of files that are read from now on.
    pub sums: SumsPolicy,
    /// The files that get block checksums. Exclude files for which a delta never pays.
    pub sums_for: Filter,
    /// Files up to this size (in bytes) are kept in the store with their content, if they are read from now
    /// on. 0 keeps none. Values above [`limits::KEPT_CONTENT`] count as that. The default is
    /// [`stillmirror_store::KEEP_CONTENTS`].
    pub keep_contents: u64,
    /// How to treat devices, fifos and sockets.
    pub specials: Specials,
    /// How to treat the entries of files and directories that cannot be read.
    pub unreadable: Unreadable,
    /// When a file counts as unchanged although its ctime differs.
    pub ctime: CtimeRule,
    /// The share of the unchanged files that a whole walk reads again to find rot. The store remembers where
    /// the next run continues, so that the files that were not read for the longest time are next. `None`
    /// reads none.
    pub scrub: Option<Share>,
    /// Whether the contents that the kept generations refer to are kept too, in a pool on the tree's file system, so
    /// that the daemon can serve a generation while files are replaced and removed.
    pub pin: bool,
    /// The directory of the pool. `None` for one in the store if that is on the tree's file system, and in the root
    /// otherwise.
    pub pool: Option<PathBuf>,
    /// Which older generations are kept.
    pub retention: Retention,
    /// The number of threads for walking and hashing. `None` for one per core.
    pub threads: Option<NonZeroUsize>,
    /// Whether large files are dropped from the page cache after they were read, so that a first index does
    /// not evict what the host is using.
    pub drop_cache: bool,
    /// All paths that have changed since the last run, if the caller knows them: files and whole directories,
    /// including removed ones, relative to the root. Nothing else is looked at. `None` walks the whole tree.
    /// A store without a generation is always filled from a whole walk.
    pub changed_from: Option<Vec<Vec<u8>>>,
    /// Whether a root without entries is published although the current generation has files. Otherwise that
    /// is an error, because most likely the root is not mounted.
    pub allow_empty: bool,
    /// Whether to read and check everything in the store first. Files whose record is damaged are read again.
    pub verify_store: bool,
}

/// How to treat devices, fifos and sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Specials {
    /// Index them.
    #[default]
    Keep,
    /// Leave them out.
    Skip,
}

/// How to treat the entries of files and directories that cannot be read. They are reported in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unreadable {
    /// Keep the entry of the previous generation, with everything below it. Leave out new ones.
    #[default]
    KeepOld,
    /// Leave them out. Mirrors that delete then lose them.
    LeaveOut,
}

/// When a file with the indexed inode, size and mtime is not read although its ctime differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CtimeRule {
    /// Never. A file is read whenever its ctime differs.
    Strict,
    /// If a change of mode, owner, link count or names explains the new ctime. A rewrite in place is missed
    /// if the mtime was restored and one of these was changed too.
    #[default]
    Explained,
    /// Always. A rewrite in place is missed if the mtime was restored.
    Ignored,
}

/// A fraction greater than 0 and not greater than 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    parts: u32,
    of: NonZeroU32,
}

impl Share {
    /// The whole.
    pub const ALL: Share = Share { parts: 1, of: NonZeroU32::MIN };

    /// Creates the fraction `parts` / `of`. `None` if it is 0, more than 1, or undefined.
    pub fn new(parts: u32, of: u32) -> Option<Self> {
        let of = NonZeroU32::new(of)?;
        (1..=of.get()).contains(&parts).then_some(Self { parts, of })
    }

    /// Returns this share of `whole`, rounded up.
    pub(crate) fn of(self, whole: u128) -> u128 {
        whole.saturating_mul(u128::from(self.parts)).div_ceil(u128::from(self.of.get()))
    }
}

impl Options {
    /// Creates options with the defaults: everything is indexed, with block checksums and without the
    /// optional digests, and up to 24 generations are kept for up to 30 days.
    pub fn new(root: impl Into<PathBuf>, store: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self {
            root: root.into(),
            store: store.into(),
            name: name.into(),
            filter: Filter::default(),
            xxh128: false,
            md5: false,
            signer: None,
            sums: SumsPolicy::default(),
            sums_for: Filter::default(),
            keep_contents: stillmirror_store::KEEP_CONTENTS,
            specials: Specials::default(),
            unreadable: Unreadable::default(),
            ctime: CtimeRule::default(),
            scrub: None,
            pin: false,
            pool: None,
            retention: Retention { count: 24, age: Some(Duration::from_secs(30 * 24 * 3600)) },
            threads: None,
            drop_cache: true,
            changed_from: None,
            allow_empty: false,
            verify_store: false,
        }
    }

    /// The maximum size of files that are kept with their content, in bytes. 0 for none.
    pub(crate) fn kept_content(&self) -> u64 {
        self.keep_contents.min(u64::from(limits::KEPT_CONTENT))
    }

    pub(crate) fn thread_count(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.threads.map_or(cores, NonZeroUsize::get)
    }
}
