//! A store's directory: finds the current generation, and locks the store for its one writer.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use stillmirror_protocol::head::{Head, check_repository_name};

use crate::delta::Delta;
use crate::draft::Draft;
use crate::error::{At, Damage, StoreError};
use crate::flock::Flock;
use crate::generation::Generation;
use crate::layout::{Layout, names, number_of, sync_dir};
use crate::marker::FORMATS;
use crate::packs;
use crate::part::{SIGNATURE, read_head, read_signature, remedy};

/// The first line of the file `repository`.
const FORMAT: &str = "stillmirror store 1";

/// The generations of one repository.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) layout: Layout,
    repository: String,
}

/// The heads of the current generation, read without opening its list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentHead {
    /// The generation's number in the store.
    pub number: u64,
    /// The generation's head.
    pub head: Head,
    /// The head as it is stored.
    pub head_bytes: Vec<u8>,
    /// The signature of the head, if it has one.
    pub signature: Option<Vec<u8>>,
    /// The origin's head, if the generation was pulled and is only a part of its origin's.
    pub origin: Option<Head>,
}

/// Identifies a generation, even if the store was deleted and created anew, so that its numbers began again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The generation's number in the store.
    pub number: u64,
    device: u64,
    inode: u64,
    /// When the directory was renamed to its number (its ctime). Nothing changes it after that.
    renamed: (i64, i64),
}

impl Mark {
    /// Returns when the generation was published in this store, in seconds since 1970.
    pub fn published(&self) -> i64 {
        self.renamed.0
    }
}

/// The exclusive right to write to a store, released on drop.
#[derive(Debug)]
pub struct StoreLock {
    _flock: Flock<File>,
    dir: PathBuf,
}

impl Store {
    /// Opens an existing store.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("repository");
        let text = match packs::read_small(&path, 4096) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing(dir.to_owned())),
            Err(error) => return Err(error).at("read", &path),
        };
        let damaged = |damage| StoreError::Damaged {
            path: path.clone(),
            damage: Damage::Other(damage),
            remedy: "delete the whole store and index (or pull) again".to_owned(),
        };
        let text = std::str::from_utf8(&text).map_err(|_| damaged("not a valid repository file"))?;
        let name = match text.split_once('\n') {
            Some((FORMAT, name)) => name.strip_suffix('\n').filter(|name| check_repository_name(name).is_ok()),
            Some((line, _)) if line.starts_with(FORMATS) => {
                return Err(damaged("the store has another format version"));
            }
            _ => None,
        };
        let repository = name.ok_or_else(|| damaged("not a valid repository file"))?.to_owned();
        Ok(Self { layout: Layout::of(dir), repository })
    }

    /// Opens the store in `dir`, or creates it for `repository`. Fails if the store belongs to another
    /// repository, or if the directory contains other files.
    pub fn create(dir: &Path, repository: &str) -> Result<Self, StoreError> {
        check_repository_name(repository)?;
        match Self::open(dir) {
            Ok(store) if store.repository == repository => Ok(store),
            Ok(store) => Err(StoreError::OtherRepository {
                dir: store.dir().to_owned(),
                found: store.repository,
                wanted: repository.to_owned(),
            }),
            Err(StoreError::Missing(_)) => Self::make(dir, repository),
            Err(error) => Err(error),
        }
    }

    fn make(dir: &Path, repository: &str) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).at("create the store", dir)?;
        let leftover =
            |name: &std::ffi::OsStr| ["generations", "sums", "repository.tmp"].iter().any(|own| name == *own);
        for entry in fs::read_dir(dir).at("read", dir)? {
            if !leftover(&entry.at("read", dir)?.file_name()) {
                return Err(StoreError::NotAStore(dir.to_owned()));
            }
        }
        for name in ["generations", "sums"] {
            let path = dir.join(name);
            fs::create_dir_all(&path).at("create", &path)?;
        }
        // This file makes the directory a store, so it comes last.
        let (path, draft) = (dir.join("repository"), dir.join("repository.tmp"));
        let mut file = File::create(&draft).at("create", &draft)?;
        file.write_all(format!("{FORMAT}\n{repository}\n").as_bytes()).at("write", &draft)?;
        file.sync_all().at("sync", &draft)?;
        fs::rename(&draft, &path).at("rename", &draft)?;
        sync_dir(dir)?;
        Ok(Self { layout: Layout::of(dir), repository: repository.to_owned() })
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        self.layout.dir()
    }

    /// Opens the store's directory.
    pub fn open_dir(&self) -> Result<File, StoreError> {
        File::open(self.dir()).at("open", self.dir())
    }

    /// The repository's name.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the number of the current generation. `None` if there is none. Reads one symlink, so it is
    /// cheap enough to poll.
    pub fn current_number(&self) -> Result<Option<u64>, StoreError> {
        let path = self.layout.current();
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(self.bad_current("not a symlink"));
            }
            Err(error) => return Err(error).at("read", &path),
        };
        let number = target.to_str().and_then(|target| number_of(target.strip_prefix("generations/")?));
        number.map(Some).ok_or_else(|| self.bad_current("not a symlink to a generation"))
    }

    /// Returns the current generation's mark. `None` if there is no generation. Reads one symlink and stats one
    /// directory, so it is cheap enough to poll.
    pub fn current_mark(&self) -> Result<Option<Mark>, StoreError> {
        self.with_current(|number| {
            let dir = self.layout.generation_dir(number);
            let found = fs::metadata(&dir).at("read", &dir)?;
            let renamed = (found.ctime(), found.ctime_nsec());
            Ok(Mark { number, device: found.dev(), inode: found.ino(), renamed })
        })
    }

    /// Reads the heads of the current generation without opening its list. `None` if there is no generation.
    pub fn current_head(&self) -> Result<Option<CurrentHead>, StoreError> {
        self.with_current(|number| {
            let dir = self.layout.generation_dir(number);
            let (head, head_bytes) = read_head(&dir.join("head"))?;
            let signature = read_signature(&dir.join(SIGNATURE))?;
            let origin = match read_head(&dir.join("origin-head")) {
                Ok((origin, _)) => Some(origin),
                Err(error) if is_not_found(&error) => None,
                Err(error) => return Err(error),
            };
            Ok(CurrentHead { number, head, head_bytes, signature, origin })
        })
    }

    /// Opens and checks the current generation. `None` if there is none.
    pub fn current(&self) -> Result<Option<Generation>, StoreError> {
        self.with_current(|number| self.open_generation(number))
    }

    /// Opens and checks the generation with this number. Fails if the store no longer has it.
    pub fn generation(&self, number: u64) -> Result<Generation, StoreError> {
        if !self.generations()?.contains(&number) {
            return Err(StoreError::NoGeneration { dir: self.dir().to_owned(), number });
        }
        self.open_generation(number)
    }

    /// Opens the delta of the generation with this number. `None` if it has no delta. Reads the generation's
    /// head, but not its list.
    pub fn delta(&self, number: u64) -> Result<Option<Delta>, StoreError> {
        let dir = self.layout.generation_dir(number);
        let (head, _) = read_head(&dir.join("head"))?;
        self.check_name(&head)?;
        Delta::open(&dir, &head)
    }

    /// Returns the numbers of all published generations that the store still has, in ascending order.
    pub fn generations(&self) -> Result<Vec<u64>, StoreError> {
        let current = self.current_number()?.unwrap_or(0);
        let mut numbers = self.layout.generations()?;
        numbers.retain(|&number| number <= current);
        Ok(numbers)
    }

    /// Locks the store for writing. Does not wait: fails with [`StoreError::Locked`] if another process has
    /// the lock.
    pub fn lock(&self) -> Result<StoreLock, StoreError> {
        let path = self.dir().join("lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.at("write to the store", self.dir())?;
        let Some(flock) = Flock::take(file).at("lock", &path)? else {
            let text = packs::read_small(&path, 16).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let holder = text.and_then(|text| text.trim().parse().ok());
            return Err(StoreError::Locked { dir: self.dir().to_owned(), holder });
        };
        // Only used in the error above.
        let mut file = flock.file();
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).at("write", &path)?;
        Ok(StoreLock { _flock: flock, dir: self.dir().to_owned() })
    }

    /// Begins a new generation. Removes what a killed run has left behind.
    pub fn begin(&self, lock: &StoreLock) -> Result<Draft, StoreError> {
        debug_assert_eq!(lock.dir, self.dir(), "a lock of another store");
        let current = self.current_number()?;
        let numbers = self.layout.generations()?;
        let next = numbers.last().copied().max(current).unwrap_or(0) + 1;
        self.clear_leftovers(&numbers, current.unwrap_or(0))?;
        Draft::make(&self.layout, next)
    }

    /// Removes temporary files, and generations and packs with a number above the current one. Nothing refers
    /// to them.
    fn clear_leftovers(&self, numbers: &[u64], current: u64) -> Result<(), StoreError> {
        for &number in numbers.iter().filter(|&&number| number > current) {
            self.remove_generation(number)?;
        }
        for name in names(&self.layout.generations_dir())?.iter().filter(|name| name.starts_with('.')) {
            let path = self.layout.generations_dir().join(name);
            fs::remove_dir_all(&path).at("remove", &path)?;
        }
        for name in names(&self.layout.sums_dir())? {
            if packs::number_of(&name).is_some_and(|pack| u64::from(pack) > current) {
                let path = self.layout.sums_dir().join(name);
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
        Ok(())
    }

    /// Removes a generation that a newer one with the same list replaces, so that it does not count among those that
    /// are kept for receivers that are behind. Processes that have it open can still read it.
    pub fn remove_replaced(&self, lock: &StoreLock, number: u64) -> Result<(), StoreError> {
        debug_assert_eq!(lock.dir, self.dir(), "a lock of another store");
        if self.current_number()? == Some(number) || !self.generations()?.contains(&number) {
            return Ok(());
        }
        self.remove_generation(number)?;
        sync_dir(&self.layout.generations_dir())
    }

    /// Removes one generation. Renames it first, so that a half-removed generation has no number.
    pub(crate) fn remove_generation(&self, number: u64) -> Result<(), StoreError> {
        let (dir, doomed) =
            (self.layout.generation_dir(number), self.layout.generations_dir().join(format!(".old-{number}")));
        fs::rename(&dir, &doomed).at("rename", &dir)?;
        crate::kill_point("after-retention-rename");
        fs::remove_dir_all(&doomed).at("remove", &doomed)
    }

    fn open_generation(&self, number: u64) -> Result<Generation, StoreError> {
        let generation = Generation::open(self.layout.generation_dir(number), &self.layout.sums_dir(), number)?;
        self.check_name(generation.head())?;
        Ok(generation)
    }

    /// Fails if a head belongs to another repository.
    fn check_name(&self, head: &Head) -> Result<(), StoreError> {
        if head.repository != self.repository {
            return Err(StoreError::OtherRepository {
                dir: self.dir().to_owned(),
                found: head.repository.clone(),
                wanted: self.repository.clone(),
            });
        }
        Ok(())
    }

    /// Runs `read` with the number of the current generation, and again if that generation was replaced and
    /// removed meanwhile.
    fn with_current<T>(&self, read: impl Fn(u64) -> Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        let Some(mut number) = self.current_number()? else { return Ok(None) };
        loop {
            let error = match read(number) {
                Ok(value) => return Ok(Some(value)),
                Err(error) => error,
            };
            match self.current_number()? {
                Some(now) if now != number && is_not_found(&error) => number = now,
                _ if is_not_found(&error) => return Err(missing_part(error)),
                _ => return Err(error),
            }
        }
    }

    fn bad_current(&self, damage: &'static str) -> StoreError {
        let path = self.layout.current();
        let remedy = format!("delete {} and index (or pull) again", path.display());
        StoreError::Damaged { path, damage: Damage::Other(damage), remedy }
    }
}

/// Turns "not found" for a file of the current generation into damage.
fn missing_part(error: StoreError) -> StoreError {
    let StoreError::Io { path, .. } = error else { return error };
    StoreError::Damaged { remedy: remedy(&path), path, damage: Damage::Other("the file is missing") }
}

fn is_not_found(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}
