//! Lists directories and everything below them, on all threads.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use stillmirror_protocol::list::{Dir, Row};
use stillmirror_protocol::{limits, order, path};

use super::findings::{DirFindings, Findings, Lost};
use super::{Look, Walk};
use crate::options::Unreadable;
use crate::tree::{self, Child, Facts, Listing};

/// A directory that is yet to be listed.
pub(super) struct Pending {
    pub(super) path: Vec<u8>,
    /// The directory's number in the old list. `None` if it is new.
    pub(super) old: Option<u32>,
}

impl Walk<'_> {
    /// Lists directories and everything below them, on all threads.
    pub(super) fn below(&self, pending: Vec<Pending>) -> Findings {
        if pending.is_empty() {
            return Findings::default();
        }
        let queue = Queue::new(pending);
        let work = || {
            let mut worker = Worker { walk: self, listing: Listing::default(), findings: Findings::default() };
            while let Some(pending) = queue.next() {
                let below = if self.stop.load(Ordering::Relaxed) { Vec::new() } else { worker.list(&pending) };
                queue.done(below);
            }
            worker.findings
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..self.options.thread_count()).map(|_| scope.spawn(work)).collect();
            let mut findings = work();
            for other in others {
                findings.absorb(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            findings
        })
    }
}

/// One thread of a walk.
struct Worker<'a> {
    walk: &'a Walk<'a>,
    listing: Listing,
    findings: Findings,
}

impl Worker<'_> {
    /// Lists one directory, and returns the directories in it.
    fn list(&mut self, pending: &Pending) -> Vec<Pending> {
        let walk = self.walk;
        let opened = walk.tree.open_dir(&pending.path).and_then(|dir| {
            let mut path = pending.path.clone();
            path.extend((!path.is_empty()).then_some(b'/'));
            let start = path.len();
            self.listing.read(walk.tree, &dir, |name, facts| {
                path.truncate(start);
                path.extend_from_slice(name);
                if path.len() > limits::PATH { Err(Errno::NAMETOOLONG) } else { Ok(walk.wants(&path, name, facts)) }
            })?;
            Ok(dir)
        });
        match opened {
            Ok(dir) => self.compare(&dir, pending),
            Err(error) => {
                let unreadable = !tree::is_gone(error);
                if unreadable {
                    self.findings.problem(pending.path.clone(), error);
                }
                let keeps_old = unreadable && walk.options.unreadable == Unreadable::KeepOld;
                self.findings.lost.push(Lost { path: pending.path.clone(), error, keeps_old });
                Vec::new()
            }
        }
    }

    /// Compares a listing with the directory of the old list, and returns the directories in it.
    fn compare(&mut self, dir: &OwnedFd, pending: &Pending) -> Vec<Pending> {
        let listing = std::mem::take(&mut self.listing);
        self.walk.progress.walked(listing.len() as u64);
        let old = self.walk.old.and_then(|old| Some(old.list.dir(pending.old?)));
        for (name, error) in &listing.unseen {
            self.findings.problem(path::join(&pending.path, name), *error);
        }
        let differs = DirFindings::default();
        let mut run = DirComparison { worker: self, dir, path: &pending.path, old, listing: &listing, differs };
        let (files, dirs) = listing.split();
        run.merge(files, old.map(|old| old.files()), <[u8]>::cmp, |_, _| {});
        let mut below = Vec::with_capacity(dirs.len());
        run.merge(dirs, old.map(|old| old.subdirs()), order::directories, |name, row| {
            let number = row.and_then(|row| row.dir_number());
            below.push(Pending { path: path::join(&pending.path, name), old: number });
        });
        let differs = run.differs;
        self.findings.add(&pending.path, differs);
        self.listing = listing;
        below
    }
}

/// The comparison of one directory: its files, then its directories, each with those of the old directory.
struct DirComparison<'a, 'w> {
    worker: &'a mut Worker<'w>,
    dir: &'a OwnedFd,
    path: &'a [u8],
    old: Option<Dir<'a>>,
    listing: &'a Listing,
    differs: DirFindings,
}

impl DirComparison<'_, '_> {
    fn merge(
        &mut self,
        children: &[Child],
        rows: Option<std::ops::Range<u32>>,
        order: fn(&[u8], &[u8]) -> std::cmp::Ordering,
        mut each: impl FnMut(&[u8], Option<Row<'_>>),
    ) {
        let mut rows = rows.unwrap_or(0..0);
        for child in children {
            let name = self.listing.name(child);
            let mut row = None;
            while let Some(old) = self.old.filter(|_| !rows.is_empty()) {
                let was = order(old.name_of(rows.start), name);
                if was.is_gt() {
                    break;
                }
                let at = rows.start;
                rows.start += 1;
                if was.is_eq() {
                    row = self.worker.walk.old.map(|old| old.list.row(at));
                    break;
                }
                self.absent(at);
            }
            // A name whose type has changed is in the other half of the old directory.
            let row = row.or_else(|| self.old?.child(name));
            self.present(name, &child.facts, row);
            each(name, row);
        }
        rows.for_each(|row| self.absent(row));
    }

    fn present(&mut self, name: &[u8], facts: &Facts, row: Option<Row<'_>>) {
        let (walk, findings) = (self.worker.walk, &mut self.worker.findings);
        let is_named = facts.is_file() && !walk.named.is_empty() && walk.is_named(&path::join(self.path, name));
        let target = || tree::target_at(self.dir, name);
        if let Err(error) = walk.consider(findings, &mut self.differs, Look { name, facts, is_named }, row, target) {
            walk.failed(findings, &mut self.differs, self.path, name, row, error);
        }
    }

    /// Handles a row whose name is not among the children of its type.
    fn absent(&mut self, row: u32) {
        let (Some(old), walk) = (self.old, self.worker.walk) else { return };
        let name = old.name_of(row);
        let is_unseen = self.listing.unseen.iter().any(|(unseen, _)| unseen == name);
        if !(is_unseen && walk.options.unreadable == Unreadable::KeepOld) {
            self.differs.removed.push(name.to_vec());
        }
    }
}

/// The directories to be listed, shared by the threads of a walk. It is last in, first out, which keeps it
/// short.
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    pending: Vec<Pending>,
    /// The number of directories that are being listed, which may add more.
    busy: usize,
}

impl Queue {
    fn new(pending: Vec<Pending>) -> Self {
        Self { state: Mutex::new(State { pending, busy: 0 }), wake: Condvar::new() }
    }

    /// Returns the next directory. `None` if all are listed. The caller must call [`Queue::done`] for it.
    fn next(&self) -> Option<Pending> {
        let mut state = self.lock();
        loop {
            if let Some(pending) = state.pending.pop() {
                state.busy += 1;
                return Some(pending);
            }
            if state.busy == 0 {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, below: Vec<Pending>) {
        let mut state = self.lock();
        state.busy -= 1;
        let more = !below.is_empty();
        state.pending.extend(below);
        if more || state.busy == 0 {
            self.wake.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
