//! Editions: what is served of a repository, namely a generation and the tree that it describes.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::list;
use stillmirror_protocol::rsync::flist::{Numbers, SubLists};
use stillmirror_protocol::rsync::rules::is_listed_to_others;
use stillmirror_protocol::rsync::selection::Selection;
use stillmirror_protocol::wire::{Capabilities, ListForm, SIGNED_HEADS, SLICE_HEADS, fingerprint};
use stillmirror_store::{ContentPool, Generation, Mark, Store};

use crate::choosing::Choosing;
use crate::damage::DamageLog;
use crate::extents::READS;
use crate::fair::Pot;
use crate::file::{Pooled, Tree};
use crate::gate::Gate;
use crate::list_forms::ListForms;
use crate::mounted::is_unmounted;

/// Maximum number of cores used for single clients of one repository.
const MAX_CORES: usize = 64;
/// Maximum number of concurrent accesses to mapped pages.
const PAGES: usize = 16;

/// A generation and a tree that were opened together, and the gates for work on them.
pub(crate) struct Edition {
    /// Identifies the generation, even among generations with the same number.
    pub(crate) mark: Mark,
    pub(crate) generation: Generation,
    /// Tells followers whether they know this generation's head.
    pub(crate) fingerprint: Digest,
    pub(crate) tree: Arc<Tree>,
    /// The contents of the generation's files, if they are kept.
    pool: Option<Arc<ContentPool>>,
    /// All work that may block goes through these.
    pub(crate) gates: Gates,
    /// The forms in which the list is sent to receivers.
    pub(crate) list_forms: ListForms,
    /// Whether some directories are closed to clients, because not everybody may read them.
    pub(crate) has_closed_dirs: bool,
    /// Where the sub-lists for stock clients begin.
    sub_lists: OnceLock<Arc<SubLists>>,
    /// The directory of the store.
    store_dir: File,
    /// Which filter rules of stock clients hide nothing in the list.
    pub(crate) no_op_rules: NoOpRules,
    /// The damage found so far.
    pub(crate) damage_log: DamageLog,
}

/// The gates of one repository. Work that hangs in one gate does not block the others.
#[derive(Clone)]
pub(crate) struct Gates {
    /// Reads of files.
    pub(crate) files: Gate,
    /// Short accesses to the mapped store, whose pages may have to come from the disk.
    pub(crate) pages: Gate,
    /// Filters, names and lists of single stock clients, which keep a core busy for a while.
    pub(crate) choosing: Arc<Choosing>,
    /// Turns for requests that ask for little out of many files. They cost more than their bytes suggest.
    pub(crate) scattered: Arc<Pot>,
}

impl Gates {
    /// Maximum number of threads that the gates of one repository occupy. The factor of two covers passwords,
    /// the check for a new edition, and the gates of an earlier tree that sessions still use.
    pub(crate) const THREADS: usize = 2 * (READS + PAGES + Choosing::THREADS_PER_CORE * MAX_CORES);

    /// Creates gates that allow `reads` reads of files at once.
    pub(crate) fn new(reads: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_CORES);
        let choosing = Arc::new(Choosing::new(cores));
        // Half of the cores are left for everything else, whatever clients request.
        let scattered = Pot::new((cores as u64 / 2).max(1));
        Self { files: Gate::new(reads), pages: Gate::new(PAGES), choosing, scattered }
    }
}

impl Drop for Edition {
    fn drop(&mut self) {
        self.damage_log.report(&self.generation);
    }
}

/// A cache that tells, by the digest of a client's filter rules, whether they hide nothing. Most clients send
/// one of a few sets of rules.
#[derive(Default)]
pub(crate) struct NoOpRules(Mutex<HashMap<Digest, bool>>);

impl NoOpRules {
    /// Maximum number of cached answers. The cache is cleared when it is full.
    const MAX_ANSWERS: usize = 1024;

    /// Returns the cached answer for the rules with this key, or caches the one that `find` returns. `None`
    /// if `find` returns `None`.
    pub(crate) fn get(&self, key: &[u8], find: impl FnOnce() -> Option<bool>) -> Option<bool> {
        // Clients choose their rules, so the hash must be collision-resistant: no two sets may be confused.
        let name = list::digest(key);
        if let Some(&known) = self.lock().get(&name) {
            return Some(known);
        }
        let found = find()?;
        let mut known = self.lock();
        if known.len() >= Self::MAX_ANSWERS {
            known.clear();
        }
        known.insert(name, found);
        Some(found)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Edition {
    /// Creates an edition from a generation and a tree. All caches are empty.
    pub(crate) fn new(
        mark: Mark,
        generation: Generation,
        store: &Store,
        store_dir: File,
        tree: Arc<Tree>,
        gates: Gates,
        is_public_only: bool,
    ) -> Self {
        let list = generation.list();
        let has_closed_dirs = is_public_only && list.dirs().any(|dir| !is_listed_to_others(list.row(dir.row())));
        Self {
            mark,
            has_closed_dirs,
            fingerprint: fingerprint(generation.head_bytes(), generation.signature()),
            list_forms: ListForms::new(&generation, store),
            generation,
            store_dir,
            tree,
            pool: None,
            gates,
            sub_lists: OnceLock::new(),
            no_op_rules: NoOpRules::default(),
            damage_log: DamageLog::default(),
        }
    }

    /// Sets the pool with the contents of the generation's files.
    pub(crate) fn with_pool(mut self, pool: Option<ContentPool>) -> Self {
        self.pool = pool.map(Arc::new);
        self
    }

    /// Returns whether the contents of the generation's files are kept, so that they are sent whatever happens to the files
    /// in the tree.
    pub(crate) fn is_pinned(&self) -> bool {
        self.generation.pool().is_some()
    }

    /// Returns whether the pool with the contents is open.
    pub(crate) fn has_pool(&self) -> bool {
        self.pool.is_some()
    }

    /// Returns where the content of the regular file at `row` is in the pool. `None` if it is not there.
    pub(crate) fn pooled(&self, row: u32) -> Option<Pooled> {
        Pooled::of(self.pool.as_ref()?, &self.generation, row)
    }

    /// Returns whether no path will ever lead to this edition again, because its tree was removed, or the
    /// disk of its tree or its store was unmounted.
    pub(crate) fn is_gone(&self) -> bool {
        self.tree.is_gone() || is_unmounted(&self.store_dir)
    }

    /// Returns the mapping from file indices to rows for an incremental list without filters. The first call
    /// reads every directory of the list.
    pub(crate) fn numbers(&self, selection: &Selection) -> Numbers {
        let list = self.generation.list();
        let sub_lists = self.sub_lists.get_or_init(|| Arc::new(SubLists::of(list)));
        Numbers::computed(list, selection, sub_lists)
    }

    /// Returns the head for a receiver with these capabilities: as it is stored, or without its expiry and the mark of a
    /// slice, which older receivers do not read.
    pub(crate) fn head_for(&self, capabilities: Capabilities) -> Vec<u8> {
        let head = self.generation.head();
        let expires = head.expires.filter(|_| capabilities & SIGNED_HEADS != 0);
        let slice = head.slice.clone().filter(|_| capabilities & SLICE_HEADS != 0);
        if expires == head.expires && slice == head.slice {
            return self.generation.head_bytes().to_vec();
        }
        Head { expires, slice, ..head.clone() }.encode()
    }

    /// Returns the form in which the list is sent to a receiver that has the list with digest `have`. Reads
    /// the deltas completely to verify them.
    pub(crate) fn list_form(&self, have: Digest) -> ListForm {
        self.list_forms.form(&self.generation, have, &self.damage_log)
    }

    /// Returns whether there is an intact compressed list to send. Reads it completely.
    pub(crate) fn check_compressed(&self) -> bool {
        self.list_forms.check_compressed(&self.generation, &self.damage_log)
    }

    /// Returns the compressed list. It is intact only if [`Edition::check_compressed`] returned `true`.
    pub(crate) fn compressed(&self) -> &[u8] {
        self.list_forms.compressed(&self.generation)
    }
}
