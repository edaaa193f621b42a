//! The editions of one tree and store: the current one, and the look for the next, while sessions run.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use stillmirror_store::{ContentPool, Generation, Mark, Store, StoreError};
use thiserror::Error;
use tokio::sync::watch;

use crate::config::DirectPolicy;
use crate::edition::{Edition, Gates};
use crate::file::{Directory, Tree};

/// How long to wait before a generation that could not be opened is tried again. The pause doubles up to
/// [`MAX_PAUSE`], because opening a generation reads all of it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A tree and its store, and how their editions are opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The repository's name.
    pub(crate) name: String,
    pub(crate) root: PathBuf,
    pub(crate) store: PathBuf,
    pub(crate) direct: DirectPolicy,
    pub(crate) strict_ctime: bool,
    /// Whether only files that everybody on this host may read are served.
    pub(crate) is_public_only: bool,
}

/// The editions of a place.
pub(crate) struct Editions {
    pub(crate) place: Place,
    /// Maximum number of concurrent reads of its files.
    reads: AtomicUsize,
    store: OnceLock<Store>,
    current: RwLock<Option<Arc<Edition>>>,
    /// Wakes the followers whenever there is another edition. The value is how many there were the last time.
    news: watch::Sender<usize>,
    /// Whether the last check failed for another reason than a missing store or generation. `true` before the
    /// first check.
    is_unavailable: AtomicBool,
    /// The last attempt to open an edition, if it failed.
    failed: Mutex<Option<Failure>>,
}

/// The reason why a repository's newest generation is not served.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The store or its current generation cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The root of the tree cannot be opened.
    #[error("cannot open the root {}: {source}", .root.display())]
    Root {
        /// The root.
        root: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// The root is another directory than the one that was indexed.
    #[error("the root {} is not the indexed directory: mount its disk, or run `stillmirror index`", .root.display())]
    OtherRoot {
        /// The root.
        root: PathBuf,
    },
}

/// Why a repository looks for a newer edition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Because some time has passed.
    Periodic,
    /// Because the operator asks for it, so without any back-off.
    Forced,
    /// Because the store was changed just now. What is published may need the tree that a switch makes current in the next
    /// moment, so a tree that does not fit yet is not a failure.
    Early,
}

/// A failed attempt to open an edition.
struct Failure {
    /// What should have been opened, if that was known.
    what: Option<Candidate>,
    text: String,
    /// When the same candidate is tried again.
    next: Instant,
    pause: Duration,
}

/// What a new edition would consist of: a generation, and the directory that the root's path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    generation: Mark,
    root: Option<Directory>,
}

impl Editions {
    /// Creates the editions of a place. Nothing is opened yet. Up to `reads` reads of its files run at once.
    pub(crate) fn new(place: Place, reads: usize) -> Self {
        Self {
            place,
            reads: AtomicUsize::new(reads),
            store: OnceLock::new(),
            current: RwLock::default(),
            news: watch::Sender::default(),
            is_unavailable: AtomicBool::new(true),
            failed: Mutex::default(),
        }
    }

    /// Returns the edition for new sessions. `None` if the repository is not indexed, or cannot be opened
    /// yet.
    pub(crate) fn current(&self) -> Option<Arc<Edition>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns a receiver that notices every other edition from now on.
    pub(crate) fn news(&self) -> watch::Receiver<usize> {
        self.news.subscribe()
    }

    /// Returns how many followers the last edition woke.
    pub(crate) fn woken(&self) -> usize {
        *self.news.borrow()
    }

    /// Tells the followers to look again, because these editions are not served any more.
    pub(crate) fn retire(&self) {
        self.news.send_replace(0);
    }

    /// Changes how many files are read at once.
    pub(crate) fn set_reads(&self, reads: usize) {
        self.reads.store(reads, Ordering::Relaxed);
        if let Some(edition) = self.current() {
            edition.gates.files.resize(reads);
        }
    }

    /// Returns what clients are told if there is no edition. It completes a sentence that begins with the
    /// repository.
    pub(crate) fn absence(&self) -> &'static str {
        if self.is_unavailable.load(Ordering::Relaxed) {
            "is unavailable for now -- try again later"
        } else {
            "is not indexed yet"
        }
    }

    /// Returns whether the last check failed for another reason than a missing store or generation, and the error, unless
    /// another check runs.
    pub(crate) fn failure(&self) -> Option<String> {
        let is_failed = self.is_unavailable.load(Ordering::Relaxed);
        let error = || self.failed.try_lock().ok()?.as_ref().map(|failure| failure.text.clone());
        is_failed.then(|| error().unwrap_or_else(|| self.absence().to_owned()))
    }

    /// Makes new sessions use what the store and the root's path lead to now, and returns whether the edition
    /// changed. If it did not, this costs one `readlink` and two `stat` calls.
    ///
    /// A failure is logged once and tried again, with back-off if an attempt is expensive. The previous edition
    /// stays in service unless it is gone.
    pub(crate) fn refresh(&self, look: Look) -> Result<bool, OpenError> {
        let mut failed = self.failed();
        let candidate = match self.candidate() {
            Ok(Some(candidate)) => candidate,
            Ok(None) => {
                self.is_unavailable.store(false, Ordering::Relaxed);
                return Ok(false);
            }
            Err(error) => {
                self.drop_edition_if_gone();
                return Err(self.fail(&mut failed, None, error));
            }
        };
        let held = self.current();
        if held.as_ref().is_some_and(|held| candidate.is_held_by(held)) {
            if failed.take().is_some() {
                self.is_unavailable.store(false, Ordering::Relaxed);
                tracing::info!(repository = self.place.name, "the repository has recovered");
            }
            return Ok(false);
        }
        if look != Look::Forced && failed.as_ref().is_some_and(|failure| failure.is_backing_off(candidate)) {
            return Ok(false);
        }
        match self.open(candidate, held.as_deref()) {
            Ok(edition) => {
                *failed = None;
                self.is_unavailable.store(false, Ordering::Relaxed);
                self.put(edition);
                Ok(true)
            }
            Err(error @ (OpenError::OtherRoot { .. } | OpenError::Root { .. })) if look == Look::Early => Err(error),
            Err(error) => {
                self.drop_edition_if_gone();
                Err(self.fail(&mut failed, Some(candidate), error))
            }
        }
    }

    /// Returns the store. Opens it if that has not succeeded before.
    pub(crate) fn store(&self) -> Result<&Store, StoreError> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let store = Store::open(&self.place.store)?;
        if store.repository() != self.place.name {
            return Err(StoreError::OtherRepository {
                dir: self.place.store.clone(),
                found: store.repository().to_owned(),
                wanted: self.place.name.clone(),
            });
        }
        Ok(self.store.get_or_init(|| store))
    }

    /// Returns what the store and the root's path lead to. `None` if the repository is not indexed yet.
    fn candidate(&self) -> Result<Option<Candidate>, OpenError> {
        let generation = self.store()?.current_mark()?;
        Ok(generation.map(|generation| Candidate { generation, root: Directory::at(&self.place.root).ok() }))
    }

    fn open(&self, candidate: Candidate, held: Option<&Edition>) -> Result<Edition, OpenError> {
        let opened = Tree::open(&self.place.name, &self.place.root, self.place.direct, self.place.strict_ctime)
            .map_err(|source| OpenError::Root { root: self.place.root.clone(), source });
        let of = |tree: Result<Tree, OpenError>, generation: &Generation| match tree {
            Ok(tree) if tree.is_root_of(generation) => Ok(tree),
            Ok(_) => Err(OpenError::OtherRoot { root: self.place.root.clone() }),
            Err(error) => Err(error),
        };
        let opened = match held {
            // Only the tree changed.
            Some(held) if held.mark == candidate.generation => Ok(of(opened, &held.generation)?),
            Some(_) => opened,
            None => Ok(opened?),
        };
        let store = self.store()?;
        let generation = store.generation(candidate.generation.number)?;
        let (tree, gates) = match (of(opened, &generation), held) {
            (Ok(tree), Some(held)) if tree.directory() == held.tree.directory() => {
                (Arc::clone(&held.tree), held.gates.clone())
            }
            (Ok(tree), _) => (Arc::new(tree), Gates::new(self.reads.load(Ordering::Relaxed))),
            // The path leads elsewhere for now, as it may during a switch of trees. The tree already held is
            // the right one.
            (Err(_), Some(held)) if held.tree.is_root_of(&generation) => (Arc::clone(&held.tree), held.gates.clone()),
            (Err(error), _) => return Err(error),
        };
        let store_dir = store.open_dir()?;
        let pool = self.open_pool(&generation);
        let edition =
            Edition::new(candidate.generation, generation, store, store_dir, tree, gates, self.place.is_public_only);
        Ok(edition.with_pool(pool))
    }

    /// Opens the pool of a generation. `None` if it has none, or if that fails.
    fn open_pool(&self, generation: &Generation) -> Option<ContentPool> {
        let path = generation.pool()?.path(&self.place.store, &self.place.root);
        let pool = ContentPool::open(&path).inspect_err(|error| {
            tracing::error!(
                repository = self.place.name,
                pool = %path.display(),
                %error,
                "cannot open the pool: files that are replaced or removed during a session are not sent"
            );
        });
        pool.ok()
    }

    fn put(&self, edition: Edition) {
        let head = edition.generation.head();
        tracing::info!(
            repository = self.place.name,
            generation = head.generation,
            files = head.counts.files,
            bytes = head.counts.bytes,
            "serving a generation"
        );
        for pack in edition.generation.missing_packs() {
            tracing::error!(
                repository = self.place.name,
                pack = %pack.display(),
                "a pack of the store is missing or damaged: files are read from the tree instead; `stillmirror index \
                 --verify-store` reads these files again (for a store written by `stillmirror pull`: remove it, and \
                 pull again)"
            );
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(edition));
        self.news.send_replace(self.news.receiver_count());
    }

    /// Stops serving the edition if no path will ever lead to it again. An unmounted disk is released when the
    /// last session that uses it ends.
    fn drop_edition_if_gone(&self) {
        if self.current().is_some_and(|held| held.is_gone()) {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = None;
            tracing::warn!(
                repository = self.place.name,
                "the tree was removed, or a disk was unmounted: not serving it any more"
            );
        }
    }

    /// Remembers a failure, and logs it unless it is the same as before.
    fn fail(&self, failed: &mut Option<Failure>, what: Option<Candidate>, error: OpenError) -> OpenError {
        self.is_unavailable.store(!matches!(error, OpenError::Store(StoreError::Missing(_))), Ordering::Relaxed);
        let text = error.to_string();
        let before = failed.take();
        if before.as_ref().is_none_or(|before| before.text != text) {
            let serving = self.current().map(|edition| edition.generation.head().generation);
            tracing::error!(
                repository = self.place.name,
                store = %self.place.store.display(),
                error = text,
                serving,
                "cannot open the current generation; trying again"
            );
        }
        let pause = before.filter(|before| before.what == what).map_or(FIRST_PAUSE, |before| before.pause * 2);
        let pause = pause.min(MAX_PAUSE);
        *failed = Some(Failure { what, text, next: Instant::now() + pause, pause });
        error
    }

    /// Locks the last failure. Holding the lock also serialises calls of [`Self::refresh`].
    fn failed(&self) -> MutexGuard<'_, Option<Failure>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Candidate {
    fn is_held_by(&self, held: &Edition) -> bool {
        self.generation == held.mark && self.root == Some(held.tree.directory())
    }
}

impl Failure {
    /// Returns whether it is too early to try the same candidate again.
    fn is_backing_off(&self, candidate: Candidate) -> bool {
        self.what == Some(candidate) && Instant::now() < self.next
    }
}
