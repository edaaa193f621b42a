//! File lists for stock clients, encoded once and mapped.
//!
//! One file for every (list, class, selection, rules) that clients ask for again, in `<store>/lists/`. Nothing
//! depends on them: a file that is missing, damaged or of another version is built again, so they are not
//! synced. The byte table is in `docs/index-format.md`.

mod build;
mod file;
mod space;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::list::ListRef;
use stillmirror_protocol::rsync::flist::{Class, ListWriter};
use stillmirror_protocol::rsync::selection::Hides;

use crate::error::{At, Damage, StoreError};
use crate::layout::names;

use self::space::{Budget, Space};

pub use file::{CachedList, Mark};

/// How often a file's time of last use is written down.
const USE_INTERVAL: Duration = Duration::from_secs(60);
/// A draft older than this belongs to nobody.
const DRAFT_AGE: Duration = Duration::from_secs(3600);

/// The encoded lists of all repositories of a process, with one limit for all. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ListCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most_files: usize,
    budget: Arc<Budget>,
    /// The files with a name, by path.
    files: Mutex<HashMap<PathBuf, Kept>>,
}

/// How much encoded lists may take. Those that nobody reads make way, the one used least recently first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files with a name.
    pub files: usize,
    /// Bytes of disk: files with a name, drafts, and removed files that are still mapped.
    pub bytes: u64,
}

/// A file with a name.
#[derive(Debug)]
struct Kept {
    /// When it was used last.
    used: SystemTime,
    space: Arc<Space>,
    /// None before its first use by this process.
    list: Option<Arc<CachedList>>,
}

impl Kept {
    /// Whether a session has it, so that removing it would free nothing.
    fn is_in_use(&self) -> bool {
        let own = 1 + usize::from(self.list.is_some());
        Arc::strong_count(&self.space) > own || self.list.as_ref().is_some_and(|list| Arc::strong_count(list) > 1)
    }
}

/// The encoded lists of one repository.
#[derive(Debug, Clone)]
pub struct Shelf {
    cache: ListCache,
    dir: PathBuf,
}

/// What an encoded list is a list of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    generation: u64,
    digest: Digest,
}

impl Key {
    /// Of `generation`, whose list has the digest `list`; class, selection and rules in the bytes that are
    /// equal for equal ones.
    pub fn new(generation: u64, list: Digest, class: &Class, selection: &[u8], rules: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(list.0);
        for part in [&class.key()[..], selection, rules] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self { generation, digest: Digest(hash.finalize().into()) }
    }

    /// The store's number of the generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    fn file_name(&self) -> String {
        let digest = self.digest.to_string();
        format!("{}-{}", self.generation, &digest[..32])
    }
}

impl ListCache {
    /// An empty one. It learns of the files of earlier processes when a shelf is swept.
    pub fn new(limits: Limits) -> Self {
        let (files, budget) = (Mutex::default(), Budget::new(limits.bytes));
        Self(Arc::new(Shared { most_files: limits.files, budget, files }))
    }

    /// The lists of one repository, kept in `dir`, which is made when there is something to keep.
    pub fn shelf(&self, dir: PathBuf) -> Shelf {
        Shelf { cache: self.clone(), dir }
    }

    /// Bytes of disk that are taken now: files with a name, removed ones that are still mapped, drafts.
    pub fn taken(&self) -> u64 {
        self.0.budget.taken()
    }

    /// Bytes that a new list could have: what is left, and what lists that nobody reads would make way for.
    pub fn room(&self) -> u64 {
        let idle: u64 = self.lock().values().filter(|kept| !kept.is_in_use()).map(|kept| kept.space.bytes()).sum();
        (self.0.budget.limit() + idle).saturating_sub(self.taken())
    }

    /// Takes more for a file that is being written; lists that nobody reads make way, the one used least recently
    /// first. False when there is too little even then.
    fn grow(&self, space: &mut Space, bytes: u64) -> Result<bool, StoreError> {
        loop {
            if space.grow(bytes) {
                return Ok(true);
            }
            if !self.make_room(bytes, 0)? {
                return Ok(false);
            }
        }
    }

    /// Keeps the number and the bytes of files within the limits, as far as nobody reads them.
    fn trim(&self) -> Result<(), StoreError> {
        let files = self.lock().len().saturating_sub(self.0.most_files);
        match self.0.budget.excess() {
            0 if files == 0 => Ok(()),
            excess => self.make_room(excess, files).map(drop),
        }
    }

    /// Removes files that nobody reads: so many bytes and so many files at least. False when there are none.
    fn make_room(&self, bytes: u64, files: usize) -> Result<bool, StoreError> {
        let doomed = self.take_oldest(bytes, files);
        let any = !doomed.is_empty();
        // Without the lock: a disk that is slow to forget a file holds nobody up who looks for another.
        let mut doomed = doomed.into_iter();
        while let Some((path, kept)) = doomed.next() {
            if let Err(error) = remove(&path) {
                // What is still there still counts.
                self.lock().extend(doomed.chain([(path, kept)]));
                return Err(error);
            }
        }
        Ok(any)
    }

    fn take_oldest(&self, bytes: u64, files: usize) -> Vec<(PathBuf, Kept)> {
        let mut kept = self.lock();
        let mut idle: Vec<_> =
            kept.iter().filter(|(_, kept)| !kept.is_in_use()).map(|(path, kept)| (kept.used, path.clone())).collect();
        idle.sort_unstable();
        let (mut freed, mut doomed) = (0, Vec::new());
        for (_, path) in idle {
            if freed >= bytes && doomed.len() >= files {
                break;
            }
            if let Some(taken) = kept.remove(&path) {
                freed += taken.space.bytes();
                doomed.push((path, taken));
            }
        }
        doomed
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Kept>> {
        self.0.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    /// An encoded list, mapped; none when it is not there. A damaged file is removed and reported. The first time
    /// costs one pass over the file, for its checksum.
    pub fn open(&self, key: &Key) -> Result<Option<Arc<CachedList>>, StoreError> {
        let path = self.dir.join(key.file_name());
        if let Some(list) = self.mapped(&path) {
            return Ok(Some(list));
        }
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.cache.lock().remove(&path);
                return Ok(None);
            }
            Err(error) => return Err(error).at("open", &path),
        };
        let known = self.cache.lock().get(&path).map(|kept| Arc::clone(&kept.space));
        let space = match known {
            Some(space) => space,
            None => Arc::new(Space::of_file(&self.cache.0.budget, file.metadata().at("stat", &path)?.len())),
        };
        match CachedList::open(&file, &key.digest, Arc::clone(&space)).at("read", &path)? {
            Ok(list) => {
                note_use(&file);
                let list = Arc::new(list);
                self.keep(path, space, Some(Arc::clone(&list)), SystemTime::now());
                // This list is in use: others make way for it.
                self.cache.trim()?;
                Ok(Some(list))
            }
            Err(damage) => {
                remove(&path)?;
                self.cache.lock().remove(&path);
                let remedy = "it is removed and will be built again".to_owned();
                Err(StoreError::Damaged { path, damage: Damage::Other(damage), remedy })
            }
        }
    }

    /// A list that is mapped already, unless something of it was found to be damaged.
    fn mapped(&self, path: &Path) -> Option<Arc<CachedList>> {
        let mut files = self.cache.lock();
        let kept = files.get_mut(path)?;
        let list = Arc::clone(kept.list.as_ref().filter(|list| !list.is_damaged())?);
        kept.used = SystemTime::now();
        Some(list)
    }

    /// Writes the list that `writer` is at the start of, publishes it and opens it; others make way. None when there
    /// is no room, because sessions read what the others take. Takes one core for as long as the list takes, and
    /// little memory. One at a time is enough.
    pub fn build(
        &self,
        key: &Key,
        list: ListRef<'_>,
        writer: ListWriter,
        hides: &impl Hides,
    ) -> Result<Option<Arc<CachedList>>, StoreError> {
        fs::create_dir_all(&self.dir).at("create", &self.dir)?;
        let path = self.dir.join(key.file_name());
        let room = Room::new(&self.cache);
        let Some((file, space)) = build::build(&self.dir, &path, key, list, writer, hides, room)? else {
            return Ok(None);
        };
        let space = Arc::new(space);
        let built = CachedList::open(&file, &key.digest, Arc::clone(&space)).at("read", &path)?;
        let built = built.map(Arc::new).map_err(|damage| StoreError::Damaged {
            path: path.clone(),
            damage: Damage::Other(damage),
            remedy: "check the disk".to_owned(),
        })?;
        self.keep(path, space, Some(Arc::clone(&built)), SystemTime::now());
        self.cache.trim()?;
        Ok(Some(built))
    }

    /// Removes the lists of generations that are gone, and drafts that a crash left. Sessions that have
    /// one open go on reading it. The other files are counted from now on.
    pub fn sweep(&self, is_kept: impl Fn(u64) -> bool) -> Result<(), StoreError> {
        let mut there = HashSet::new();
        for (path, name) in self.files()? {
            let is_gone = match generation_of(&name) {
                Some(generation) => !is_kept(generation),
                None => used(&path).is_some_and(|used| is_older(used, DRAFT_AGE)),
            };
            if is_gone {
                remove(&path)?;
                continue;
            }
            if generation_of(&name).is_some() {
                self.learn(&path);
            }
            there.insert(path);
        }
        // Those that others removed.
        self.cache.lock().retain(|path, _| path.parent() != Some(&*self.dir) || there.contains(path));
        self.cache.trim()
    }

    /// Counts a file that another process left.
    fn learn(&self, path: &Path) {
        let is_known = self.cache.lock().contains_key(path);
        if let (false, Ok(facts)) = (is_known, fs::metadata(path)) {
            let space = Arc::new(Space::of_file(&self.cache.0.budget, facts.len()));
            self.keep(path.to_owned(), space, None, facts.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        }
    }

    fn keep(&self, path: PathBuf, space: Arc<Space>, list: Option<Arc<CachedList>>, used: SystemTime) {
        self.cache.lock().insert(path, Kept { used, space, list });
    }

    /// Paths and names.
    fn files(&self) -> Result<Vec<(PathBuf, String)>, StoreError> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        Ok(names(&self.dir)?.into_iter().map(|name| (self.dir.join(&name), name)).collect())
    }
}

/// The room for a file that is being written.
pub(super) struct Room<'a> {
    cache: &'a ListCache,
    space: Space,
    /// Taken, and not yet needed.
    spare: u64,
}

impl<'a> Room<'a> {
    /// Bytes that are taken at once.
    const STEP: u64 = 64 << 10;

    fn new(cache: &'a ListCache) -> Self {
        Self { cache, space: Space::none(&cache.0.budget), spare: 0 }
    }

    /// For so many bytes more. False when there is none.
    fn take(&mut self, bytes: u64) -> Result<bool, StoreError> {
        if self.spare < bytes {
            let wanted = (bytes - self.spare).next_multiple_of(Self::STEP);
            if !self.cache.grow(&mut self.space, wanted)? {
                return Ok(false);
            }
            self.spare += wanted;
        }
        self.spare -= bytes;
        Ok(true)
    }

    /// What the file of `len` bytes takes in the end.
    fn settle(mut self, len: u64) -> Space {
        self.space.shrink(len);
        self.space
    }
}

/// The generation in a file's name; none for a draft.
fn generation_of(name: &str) -> Option<u64> {
    name.split_once('-')?.0.parse().ok()
}

/// The time of last use, which is the file's time: reading a map changes none.
fn used(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|facts| facts.modified()).ok()
}

/// Only a hint for the next process: a store that cannot be written is served all the same.
fn note_use(file: &File) {
    let last = file.metadata().and_then(|facts| facts.modified());
    if last.is_ok_and(|last| is_older(last, USE_INTERVAL)) {
        drop(file.set_modified(SystemTime::now()));
    }
}

fn is_older(time: SystemTime, age: Duration) -> bool {
    SystemTime::now().duration_since(time).is_ok_and(|since| since > age)
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}
