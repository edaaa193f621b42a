//! What a pull finds out before the first change: what the tree has, and what is to be done.

use std::collections::HashSet;

use rayon::ThreadPool;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::list::ListRef;
use stillmirror_store::Generation;

use super::{Destination, Pull};
use crate::attributes::Attributes;
use crate::error::PullError;
use crate::facts::{Facts, Held, Inspector};
use crate::grace::{self, Grace};
use crate::guard::{self, TooMany};
use crate::journal::Journal;
use crate::listing::Listing;
use crate::local::Tree;
use crate::mark;
use crate::plan::{Inputs, Plan, plan};
use crate::report::{Check, Options, Phase, Report};
use crate::selection::{Scope, Selection};
use crate::slice::Rows;
use crate::source::Pinned;
use crate::space::Space;
use crate::stage::Stage;
use crate::stores::{self, Stores};
use crate::trace;
use crate::trace_host::TraceHost;

/// What the tree is to become.
pub(super) struct Wanted<'a> {
    pub(super) pinned: &'a Pinned,
    /// The generation that the last pull left.
    pub(super) held: Option<&'a Generation>,
    /// The list, if this pull received it. Otherwise the held generation has it.
    pub(super) listing: Option<&'a Listing>,
    pub(super) selection: Selection<'a>,
    pub(super) attributes: Attributes,
    pub(super) pool: &'a ThreadPool,
    /// Directories in which contents are looked for besides the tree.
    pub(super) bases: &'a [Tree],
    /// Contents that this pull has staged already: the indices of a slice.
    pub(super) staged: HashSet<Digest>,
    /// Whether these are only the indices of a slice, of which more is fetched later.
    pub(super) are_indices: bool,
}

/// What the tree has, and what is to be done.
pub(super) struct Prepared<'a> {
    pub(super) journal: Journal,
    pub(super) facts: Facts,
    pub(super) stores: Stores<'a>,
    pub(super) plan: Plan,
    /// Whether names that the sender does not have are deleted.
    pub(super) delete: bool,
    /// The deletions that are refused, if there are too many.
    pub(super) refused: Option<TooMany>,
    /// Rows that cannot be made, because a store is in their place.
    pub(super) in_the_way: HashSet<u32>,
    /// Whether other names wait for their deletion than before.
    is_waiting_changed: bool,
}

impl Prepared<'_> {
    /// Reports what is known before the first change.
    pub(super) fn report(&self, report: &mut Report) {
        report.deletes_waiting = self.facts.count_waiting();
        report.deletes_held = self.refused.map_or(0, |too_many| too_many.wanted);
        report.unchanged = self.plan.is_empty() && self.in_the_way.is_empty() && !self.is_waiting_changed;
    }
}

impl Pull<'_> {
    /// Selects what the options want of a list. `slice` are the rows of the wanted slice, if there is one.
    pub(super) fn select<'a>(&'a self, list: ListRef<'a>, slice: Option<&'a Rows>) -> Result<Selection<'a>, PullError> {
        let Options { path, filter, names, trace, .. } = self.options;
        let scope = slice.map(Scope::Rows).or_else(|| names.as_ref().map(Scope::Names)).unwrap_or(Scope::All);
        let selection = Selection::of(list, path, filter, scope, self.own_names())?;
        trace.iter().try_for_each(|host| trace::refuse_taken(host, &selection))?;
        Ok(selection)
    }

    /// Returns the local paths that are this mirror's own.
    pub(super) fn own_names(&self) -> Vec<Vec<u8>> {
        self.options.trace.as_ref().map(TraceHost::paths).unwrap_or_default()
    }

    /// Fails if what is to be brought does not fit.
    pub(super) fn check_space(
        &self,
        destination: &Destination,
        wanted: &Wanted<'_>,
        prepared: &Prepared<'_>,
    ) -> Result<(), PullError> {
        let plan = &prepared.plan;
        let Some(tree) = destination.tree.as_ref().filter(|_| !plan.is_empty()) else { return Ok(()) };
        let space = Space {
            tree,
            store: destination.store.as_ref().map(|(store, _)| store),
            selection: &wanted.selection,
            facts: &prepared.facts,
            plan,
            options: self.options,
            list_bytes: wanted.listing.map_or(0, |listing| listing.encoded.len() as u64),
            is_copied: self.snapshots.is_some_and(|snapshots| !snapshots.is_building()),
        };
        space.check()
    }

    /// Inspects the tree, and plans. Changes nothing.
    pub(super) fn prepare<'a>(
        &self,
        destination: &'a Destination,
        wanted: &Wanted<'a>,
        grace: &Grace,
    ) -> Result<Prepared<'a>, PullError> {
        let Wanted { held, selection, .. } = wanted;
        let mut journal = match (&destination.store, &destination.tree) {
            (Some((store, _)), Some(tree)) => Journal::load(store, tree, grace::now())?,
            _ => Journal::default(),
        };
        let mut facts = wanted.pool.install(|| self.facts(destination, wanted, &mut journal))?;
        let stores = Stores::new(
            destination.tree.as_ref(),
            destination.store.as_ref().map(|(store, _)| store.dir()),
            held.map(Generation::list),
            self.own_names(),
        )?;
        let waited = journal.len();
        grace.decide(&mut journal, &mut facts, destination.tree.as_ref(), &stores)?;
        facts.add_below(destination.tree.as_ref(), held.map(Generation::list), selection);
        wanted.pool.install(|| facts.add_elsewhere(wanted.bases, selection));
        let refused = guard::refused_deletions(self.options, selection, &facts, &stores)?;
        let delete = self.options.delete && refused.is_none();
        let inputs = Inputs {
            selection,
            facts: &facts,
            held: held.map(Generation::list),
            delete,
            options: self.options,
            shares_inodes: destination.tree.as_ref().is_some_and(Tree::shares_inodes),
            blocked: &HashSet::new(),
            trust_held: self.options.check != Check::Hash,
        };
        let Planned { plan, blocked, in_the_way } = plan_around_stores(&inputs, &stores);
        for &row in &blocked {
            selection.index(row).into_iter().for_each(|index| facts.rows[index] = None);
        }
        let is_waiting_changed = journal.len() != waited;
        Ok(Prepared { journal, facts, stores, plan, delete, refused, in_the_way, is_waiting_changed })
    }

    fn facts(&self, destination: &Destination, wanted: &Wanted<'_>, journal: &mut Journal) -> Result<Facts, PullError> {
        let Wanted { held, selection, attributes, .. } = wanted;
        self.progress.phase(Phase::Check, selection.rows.len() as u64, 0);
        let trusted = self.may_trust(destination, wanted, journal)?;
        let held = held.map(|held| Held { list: held.list(), local: held.local() });
        let inspector = Inspector {
            selection,
            held,
            attributes,
            check: self.options.check,
            progress: self.progress,
            cancel: self.cancel,
        };
        let (mut facts, inspected) = match held.filter(|_| trusted) {
            Some(held) => (inspector.assume_unchanged(held), false),
            None => (inspector.inspect(destination.tree.as_ref())?, true),
        };
        if let Some(tree) = &destination.tree {
            inspector.add_waiting(tree, journal, &mut facts, inspected)?;
        }
        Ok(facts)
    }

    /// Returns whether the generation that the last pull left is trusted to describe the tree.
    fn may_trust(&self, destination: &Destination, wanted: &Wanted<'_>, journal: &Journal) -> Result<bool, PullError> {
        let (Some(held), Some(tree), Check::None) = (wanted.held, &destination.tree, self.options.check) else {
            return Ok(false);
        };
        let why = if wanted.staged.is_empty() && Stage::is_left(tree)? {
            "the last pull did not end; checking the tree"
        } else if journal.is_damaged {
            "the tree shows what waits to be deleted; checking it"
        } else if let Some((store, _)) = &destination.store
            && mark::is_of(store, held.number(), tree)?
        {
            return Ok(true);
        } else {
            "this is not the tree of the last pull; checking it"
        };
        tracing::warn!(dest = %tree.shown(b"").display(), "{why}");
        Ok(false)
    }
}

/// A plan that leaves all stores alone.
struct Planned {
    plan: Plan,
    /// Rows at or below the path of a store, which the plan leaves out.
    blocked: HashSet<u32>,
    /// Those of them whose place a store takes.
    in_the_way: HashSet<u32>,
}

/// Plans until no step of the plan replaces a store: what is left out may change what else is to be done.
fn plan_around_stores(inputs: &Inputs<'_>, stores: &Stores<'_>) -> Planned {
    let selection = inputs.selection;
    let (mut blocked, mut in_the_way) = (HashSet::new(), HashSet::new());
    loop {
        let plan = plan(&Inputs { blocked: &blocked, ..*inputs });
        let found = stores.in_the_way_of(&plan, selection);
        if found.is_empty() {
            return Planned { plan, blocked, in_the_way };
        }
        in_the_way.extend(found.iter().filter_map(|path| Some(selection.find(path)?.number())));
        blocked.extend(stores::rows_below(selection, &found));
    }
}
