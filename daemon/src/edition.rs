//! What is served of a repository: a generation and the tree that it is of.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::list;
use stillmirror_protocol::rsync::flist::{Numbers, SubLists};
use stillmirror_protocol::rsync::rules::is_listed_to_others;
use stillmirror_protocol::rsync::selection::Selection;
use stillmirror_protocol::wire::ListForm;
use stillmirror_store::{Generation, Mark, Store};

use crate::choosing::Choosing;
use crate::damage::DamageLog;
use crate::extents::READS;
use crate::fair::Pot;
use crate::file::Tree;
use crate::gate::Gate;
use crate::list_forms::ListForms;
use crate::mounted::is_unmounted;

/// Cores that are made use of for single clients of one repository.
const MOST_CORES: usize = 64;
/// Looks into mapped pages at once.
const PAGES: usize = 16;

/// A generation and a tree that were opened together, and the gates of the work on them.
pub(crate) struct Edition {
    /// Tells the generation from another one of the same number.
    pub(crate) mark: Mark,
    /// The generation.
    pub(crate) generation: Generation,
    /// Its files.
    pub(crate) tree: Arc<Tree>,
    /// What may block goes through them.
    pub(crate) gates: Gates,
    /// The forms in which its list goes to receivers.
    pub(crate) list_forms: ListForms,
    /// Whether there are directories that are closed to clients, since not everybody may read them.
    pub(crate) has_closed_dirs: bool,
    /// Where its sub-lists begin for stock clients.
    sub_lists: OnceLock<Arc<SubLists>>,
    /// The directory of its store.
    store_dir: File,
    /// Which filter rules of stock clients hide nothing of it.
    pub(crate) no_op_rules: NoOpRules,
    /// What turned out to be damaged of it.
    pub(crate) damage_log: DamageLog,
}

/// The gates of one repository: what hangs in one of them holds up nothing that goes through another.
#[derive(Clone)]
pub(crate) struct Gates {
    /// Reads of files.
    pub(crate) files: Gate,
    /// Short looks into what is mapped of the store, whose pages may have to come from the disk.
    pub(crate) pages: Gate,
    /// Filters, names and lists of single stock clients: what takes a core for a while.
    pub(crate) choosing: Arc<Choosing>,
    /// Turns for bits of many files, which cost others more than their bytes say.
    pub(crate) scattered: Arc<Pot>,
}

impl Gates {
    /// Threads that one repository's can take, at most: also for passwords, for a look at what is current, and for
    /// gates of a tree before that others still use.
    pub(crate) const THREADS: usize = 2 * (READS + PAGES + Choosing::THREADS_PER_CORE * MOST_CORES);

    /// With room for so many reads of files at once.
    pub(crate) fn new(reads: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_CORES);
        let choosing = Arc::new(Choosing::new(cores));
        // Half of the cores are left to all else whatever clients ask for.
        let scattered = Pot::new((cores as u64 / 2).max(1));
        Self { files: Gate::new(reads), pages: Gate::new(PAGES), choosing, scattered }
    }
}

impl Drop for Edition {
    fn drop(&mut self) {
        self.damage_log.report(&self.generation);
    }
}

/// What was found of filter rules, each named by a digest: most clients come with the same few.
#[derive(Default)]
pub(crate) struct NoOpRules(Mutex<HashMap<Digest, bool>>);

impl NoOpRules {
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

impl Edition {
    /// Both together, with nothing found out yet.
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
            list_forms: ListForms::new(&generation, store),
            generation,
            store_dir,
            tree,
            gates,
            sub_lists: OnceLock::new(),
            no_op_rules: NoOpRules::default(),
            damage_log: DamageLog::default(),
        }
    }

    /// Whether no path will ever lead to it again: its tree is removed, or its tree's or its store's disk unmounted.
    pub(crate) fn is_gone(&self) -> bool {
        self.tree.is_gone() || is_unmounted(&self.store_dir)
    }

    /// The rows by index of an incremental list without filters. The first call reads every directory of the list.
    pub(crate) fn numbers(&self, selection: &Selection) -> Numbers {
        let list = self.generation.list();
        let sub_lists = self.sub_lists.get_or_init(|| Arc::new(SubLists::of(list)));
        Numbers::computed(list, selection, sub_lists)
    }

    /// How the list comes to a receiver that has the one with digest `have`. Reads the deltas through.
    pub(crate) fn list_form(&self, have: Digest) -> ListForm {
        self.list_forms.form(&self.generation, have, &self.damage_log)
    }

    /// Whether there is a right compressed list to send. Reads it through.
    pub(crate) fn check_compressed(&self) -> bool {
        self.list_forms.check_compressed(&self.generation, &self.damage_log)
    }

    /// The compressed list, which is right after [`Edition::check_compressed`] said so.
    pub(crate) fn compressed(&self) -> &[u8] {
        self.list_forms.compressed(&self.generation)
    }
}
