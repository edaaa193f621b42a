//! One run, stage by stage.

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
use crate::hash::{Jobs, Known, Outcomes, Reading, ReadingError};
use crate::options::{Options, Unreadable};
use crate::owners::Owners;
use crate::publish::publish;
use crate::report::{Problem, Progress, Report};
use crate::scrub::{Again, Turn};
use crate::settle::{Settled, settle};
use crate::tree::{self, Tree};
use crate::walk::{Findings, Old, Walk};

/// Indexes a repository: compares the tree with the store's current generation and publishes another one
/// if they differ.
///
/// `stop` ends the run soon after it becomes true, with [`IndexError::Stopped`]. Whatever ends a run early,
/// the store keeps its current generation.
pub fn index(options: &Options, progress: &dyn Progress, stop: &AtomicBool) -> Result<Report, IndexError> {
    let started = Instant::now();
    let tree = open_root(&options.root)?;
    let store_below_root = store_below_root(options)?;
    let changed_from = checked(options.changed_from.as_deref())?;
    let store = Store::create(&options.store, &options.name)?;
    let lock = store.lock()?;
    let before = store.current()?;
    refuse_emptied(options, &tree, before.as_ref())?;
    let fewer;
    let damaged = match &before {
        Some(before) if options.verify_store => Damaged::find(before, options.thread_count(), stop),
        _ => Damaged::default(),
    };
    let is_whole = changed_from.is_none() && before.is_some();
    let turn = options.scrub.filter(|_| is_whole).map(|share| Turn::next(&store, share));
    let report = Report { damaged: damaged.files.len() as u64, ..Report::default() };
    let again = Again::new(damaged.files, turn);
    let list_is_damaged = damaged.list;
    let mut run = IndexRun { options, progress, stop, tree, store, lock, again: &again, list_is_damaged, report };
    run.report.time.open = started.elapsed();
    if let Ended::ForWantOfDigests = run.go(before.as_ref(), store_below_root.as_deref(), changed_from.as_deref())? {
        let has = before.as_ref().map(Generation::list);
        let (xxh128, md5) = has.map_or((false, false), |list| (list.has_xxh128(), list.has_md5()));
        fewer = Options { xxh128: options.xxh128 && xxh128, md5: options.md5 && md5, ..options.clone() };
        run = IndexRun { options: &fewer, ..run };
        run.go(before.as_ref(), store_below_root.as_deref(), changed_from.as_deref())?;
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
    again: &'a Again,
    list_is_damaged: bool,
    report: Report,
}

/// How a run came to its end.
enum Ended {
    /// With the right generation current.
    Well,
    /// Before anything was published: the list cannot have the digests that are asked for, because an entry
    /// would stay whose file was not read.
    ForWantOfDigests,
}

impl IndexRun<'_> {
    fn go(
        &mut self,
        before: Option<&Generation>,
        store_below_root: Option<&[u8]>,
        changed_from: Option<&[Vec<u8>]>,
    ) -> Result<Ended, IndexError> {
        let known = before.map(|before| Old {
            list: before.list(),
            local: before.local(),
            created: before.head().created,
            again: self.again,
        });
        // A list without a digest that is asked for is made anew, from reading every file.
        let old = known.filter(|old| self.has_digests(old));
        let owners = Owners::default();

        let walking = Instant::now();
        let excluded = store_below_root.map(<[u8]>::to_vec);
        let walk = Walk::new(&self.tree, self.options, excluded, old, &owners, self.progress, self.stop);
        let findings = match (changed_from, old) {
            (Some(paths), Some(old)) => walk.naming(paths).only(old),
            _ => walk.everything(),
        };
        let findings = findings.map_err(|error| root_error(&self.options.root, error))?;
        self.check_stop()?;
        let hashing = Instant::now();
        self.report.time.walk += hashing - walking;

        if findings.is_empty() && findings.lost.is_empty() && !self.list_is_damaged {
            self.report.unreadable = findings.unreadable;
            return self.leave(before);
        }
        let anew = known.filter(|_| old.is_none());
        if anew.is_some_and(|known| self.loses_some(known, &findings.unreadable, &[]) || self.shut(known, &findings)) {
            return Ok(Ended::ForWantOfDigests);
        }
        let draft = self.store.begin(&self.lock)?;
        let expected = old.map(|old| Expected::of(&findings, old, &self.tree, self.options)).unwrap_or_default();
        let outcomes = self.read(&findings, &expected, before, hashing, &draft)?;
        let publishing = Instant::now();
        self.report.time.hash += publishing - hashing;

        let settled = settle(findings, &outcomes, &expected, old, &owners, self.options);
        drop(outcomes);
        self.check_stop()?;
        if anew.is_some_and(|known| self.loses_some(known, &settled.unreadable, &settled.torn)) {
            return Ok(Ended::ForWantOfDigests);
        }
        if settled.is_empty() && !self.list_is_damaged {
            self.tell(settled);
            return self.leave(before);
        }
        self.progress.publishing();
        let whole = changed_from.is_none();
        let (number, counts) = publish(&self.store, draft, before, old, &settled, whole)?;
        let was = old.map_or(0, |old| u64::from(old.list.len()));
        let is = counts.files + counts.directories + counts.symlinks + counts.specials;
        (self.report.generation, self.report.counts, self.report.published) = (number, counts, true);
        self.tell(settled);
        self.report.removed = (was + self.report.added).saturating_sub(is);
        self.store.retain(&self.lock, self.options.retention)?;
        self.report.time.publish = publishing.elapsed();
        Ok(Ended::Well)
    }

    fn has_digests(&self, old: &Old<'_>) -> bool {
        let none = old.list.files() == 0;
        (none || !self.options.xxh128 || old.list.has_xxh128()) && (none || !self.options.md5 || old.list.has_md5())
    }

    /// Whether a list made anew would lack entries that must stay.
    fn loses_some(&self, known: Old<'_>, unreadable: &[Problem], torn: &[Vec<u8>]) -> bool {
        let kept = unreadable.iter().filter(|_| self.options.unreadable == Unreadable::KeepOld);
        let mut paths = torn.iter().chain(kept.map(|problem| &problem.path));
        paths.any(|path| known.list.find(path).is_some())
    }

    /// Whether some file with an entry that must stay cannot be opened. That is known in seconds, when reading
    /// every file takes hours.
    fn shut(&self, known: Old<'_>, findings: &Findings) -> bool {
        let files = findings.found().filter(|(_, _, found)| found.facts.is_file());
        let mut files = files.map(|(_, dir, found)| path::join(dir, &found.name));
        let shut = |path: &Vec<u8>| self.tree.open_file(path).is_err_and(|error| !tree::is_gone(error));
        self.options.unreadable == Unreadable::KeepOld
            && files.any(|path| shut(&path) && known.list.find(&path).is_some())
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
            known: Known::of(before),
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

    /// Leaves the current generation current.
    fn leave(&mut self, before: Option<&Generation>) -> Result<Ended, IndexError> {
        if let Some(before) = before {
            (self.report.generation, self.report.counts) = (before.number(), before.head().counts);
        }
        self.store.retain(&self.lock, self.options.retention)?;
        Ok(Ended::Well)
    }

    fn tell(&mut self, settled: Settled) {
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

/// Refuses a root that has lost everything: more often its disk is not mounted than its files were deleted,
/// and every mirror would follow.
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

/// Refuses paths that lead out of the root.
fn checked(paths: Option<&[Vec<u8>]>) -> Result<Option<Vec<Vec<u8>>>, IndexError> {
    let check = |path: &Vec<u8>| match path::check_relative(path) {
        Ok(checked) => Ok(checked.to_vec()),
        Err(error) => Err(IndexError::ChangedPath { path: path.clone(), error }),
    };
    paths.map(|paths| paths.iter().map(check).collect()).transpose()
}

/// The store's path relative to the root, when it lies below it.
fn store_below_root(options: &Options) -> Result<Option<Vec<u8>>, IndexError> {
    let root = options.root.canonicalize();
    let root = root.map_err(|source| IndexError::Root { path: options.root.clone(), source })?;
    let store = resolved(&options.store);
    let store = store.map_err(|source| StoreError::Io { action: "resolve", path: options.store.clone(), source })?;
    match store.strip_prefix(&root) {
        Ok(relative) if relative.as_os_str().is_empty() => Err(IndexError::StoreIsRoot(options.store.clone())),
        Ok(relative) => Ok(Some(relative.as_os_str().as_bytes().to_vec())),
        Err(_) => Ok(None),
    }
}

/// A path without symlinks, of which the last part may not be there yet.
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
