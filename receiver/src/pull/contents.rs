//! Brings the contents of a plan into the staging directory, over as many connections as that takes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use stillmirror_protocol::list;
use stillmirror_store::Draft;

use super::prepared::Wanted;
use super::{Pull, origin_of};
use crate::error::PullError;
use crate::fetch::{Fetcher, Staged};
use crate::listing;
use crate::local::Tree;
use crate::plan::Plan;
use crate::report::{Failure, Phase, Report};
use crate::roots::Roots;
use crate::source::{self, Source};
use crate::stage::{KeepPolicy, Stage, SumsLog};

/// The contents that a plan needs, and where they go.
pub(super) struct Contents<'a> {
    pub(super) pull: &'a Pull<'a>,
    pub(super) wanted: &'a Wanted<'a>,
    pub(super) tree: &'a Tree,
    pub(super) stage: &'a Stage,
    /// Where records are written. `None` if there is no store.
    pub(super) draft: Option<&'a Draft>,
    pub(super) plan: &'a Plan,
}

impl Contents<'_> {
    /// Stages all contents. What no sender of this generation delivers is taken from one of an older generation, as far as
    /// it has the same contents.
    pub(super) fn bring(&self, report: &mut Report) -> Result<Staged, PullError> {
        let (list, fetches) = (self.wanted.selection.list, &self.plan.fetches);
        let bytes = fetches.iter().map(|fetch| list.row(fetch.row).size()).fold(0, u64::saturating_add);
        self.pull.progress.phase(Phase::Fetch, fetches.len() as u64, bytes);
        let mut staged = Staged::default();
        let sums = self.stage.sums_log()?;
        let mut fetched = self.fetch(&sums, &mut staged, report);
        let is_incomplete = match &fetched {
            Ok(()) => staged.failed.values().any(|why| is_of_sender(*why)),
            Err(error) => error.concerns_sender(),
        };
        if is_incomplete {
            match self.fetch_from_older(&sums, &mut staged, report) {
                Ok(()) if staged.is_complete(fetches) => fetched = Ok(()),
                Ok(()) => {}
                Err(PullError::Interrupted) => return Err(PullError::Interrupted),
                Err(error) => tracing::warn!(%error, "a sender of an older generation does not help"),
            }
        }
        fetched?;
        self.fetcher(self.pull.source, self.wanted.pinned.handle, &sums).copy_all(fetches, &mut staged, report)?;
        Ok(staged)
    }

    /// Fetches from senders of this generation. Reconnects as often as necessary and allowed.
    fn fetch(&self, sums: &SumsLog, staged: &mut Staged, report: &mut Report) -> Result<(), PullError> {
        let mut renewed: Option<(Arc<dyn Source>, u32)> = None;
        let mut broken = 0;
        loop {
            let first = (self.pull.source, self.wanted.pinned.handle);
            let (source, handle) = renewed.as_ref().map_or(first, |(source, handle)| (&**source, *handle));
            let fetcher = Fetcher { resumed: renewed.is_some(), ..self.fetcher(source, handle, sums) };
            let before = staged.files.len();
            match fetcher.fetch(&self.plan.fetches, staged, report) {
                Err(error) if error.may_succeed_on_reconnect() => {
                    broken = if staged.files.len() > before { 0 } else { broken };
                    renewed = Some(self.reconnect(error, &mut broken)?);
                }
                result => return result,
            }
        }
    }

    fn fetcher<'b>(&'b self, source: &'b dyn Source, handle: u32, sums: &'b SumsLog) -> Fetcher<'b> {
        let Pull { options, progress, cancel, .. } = *self.pull;
        Fetcher {
            source,
            handle,
            resumed: false,
            counted: &self.wanted.staged,
            more_follow: self.wanted.are_indices,
            roots: Roots { dest: self.tree, bases: self.wanted.bases },
            stage: self.stage,
            sums,
            selection: &self.wanted.selection,
            attributes: &self.wanted.attributes,
            draft: self.draft,
            keep: KeepPolicy { sums: options.sums, contents: options.keep_contents },
            threads: self.pull.threads(),
            sync: options.sync,
            pool: self.wanted.pool,
            progress,
            cancel,
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
                    tracing::warn!("no sender has this generation any more");
                    return Err(why);
                }
                Err(error) if error.may_succeed_on_reconnect() => why = error,
                Err(error) => return Err(error),
            }
        }
        Err(why)
    }

    /// Fetches contents that are missing from a sender of an older generation, if all senders of this one have failed.
    fn fetch_from_older(&self, sums: &SumsLog, staged: &mut Staged, report: &mut Report) -> Result<(), PullError> {
        let Pull { source, options, runtime, .. } = self.pull;
        let Some(connecting) = source.older(self.wanted.pinned.head.generation) else { return Ok(()) };
        let held = self.wanted.held.map(origin_of);
        let (older, pinned, listing) = runtime.block_on(async {
            let older = connecting.await?;
            let pinned = source::head(&*older, &options.repository).await?;
            let is_held = held.is_some_and(|(digest, _)| digest == pinned.head.list_digest);
            let listing = if is_held { None } else { listing::fetch(&*older, &pinned, held, None).await? };
            Ok::<_, PullError>((older, pinned, listing))
        })?;
        let list = match (&listing, held) {
            (Some(listing), _) => list::open(&listing.encoded)?,
            (None, Some((_, list))) => list,
            (None, None) => return Err(PullError::protocol("the sender sent no list")),
        };
        tracing::info!(generation = pinned.head.generation, "fetching what is missing from an older generation");
        let failed = std::mem::take(&mut staged.failed);
        let result =
            self.fetcher(&*older, pinned.handle, sums).fetch_from_older(list, &self.plan.fetches, staged, report);
        older.close();
        // Why it has no file is of no interest.
        staged.failed = failed;
        let brought: HashSet<u32> = staged.files.iter().map(|file| file.row).collect();
        staged.failed.retain(|row, _| !brought.contains(row));
        result
    }
}

/// Returns whether another sender may have what failed for this reason.
fn is_of_sender(why: Failure) -> bool {
    why.is_of_senders_file() || why == Failure::Damaged
}

/// The pause before the first attempt to reconnect. It doubles with each further attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Maximum number of times that the pause doubles.
const LONGEST_PAUSE: u32 = 6;
