//! Runs a pull, from the first request to the published generation.

mod contents;
mod prepared;
mod rounds;
mod slicing;
mod update;

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rayon::{ThreadPool, ThreadPoolBuilder};
use stillmirror_protocol::entry::{Digest, Time};
use stillmirror_protocol::head::{Counts, Head, check_repository_name};
use stillmirror_protocol::list::{self, ListRef};
use stillmirror_protocol::path;
use stillmirror_store::{Generation, SenderSeen, Store, StoreError, StoreLock};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::answer;
use crate::attributes::Attributes;
use crate::error::{At as _, PullError};
use crate::grace::{self, Grace};
use crate::guard::{self, TooMany};
use crate::journal::Journal;
use crate::listing::{self, Listing};
use crate::local::{self, Tree, TreeLock};
use crate::mark;
use crate::report::{Check, Failed, Failure, Options, Phase, Progress, Report};
use crate::roots;
use crate::selection::Selection;
use crate::slice::Missing;
use crate::snapshots::{self, Snapshots};
use crate::source::{self, Pinned, Source};
use crate::stage::Stage;
use crate::stores;
use crate::trace::{self, Trace};
use crate::trust;
use crate::turn::Turn;

use prepared::Wanted;
use slicing::{Found, Indexed};
use update::Update;

/// Brings the local tree to the state of the sender's current generation.
///
/// If it is cancelled, it ends soon with [`PullError::Interrupted`]. Every name in the tree then refers to a
/// whole old file or a whole new one. The contents received so far remain in the staging directory, and the
/// next pull continues from there.
pub async fn pull(
    options: Options,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Report, PullError> {
    check_repository_name(&options.repository).map_err(|error| PullError::usage(error.to_string()))?;
    path::check_relative(&options.path).map_err(|error| PullError::usage(error.to_string()))?;
    // Dropping this future ends the work below.
    let cancel = cancel.child_token();
    let _guard = cancel.clone().drop_guard();
    let began = trust::now();
    let mut turn = Turn::of(&options);
    loop {
        // Before the sender is asked for anything: it does not wait for others.
        turn.come(&options, &*progress, &cancel).await?;
        let source = rounds::connect(&options, began, progress.clone(), cancel.clone()).await?;
        match pull_since(began, source, options.clone(), progress.clone(), cancel.clone()).await {
            Err(error) if turn.is_lost_to(&error) => {}
            result => return result,
        }
    }
}

/// Like [`pull`], from any source.
pub async fn pull_from(
    source: Arc<dyn Source>,
    options: Options,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Report, PullError> {
    pull_since(trust::now(), source, options, progress, cancel).await
}

/// Like [`pull_from`], for a pull that began before it was connected.
async fn pull_since(
    began: Time,
    source: Arc<dyn Source>,
    options: Options,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Report, PullError> {
    let runtime = Handle::current();
    let work = move || match rounds::pull(source, began, &options, &*progress, &cancel, &runtime) {
        // Whatever failed during the cancellation, the cancellation is the reason.
        Err(_) if cancel.is_cancelled() => Err(PullError::Interrupted),
        result => result,
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(PullError::Interrupted),
    }
}

/// Opens the snapshots that the options want. Fails if DEST is a snapshot and they want none.
fn open_snapshots(options: &Options) -> Result<Option<Snapshots>, PullError> {
    if options.keep_snapshots.is_some() {
        return Snapshots::open(&options.dest, options.dry_run);
    }
    snapshots::refuse_snapshot(&options.dest)?;
    Ok(None)
}

struct Pull<'a> {
    source: &'a dyn Source,
    /// When the pull began.
    began: Time,
    options: &'a Options,
    snapshots: Option<&'a Snapshots>,
    progress: &'a dyn Progress,
    cancel: &'a CancellationToken,
    runtime: Handle,
}

/// The local tree and the receiver's own store, opened. Both may be missing.
struct Destination {
    tree: Option<Tree>,
    /// None for a dry run, or if there is no tree. Two if a snapshot of the tree was begun.
    _tree_locks: Vec<TreeLock>,
    store: Option<(Store, Option<StoreLock>)>,
    /// Whether a snapshot became current that an earlier pull completed.
    switched: bool,
}

impl Pull<'_> {
    fn run(&self) -> Result<Report, PullError> {
        let (started, began) = (Instant::now(), Timestamp::now());
        let grace = Grace::of(self.options)?;
        if !self.options.trust.is_empty() && self.options.store.is_none() {
            return Err(PullError::usage("trusted keys need a store, which remembers what was accepted with them"));
        }
        let mut destination = self.open()?;
        self.progress.phase(Phase::List, 0, 0);
        let pinned = self.runtime.block_on(source::head(self.source, &self.options.repository))?;
        let store = destination.store.as_ref().map(|(store, _)| store);
        let accepted = trust::check_with_store(&pinned, &self.options.trust, store, self.began)?;
        guard::refuse_older(self.options, store, &pinned.head)?;
        guard::refuse_slice(self.options, store, &pinned.head)?;
        self.create_missing(&mut destination)?;
        if let (Some(accepted), Some((store, Some(_)))) = (accepted, &destination.store) {
            accepted.save(store)?;
        }
        if let Some((store, Some(_))) = &destination.store {
            self.note_sender(store, &pinned.head);
        }
        let switched = destination.switched;
        let (generation, head) = (pinned.head.generation, pinned.fingerprint());
        let mut report = Report { generation, head, switched, ..Report::default() };
        let result = match self.waiting_if_current(&destination, &pinned, &grace)? {
            Some(waiting) => {
                report.unchanged = true;
                report.deletes_waiting = waiting;
                Ok(())
            }
            None => self.update(&mut destination, &pinned, &grace, &mut report),
        };
        let result = result.and_then(|()| self.trace(&destination, &pinned, began, &mut report));
        if let (Ok(()), Some(snapshots), Some(keep)) = (&result, self.snapshots, self.options.keep_snapshots)
            && !self.options.dry_run
        {
            snapshots.expire(keep)?;
        }
        if result.is_ok() && !self.options.dry_run {
            report.next_due = self.next_due(&destination, &grace)?;
        }
        let traffic = self.source.traffic();
        report.bytes_received = traffic.received;
        report.bytes_sent = traffic.sent;
        report.round_trips = traffic.round_trips;
        report.seconds = started.elapsed().as_secs_f64();
        match result {
            Err(PullError::DeleteLimit { wanted, total, allowed, .. }) => {
                Err(PullError::DeleteLimit { wanted, total, allowed, report: Box::new(report) })
            }
            result => result.map(|()| report),
        }
    }

    /// Leaves in the store what the sender has, for the daemon that serves the store. Nothing depends on that.
    fn note_sender(&self, store: &Store, head: &Head) {
        let (generation, created) = (head.generation, head.created.sec);
        let seen = SenderSeen { generation, created, asked: trust::now().sec };
        if let Err(error) = seen.write(store.dir()) {
            tracing::debug!(%error, "cannot leave what the sender has in the store");
        }
    }

    /// Returns when a later pull has a deletion to make or a snapshot to remove, from now on.
    fn next_due(&self, destination: &Destination, grace: &Grace) -> Result<Option<Duration>, PullError> {
        let deletion = match (&destination.store, &destination.tree) {
            (Some((store, _)), Some(tree)) => grace.next_due(store, tree)?,
            _ => None,
        };
        let snapshot = match (self.snapshots, self.options.keep_snapshots) {
            (Some(snapshots), Some(keep)) => snapshots.next_to_expire(keep)?,
            _ => None,
        };
        Ok(deletion.into_iter().chain(snapshot).min())
    }

    /// Opens and locks the tree and the store, if they exist.
    fn open(&self) -> Result<Destination, PullError> {
        stores::refuse_bad_places(&self.options.dest, self.options.store.as_deref())?;
        let store = match &self.options.store {
            None => None,
            Some(dir) => match Store::open(dir) {
                Err(StoreError::Missing(_)) => None,
                Ok(_) if !self.options.dry_run => Some(self.create_store(dir)?),
                store => Some((store?, None)),
            },
        };
        let mut switched = false;
        let tree = match self.snapshots {
            None => open_tree(&self.options.dest)?,
            Some(snapshots) => {
                let generation = store.as_ref().map(|(store, _)| store.current()).transpose()?.flatten();
                if let Some(generation) = generation.filter(|_| !self.options.dry_run) {
                    switched = snapshots.finish_switch(generation.local().identity(0).inode)?;
                }
                snapshots.open_tree()?
            }
        };
        let tree_locks = tree.as_ref().map(|tree| self.lock(tree)).transpose()?.flatten().into_iter().collect();
        self.refuse_emptied(tree.as_ref(), store.as_ref().map(|(store, _)| store))?;
        Ok(Destination { tree, _tree_locks: tree_locks, store, switched })
    }

    /// Fails if the store knows files and the tree has nothing. Most likely its disk is not mounted, and everything
    /// would be fetched into the directory that it is mounted on.
    fn refuse_emptied(&self, tree: Option<&Tree>, store: Option<&Store>) -> Result<(), PullError> {
        let Some(store) = store.filter(|_| !self.options.allow_empty) else { return Ok(()) };
        let dest = &self.options.dest;
        if !tree.map_or(Ok(true), Tree::is_empty).at("read", dest)? {
            return Ok(());
        }
        match store.current_head()? {
            Some(current) if current.head.counts.files > 0 => Err(PullError::EmptyDestination {
                path: dest.clone(),
                generation: current.number,
                files: current.head.counts.files,
            }),
            _ => Ok(()),
        }
    }

    /// Creates and locks what [`Pull::open`] did not find, except in a dry run. Called once the sender is
    /// known to have the repository: a store keeps the repository's name that it is created with, so a
    /// misspelt name must not end up in it.
    fn create_missing(&self, destination: &mut Destination) -> Result<(), PullError> {
        let Options { dest, store, dry_run: false, .. } = self.options else { return Ok(()) };
        if let (Some(dir), None) = (store, &destination.store) {
            destination.store = Some(self.create_store(dir)?);
        }
        if destination.tree.is_none() {
            let tree = match self.snapshots {
                Some(snapshots) => snapshots.begin_empty()?,
                None => create_tree(dest)?,
            };
            destination._tree_locks.extend(self.lock(&tree)?);
            destination.tree = Some(tree);
        }
        Ok(())
    }

    /// Begins the next snapshot, and makes it the tree to pull into.
    fn begin_snapshot(
        &self,
        destination: &mut Destination,
        snapshots: &Snapshots,
        pool: &ThreadPool,
    ) -> Result<(), PullError> {
        let Some(current) = &destination.tree else { return Ok(()) };
        self.progress.phase(Phase::Snapshot, 0, 0);
        let next = pool.install(|| snapshots.begin(current, self.progress, self.cancel))?;
        if let Some((store, Some(_))) = &destination.store {
            // What waits in the current snapshot waits in the next one, for as long.
            let now = grace::now();
            Journal::load(store, current, now)?.save(store, &next, now)?;
        }
        destination._tree_locks.extend(self.lock(&next)?);
        destination.tree = Some(next);
        Ok(())
    }

    /// Opens or creates the store, and locks it.
    fn create_store(&self, dir: &Path) -> Result<(Store, Option<StoreLock>), PullError> {
        let store = Store::create(dir, &self.options.repository)?;
        let lock = store.lock()?;
        Ok((store, Some(lock)))
    }

    /// Locks the tree. `None` for a dry run.
    fn lock(&self, tree: &Tree) -> Result<Option<TreeLock>, PullError> {
        if self.options.dry_run {
            return Ok(None);
        }
        let dest = &self.options.dest;
        let busy = || PullError::Busy { dest: dest.clone() };
        Ok(Some(tree.lock().at("lock", dest)?.ok_or_else(busy)?))
    }

    /// Returns how many names wait for their deletion, if there is nothing to do: the last pull took everything that is
    /// current, it may be trusted, and no deletion is due. Reads only small files.
    fn waiting_if_current(
        &self,
        destination: &Destination,
        pinned: &Pinned,
        grace: &Grace,
    ) -> Result<Option<u64>, PullError> {
        let Options { check, path, filter, names, slice, trace, specials, .. } = self.options;
        let (Some((store, _)), Some(tree)) = (&destination.store, &destination.tree) else { return Ok(None) };
        let is_whole = path.is_empty() && filter.is_empty() && names.is_none() && slice.is_none();
        if *check != Check::None || !is_whole || !specials {
            return Ok(None);
        }
        if Stage::is_left(tree)? {
            return Ok(None);
        }
        let Some(current) = store.current_head()? else { return Ok(None) };
        // A head that was only signed again is brought, too: the mirrors of this mirror need it.
        let is_same = current.head_bytes == pinned.head_bytes && current.signature == pinned.signature;
        if current.origin.is_some() || !is_same {
            return Ok(None);
        }
        if !mark::is_of(store, current.number, tree)? {
            return Ok(None);
        }
        if trace.as_ref().is_some_and(|trace| !trace::is_free(trace, tree)) {
            return Ok(None);
        }
        // A tree that is empty although it should not be cannot be trusted.
        let expected = current.head.counts.files + current.head.counts.directories > 1;
        if expected && local::names(tree.root()).at("read", tree.shown(b""))?.is_empty() {
            return Ok(None);
        }
        grace.is_idle(store, tree)
    }

    fn update(
        &self,
        destination: &mut Destination,
        pinned: &Pinned,
        grace: &Grace,
        report: &mut Report,
    ) -> Result<(), PullError> {
        let held = destination.store.as_ref().map(|(store, _)| store.current()).transpose()?.flatten();
        let before = held.as_ref().map(origin_of);
        let listing = match before {
            Some((digest, _)) if digest == pinned.head.list_digest => None,
            before => self.listing(destination, pinned, before)?,
        };
        report.bytes_list = listing.as_ref().map_or(0, |listing| listing.bytes);
        let list = match (&listing, before) {
            (Some(listing), _) => list::open(&listing.encoded)?,
            (None, Some((_, list))) => list,
            (None, None) => return Err(PullError::protocol("the sender sent no list")),
        };
        check_counts(list, &pinned.head)?;
        let (pool, bases) = (self.pool()?, roots::open_bases(&self.options.bases));
        let indexed = Indexed { pinned, held: held.as_ref(), list, pool: &pool, bases: &bases };
        let (rows, staged, unlisted) = match &self.options.slice {
            None => (None, HashSet::new(), Missing::default()),
            Some(slice) => match self.find_slice(slice, destination, &indexed, report)? {
                Some(Found { sliced, staged }) => (Some(sliced.rows), staged, sliced.missing),
                // The indices can come later, or from another sender.
                None => return Ok(()),
            },
        };
        let wanted = Wanted {
            pinned,
            held: held.as_ref(),
            listing: listing.as_ref(),
            selection: self.select(list, rows.as_ref())?,
            attributes: Attributes::new(list, self.options.owners, self.options.setid),
            pool: &pool,
            bases: &bases,
            staged,
            are_indices: false,
        };
        let mut prepared = self.prepare(destination, &wanted, grace)?;
        if !self.options.dry_run {
            self.check_space(destination, &wanted, &prepared)?;
        }
        if let Some(snapshots) = self.snapshots.filter(|snapshots| !self.options.dry_run && !snapshots.is_building())
            && !prepared.plan.is_empty()
        {
            drop(prepared);
            self.begin_snapshot(destination, snapshots, &pool)?;
            prepared = self.prepare(destination, &wanted, grace)?;
        }
        prepared.report(report);
        self.count_refused(&wanted.selection, &wanted.attributes, report);
        let refused = prepared.refused;
        let missing = wanted.selection.missing().into_iter().chain(unlisted.first);
        let missing = missing.map(|path| Failed { path, why: Failure::Missing });
        if self.options.dry_run {
            report.planned = prepared.plan.actions(&wanted.selection);
            report.planned_bytes = prepared.plan.bytes_to_fetch(list);
        } else {
            let mut journal = std::mem::take(&mut prepared.journal);
            Update { pull: self, destination, wanted: &wanted, prepared: &prepared }.run(&mut journal, report)?;
            destination.store.iter().for_each(|(store, _)| answer::forget(store));
        }
        report.failed.extend(missing);
        report.unlisted = unlisted.count;
        match refused {
            Some(TooMany { wanted, total }) => {
                let allowed = self.options.max_delete;
                Err(PullError::DeleteLimit { wanted, total, allowed, report: Box::default() })
            }
            None => Ok(()),
        }
    }

    /// Receives the list, or takes it from what an earlier pull received.
    fn listing(
        &self,
        destination: &Destination,
        pinned: &Pinned,
        before: Option<(Digest, ListRef<'_>)>,
    ) -> Result<Option<Listing>, PullError> {
        let store = destination.store.as_ref().map(|(store, _)| store);
        let listing = self.runtime.block_on(listing::fetch(self.source, pinned, before, store))?;
        if let (Some((store, Some(_))), Some(answer)) =
            (&destination.store, listing.as_ref().and_then(|listing| listing.answer.as_ref()))
        {
            answer::keep(store, answer);
        }
        Ok(listing)
    }

    /// Writes the traces, if the tree is complete. If this host refuses, that is reported as a failed name.
    fn trace(
        &self,
        destination: &Destination,
        pinned: &Pinned,
        started: Timestamp,
        report: &mut Report,
    ) -> Result<(), PullError> {
        let Options { trace: Some(host), dry_run: false, .. } = self.options else { return Ok(()) };
        let Some(tree) = destination.tree.as_ref().filter(|_| report.failed.is_empty()) else { return Ok(()) };
        let trace = Trace { host, options: self.options, pinned, started, ended: Timestamp::now() };
        match trace.write(tree) {
            Err(error) if error.concerns_one_name() => {
                tracing::warn!(%error, "the trace cannot be written");
                let path = host.paths().into_iter().next().unwrap_or_default();
                report.failed.push(Failed { path, why: Failure::Stuck });
                Ok(())
            }
            written => written,
        }
    }

    /// Counts what the options refuse to take from the sender.
    fn count_refused(&self, selection: &Selection<'_>, attributes: &Attributes, report: &mut Report) {
        for row in selection.rows.iter().map(|&row| selection.list.row(row)) {
            report.setid_cleared += u64::from(attributes.clears_setid(row));
            report.devices_skipped += u64::from(!self.options.devices && row.device().is_some());
        }
    }

    fn pool(&self) -> Result<ThreadPool, PullError> {
        let name = |number| format!("pull-{number}");
        let built = ThreadPoolBuilder::new().num_threads(self.options.threads).thread_name(name).build();
        built.map_err(io::Error::other).at("start threads for", &self.options.dest)
    }

    fn threads(&self) -> usize {
        match self.options.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        }
    }
}

/// Returns the list that the held generation was pulled from, and its digest.
fn origin_of(held: &Generation) -> (Digest, ListRef<'_>) {
    match held.origin() {
        Some(origin) => (origin.head.list_digest, origin.list),
        None => (held.head().list_digest, held.list()),
    }
}

/// Checks that the counts in a head are those of its list, because the store relies on them.
fn check_counts(list: ListRef<'_>, head: &Head) -> Result<(), PullError> {
    let bytes = head.counts.bytes;
    if (Counts { bytes, ..Counts::of(list) }) == head.counts {
        return Ok(());
    }
    Err(PullError::protocol("the counts in the head are not those of its list"))
}

/// Creates the tree's root.
fn create_tree(dest: &Path) -> Result<Tree, PullError> {
    match std::fs::create_dir(dest) {
        // Perhaps another first pull created it. That pull then holds the lock.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        created => created.at("create", dest)?,
    }
    Tree::open(dest).at("open", dest)
}

/// Opens the tree. `None` if it does not exist.
fn open_tree(dest: &Path) -> Result<Option<Tree>, PullError> {
    let error = match Tree::open(dest) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => error,
        opened => return opened.map(Some).at("open", dest),
    };
    // With a trailing slash, `read_link` would follow the symlink.
    match std::fs::read_link(dest.components().as_path()) {
        Ok(target) => {
            let reason = format!("it is a symlink to {}, which does not exist", target.display());
            Err(io::Error::new(error.kind(), reason)).at("open", dest)
        }
        Err(_) => Ok(None),
    }
}
