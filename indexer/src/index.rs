//! Runs the stages of one run in order.

use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::io::Errno;
use stillmirror_protocol::path;
use stillmirror_store::{Draft, Generation, Store, StoreError, StoreLock};

use crate::damaged::Damaged;
use crate::error::IndexError;
use crate::expected::Expected;
use crate::hash::{Jobs, Outcomes, Reading, ReadingError};
use crate::keep_known::{KeptFiles, KnownFiles};
use crate::known_records::KnownRecords;
use crate::options::{Options, Unreadable};
use crate::owners::Owners;
use crate::pooling::{Kept, Pooling, unpooled};
use crate::publish::{Published, Seal, now, publish, renew};
use crate::report::{Problem, Progress, Report};
use crate::scrub::{Rereads, Turn};
use crate::settle::{Contents, Settled, settle};
use crate::tree::{self, Tree};
use crate::walk::{Findings, Old, Walk};

/// Indexes a repository: compares the tree with the store's current generation, and publishes a new
/// generation if they differ.
///
/// The run ends with [`IndexError::Stopped`] soon after `stop` becomes true. If a run fails before it
/// publishes, the store keeps its current generation.
pub fn index(options: &Options, progress: &dyn Progress, stop: &AtomicBool) -> Result<Report, IndexError> {
    let started = Instant::now();
    let tree = open_root(&options.root)?;
    let below_root = below_root(options)?;
    let changed_from = checked(options.changed_from.as_deref())?;
    let store = Store::create(&options.store, &options.name)?;
    let lock = store.lock()?;
    let before = store.current()?;
    refuse_emptied(options, &tree, before.as_ref())?;
    let pooling = Pooling::open(options, &tree, &store, before.as_ref())?;
    let with_fewer_digests;
    let damaged = match &before {
        Some(before) if options.verify_store => Damaged::find(before, options.thread_count(), stop),
        _ => Damaged::default(),
    };
    let is_whole = changed_from.is_none() && before.is_some();
    let turn = options.scrub.filter(|_| is_whole).map(|share| Turn::next(&store, share));
    let report = Report { damaged: damaged.files.len() as u64, ..Report::default() };
    let rereads = Rereads::new(damaged.files, turn);
    let list_is_damaged = damaged.list;
    let mut run = IndexRun {
        options,
        progress,
        stop,
        tree,
        store,
        lock,
        pooling,
        below_root,
        rereads: &rereads,
        list_is_damaged,
        report,
    };
    run.report.time.open = started.elapsed();
    if let RunEnd::CannotAddDigests = run.go(before.as_ref(), changed_from.as_deref())? {
        let list = before.as_ref().map(Generation::list);
        let (xxh128, md5) = list.map_or((false, false), |list| (list.has_xxh128(), list.has_md5()));
        with_fewer_digests = Options { xxh128: options.xxh128 && xxh128, md5: options.md5 && md5, ..options.clone() };
        run = IndexRun { options: &with_fewer_digests, ..run };
        run.go(before.as_ref(), changed_from.as_deref())?;
        run.report.digests_postponed = true;
    }
    if let Some(turn) = turn {
        turn.end(&run.store)?;
    }
    run.report.time.total = started.elapsed();
    Ok(run.report)
}

struct IndexRun<'a> {
    options: &'a Options,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
    tree: Tree,
    store: Store,
    lock: StoreLock,
    pooling: Option<Pooling>,
    /// The paths of the store and the pool below the root.
    below_root: Vec<Vec<u8>>,
    rereads: &'a Rereads,
    /// Whether the compressed list in the store is damaged.
    list_is_damaged: bool,
    report: Report,
}

/// How a run ended.
enum RunEnd {
    /// The current generation describes the tree.
    Done,
    /// Nothing was published. The list cannot get the requested digests, because an entry must stay whose
    /// file was not read.
    CannotAddDigests,
}

impl IndexRun<'_> {
    fn go(&mut self, before: Option<&Generation>, changed_from: Option<&[Vec<u8>]>) -> Result<RunEnd, IndexError> {
        let known = before.map(|before| Old {
            list: before.list(),
            local: before.local(),
            created: before.head().created,
            rereads: self.rereads,
        });
        // A list that lacks a requested digest is built from scratch, from reading every file.
        let old = known.filter(|old| self.has_digests(old));
        let owners = Owners::default();

        let walking = Instant::now();
        let excluded = self.below_root.clone();
        let walk = Walk::new(&self.tree, self.options, excluded, old, &owners, self.progress, self.stop);
        let findings = match (changed_from, old) {
            (Some(paths), Some(old)) => walk.with_named(paths).named_paths(old),
            _ => walk.whole_tree(),
        };
        let findings = findings.map_err(|error| root_error(&self.options.root, error))?;
        self.check_stop()?;
        let hashing = Instant::now();
        self.report.time.walk += hashing - walking;

        let must_publish = self.list_is_damaged || Pooling::is_new_for(self.pooling.as_ref(), before);
        let missing = self.pooling.as_ref().zip(before).map(|(pooling, before)| pooling.missing(before, &findings));
        let missing = missing.unwrap_or_default();
        if findings.is_empty() && findings.lost.is_empty() && missing.is_empty() && !must_publish {
            self.report.unreadable = findings.unreadable;
            return self.keep_current(before);
        }
        // The previous generation, if its list is built from scratch.
        let rebuilt = known.filter(|_| old.is_none());
        if rebuilt.is_some_and(|known| {
            self.would_lose_entries(known, &findings.unreadable, &[]) || self.cannot_open_all(known, &findings)
        }) {
            return Ok(RunEnd::CannotAddDigests);
        }
        let draft = self.store.begin(&self.lock)?;
        let expected = old.map(|old| Expected::of(&findings, old, &self.tree, self.options)).unwrap_or_default();
        let outcomes = self.read(&findings, &expected, before, hashing, &draft)?;
        let known = KnownFiles { tree: &self.tree, findings: &findings, outcomes: &outcomes, expected: &expected, old };
        let (kept, filled) = self.keep(&known, before, &missing)?;
        let publishing = Instant::now();
        self.report.time.hash += publishing - hashing;

        let contents = Contents { outcomes: &outcomes, expected: &expected, kept: &kept, filled: &filled };
        let settled = settle(findings, &contents, old, &owners, self.options);
        drop((outcomes, kept, filled));
        self.check_stop()?;
        if rebuilt.is_some_and(|known| self.would_lose_entries(known, &settled.unreadable, &settled.torn)) {
            return Ok(RunEnd::CannotAddDigests);
        }
        if settled.is_empty() && !must_publish {
            drop(draft);
            self.report_settled(settled);
            return self.keep_current(before);
        }
        self.progress.publishing();
        let (is_whole, signer) = (changed_from.is_none(), self.options.signer.as_deref());
        let seal = Seal { is_whole, signer, pooling: self.pooling.as_ref() };
        let Published { number, counts, unpooled } = publish(&self.store, draft, before, old, &settled, &seal)?;
        let was = old.map_or(0, |old| u64::from(old.list.len()));
        let is = counts.files + counts.directories + counts.symlinks + counts.specials;
        (self.report.generation, self.report.counts, self.report.published) = (number, counts, true);
        self.report.unpooled = unpooled;
        self.report_settled(settled);
        self.report.removed = (was + self.report.added).saturating_sub(is);
        self.retain()?;
        self.report.time.publish = publishing.elapsed();
        Ok(RunEnd::Done)
    }

    /// Puts the contents of files into the pool that were not put there when they were read. Returns how found files are
    /// kept, and how those at the rows `missing` of the previous generation.
    fn keep(
        &self,
        known: &KnownFiles<'_>,
        before: Option<&Generation>,
        missing: &[u32],
    ) -> Result<(KeptFiles, HashMap<u32, Kept>), IndexError> {
        let Some(pooling) = &self.pooling else { return Ok(Default::default()) };
        let (threads, stop) = (self.options.thread_count(), self.stop);
        let kept = known.keep(pooling, before, threads, stop)?;
        let filled = match before {
            Some(before) => pooling.fill(&self.tree, before, missing, threads, stop)?,
            None => HashMap::new(),
        };
        self.check_stop()?;
        Ok((kept, filled))
    }

    /// Removes old generations, and from the pool what only they refer to.
    fn retain(&mut self) -> Result<(), IndexError> {
        let Some(pooling) = &mut self.pooling else {
            self.store.retain(&self.lock, self.options.retention)?;
            return Ok(());
        };
        let removed = self.store.retain_with(&self.lock, self.options.retention, Some(&pooling.pool))?;
        let (pooled, added) = pooling.take_added();
        self.store.unpool(&self.lock, &pooling.pool, removed, added, pooling.is_unknown)?;
        self.report.pooled = pooled;
        self.report.refused = pooling.take_refused();
        Ok(())
    }

    fn has_digests(&self, old: &Old<'_>) -> bool {
        let none = old.list.files() == 0;
        (none || !self.options.xxh128 || old.list.has_xxh128()) && (none || !self.options.md5 || old.list.has_md5())
    }

    /// Returns whether a list that is built from scratch would lack entries that must stay.
    fn would_lose_entries(&self, known: Old<'_>, unreadable: &[Problem], torn: &[Vec<u8>]) -> bool {
        let kept = unreadable.iter().filter(|_| self.options.unreadable == Unreadable::KeepOld);
        let mut paths = torn.iter().chain(kept.map(|problem| &problem.path));
        paths.any(|path| known.list.find(path).is_some())
    }

    /// Returns whether some file whose entry must stay cannot be opened. This takes seconds, while reading
    /// every file takes hours.
    fn cannot_open_all(&self, known: Old<'_>, findings: &Findings) -> bool {
        let files = findings.found().filter(|(_, _, found)| found.facts.is_file());
        let mut files = files.map(|(_, dir, found)| path::join(dir, &found.name));
        let cannot_open = |path: &Vec<u8>| self.tree.open_file(path).is_err_and(|error| !tree::is_gone(error));
        self.options.unreadable == Unreadable::KeepOld
            && files.any(|path| cannot_open(&path) && known.list.find(&path).is_some())
    }

    fn read(
        &mut self,
        findings: &Findings,
        expected: &Expected,
        before: Option<&Generation>,
        walked: Instant,
        draft: &Draft,
    ) -> Result<Outcomes, IndexError> {
        let jobs = Jobs::of(findings, expected);
        let reading = Reading {
            tree: &self.tree,
            options: self.options,
            draft,
            known: KnownRecords::of(before),
            pooling: self.pooling.as_ref(),
            walked,
            progress: self.progress,
            stop: self.stop,
        };
        let outcomes = reading.run(&jobs).map_err(|error| match error {
            ReadingError::Stopped => IndexError::Stopped,
            ReadingError::Store(error) => error.into(),
        })?;
        self.report.hashed_files += outcomes.files;
        self.report.hashed_bytes += outcomes.bytes;
        Ok(outcomes)
    }

    /// Ends a run in which nothing changed. Publishes nothing, except that the head is signed again if that is due.
    fn keep_current(&mut self, before: Option<&Generation>) -> Result<RunEnd, IndexError> {
        if let Some(before) = before {
            (self.report.generation, self.report.counts) = (before.number(), before.head().counts);
            self.report.unpooled = self.pooling.as_ref().map_or(0, |_| unpooled(before));
            if let Some(signer) = self.options.signer.as_deref().filter(|signer| signer.is_due(before, now())) {
                self.report.generation = renew(&self.store, &self.lock, before, signer)?.generation;
                self.report.published = true;
            }
        }
        self.retain()?;
        Ok(RunEnd::Done)
    }

    /// Copies the results of settling to the report.
    fn report_settled(&mut self, settled: Settled) {
        let report = &mut self.report;
        (report.added, report.changed) = (settled.added, settled.changed);
        (report.unreadable, report.torn, report.rotten) = (settled.unreadable, settled.torn, settled.rotten);
        report.unreadable.sort_by(|a, b| a.path.cmp(&b.path));
        report.torn.sort();
        report.rotten.sort();
    }

    fn check_stop(&self) -> Result<(), IndexError> {
        if self.stop.load(Ordering::Relaxed) { Err(IndexError::Stopped) } else { Ok(()) }
    }
}

fn open_root(root: &Path) -> Result<Tree, IndexError> {
    Tree::open(root).map_err(|error| root_error(root, Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

/// Fails if the root has lost all of its entries. Most likely its disk is not mounted, and every mirror would
/// delete its files.
fn refuse_emptied(options: &Options, tree: &Tree, before: Option<&Generation>) -> Result<(), IndexError> {
    let Some(before) = before.filter(|before| !options.allow_empty && before.head().counts.files > 0) else {
        return Ok(());
    };
    if tree.is_empty().map_err(|error| root_error(&options.root, error))? {
        let (path, generation, files) = (options.root.clone(), before.number(), before.head().counts.files);
        return Err(IndexError::EmptyRoot { path, generation, files });
    }
    Ok(())
}

fn root_error(root: &Path, error: Errno) -> IndexError {
    let path = root.to_owned();
    match error {
        Errno::NOENT => IndexError::NoRoot(path),
        Errno::NOTDIR => IndexError::RootNotADirectory(path),
        error => IndexError::Root { path, source: error.into() },
    }
}

/// Checks the changed paths. Fails if one of them leaves the root.
fn checked(paths: Option<&[Vec<u8>]>) -> Result<Option<Vec<Vec<u8>>>, IndexError> {
    let check = |path: &Vec<u8>| match path::check_relative(path) {
        Ok(checked) => Ok(checked.to_vec()),
        Err(error) => Err(IndexError::ChangedPath { path: path.clone(), error }),
    };
    paths.map(|paths| paths.iter().map(check).collect()).transpose()
}

/// Returns the paths of the store and of the pool relative to the root, if they are below it. Fails if one of them is the
/// root, or if the root is in the pool.
fn below_root(options: &Options) -> Result<Vec<Vec<u8>>, IndexError> {
    let root = options.root.canonicalize();
    let root = root.map_err(|source| IndexError::Root { path: options.root.clone(), source })?;
    let resolve = |path: &Path| {
        resolved(path).map_err(|source| StoreError::Io { action: "resolve", path: path.to_owned(), source })
    };
    let store = resolve(&options.store)?;
    if store == root {
        return Err(IndexError::StoreIsRoot(options.store.clone()));
    }
    let pool = options.pool.as_deref().filter(|_| options.pin).map(resolve).transpose()?;
    if let Some(pool) = pool.as_ref().filter(|pool| root.starts_with(pool)) {
        return Err(IndexError::RootInPool { pool: pool.clone(), root });
    }
    let below = [Some(store), pool].into_iter().flatten();
    let below = below.filter_map(|path| Some(path.strip_prefix(&root).ok()?.as_os_str().as_bytes().to_vec()));
    Ok(below.collect())
}

/// Resolves the symlinks in a path whose last components may not exist yet.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    for ancestor in absolute.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            let missing = absolute.strip_prefix(ancestor).unwrap_or(Path::new(""));
            return Ok(real.join(missing));
        }
    }
    Ok(absolute)
}
