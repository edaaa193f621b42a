//! Carries out a plan: fetches, commits and publishes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use stillmirror_store::{Draft, Generation, Store, StoreLock};

use super::prepared::{Prepared, Wanted};
use super::{Destination, Pull};
use crate::commit::{self, Committed, Committer};
use crate::error::{At as _, PullError};
use crate::facts::{Extra, Fate};
use crate::fetch::{Fetcher, Staged};
use crate::grace;
use crate::journal::Journal;
use crate::local::{self, Tree};
use crate::mark;
use crate::plan::Plan;
use crate::publish::Publisher;
use crate::report::{Failed, Failure, Phase, Report};
use crate::roots::Roots;
use crate::selection::Selection;
use crate::source::{self, Source};
use crate::stage::{KeepPolicy, Stage};

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
            let mut staged = self.fetch(tree, &stage, plan, draft.as_ref(), report)?;
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

    /// Brings all contents into the staging directory. Reconnects as often as necessary and allowed.
    fn fetch(
        &self,
        tree: &Tree,
        stage: &Stage,
        plan: &Plan,
        draft: Option<&Draft>,
        report: &mut Report,
    ) -> Result<Staged, PullError> {
        let list = self.wanted.selection.list;
        let bytes = plan.fetches.iter().map(|fetch| list.row(fetch.row).size()).fold(0, u64::saturating_add);
        self.pull.progress.phase(Phase::Fetch, plan.fetches.len() as u64, bytes);
        let mut staged = Staged::default();
        let sums = stage.sums_log()?;
        let mut renewed: Option<(Arc<dyn Source>, u32)> = None;
        let mut broken = 0;
        loop {
            let first = (self.pull.source, self.wanted.pinned.handle);
            let (source, handle) = renewed.as_ref().map_or(first, |(source, handle)| (&**source, *handle));
            let fetcher = Fetcher {
                source,
                handle,
                resumed: renewed.is_some(),
                roots: Roots { dest: tree, bases: &self.wanted.bases },
                stage,
                sums: &sums,
                selection: &self.wanted.selection,
                attributes: &self.wanted.attributes,
                draft,
                keep: KeepPolicy { sums: self.pull.options.sums, contents: self.pull.options.keep_contents },
                threads: self.pull.threads(),
                sync: self.pull.options.sync,
                pool: &self.wanted.pool,
                progress: self.pull.progress,
                cancel: self.pull.cancel,
            };
            let before = staged.files.len();
            match fetcher.fetch(&plan.fetches, &mut staged, report) {
                Ok(()) => return Ok(staged),
                Err(error) if error.may_succeed_on_reconnect() => {
                    broken = if staged.files.len() > before { 0 } else { broken };
                    renewed = Some(self.reconnect(error, &mut broken)?);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reconnects after the error `why`. Returns an error if the limit of attempts is reached, or if the
    /// sender serves another list by now. The next pull then continues with what is staged.
    fn reconnect(&self, mut why: PullError, broken: &mut u32) -> Result<(Arc<dyn Source>, u32), PullError> {
        let Pull { source, options, cancel, runtime, .. } = self.pull;
        while *broken < options.reconnects {
            let pause = FIRST_PAUSE * (1 << (*broken).min(LONGEST_PAUSE));
            *broken += 1;
            tracing::warn!(error = %why, ?pause, "connection lost; reconnecting");
            source.leave(&why.to_string(), None);
            let renewed = runtime.block_on(async {
                tokio::select! {
                    () = cancel.cancelled() => return Err(PullError::Interrupted),
                    () = tokio::time::sleep(pause) => {}
                }
                let renewed = source.renew().await?;
                let pinned = source::head(&*renewed, &options.repository).await?;
                Ok((renewed, pinned))
            });
            match renewed {
                Ok((renewed, pinned)) if pinned.head.list_digest == self.wanted.pinned.head.list_digest => {
                    return Ok((renewed, pinned.handle));
                }
                Ok(_) => {
                    tracing::warn!("the sender has a new generation; the next pull continues with it");
                    return Err(why);
                }
                Err(error) if error.may_succeed_on_reconnect() => why = error,
                Err(error) => return Err(error),
            }
        }
        Err(why)
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
            pool: &self.wanted.pool,
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

/// The pause before the first attempt to reconnect. It doubles with each further attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Maximum number of times that the pause doubles.
const LONGEST_PAUSE: u32 = 6;
