//! Deletions that wait: with `--delete-grace`, a name that the list no longer has remains for a while, for readers
//! that hold an index of an older generation.
//!
//! The names are in a journal in the store ([`Journal`]). They are not a part of the published generation. A name is
//! in the journal before the generation without it is published, and leaves it when it is deleted, when it is gone,
//! or when the list has it again. The steps of a pull, in order: [`Journal::load`], `Inspector::add_waiting`,
//! [`Grace::decide`], and after the commit [`forget_deleted`] and [`Journal::save`]. A pull that finds nothing new calls [`Grace::is_idle`].

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use stillmirror_protocol::path;
use stillmirror_store::Store;

use crate::error::PullError;
use crate::facts::{Facts, Fate, Shared};
use crate::journal::{self, Journal, Millis, Summary};
use crate::local::{Tree, self_and_ancestors};
use crate::report::Options;
use crate::stores::Stores;

/// The rules that say when a name is deleted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grace {
    /// Whether anything is deleted.
    delete: bool,
    /// How long a name waits. `None` if it does not.
    age: Option<Millis>,
}

impl Grace {
    /// Fails if names should wait, but there is no store to note them in.
    pub(crate) fn of(options: &Options) -> Result<Self, PullError> {
        let age = options.delete_grace.filter(|age| options.delete && !age.is_zero());
        if age.is_some() && options.store.is_none() {
            return Err(PullError::usage("--delete-grace needs a store, which has the journal: give --store DIR"));
        }
        let millis = |age: Duration| age.as_millis().try_into().unwrap_or(Millis::MAX);
        Ok(Self { delete: options.delete, age: age.map(millis) })
    }

    /// Returns how many names wait, if none of them has to be looked at now. Reads one line of the journal.
    pub(crate) fn is_idle(&self, store: &Store, tree: &Tree) -> Result<Option<u64>, PullError> {
        let Some(Summary { count, oldest }) = journal::peek(store, tree)? else { return Ok(None) };
        let now = now();
        // The clock was set back: the journal must be written with times that are not in the future.
        let is_ahead = count > 0 && oldest > now;
        let is_idle = count == 0 || !self.delete || !(is_ahead || self.is_due(oldest, now));
        Ok(is_idle.then_some(count))
    }

    /// Returns when the name that has waited longest is to be deleted, from now on. `None` if no name waits, or none is to
    /// be deleted. Reads one line of the journal.
    pub(crate) fn next_due(&self, store: &Store, tree: &Tree) -> Result<Option<Duration>, PullError> {
        let waiting = journal::peek(store, tree)?.filter(|summary| self.delete && summary.count > 0);
        let due = |summary: Summary| summary.oldest.saturating_add(self.age.unwrap_or(0)).saturating_sub(now());
        Ok(waiting.map(due).map(Duration::from_millis))
    }

    fn is_due(&self, since: Millis, now: Millis) -> bool {
        self.age.is_none_or(|age| since.saturating_add(age) <= now)
    }

    /// Decides what becomes of each extra, and adds those that begin to wait to the journal.
    pub(crate) fn decide(
        &self,
        journal: &mut Journal,
        facts: &mut Facts,
        tree: Option<&Tree>,
        stores: &Stores<'_>,
    ) -> Result<(), PullError> {
        facts.extra.retain(|extra| !stores.protects(extra));
        let now = now();
        let mut error = None;
        facts.extra.retain_mut(|extra| {
            extra.fate = match (journal.since(&extra.path), self.age) {
                (Some(since), _) if self.delete && self.is_due(since, now) => Fate::Due,
                (None, None) => Fate::Doomed,
                (Some(_), _) | (None, Some(_)) => Fate::Waiting,
            };
            // A directory of which nothing may be deleted remains for good. (Others are walked when they are due.)
            let is_new = journal.since(&extra.path).is_none();
            if self.delete && is_new && extra.is_dir {
                match stores.count(&extra.path) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(failed) => error = Some(failed),
                }
            }
            if is_new && extra.fate == Fate::Waiting && !journal.add(&extra.path) {
                extra.fate = Fate::Kept;
            }
            true
        });
        if let Some(error) = error {
            return Err(error);
        }
        // What goes with a directory is not deleted twice.
        let doomed = facts.doomed();
        facts.extra.retain(|extra| !self_and_ancestors(path::split(&extra.path).0).any(|dir| doomed.contains(dir)));
        if let Some(tree) = tree {
            let mut shared = Shared::default();
            let due = facts.extra.iter().filter(|extra| extra.fate == Fate::Due);
            due.for_each(|extra| shared.add_below(tree, &extra.path));
            shared.note(facts);
        }
        Ok(())
    }
}

/// Removes the names from the journal that a pull deleted: all that were to be deleted except `undeleted`.
pub(crate) fn forget_deleted(journal: &mut Journal, facts: &Facts, undeleted: &[Vec<u8>]) {
    let undeleted: HashSet<&[u8]> = undeleted.iter().map(Vec::as_slice).collect();
    let mut doomed = facts.doomed();
    doomed.retain(|path| !undeleted.contains(&path[..]));
    journal.retain(|name| !self_and_ancestors(name).any(|path| doomed.contains(path)));
}

impl Facts {
    /// Returns the paths that this pull deletes.
    fn doomed(&self) -> HashSet<Vec<u8>> {
        self.extra.iter().filter(|extra| extra.fate.is_doomed()).map(|extra| extra.path.clone()).collect()
    }

    /// Returns the number of names that wait.
    pub(crate) fn count_waiting(&self) -> u64 {
        self.extra.iter().filter(|extra| extra.fate == Fate::Waiting).count() as u64
    }
}

/// Returns the time. A clock before 1970 counts as 1970.
pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(Millis::MAX)
}
