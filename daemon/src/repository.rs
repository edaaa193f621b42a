//! One repository: who may have it, and its edition, which is replaced while sessions go on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use stillmirror_protocol::rsync::rules::{ModuleRules, ModuleTexts};
use stillmirror_store::{Generation, Mark, Store, StoreError};
use thiserror::Error;

use crate::access::{Hosts, Users};
use crate::admission::Admission;
use crate::bandwidth::Bucket;
use crate::config::{self, DirectPolicy, ModuleConfig, RepositoryConfig};
use crate::edition::{Edition, Gates};
use crate::error::DaemonError;
use crate::file::{Directory, Tree};
use crate::gate::Gate;
use crate::operator_file;

/// Passwords that are looked up at once.
const LOGINS: usize = 4;
/// Bytes of a file of patterns.
const PATTERNS: u64 = 16 << 20;
/// How long a generation that could not be opened is left alone: at first, and at most. To open one reads all of it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// One repository.
pub(crate) struct Repository {
    /// Its name.
    pub(crate) name: String,
    /// One line about it.
    pub(crate) comment: String,
    /// Whether a listing of repositories shows it.
    pub(crate) is_listed: bool,
    /// Whether only that is served which everybody on this host may read.
    pub(crate) is_public_only: bool,
    /// Whether native clients get it, who see all that is in it.
    pub(crate) is_native: bool,
    /// Who may have it, by address and by name.
    pub(crate) hosts: Hosts,
    pub(crate) users: Users,
    /// What reads the passwords, whose file may hang like any other.
    pub(crate) logins: Gate,
    /// How stock clients are served, and what is hidden from them.
    pub(crate) module: ModuleConfig,
    pub(crate) rules: Arc<ModuleRules>,
    /// Stock clients at once; none for no limit of its own.
    pub(crate) admission: Option<Arc<Admission>>,
    /// The limit on what all its sessions are sent, if there is one.
    pub(crate) bandwidth: Option<Arc<Bucket>>,
    root: PathBuf,
    direct: DirectPolicy,
    strict_ctime: bool,
    /// Reads of its files at once.
    reads: usize,
    store_dir: PathBuf,
    store: OnceLock<Store>,
    current: RwLock<Option<Arc<Edition>>>,
    /// Whether there is a store, as far as is known, but not all that is to be served of it.
    is_in_trouble: AtomicBool,
    /// The last attempt to open what is to be served, if it failed.
    failed: Mutex<Option<Failure>>,
}

/// Why a repository's newest generation is not served.
#[derive(Debug, Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot open the root {}: {source}", .root.display())]
    Root { root: PathBuf, source: io::Error },
    #[error("the root {} is not the directory that was indexed: its disk is not mounted, or `stillmirror index` has to run", .root.display())]
    OtherRoot { root: PathBuf },
}

/// An attempt that failed.
struct Failure {
    /// What was to be opened, where that much was known.
    what: Option<Candidate>,
    text: String,
    /// When the same is tried again.
    next: Instant,
    pause: Duration,
}

/// What would be served: a generation, and the directory that the root's path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    generation: Mark,
    root: Option<Directory>,
}

impl Repository {
    /// A repository of which nothing is opened yet. `reads` files are read at once at most, and as many clients as
    /// `queue` wait for a place of its own.
    pub(crate) fn new(
        config: &RepositoryConfig,
        reads: usize,
        queue: usize,
        is_public_only: bool,
    ) -> Result<Self, DaemonError> {
        config.users.check().map_err(|source| DaemonError::Secrets { repository: config.name.clone(), source })?;
        let rules = module_rules(&config.name, &config.module.rules)?;
        let most = config.module.max_connections;
        Ok(Self {
            name: config.name.clone(),
            comment: config.comment.clone(),
            is_listed: config.list,
            is_public_only,
            is_native: config.serve_hidden_natively || !rules.may_hide(),
            hosts: config.hosts.clone(),
            users: config.users.clone(),
            logins: Gate::new(LOGINS),
            module: config.module.clone(),
            rules: Arc::new(rules),
            admission: (most > 0).then(|| Admission::new(most, queue)),
            bandwidth: Bucket::new(config.bandwidth),
            root: config.root.clone(),
            direct: config.direct,
            strict_ctime: config.strict_ctime,
            reads,
            store_dir: config.store.clone(),
            store: OnceLock::new(),
            current: RwLock::default(),
            is_in_trouble: AtomicBool::new(true),
            failed: Mutex::default(),
        })
    }

    /// What new sessions get; none when it is not indexed, or cannot be opened yet.
    pub(crate) fn current(&self) -> Option<Arc<Edition>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What clients are told when there is no edition.
    pub(crate) fn absence(&self) -> &'static str {
        if self.is_in_trouble.load(Ordering::Relaxed) {
            "is unavailable for now -- try again later"
        } else {
            "is not indexed yet"
        }
    }

    /// Gives new sessions what the store and the root's path lead to now, and says whether that is another edition than
    /// before. Costs a `readlink` and two `stat` calls when it is not.
    ///
    /// What cannot be opened is logged once, and tried again, after a growing pause if that is dear. `is_asked` ends the
    /// pause. The edition before goes on being served, unless it is gone.
    pub(crate) fn look(&self, is_asked: bool) -> Result<bool, Trouble> {
        let mut failed = self.failed();
        let candidate = match self.candidate() {
            Ok(Some(candidate)) => candidate,
            Ok(None) => {
                self.is_in_trouble.store(false, Ordering::Relaxed);
                return Ok(false);
            }
            Err(trouble) => {
                self.let_go_of_what_is_gone();
                return Err(self.fail(&mut failed, None, trouble));
            }
        };
        let held = self.current();
        if held.as_ref().is_some_and(|held| candidate.is_held_by(held)) {
            if failed.take().is_some() {
                self.is_in_trouble.store(false, Ordering::Relaxed);
                tracing::info!(repository = self.name, "nothing is wrong with the repository any more");
            }
            return Ok(false);
        }
        if !is_asked && failed.as_ref().is_some_and(|failure| failure.is_to_wait(candidate)) {
            return Ok(false);
        }
        match self.open(candidate, held.as_deref()) {
            Ok(edition) => {
                *failed = None;
                self.is_in_trouble.store(false, Ordering::Relaxed);
                self.put(edition);
                Ok(true)
            }
            Err(trouble) => {
                self.let_go_of_what_is_gone();
                Err(self.fail(&mut failed, Some(candidate), trouble))
            }
        }
    }

    /// The store, once it is there.
    pub(crate) fn store(&self) -> Result<&Store, StoreError> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let store = Store::open(&self.store_dir)?;
        if store.repository() != self.name {
            return Err(StoreError::OtherRepository {
                dir: self.store_dir.clone(),
                found: store.repository().to_owned(),
                wanted: self.name.clone(),
            });
        }
        Ok(self.store.get_or_init(|| store))
    }

    /// What there is to serve; none when it is not indexed yet.
    fn candidate(&self) -> Result<Option<Candidate>, Trouble> {
        let generation = self.store()?.current_mark()?;
        Ok(generation.map(|generation| Candidate { generation, root: Directory::at(&self.root).ok() }))
    }

    fn open(&self, candidate: Candidate, held: Option<&Edition>) -> Result<Edition, Trouble> {
        let opened = Tree::open(&self.name, &self.root, self.direct, self.strict_ctime)
            .map_err(|source| Trouble::Root { root: self.root.clone(), source });
        let of = |tree: Result<Tree, Trouble>, generation: &Generation| match tree {
            Ok(tree) if tree.is_root_of(generation) => Ok(tree),
            Ok(_) => Err(Trouble::OtherRoot { root: self.root.clone() }),
            Err(trouble) => Err(trouble),
        };
        let opened = match held {
            // The tree alone is another one.
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
            (Ok(tree), _) => (Arc::new(tree), Gates::new(self.reads)),
            // The path leads elsewhere for now, as in the midst of a switch of trees: the one in hand is the right one.
            (Err(_), Some(held)) if held.tree.is_root_of(&generation) => (Arc::clone(&held.tree), held.gates.clone()),
            (Err(trouble), _) => return Err(trouble),
        };
        let store_dir = store.open_dir()?;
        Ok(Edition::new(candidate.generation, generation, store, store_dir, tree, gates, self.is_public_only))
    }

    fn put(&self, edition: Edition) {
        let head = edition.generation.head();
        tracing::info!(
            repository = self.name,
            generation = head.generation,
            files = head.counts.files,
            bytes = head.counts.bytes,
            "serving a generation"
        );
        for pack in edition.generation.missing_packs() {
            tracing::error!(
                repository = self.name,
                pack = %pack.display(),
                "a pack of the store is missing or damaged: files are read from the tree instead; `stillmirror index \
                 --verify-store` reads these files again (a store that `stillmirror pull` wrote: remove it, and pull)"
            );
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(edition));
    }

    /// Ends the service of what will never be found again. An unmounted disk is free once the last session with it ends.
    fn let_go_of_what_is_gone(&self) {
        if self.current().is_some_and(|held| held.is_gone()) {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = None;
            tracing::warn!(repository = self.name, "what was served is removed or unmounted: it is served no longer");
        }
    }

    /// Remembers a failure, and logs it if it is another one than before.
    fn fail(&self, failed: &mut Option<Failure>, what: Option<Candidate>, trouble: Trouble) -> Trouble {
        self.is_in_trouble.store(!matches!(trouble, Trouble::Store(StoreError::Missing(_))), Ordering::Relaxed);
        let text = trouble.to_string();
        let before = failed.take();
        if before.as_ref().is_none_or(|before| before.text != text) {
            let serving = self.current().map(|edition| edition.generation.head().generation);
            tracing::error!(
                repository = self.name,
                store = %self.store_dir.display(),
                error = text,
                serving,
                "cannot open what is to be served; it is tried again"
            );
        }
        let pause = before.filter(|before| before.what == what).map_or(FIRST_PAUSE, |before| before.pause * 2);
        let pause = pause.min(LONGEST_PAUSE);
        *failed = Some(Failure { what, text, next: Instant::now() + pause, pause });
        trouble
    }

    /// Whoever has it is the one who looks.
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
    /// Whether it is too early to try the same again.
    fn is_to_wait(&self, candidate: Candidate) -> bool {
        self.what == Some(candidate) && Instant::now() < self.next
    }
}

fn module_rules(repository: &str, rules: &config::ModuleRules) -> Result<ModuleRules, DaemonError> {
    let words = |words: &[String]| words.join(" ").into_bytes();
    let lines = |file: &Option<PathBuf>| file.as_ref().map_or(Ok(Vec::new()), |file| read_patterns(repository, file));
    let (include_from, exclude_from) = (lines(&rules.include_from)?, lines(&rules.exclude_from)?);
    let texts = ModuleTexts {
        filter: &words(&rules.filter),
        include_from: &include_from,
        include: &words(&rules.include),
        exclude_from: &exclude_from,
        exclude: &words(&rules.exclude),
    };
    ModuleRules::parse(&texts).map_err(|source| DaemonError::Rules { repository: repository.to_owned(), source })
}

fn read_patterns(repository: &str, file: &Path) -> Result<Vec<u8>, DaemonError> {
    let read = operator_file::read(file, PATTERNS + 1).and_then(|bytes| match bytes.len() as u64 {
        ..=PATTERNS => Ok(bytes),
        _ => Err(io::Error::other(format!("larger than {PATTERNS} bytes"))),
    });
    read.map_err(|source| DaemonError::Patterns { repository: repository.to_owned(), file: file.to_owned(), source })
}
