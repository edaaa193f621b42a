//! What is served of a repository: a generation and the tree that it is of.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::rsync::flist::{Numbers, SubLists};
use stillmirror_protocol::rsync::selection::Selection;
use stillmirror_protocol::wire::ListForm;
use stillmirror_protocol::{limits, list};
use stillmirror_store::{Generation, Mark, Store};

use crate::damage::{Damages, Part};
use crate::extents::READS;
use crate::file::Tree;
use crate::gate::Gate;
use crate::lists::Lists;
use crate::repository::Repository;

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

/// The gates of one repository: what hangs in one of them holds up nothing that goes through another.
#[derive(Clone)]
pub(crate) struct Gates {
    /// Reads of files.
    pub(crate) files: Gate,
    /// Short looks into what is mapped of the store, whose pages may have to come from the disk.
    pub(crate) pages: Gate,
    /// Filters, names and lists of single stock clients: what takes a core for a while.
    pub(crate) choosing: Gate,
}

impl Gates {
    /// Threads that one repository's can take, at most: also for passwords, for a look at what is current, and for
    /// gates of a tree before that others still use.
    pub(crate) const THREADS: usize = 2 * (READS + PAGES + 2 * MOST_CORES);

    /// With room for so many reads of files at once.
    pub(crate) fn new(reads: usize) -> Self {
        // Some of what chooses waits for a page of a list.
        let choosing = 2 * std::thread::available_parallelism().map_or(1, usize::from).min(MOST_CORES);
        Self { files: Gate::new(reads), pages: Gate::new(PAGES), choosing: Gate::new(choosing) }
    }
}

/// An edition that a session holds on to.
pub(crate) struct Pinned {
    pub(crate) repository: Arc<Repository>,
    pub(crate) edition: Arc<Edition>,
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
    /// Both together, with nothing found out yet.
    pub(crate) fn new(mark: Mark, generation: Generation, tree: Arc<Tree>, gates: Gates) -> Self {
        Self {
            mark,
            generation,
            tree,
            gates,
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
