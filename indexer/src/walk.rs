//! Finding what differs from the last generation.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use stillmirror_protocol::limits;
use stillmirror_protocol::list::{Dir, FileType, ListRef, Row};
use stillmirror_protocol::local::{Identity, LocalRef};
use stillmirror_protocol::order;
use stillmirror_protocol::path;

use crate::options::{Options, STAGING, Specials, Unreadable};
use crate::owners::Owners;
use crate::report::{Problem, Progress};
use crate::tree::{self, Child, Facts, Listing, Tree};

/// The generation that the tree is compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Old<'a> {
    pub(crate) list: ListRef<'a>,
    pub(crate) local: LocalRef<'a>,
}

/// All that a walk found to differ.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The root's own entry, when it differs.
    pub(crate) root: Option<Found>,
    /// Differences by directory.
    pub(crate) dirs: BTreeMap<Vec<u8>, DirFindings>,
    /// Rows that differ in nothing portable, and are no files whose content must be looked at.
    pub(crate) moved: Vec<(u32, Identity)>,
    /// Unchanged rows whose inodes have several names, or that are of a link group: the grouping may have changed around them.
    pub(crate) linked: Vec<(u32, Facts)>,
    /// Directories that were there when their parent was listed, and could not be listed themselves.
    pub(crate) lost: Vec<Lost>,
    pub(crate) unreadable: Vec<Problem>,
}

/// What differs among the children of one directory.
#[derive(Debug, Default)]
pub(crate) struct DirFindings {
    pub(crate) found: Vec<Found>,
    pub(crate) removed: Vec<Vec<u8>>,
}

/// One name that is new or differs.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: Vec<u8>,
    pub(crate) facts: Facts,
    /// The row that had the name, of whatever type.
    pub(crate) old: Option<u32>,
    /// A symlink's target.
    pub(crate) target: Vec<u8>,
}

/// A directory that could not be listed.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) path: Vec<u8>,
    pub(crate) error: Errno,
    /// Whether what the last generation has there stays.
    pub(crate) keeps_old: bool,
}

/// What every part of a walk needs.
pub(crate) struct Walk<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) options: &'a Options,
    /// Paths left out whatever the filter says.
    pub(crate) excluded: Vec<Vec<u8>>,
    pub(crate) old: Option<Old<'a>>,
    /// The owners in the old list by number, where their names are still right.
    pub(crate) old_owners: Vec<Option<(u32, u32)>>,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) stop: &'a AtomicBool,
}

/// A directory still to be listed.
struct Pending {
    path: Vec<u8>,
    /// Its number in the old list.
    old: Option<u32>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(
        tree: &'a Tree,
        options: &'a Options,
        store_below_root: Option<Vec<u8>>,
        old: Option<Old<'a>>,
        owners: &Owners,
        progress: &'a dyn Progress,
        stop: &'a AtomicBool,
    ) -> Self {
        let excluded = std::iter::once(STAGING.as_bytes().to_vec()).chain(store_below_root).collect();
        let old_owners = old.map_or_else(Vec::new, |old| owners.of_list(old.list));
        Self { tree, options, excluded, old, old_owners, progress, stop }
    }

    /// Walks the whole tree. An error is the root's.
    pub(crate) fn everything(&self) -> Result<Findings, Errno> {
        let mut findings = Findings::default();
        self.consider_root(&mut findings)?;
        let old = self.old.map(|_| 0);
        findings.absorb(self.below(vec![Pending { path: Vec::new(), old }]));
        findings.root_listed()
    }

    /// Looks at the named paths, at all below those that are directories, and at what hard links tie to
    /// them. Directories above them are looked at too, because a change of names changes their time.
    pub(crate) fn only(&self, old: Old<'_>, paths: &[Vec<u8>]) -> Result<Findings, Errno> {
        let mut findings = Findings::default();
        self.consider_root(&mut findings)?;
        let mut seen = Seen::default();
        let mut paths = paths.to_vec();
        while !paths.is_empty() && !self.stop.load(Ordering::Relaxed) {
            // Parents come before what is below them.
            paths.sort_unstable();
            let pending = paths.iter().filter_map(|path| self.look_along(old, path, &mut seen, &mut findings));
            let pending: Vec<_> = pending.collect();
            findings.absorb(self.below(pending));
            paths = tied(old, &findings, &seen);
        }
        findings.root_listed()
    }

    fn consider_root(&self, findings: &mut Findings) -> Result<(), Errno> {
        let facts = self.tree.look(b"")?.ok_or(Errno::NOENT)?;
        let row = self.old.map(|old| old.list.row(0));
        if row.is_none_or(|row| !self.same_facts(row, &facts)) {
            findings.root = Some(Found { name: Vec::new(), facts, old: row.map(|_| 0), target: Vec::new() });
        }
        Ok(())
    }

    /// Lists directories and all below them, on all threads.
    fn below(&self, pending: Vec<Pending>) -> Findings {
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

    /// Looks at every directory on the way to a path and at the path itself; gives the first of them that
    /// is to be listed whole: the path, or a directory that the old list does not have.
    fn look_along(&self, old: Old<'_>, path: &[u8], seen: &mut Seen, findings: &mut Findings) -> Option<Pending> {
        if seen.listed.contains(&b""[..]) {
            return None;
        }
        let slashes = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
        for end in slashes.chain([path.len()]) {
            let here = &path[..end];
            if seen.listed.contains(here) {
                return None;
            }
            let is_dir = match seen.looked.get(here) {
                Some(&is_dir) => is_dir,
                None => {
                    let is_dir = here.is_empty() || self.look_at(here, old.list.find(here), findings);
                    seen.looked.insert(here.to_vec(), is_dir);
                    is_dir
                }
            };
            if !is_dir {
                // Nothing is below what is no directory: the path itself counts as looked at.
                seen.looked.entry(path.to_vec()).or_insert(false);
                return None;
            }
            let number = old.list.find(here).and_then(|row| row.dir_number());
            if end == path.len() || number.is_none() {
                seen.listed.insert(here.to_vec());
                return Some(Pending { path: here.to_vec(), old: number });
            }
        }
        None
    }

    /// Looks at one path; whether it is a directory of the repository.
    fn look_at(&self, path: &[u8], row: Option<Row<'_>>, findings: &mut Findings) -> bool {
        let (dir, name) = path::split(path);
        let mut differs = DirFindings::default();
        let looked = match self.tree.look(path) {
            Ok(Some(facts)) if self.wants(path, name, &facts) => Ok(facts),
            Ok(_) => Err(Errno::NOENT),
            Err(error) => Err(error),
        };
        let looked = looked.and_then(|facts| {
            self.consider(findings, &mut differs, name, &facts, row, || self.tree.target(path))?;
            Ok(facts.is_dir())
        });
        let is_dir = looked.unwrap_or_else(|error| {
            self.failed(findings, &mut differs, dir, name, row, error);
            false
        });
        findings.add(dir, differs);
        is_dir
    }

    /// Notes that nothing could be learned of a name: because it is gone, or because it cannot be read.
    fn failed(
        &self,
        findings: &mut Findings,
        differs: &mut DirFindings,
        dir: &[u8],
        name: &[u8],
        row: Option<Row<'_>>,
        error: Errno,
    ) {
        let gone = tree::is_gone(error);
        if !gone {
            findings.problem(path::join(dir, name), error);
        }
        if row.is_some() && (gone || self.options.unreadable == Unreadable::LeaveOut) {
            differs.removed.push(name.to_vec());
        }
    }

    /// Whether a name belongs to the repository at all.
    fn wants(&self, path: &[u8], name: &[u8], facts: &Facts) -> bool {
        let special = facts.file_type().is_none_or(FileType::is_special);
        let excluded = |excluded: &Vec<u8>| excluded.ends_with(name) && excluded == path;
        let skipped = special && self.options.specials == Specials::Skip;
        !skipped && !self.excluded.iter().any(excluded) && self.options.filter.keeps(path, facts.is_dir())
    }

    /// Compares a name with the row that had it. Only a symlink's target can fail to be read.
    fn consider(
        &self,
        findings: &mut Findings,
        differs: &mut DirFindings,
        name: &[u8],
        facts: &Facts,
        row: Option<Row<'_>>,
        target: impl FnOnce() -> Result<Vec<u8>, Errno>,
    ) -> Result<(), Errno> {
        let kind = facts.file_type();
        let mut read = Vec::new();
        if let (Some(row), Some(old)) = (row.filter(|row| self.same_facts(*row, facts)), self.old) {
            let same_inode = old.local.identity(row.number()) == facts.identity;
            if !same_inode && kind == Some(FileType::Symlink) {
                read = target()?;
            }
            let moved = !same_inode && !facts.is_file() && row.target().is_none_or(|target| target == read);
            if moved {
                findings.moved.push((row.number(), facts.identity));
            }
            if same_inode || moved {
                if !facts.is_dir() && (facts.links > 1 || row.link_leader().is_some()) {
                    findings.linked.push((row.number(), *facts));
                }
                return Ok(());
            }
        } else if kind == Some(FileType::Symlink) {
            read = target()?;
        }
        let found = Found { name: name.to_vec(), facts: *facts, old: row.map(|row| row.number()), target: read };
        differs.found.push(found);
        Ok(())
    }

    /// Whether a row says of an entry what the disk says, as far as one look can tell.
    fn same_facts(&self, row: Row<'_>, facts: &Facts) -> bool {
        row.mode() == facts.mode
            && row.mtime() == facts.mtime
            && self.old_owners[row.owner_number() as usize] == Some((facts.uid, facts.gid))
            && (!facts.is_file() || row.size() == facts.size)
            && row.device().is_none_or(|device| device == facts.device)
    }
}

/// What a walk of single paths has seen.
#[derive(Default)]
struct Seen {
    /// Paths looked at, and whether they are directories.
    looked: HashMap<Vec<u8>, bool>,
    /// Directories listed with all below them.
    listed: HashSet<Vec<u8>>,
}

impl Seen {
    fn contains(&self, path: &[u8]) -> bool {
        let mut at = path;
        while !at.is_empty() {
            if self.listed.contains(at) {
                return true;
            }
            at = path::split(at).0;
        }
        self.looked.contains_key(path) || self.listed.contains(&b""[..])
    }
}

/// The paths of the old list that share an inode, or shared a link group, with something that differs:
/// their own facts changed with it, whether or not anybody named them.
fn tied(old: Old<'_>, findings: &Findings, seen: &Seen) -> Vec<Vec<u8>> {
    let mut inodes = HashSet::new();
    let mut leaders = HashSet::new();
    let mut gone_dirs = HashSet::new();
    let mut touch = |row: Row<'_>| {
        leaders.extend(row.link_leader());
        gone_dirs.extend(row.dir_number());
    };
    for (dir, differs) in &findings.dirs {
        for found in &differs.found {
            if found.facts.links > 1 && !found.facts.is_dir() {
                inodes.insert(found.facts.inode());
            }
            found.old.map(|row| old.list.row(row)).filter(|_| !found.facts.is_dir()).into_iter().for_each(&mut touch);
        }
        for name in &differs.removed {
            old.list.find(&path::join(dir, name)).into_iter().for_each(&mut touch);
        }
    }
    // What has the same look in another inode may have left a group, or come to one.
    for (row, identity) in findings.moved.iter().filter(|(row, _)| !old.list.row(*row).is_dir()) {
        touch(old.list.row(*row));
        inodes.insert((identity.device, identity.inode));
    }
    if !gone_dirs.is_empty() {
        let below_gone = |row: u32| {
            let mut dir = old.list.parent_of(row);
            while dir.number() != 0 && !gone_dirs.contains(&dir.number()) {
                dir = old.list.dir(dir.parent());
            }
            dir.number() != 0
        };
        leaders.extend(old.list.links().filter(|&(row, _)| below_gone(row)).map(|(_, leader)| leader));
    }
    let mut rows: BTreeSet<u32> = BTreeSet::new();
    if !leaders.is_empty() {
        rows.extend(old.list.links().filter(|(_, leader)| leaders.contains(leader)).map(|(row, _)| row));
    }
    if !inodes.is_empty() {
        rows.extend((0..old.list.len()).filter(|&row| {
            let Identity { device, inode, .. } = old.local.identity(row);
            inodes.contains(&(device, inode))
        }));
    }
    rows.into_iter().map(|row| old.list.path(row)).filter(|path| !seen.contains(path)).collect()
}

/// One thread of a walk.
struct Worker<'a> {
    walk: &'a Walk<'a>,
    listing: Listing,
    findings: Findings,
}

impl Worker<'_> {
    /// Lists one directory; gives the directories in it.
    fn list(&mut self, pending: &Pending) -> Vec<Pending> {
        let walk = self.walk;
        let opened = walk.tree.open_dir(&pending.path).and_then(|dir| {
            let mut path = pending.path.clone();
            path.extend((!path.is_empty()).then_some(b'/'));
            let start = path.len();
            self.listing.read(&dir, |name, facts| {
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

    /// Compares a listing with the directory of the old list.
    fn compare(&mut self, dir: &OwnedFd, pending: &Pending) -> Vec<Pending> {
        let listing = std::mem::take(&mut self.listing);
        self.walk.progress.walked(listing.len() as u64);
        let old = self.walk.old.and_then(|old| Some(old.list.dir(pending.old?)));
        for (name, error) in &listing.blind {
            self.findings.problem(path::join(&pending.path, name), *error);
        }
        let differs = DirFindings::default();
        let mut run = Run { worker: self, dir, path: &pending.path, old, listing: &listing, differs };
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

/// One directory that is compared: its files, then its directories, each against the same of the old one.
struct Run<'a, 'w> {
    worker: &'a mut Worker<'w>,
    dir: &'a OwnedFd,
    path: &'a [u8],
    old: Option<Dir<'a>>,
    listing: &'a Listing,
    differs: DirFindings,
}

impl Run<'_, '_> {
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
            // A name of another type than before stands in the old directory's other half.
            let row = row.or_else(|| self.old?.child(name));
            self.present(name, &child.facts, row);
            each(name, row);
        }
        rows.for_each(|row| self.absent(row));
    }

    fn present(&mut self, name: &[u8], facts: &Facts, row: Option<Row<'_>>) {
        let (walk, findings) = (self.worker.walk, &mut self.worker.findings);
        let target = || tree::target_at(self.dir, name);
        if let Err(error) = walk.consider(findings, &mut self.differs, name, facts, row, target) {
            walk.failed(findings, &mut self.differs, self.path, name, row, error);
        }
    }

    /// A row whose name is not among the children of its type.
    fn absent(&mut self, row: u32) {
        let (Some(old), walk) = (self.old, self.worker.walk) else { return };
        let name = old.name_of(row);
        let blind = self.listing.blind.iter().any(|(blind, _)| blind == name);
        if !(blind && walk.options.unreadable == Unreadable::KeepOld) {
            self.differs.removed.push(name.to_vec());
        }
    }
}

impl Findings {
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_none() && self.dirs.is_empty() && self.moved.is_empty()
    }

    /// What is below the root may fail to be listed, but not the root.
    fn root_listed(self) -> Result<Self, Errno> {
        match self.lost.iter().find(|lost| lost.path.is_empty()) {
            Some(lost) => Err(lost.error),
            None => Ok(self),
        }
    }

    fn add(&mut self, dir: &[u8], differs: DirFindings) {
        if !(differs.found.is_empty() && differs.removed.is_empty()) {
            let dir = self.dirs.entry(dir.to_vec()).or_default();
            dir.found.extend(differs.found);
            dir.removed.extend(differs.removed);
        }
    }

    fn problem(&mut self, path: Vec<u8>, error: Errno) {
        self.unreadable.push(Problem { path, error: error.into() });
    }

    fn absorb(&mut self, other: Self) {
        for (path, differs) in other.dirs {
            self.add(&path, differs);
        }
        self.moved.extend(other.moved);
        self.linked.extend(other.linked);
        self.lost.extend(other.lost);
        self.unreadable.extend(other.unreadable);
    }
}

/// Directories to be listed, shared by the threads of a walk. Last in, first out, so that few wait.
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    pending: Vec<Pending>,
    /// Directories being listed, from which more may come.
    busy: usize,
}

impl Queue {
    fn new(pending: Vec<Pending>) -> Self {
        Self { state: Mutex::new(State { pending, busy: 0 }), wake: Condvar::new() }
    }

    /// The next directory; none when all are listed. [`Queue::done`] must follow.
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
