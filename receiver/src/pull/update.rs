//! Carries out a plan: fetches, commits and publishes.

use std::collections::HashMap;

use stillmirror_store::{Generation, Store, StoreLock};

use super::contents::Contents;
use super::prepared::{Prepared, Wanted};
use super::{Destination, Pull};
use crate::commit::{self, Committed, Committer};
use crate::error::{At as _, PullError};
use crate::facts::{Extra, Fate};
use crate::fetch::Staged;
use crate::grace;
use crate::journal::Journal;
use crate::local::{self, Tree};
use crate::mark;
use crate::plan::Plan;
use crate::publish::Publisher;
use crate::report::{Failed, Failure, Phase, Report};
use crate::selection::Selection;
use crate::stage::Stage;

/// Everything that is known before the first change.
pub(super) struct Update<'a> {
    pub(super) pull: &'a Pull<'a>,
    pub(super) destination: &'a Destination,
    pub(super) wanted: &'a Wanted<'a>,
    pub(super) prepared: &'a Prepared<'a>,
}

impl Update<'_> {
    pub(super) fn run(&self, journal: &mut Journal, report: &mut Report) -> Result<(), PullError> {
        let plan = &self.prepared.plan;
        let draft = match &self.destination.store {
            Some((store, Some(lock))) => Some(store.begin(lock)?),
            _ => None,
        };
        let mut records = HashMap::new();
        let mut committed = Committed::default();
        let mut held_back = false;
        let tree = self.destination.tree.as_ref().ok_or_else(|| PullError::usage("no tree to pull into"))?;
        if !plan.is_empty() {
            if self.wanted.selection.sets_root() {
                // `finish_root` sets the final mode.
                local::make_writable(tree.root());
            }
            let stage = Stage::open(tree)?;
            let contents =
                Contents { pull: self.pull, wanted: self.wanted, tree, stage: &stage, draft: draft.as_ref(), plan };
            let mut staged = contents.bring(report)?;
            self.pull.source.close();
            records = std::mem::take(&mut staged.records);
            // Files that refer to what a store keeps out have to wait, too.
            staged.failed.extend(self.prepared.in_the_way.iter().map(|&row| (row, Failure::InTheWay)));
            committed = self.commit(tree, &stage, plan, staged, report)?;
            held_back = committed.held_deletions;
        }
        if plan.is_empty() {
            committed.failed.extend(self.prepared.in_the_way.iter().map(|&row| (row, Failure::InTheWay)));
        }
        let failed = &committed.failed;
        report.failed = failures(&committed, &self.wanted.selection);
        if self.pull.snapshots.is_some() && failed.values().any(may_come_later) {
            // Readers keep the current snapshot. The next pull goes on with this one.
            return Ok(());
        }
        if held_back {
            report.deletes_held = self.prepared.stores.count_doomed(&self.prepared.facts)?;
        }
        // What has waited in the journal is not listed, and stays there.
        let is_kept = |extra: &&Extra| match extra.fate {
            Fate::Doomed => self.prepared.refused.is_some() || held_back,
            Fate::Kept => true,
            Fate::Due | Fate::Waiting => false,
        };
        let kept = self.prepared.facts.extra.iter().filter(is_kept).map(|extra| extra.path.clone());
        let kept: Vec<_> = kept.chain(committed.undeleted.iter().cloned()).collect();
        report.deletes_held += self.prepared.facts.extra.iter().filter(|extra| extra.fate == Fate::Kept).count() as u64;
        if let Some((store, Some(_))) = &self.destination.store {
            // Before the generation without the names that begin to wait.
            if self.prepared.delete && !held_back {
                grace::forget_deleted(journal, &self.prepared.facts, &committed.undeleted);
            }
            journal.save(store, tree, grace::now())?;
        }
        if tree.shares_inodes() {
            // Readers must not see it.
            self.clear_stage(tree)?;
            self.sync(tree)?;
        }
        let publisher = Publisher {
            tree,
            pinned: self.wanted.pinned,
            encoded: self.wanted.listing.map(|listing| &listing.encoded[..]),
            delta: self.wanted.listing.and_then(|listing| listing.delta.as_deref()),
            held: self.wanted.held,
            selection: &self.wanted.selection,
            facts: &self.prepared.facts,
            committed: &committed,
            records: &records,
            failed,
            options: self.pull.options,
            attributes: &self.wanted.attributes,
            kept: &kept,
        };
        if let (Some(draft), Some((store, Some(lock)))) = (draft, &self.destination.store) {
            self.pull.progress.phase(Phase::Publish, 0, 0);
            // If only names went that nothing lists, the generation may be right already.
            let changed = !plan.is_empty() && !plan.only_deletes();
            if changed || !publisher.is_published()? {
                report.published = Some(publisher.publish(draft)?);
                // At once: a daemon serves the generation only with its own tree.
                report.switched |= self.switch()?;
                self.clear_stage(tree)?;
                self.remove_replaced(store, lock)?;
                store.retain(lock, self.pull.options.retention)?;
            }
        }
        report.switched |= self.switch()?;
        self.clear_stage(tree)?;
        match (&self.destination.store, report.published.or(self.wanted.held.map(Generation::number))) {
            (Some((store, Some(_))), Some(number)) => mark::set(store, number, tree),
            _ => Ok(()),
        }
    }

    /// Makes the new snapshot current, if this pull updated one. Returns whether it did.
    fn switch(&self) -> Result<bool, PullError> {
        match self.pull.snapshots {
            Some(snapshots) if snapshots.is_building() => snapshots.switch().map(|()| true),
            _ => Ok(false),
        }
    }

    fn sync(&self, tree: &Tree) -> Result<(), PullError> {
        if self.pull.options.sync {
            rustix::fs::syncfs(tree.root()).at("sync", tree.shown(b""))?;
        }
        Ok(())
    }

    /// Removes the held generation if the new one has the same list, so that renewed signatures do not take the places
    /// of generations that receivers have.
    fn remove_replaced(&self, store: &Store, lock: &StoreLock) -> Result<(), PullError> {
        match (self.wanted.held, store.current_head()?) {
            (Some(held), Some(current)) if current.head.list_digest == held.head().list_digest => {
                Ok(store.remove_replaced(lock, held.number())?)
            }
            _ => Ok(()),
        }
    }

    /// Removes the staging directory. It shows the next pull that this one did not end, so it is removed only
    /// after the store knows what the tree holds.
    fn clear_stage(&self, tree: &Tree) -> Result<(), PullError> {
        if !Stage::is_left(tree)? {
            return Ok(());
        }
        local::make_writable(tree.root());
        Stage::open(tree)?.remove(tree)?;
        commit::finish_root(tree, &self.wanted.selection, &self.wanted.attributes)
    }

    fn commit(
        &self,
        tree: &Tree,
        stage: &Stage,
        plan: &Plan,
        staged: Staged,
        report: &mut Report,
    ) -> Result<Committed, PullError> {
        self.pull.progress.phase(Phase::Commit, staged.files.len() as u64, 0);
        let committer = Committer {
            tree,
            stage,
            selection: &self.wanted.selection,
            facts: &self.prepared.facts,
            attributes: &self.wanted.attributes,
            delete: self.prepared.delete,
            stores: &self.prepared.stores,
            may_delete: self.prepared.delete && staged.failed.is_empty(),
            sync: self.pull.options.sync,
            pool: self.wanted.pool,
            progress: self.pull.progress,
            cancel: self.pull.cancel,
        };
        let committed = committer.commit(plan, staged, report)?;
        if self.destination.store.is_some() {
            // After a power failure, the store must not remember names that the tree has lost.
            self.sync(tree)?;
        }
        Ok(committed)
    }
}

/// Returns whether another pull may bring what failed for this reason, so that a snapshot without it is not complete.
fn may_come_later(why: &Failure) -> bool {
    matches!(why, Failure::Stale | Failure::Vanished | Failure::Damaged | Failure::Held)
}

fn failures(committed: &Committed, selection: &Selection<'_>) -> Vec<Failed> {
    let rows = committed.failed.iter().map(|(&row, &why)| Failed { path: selection.path(row), why });
    let names = committed.undeleted.iter().map(|path| Failed { path: path.clone(), why: Failure::Stuck });
    let mut failed: Vec<Failed> = rows.chain(names).collect();
    failed.sort_by(|a, b| a.path.cmp(&b.path));
    failed
}
