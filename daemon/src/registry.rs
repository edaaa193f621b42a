//! The repositories that are served, each with its current generation.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::rsync::flist::{Numbers, SubLists};
use stillmirror_protocol::rsync::rules::{ModuleRules, ModuleTexts};
use stillmirror_protocol::rsync::selection::Selection;
use stillmirror_protocol::wire::{self, ListForm};
use stillmirror_protocol::{limits, list};
use stillmirror_store::{Generation, Store, StoreError};

use crate::DaemonError;
use crate::access::{Hosts, Users};
use crate::admission::Admission;
use crate::bandwidth::Bucket;
use crate::config::{self, ModuleConfig, RepositoryConfig};
use crate::damage::{Damages, Part};
use crate::file::Tree;
use crate::lists::Lists;
use crate::operator_file;

/// All repositories, in the order of the configuration.
pub(crate) struct Registry {
    repositories: Vec<Arc<Repository>>,
}

impl Registry {
    /// Opens the trees and the current generations. A repository without a usable generation is kept,
    /// as not indexed; a missing tree or a store of another repository is the operator's mistake.
    pub(crate) fn open(repositories: &[RepositoryConfig], queue: usize) -> Result<Self, DaemonError> {
        let repositories = repositories.iter().map(|config| Repository::open(config, queue).map(Arc::new));
        Ok(Self { repositories: repositories.collect::<Result<_, _>>()? })
    }

    /// All repositories.
    pub(crate) fn all(&self) -> &[Arc<Repository>] {
        &self.repositories
    }

    /// The repository of that name.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Repository>> {
        self.repositories.iter().find(|repository| repository.name == name)
    }

    /// Those that are named to who asks what there is.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &Arc<Repository>> {
        self.repositories.iter().filter(|repository| repository.list)
    }

    /// What is announced to clients.
    pub(crate) fn announcement(&self) -> Vec<wire::Repository> {
        let announce = |repository: &Arc<Repository>| wire::Repository {
            name: repository.name.clone(),
            comment: repository.comment.clone(),
            head: repository.current().map(|edition| edition.generation.head_bytes().to_vec()).unwrap_or_default(),
        };
        self.listed().take(limits::REPOSITORIES).map(announce).collect()
    }
}

/// One repository.
pub(crate) struct Repository {
    /// Its name.
    pub(crate) name: String,
    /// One line about it.
    pub(crate) comment: String,
    list: bool,
    /// Who may have it, by address and by name.
    pub(crate) hosts: Hosts,
    pub(crate) users: Users,
    /// How stock clients are served, and what is hidden from them.
    pub(crate) module: ModuleConfig,
    pub(crate) rules: Arc<ModuleRules>,
    /// Stock clients at once; none for no limit of its own.
    pub(crate) admission: Option<Arc<Admission>>,
    /// The limit on what all its sessions are sent, if there is one.
    pub(crate) bandwidth: Option<Arc<Bucket>>,
    /// Its files.
    pub(crate) tree: Arc<Tree>,
    store_dir: PathBuf,
    store: OnceLock<Store>,
    current: RwLock<Option<Arc<Edition>>>,
    /// What the last attempt to load could not open, so that it is said once.
    failed: Mutex<Option<Failed>>,
}

/// A generation of which loading failed, or the store itself.
#[derive(PartialEq, Eq, Clone, Copy)]
enum Failed {
    Store,
    Generation(u64),
}

impl Repository {
    fn open(config: &RepositoryConfig, queue: usize) -> Result<Self, DaemonError> {
        let tree = Tree::open(&config.name, &config.root, config.direct).map_err(|source| DaemonError::Root {
            repository: config.name.clone(),
            root: config.root.clone(),
            source,
        })?;
        config.users.check().map_err(|source| DaemonError::Secrets { repository: config.name.clone(), source })?;
        let rules = module_rules(&config.name, &config.module.rules)?;
        let most = config.module.max_connections;
        let repository = Self {
            name: config.name.clone(),
            comment: config.comment.clone(),
            list: config.list,
            hosts: config.hosts.clone(),
            users: config.users.clone(),
            module: config.module.clone(),
            rules: Arc::new(rules),
            admission: (most > 0).then(|| Admission::new(most, queue)),
            bandwidth: Bucket::new(config.bandwidth),
            tree: Arc::new(tree),
            store_dir: config.store.clone(),
            store: OnceLock::new(),
            current: RwLock::default(),
            failed: Mutex::default(),
        };
        if let Ok(store) = repository.store()
            && store.repository() != config.name
        {
            return Err(DaemonError::Store(StoreError::OtherRepository {
                dir: config.store.clone(),
                found: store.repository().to_owned(),
                wanted: config.name.clone(),
            }));
        }
        repository.reload();
        Ok(repository)
    }

    /// The current generation; none when it is not indexed.
    pub(crate) fn current(&self) -> Option<Arc<Edition>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the store's current generation the one that new sessions get, and says whether it was another
    /// before. Costs one `readlink` when it is that already. What cannot be opened is logged, once, and the
    /// one before goes on being served.
    pub(crate) fn reload(&self) -> bool {
        let store = match self.store() {
            Ok(store) => store,
            Err(error) => {
                self.fail(Failed::Store, &error);
                return false;
            }
        };
        let number = match store.current_number() {
            Ok(Some(number)) => number,
            Ok(None) => return false,
            Err(error) => {
                self.fail(Failed::Store, &error);
                return false;
            }
        };
        let before = self.current();
        if before.as_ref().is_some_and(|edition| edition.generation.number() == number) || self.has_failed(number) {
            return false;
        }
        match store.generation(number) {
            Ok(generation) => {
                self.put(Edition::new(generation));
                true
            }
            Err(error) => {
                self.fail(Failed::Generation(number), &error);
                false
            }
        }
    }

    /// Finds the deltas that lead to the current generation, so that the first client need not wait.
    pub(crate) fn prepare(&self) {
        if let Some(edition) = self.current() {
            edition.deltas(self.store().ok(), Digest::NONE);
        }
    }

    /// The store, once it is there.
    pub(crate) fn store(&self) -> Result<&Store, StoreError> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let store = Store::open(&self.store_dir)?;
        Ok(self.store.get_or_init(|| store))
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
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn has_failed(&self, number: u64) -> bool {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) == Some(Failed::Generation(number))
    }

    fn fail(&self, what: Failed, error: &StoreError) {
        if self.failed.lock().unwrap_or_else(PoisonError::into_inner).replace(what) == Some(what) {
            return;
        }
        let serving = self.current().map(|edition| edition.generation.head().generation);
        tracing::error!(
            repository = self.name,
            store = %self.store_dir.display(),
            %error,
            serving,
            "cannot open the current generation; `stillmirror index` (or `pull`) makes a new one"
        );
    }
}

/// Bytes of a file of patterns.
const PATTERNS: u64 = 16 << 20;

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

/// A generation and the way to it from the ones before.
pub(crate) struct Edition {
    /// The generation.
    pub(crate) generation: Generation,
    /// The steps that lead to it, the last one first. Found at the first need.
    steps: OnceLock<Vec<Step>>,
    /// Where its sub-lists begin for stock clients.
    sub_lists: OnceLock<Arc<SubLists>>,
    /// Which filter rules of stock clients hide nothing of it.
    pub(crate) voids: Voids,
    /// Its encoded lists.
    pub(crate) lists: Lists,
    /// What turned out to be damaged of it.
    pub(crate) damages: Damages,
    /// Its list, compressed again because what the store has is damaged.
    compressed: OnceLock<Option<Vec<u8>>>,
}

impl Drop for Edition {
    fn drop(&mut self) {
        self.damages.report(&self.generation);
    }
}

/// What was found of filter rules, each named by a digest: most clients come with the same few.
#[derive(Default)]
pub(crate) struct Voids(Mutex<HashMap<Digest, bool>>);

impl Voids {
    /// Answers kept. Beyond them all are forgotten.
    const MOST: usize = 1024;

    /// What was found of the rules with this key, or what `find` finds now.
    pub(crate) fn get(&self, key: &[u8], find: impl FnOnce() -> Option<bool>) -> Option<bool> {
        // Rules are the client's to choose: no two of them may be taken for each other.
        let name = list::digest(key);
        if let Some(&known) = self.lock().get(&name) {
            return Some(known);
        }
        let found = find()?;
        let mut known = self.lock();
        if known.len() >= Self::MOST {
            known.clear();
        }
        known.insert(name, found);
        Some(found)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The delta of a retained generation.
struct Step {
    from: Digest,
    /// `None` for the delta of the edition's own generation.
    of: Option<Generation>,
}

impl Edition {
    fn new(generation: Generation) -> Self {
        Self {
            generation,
            steps: OnceLock::new(),
            compressed: OnceLock::new(),
            sub_lists: OnceLock::new(),
            voids: Voids::default(),
            lists: Lists::default(),
            damages: Damages::default(),
        }
    }

    /// The rows by index of an incremental list without filters. The first call reads every directory of the list.
    pub(crate) fn numbers(&self, selection: &Selection) -> Numbers {
        let list = self.generation.list();
        let sub_lists = self.sub_lists.get_or_init(|| Arc::new(SubLists::of(list)));
        Numbers::computed(list, selection, sub_lists)
    }

    /// How the list comes to a receiver that has the one with digest `have`. May read older generations
    /// the first time, and reads the deltas through.
    pub(crate) fn list_form(&self, repository: &Repository, have: Digest) -> ListForm {
        if have == self.generation.head().list_digest {
            return ListForm::Unchanged;
        }
        let whole = ListForm::Whole { list_len: self.generation.head().list_len };
        let Some(steps) = self.steps_from(repository.store().ok(), have) else { return whole };
        let mut lens = Vec::with_capacity(steps.len());
        for generation in steps {
            if !generation.delta_is_right() {
                let place = generation.dir().join("delta");
                self.damages.met(Part::Delta, &repository.name, generation, place.display());
                return whole;
            }
            lens.push(generation.delta().map_or(0, <[u8]>::len) as u64);
        }
        ListForm::Deltas(lens)
    }

    /// Whether there is a right compressed list to send. Reads it through; one that is damaged is made again, and
    /// that one is kept. False when the list itself is damaged too.
    pub(crate) fn check_compressed(&self, repository: &str) -> bool {
        if self.compressed.get().is_some_and(Option::is_some) || self.generation.list_zst_is_right() {
            return true;
        }
        let place = self.generation.dir().join("list.zst");
        self.damages.met(Part::List, repository, &self.generation, place.display());
        self.compressed.get_or_init(|| self.generation.compress_list().ok()).is_some()
    }

    /// The compressed list, which is right after [`Edition::check_compressed`] said so.
    pub(crate) fn compressed(&self) -> &[u8] {
        self.compressed.get().and_then(Option::as_deref).unwrap_or(self.generation.list_zst())
    }

    /// The deltas that lead from the list with digest `have` to this one, in the order in which they
    /// are applied.
    pub(crate) fn deltas(&self, store: Option<&Store>, have: Digest) -> Option<impl ExactSizeIterator<Item = &[u8]>> {
        let generations = self.steps_from(store, have)?;
        Some(generations.map(|generation| generation.delta().unwrap_or_default()))
    }

    /// The generations with these deltas.
    fn steps_from(&self, store: Option<&Store>, have: Digest) -> Option<impl ExactSizeIterator<Item = &Generation>> {
        let steps = self.steps.get_or_init(|| find_steps(&self.generation, store));
        let first = have.is_some().then(|| steps.iter().position(|step| step.from == have))??;
        Some(steps[..=first].iter().rev().map(|step| step.of.as_ref().unwrap_or(&self.generation)))
    }
}

/// Walks from a generation back through the retained ones for as long as each has a delta, and all of
/// them together are smaller than the compressed list.
fn find_steps(current: &Generation, store: Option<&Store>) -> Vec<Step> {
    let mut budget = current.list_zst().len();
    let mut fits = |generation: &Generation| {
        let delta = generation.delta()?.len();
        budget = budget.checked_sub(delta)?;
        Some(generation.head().previous)
    };
    let Some(from) = fits(current) else { return Vec::new() };
    let mut steps = vec![Step { from, of: None }];
    let mut wanted = from;
    let mut numbers = store.and_then(|store| store.generations().ok()).unwrap_or_default();
    numbers.retain(|&number| number < current.number());
    while let Some(number) = numbers.pop().filter(|_| steps.len() < limits::DELTAS) {
        let Some(older) = store.and_then(|store| store.generation(number).ok()) else { break };
        if older.head().list_digest != wanted {
            continue;
        }
        let Some(from) = fits(&older) else { break };
        wanted = from;
        steps.push(Step { from, of: Some(older) });
    }
    steps
}
