//! Caches file lists for stock clients: each list is encoded once into a file, which is then mapped.
//!
//! There is one file in `<store>/lists/` for each combination of list, class, selection and rules that
//! clients request repeatedly. Nothing depends on these files. A file that is missing, damaged or of another
//! version is built again, so they are not synced for durability. The byte table is in
//! `docs/index-format.md`.
//!
//! A process has one [`ListCache`], and takes a [`Shelf`] from it for each repository. [`Shelf::sweep`]
//! counts the files of earlier processes, [`Shelf::open`] looks a list up, and [`Shelf::build`] writes a
//! missing one.

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

/// How often a file's time of last use is updated on disk.
const USE_INTERVAL: Duration = Duration::from_secs(60);
/// A draft older than this was left behind by a crash.
const DRAFT_AGE: Duration = Duration::from_secs(3600);

/// The encoded lists of all repositories of a process, with one limit for all of them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ListCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max_files: usize,
    budget: Arc<Budget>,
    /// The finished files that have not been removed, by path.
    files: Mutex<HashMap<PathBuf, Kept>>,
}

/// The limits of encoded lists. Lists that no session uses are evicted, the least recently used first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The maximum number of finished files.
    pub files: usize,
    /// The maximum disk usage in bytes: finished files, drafts, and removed files that are still mapped.
    pub bytes: u64,
}

/// A finished file that has not been removed.
#[derive(Debug)]
struct Kept {
    /// The time of its last use.
    used: SystemTime,
    space: Arc<Space>,
    /// `None` before the file's first use by this process.
    list: Option<Arc<CachedList>>,
}

impl Kept {
    /// Returns whether a session uses the file, so that removing it would free nothing.
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

/// Identifies an encoded list by everything that determines its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    generation: u64,
    digest: Digest,
}

impl Key {
    /// Creates the key for `generation`, whose list has the digest `list`. `selection` and `rules` are
    /// encoded so that equal ones have equal bytes.
    pub fn new(generation: u64, list: Digest, class: &Class, selection: &[u8], rules: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(list.0);
        for part in [&class.key()[..], selection, rules] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self { generation, digest: Digest(hash.finalize().into()) }
    }

    /// The generation's number in the store.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    fn file_name(&self) -> String {
        let digest = self.digest.to_string();
        format!("{}-{}", self.generation, &digest[..32])
    }
}

impl ListCache {
    /// Creates an empty cache. [`Shelf::sweep`] adds the files of earlier processes.
    pub fn new(limits: Limits) -> Self {
        let (files, budget) = (Mutex::default(), Budget::new(limits.bytes));
        Self(Arc::new(Shared { max_files: limits.files, budget, files }))
    }

    /// Returns the shelf of one repository, whose files are in `dir`. The directory is created with the first
    /// file.
    pub fn shelf(&self, dir: PathBuf) -> Shelf {
        Shelf { cache: self.clone(), dir }
    }

    /// Current disk usage in bytes: finished files, drafts, and removed files that are still mapped.
    pub fn taken(&self) -> u64 {
        self.0.budget.taken()
    }

    /// Bytes that a new list could take: what is free, and what evicting lists that no session uses would free.
    pub fn room(&self) -> u64 {
        let idle: u64 = self.lock().values().filter(|kept| !kept.is_in_use()).map(|kept| kept.space.bytes()).sum();
        (self.0.budget.limit() + idle).saturating_sub(self.taken())
    }

    /// Reserves more bytes for a file that is being written. Evicts lists that no session uses, the least
    /// recently used first. Returns false if there is too little room even then.
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

    /// Brings the number and the bytes of files down to the limits, as far as that is possible by evicting
    /// lists that no session uses.
    fn trim(&self) -> Result<(), StoreError> {
        let files = self.lock().len().saturating_sub(self.0.max_files);
        match self.0.budget.excess() {
            0 if files == 0 => Ok(()),
            excess => self.make_room(excess, files).map(drop),
        }
    }

    /// Evicts lists that no session uses, at least `bytes` bytes and `files` files. Returns false if there
    /// are none.
    fn make_room(&self, bytes: u64, files: usize) -> Result<bool, StoreError> {
        let doomed = self.take_oldest(bytes, files);
        let any = !doomed.is_empty();
        // Files are removed without the lock, so that a slow disk does not delay lookups.
        let mut doomed = doomed.into_iter();
        while let Some((path, kept)) = doomed.next() {
            if let Err(error) = remove(&path) {
                // The files that were not removed still count.
                self.lock().extend(doomed.chain([(path, kept)]));
                return Err(error);
            }
        }
        Ok(any)
    }

    /// Takes the least recently used of the lists that no session uses out of the map, at least `bytes` bytes
    /// and `files` files.
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
    /// Returns an encoded list, mapped. `None` if it is not cached. Fails if the file is damaged, and removes
    /// it then. The first call for a file reads all of it to check its checksum.
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
                // This list is in use, so others are evicted for it.
                self.cache.trim()?;
                Ok(Some(list))
            }
            Err(damage) => {
                remove(&path)?;
                self.cache.lock().remove(&path);
                let remedy = "it has been removed and will be built again".to_owned();
                Err(StoreError::Damaged { path, damage: Damage::Other(damage), remedy })
            }
        }
    }

    /// Returns a list that is already mapped, unless it was found to be damaged.
    fn mapped(&self, path: &Path) -> Option<Arc<CachedList>> {
        let mut files = self.cache.lock();
        let kept = files.get_mut(path)?;
        let list = Arc::clone(kept.list.as_ref().filter(|list| !list.is_damaged())?);
        kept.used = SystemTime::now();
        Some(list)
    }

    /// Writes a list, renames it to its final name and opens it. `writer` must be at the start of the list.
    /// Evicts other lists to make room. `None` if there is no room because sessions use the other lists.
    /// Needs one core and little memory while it runs. The caller need not run more than one build at a time.
    pub fn build(
        &self,
        key: &Key,
        list: ListRef<'_>,
        writer: ListWriter,
        hides: &impl Hides,
    ) -> Result<Option<Arc<CachedList>>, StoreError> {
        fs::create_dir_all(&self.dir).at("create", &self.dir)?;
        let path = self.dir.join(key.file_name());
        let reservation = Reservation::new(&self.cache);
        let Some((file, space)) = build::build(&self.dir, &path, key, list, writer, hides, reservation)? else {
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

    /// Removes the lists of generations that `is_kept` does not keep, and drafts that a crash has left
    /// behind. Sessions that have a removed list open can still read it. From now on, the remaining files
    /// count towards the limits.
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
                self.adopt(&path);
            }
            there.insert(path);
        }
        // Forget the files that someone else has removed.
        self.cache.lock().retain(|path, _| path.parent() != Some(&*self.dir) || there.contains(path));
        self.cache.trim()
    }

    /// Counts a file of an earlier process from now on.
    fn adopt(&self, path: &Path) {
        let is_known = self.cache.lock().contains_key(path);
        if let (false, Ok(facts)) = (is_known, fs::metadata(path)) {
            let space = Arc::new(Space::of_file(&self.cache.0.budget, facts.len()));
            self.keep(path.to_owned(), space, None, facts.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        }
    }

    fn keep(&self, path: PathBuf, space: Arc<Space>, list: Option<Arc<CachedList>>, used: SystemTime) {
        self.cache.lock().insert(path, Kept { used, space, list });
    }

    /// Returns the paths and names of all files in the directory.
    fn files(&self) -> Result<Vec<(PathBuf, String)>, StoreError> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        Ok(names(&self.dir)?.into_iter().map(|name| (self.dir.join(&name), name)).collect())
    }
}

/// The disk space reserved for a file that is being written.
pub(super) struct Reservation<'a> {
    cache: &'a ListCache,
    space: Space,
    /// Bytes that are reserved and not yet used.
    spare: u64,
}

impl<'a> Reservation<'a> {
    /// Space is reserved in multiples of this many bytes.
    const STEP: u64 = 64 << 10;

    fn new(cache: &'a ListCache) -> Self {
        Self { cache, space: Space::none(&cache.0.budget), spare: 0 }
    }

    /// Uses `bytes` of the reservation, and enlarges it where necessary. Returns false if there is no room.
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

    /// Reduces the reservation to the `len` bytes of the finished file.
    fn finish(mut self, len: u64) -> Space {
        self.space.shrink(len);
        self.space
    }
}

/// Parses the generation's number from a file name. `None` for a draft.
fn generation_of(name: &str) -> Option<u64> {
    name.split_once('-')?.0.parse().ok()
}

/// Returns the time of a file's last use. It is stored as the modification time, because reading through a
/// map updates no time.
fn used(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|facts| facts.modified()).ok()
}

/// Updates a file's time of last use. It is only a hint for the next process, so errors are ignored: the
/// directory may be read-only.
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
