//! Puts the contents that a generation refers to into the pool, before the generation is published.
//!
//! The file in the tree must be in the state in which its content was read, before and after it is copied. A hard link
//! sets the file's ctime and its number of links, so the state after it is the one that the generation records.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::FsWord;
use rustix::io::Errno;
use stillmirror_protocol::entry::{Digest, PASSED_BY_OTHERS};
use stillmirror_protocol::local::{Pooled, RelativeDevice};
use stillmirror_protocol::path;
use stillmirror_store::{ContentPool, Generation, PoolName, PoolPlace, Put, Store, StoreError, has_packed};

use crate::access::Access;
use crate::error::IndexError;
use crate::options::Options;
use crate::report::Problem;
use crate::tree::{Facts, Tree};
use crate::walk::Findings;

/// Subvolumes of one btrfs have device numbers of their own, and share blocks all the same.
const BTRFS: FsWord = 0x9123_683e;
/// The number of rows or names that a thread takes at a time.
const STEP: usize = 64;

/// The pool that a run fills.
pub(crate) struct Pooling {
    pub(crate) pool: ContentPool,
    pub(crate) place: PoolPlace,
    /// Whether the pool may lack contents of the previous generation.
    is_to_be_filled: bool,
    /// Whether the pool may have contents that no generation refers to.
    pub(crate) is_unknown: bool,
    added: Mutex<Vec<PoolName>>,
    refused: Mutex<Vec<Problem>>,
    files: AtomicU64,
}

/// How the pool keeps a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    pub(crate) pooled: Pooled,
    /// The facts of the file afterwards. `None` if they are as before.
    pub(crate) after: Option<Box<Facts>>,
}

/// A file whose content is to be kept.
pub(crate) struct Content<'a> {
    pub(crate) path: &'a [u8],
    /// The facts of the file when its content was read.
    pub(crate) facts: &'a Facts,
    pub(crate) digest: Digest,
    /// Whether everybody may read it, for each of its names. At least one.
    pub(crate) classes: &'a [bool],
    /// The row of the previous generation that had its name.
    pub(crate) old: Option<u32>,
}

impl Pooling {
    /// Opens the pool that the options ask for, and removes all other pools of this store. `None` if they ask for none.
    pub(crate) fn open(
        options: &Options,
        tree: &Tree,
        store: &Store,
        before: Option<&Generation>,
    ) -> Result<Option<Self>, IndexError> {
        let wanted = options.pin.then(|| Self::place(options, tree)).transpose()?;
        let used = before.and_then(Generation::pool);
        for place in [&PoolPlace::Store, &PoolPlace::Root].into_iter().chain(used) {
            if wanted.as_ref() != Some(place) {
                ContentPool::destroy(&place.path(store.dir(), &options.root), &owner(place, store))?;
            }
        }
        let Some(place) = wanted else { return Ok(None) };
        let path = place.path(store.dir(), &options.root);
        let (pool, is_new) = ContentPool::create(&path, &owner(&place, store))?;
        refuse_elsewhere(&path, options)?;
        let is_to_be_filled = is_new || used != Some(&place);
        let is_unknown = !is_new && (is_to_be_filled || pool.is_dirty());
        let (added, refused, files) = Default::default();
        Ok(Some(Self { pool, place, is_to_be_filled, is_unknown, added, refused, files }))
    }

    /// Chooses a place on the tree's file system.
    fn place(options: &Options, tree: &Tree) -> Result<PoolPlace, IndexError> {
        if let Some(path) = &options.pool {
            let path = std::path::absolute(path);
            let path = path.map_err(|source| StoreError::Io { action: "resolve", path: PathBuf::new(), source })?;
            return Ok(PoolPlace::At(path));
        }
        let is_beside = fs::metadata(&options.store).is_ok_and(|store| store.dev() == tree.device());
        Ok(if is_beside { PoolPlace::Store } else { PoolPlace::Root })
    }

    /// Returns whether the previous generation does not say that its contents are in this pool.
    pub(crate) fn is_new_for(pooling: Option<&Self>, before: Option<&Generation>) -> bool {
        let is_new = pooling.is_some_and(|pooling| pooling.is_to_be_filled);
        before.is_some_and(|before| is_new || before.pool() != pooling.map(|pooling| &pooling.place))
    }

    /// Puts a content into the pool. `None` if the file is no longer in the state in which it was read.
    pub(crate) fn keep(
        &self,
        tree: &Tree,
        file: &File,
        content: &Content<'_>,
        before: Option<&Generation>,
    ) -> Result<Option<Kept>, StoreError> {
        let Content { facts, digest, .. } = *content;
        for &is_public in content.classes {
            let name = PoolName::of_copy(digest, is_public);
            if self.pool.has_copy(&name, facts.size) {
                continue;
            }
            let Ok(draft) = self.pool.copy(file)? else { return self.link(tree, file, content, before) };
            if !tree.facts_of(file).is_ok_and(|now| now.same_content(facts)) {
                return Ok(None);
            }
            draft.keep(&name)?;
            self.note(name);
        }
        Ok(Some(Kept::default()))
    }

    fn link(
        &self,
        tree: &Tree,
        file: &File,
        content: &Content<'_>,
        before: Option<&Generation>,
    ) -> Result<Option<Kept>, StoreError> {
        let Content { facts, .. } = *content;
        self.forget_overwritten(content, before)?;
        let is_as_read = tree.facts_of(file).is_ok_and(|now| now.same_content(facts));
        for &is_public in content.classes {
            let name = PoolName::of_link(facts.identity.inode, facts.mtime, facts.size, is_public);
            let put = match self.pool.link(file, &name)? {
                Ok(put) => put,
                Err(error) => {
                    self.refuse(content.path, error);
                    return Ok(Some(Kept { pooled: Pooled::No, after: None }));
                }
            };
            let is_same = tree.facts_of(file).is_ok_and(|now| now.same_except_ctime(facts));
            if put == Put::Linked && !(is_same && is_as_read) {
                self.pool.remove(&name)?;
            }
            // A link that was there before says by its name that this is the state.
            if !is_same || !(is_as_read || put == Put::Present) {
                return Ok(None);
            }
            if put == Put::Linked {
                self.note(name);
            }
        }
        let after = tree.facts_of(file).ok().filter(|after| after.same_except_ctime(facts));
        Ok(after.map(|after| Kept { pooled: Pooled::Link, after: (after != *facts).then(|| Box::new(after)) }))
    }

    /// Removes the link to a file that was written to in place. It has the new content, so it is worthless.
    fn forget_overwritten(&self, content: &Content<'_>, before: Option<&Generation>) -> Result<(), StoreError> {
        let Some((before, row)) = before.filter(|before| before.pool() == Some(&self.place)).zip(content.old) else {
            return Ok(());
        };
        let (list, local, facts) = (before.list(), before.local(), content.facts);
        let was = list.row(row);
        let is_overwritten = local.pooled(row) == Pooled::Link
            && local.last_seen(row).inode_key() == facts.identity.inode_key()
            && (was.size(), was.mtime()) != (facts.size, facts.mtime);
        match PoolName::of_row(list, local, row).filter(|_| is_overwritten) {
            Some(name) => self.pool.remove(&name),
            None => Ok(()),
        }
    }

    fn note(&self, name: PoolName) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.added.lock().unwrap_or_else(PoisonError::into_inner).push(name);
    }

    fn refuse(&self, path: &[u8], error: Errno) {
        // Files on other file systems are only counted.
        if error != Errno::XDEV {
            let problem = Problem { path: path.to_vec(), error: error.into() };
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
        }
    }

    /// Returns the number of contents that were put into the pool, and their names.
    pub(crate) fn take_added(&mut self) -> (u64, Vec<PoolName>) {
        let added = std::mem::take(self.added.get_mut().unwrap_or_else(PoisonError::into_inner));
        (*self.files.get_mut(), added)
    }

    /// Returns the files that could not be kept, sorted by path.
    pub(crate) fn take_refused(&mut self) -> Vec<Problem> {
        let mut refused = std::mem::take(self.refused.get_mut().unwrap_or_else(PoisonError::into_inner));
        refused.sort_by(|a, b| a.path.cmp(&b.path));
        refused.dedup_by(|a, b| a.path == b.path);
        refused
    }

    /// Returns the rows of the previous generation whose contents are still to be put into the pool: all, or those that
    /// could not be put there before, and those below directories that everybody or nobody else may pass from now on.
    /// Files on other devices are not tried again.
    pub(crate) fn missing(&self, before: &Generation, findings: &Findings) -> Vec<u32> {
        let (list, local) = (before.list(), before.local());
        let is_passed = |mode: u16| mode & PASSED_BY_OTHERS != 0;
        let found = findings.found().map(|(_, _, found)| found).chain(&findings.root);
        let other = found.filter_map(|found| Some((list.row(found.old?), found.facts)));
        let other = other.filter(|(row, facts)| row.is_dir() && is_passed(row.mode()) != is_passed(facts.mode));
        let other: HashSet<u32> = other.filter_map(|(row, _)| row.dir_number()).collect();
        let (mut is_below, mut rows) = (Vec::with_capacity(list.directories() as usize), Vec::new());
        for dir in list.dirs() {
            let above = dir.number() > 0 && is_below.get(dir.parent() as usize).copied().unwrap_or(false);
            is_below.push(above || other.contains(&dir.number()));
            let is_all = self.is_to_be_filled || is_below.last() == Some(&true);
            rows.extend(dir.files().filter(|&row| {
                let is_missing =
                    local.pooled(row) == Pooled::No && local.last_seen(row).device == RelativeDevice::Roots;
                (is_all || is_missing) && list.row(row).is_file() && !local.is_rotten(row)
            }));
        }
        rows
    }

    /// Puts the contents at `rows` of the previous generation into the pool, if the files still have them. Returns how
    /// they are kept.
    pub(crate) fn fill(
        &self,
        tree: &Tree,
        before: &Generation,
        rows: &[u32],
        threads: usize,
        stop: &AtomicBool,
    ) -> Result<HashMap<u32, Kept>, StoreError> {
        let keep = |access: &mut Access<'_>, &row: &u32| Ok((row, self.keep_row(tree, before, row, access)?));
        Ok(side_by_side(tree, rows, threads, stop, keep)?.into_iter().collect())
    }

    fn keep_row(
        &self,
        tree: &Tree,
        before: &Generation,
        number: u32,
        access: &mut Access<'_>,
    ) -> Result<Kept, StoreError> {
        let (list, local) = (before.list(), before.local());
        let (row, path) = (list.row(number), list.path(number));
        let not_kept = || Kept { pooled: Pooled::No, after: None };
        let Ok(file) = tree.open_file(&path) else { return Ok(not_kept()) };
        let Ok(now) = tree.facts_of(&file) else { return Ok(not_kept()) };
        let facts = now.in_state(local.last_seen(number), row.size(), row.mtime());
        let is_public = access.is_public(path::split(&path).0, now.mode);
        let record = row.file_number().and_then(|file| local.record(file)).unwrap_or_default();
        if has_packed(&record, facts.size, is_public) {
            return Ok(Kept::default());
        }
        let classes = &[is_public][..];
        let content = Content { path: &path, facts: &facts, digest: row.sha256(), classes, old: Some(number) };
        let kept = if now.same_except_ctime(&facts) { self.keep(tree, &file, &content, Some(before))? } else { None };
        let now = (!now.same_content(&facts)).then(|| Box::new(now));
        Ok(kept.map_or_else(not_kept, |kept| Kept { after: kept.after.or(now), ..kept }))
    }
}

/// Returns the number of files of a generation that its pool does not have although it should.
pub(crate) fn unpooled(generation: &Generation) -> u64 {
    (0..generation.list().len()).filter(|&row| generation.local().pooled(row) == Pooled::No).count() as u64
}

/// Calls `each` for all items, on several threads. Returns the results in no order. Leaves items out once `stop` is set.
pub(crate) fn side_by_side<T: Sync, R: Send>(
    tree: &Tree,
    items: &[T],
    threads: usize,
    stop: &AtomicBool,
    each: impl Fn(&mut Access<'_>, &T) -> Result<R, StoreError> + Sync,
) -> Result<Vec<R>, StoreError> {
    let next = AtomicU64::new(0);
    let work = || {
        let (mut access, mut results) = (Access::new(tree), Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let start = next.fetch_add(1, Ordering::Relaxed) as usize * STEP;
            let Some(rest) = items.get(start..).filter(|rest| !rest.is_empty()) else { break };
            for item in &rest[..rest.len().min(STEP)] {
                results.push(each(&mut access, item)?);
            }
        }
        Ok(results)
    };
    let threads = threads.min(items.len().div_ceil(STEP));
    let all: Vec<Result<Vec<R>, StoreError>> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let others = others.into_iter().map(|other| other.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        std::iter::once(own).chain(others).collect()
    });
    Ok(all.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// Returns what a pool belongs to. One outside the store must not be used by two stores.
fn owner(place: &PoolPlace, store: &Store) -> String {
    match place {
        PoolPlace::Store => store.repository().to_owned(),
        PoolPlace::Root | PoolPlace::At(_) => {
            let dir = store.dir().canonicalize().unwrap_or_else(|_| store.dir().to_owned());
            format!("{} in {}", store.repository(), dir.display()).replace('\n', " ")
        }
    }
}

/// Fails if the pool is on another file system than the root.
fn refuse_elsewhere(pool: &Path, options: &Options) -> Result<(), IndexError> {
    let device = |path: &Path| fs::metadata(path).map(|facts| facts.dev()).ok();
    let is_btrfs = |path: &Path| rustix::fs::statfs(path).is_ok_and(|facts| facts.f_type == BTRFS);
    let root = &options.root;
    if device(pool) == device(root) || (is_btrfs(pool) && is_btrfs(root)) {
        return Ok(());
    }
    Err(IndexError::PoolElsewhere { pool: pool.to_owned(), root: root.clone() })
}
