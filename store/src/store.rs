//! A store's directory: which generation is current, who may write.

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
use crate::packs;
use crate::part::{read_head, remedy};

/// First line of the file `repository`.
const FORMAT: &str = "stillmirror store 1";

/// The generations of one repository.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) layout: Layout,
    repository: String,
}

/// What is current, from the small files alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentHead {
    /// The store's number of the generation.
    pub number: u64,
    /// Its head.
    pub head: Head,
    /// The origin's head, for a pulled generation that is not all of its origin's.
    pub origin: Option<Head>,
}

/// Tells the current generation from any other, of a store that was made anew too, whose numbers begin again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The store's number of the generation.
    pub number: u64,
    device: u64,
    inode: u64,
    /// When its directory got its name: nothing changes it after that.
    named: (i64, i64),
}

/// The right to write a store, given up on drop.
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
        let text = std::str::from_utf8(&text).map_err(|_| damaged("not a store's first file"))?;
        let name = match text.split_once('\n') {
            Some((FORMAT, name)) => name.strip_suffix('\n').filter(|name| check_repository_name(name).is_ok()),
            Some((line, _)) if line.starts_with("stillmirror store ") => {
                return Err(damaged("a store of another format version"));
            }
            _ => None,
        };
        let repository = name.ok_or_else(|| damaged("not a store's first file"))?.to_owned();
        Ok(Self { layout: Layout::of(dir), repository })
    }

    /// Makes a store for `repository`, or opens the one that is there.
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
        fs::create_dir_all(dir).at("create", dir)?;
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
        // The file that makes it a store comes last.
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

    /// The store's directory, open.
    pub fn open_dir(&self) -> Result<File, StoreError> {
        File::open(self.dir()).at("open", self.dir())
    }

    /// The repository's name.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The number of the current generation. Reads one symlink: cheap enough to poll.
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

    /// The current generation's mark. Reads one symlink and looks at one directory: cheap enough to poll.
    pub fn current_mark(&self) -> Result<Option<Mark>, StoreError> {
        self.with_current(|number| {
            let dir = self.layout.generation_dir(number);
            let found = fs::metadata(&dir).at("read", &dir)?;
            let named = (found.ctime(), found.ctime_nsec());
            Ok(Mark { number, device: found.dev(), inode: found.ino(), named })
        })
    }

    /// What is current, from the small files alone.
    pub fn current_head(&self) -> Result<Option<CurrentHead>, StoreError> {
        self.with_current(|number| {
            let dir = self.layout.generation_dir(number);
            let (head, _) = read_head(&dir.join("head"))?;
            let origin = match read_head(&dir.join("origin-head")) {
                Ok((origin, _)) => Some(origin),
                Err(error) if is_not_found(&error) => None,
                Err(error) => return Err(error),
            };
            Ok(CurrentHead { number, head, origin })
        })
    }

    /// The current generation, opened and checked.
    pub fn current(&self) -> Result<Option<Generation>, StoreError> {
        self.with_current(|number| self.open_generation(number))
    }

    /// A generation that is kept.
    pub fn generation(&self, number: u64) -> Result<Generation, StoreError> {
        if !self.generations()?.contains(&number) {
            return Err(StoreError::NoGeneration { dir: self.dir().to_owned(), number });
        }
        self.open_generation(number)
    }

    /// The delta of a generation that is kept; none in a first one. Reads its head, and nothing of its list.
    pub fn delta(&self, number: u64) -> Result<Option<Delta>, StoreError> {
        let dir = self.layout.generation_dir(number);
        let (head, _) = read_head(&dir.join("head"))?;
        self.check_name(&head)?;
        Delta::open(&dir, &head)
    }

    /// The numbers of all generations that were published and are kept, ascending.
    pub fn generations(&self) -> Result<Vec<u64>, StoreError> {
        let current = self.current_number()?.unwrap_or(0);
        let mut numbers = self.layout.generations()?;
        numbers.retain(|&number| number <= current);
        Ok(numbers)
    }

    /// Takes the right to write. Does not wait.
    pub fn lock(&self) -> Result<StoreLock, StoreError> {
        let path = self.dir().join("lock");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).at("open", &path)?;
        let Some(flock) = Flock::take(file).at("lock", &path)? else {
            let text = packs::read_small(&path, 16).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let holder = text.and_then(|text| text.trim().parse().ok());
            return Err(StoreError::Locked { dir: self.dir().to_owned(), holder });
        };
        // For the message above, and nothing else.
        let mut file = flock.file();
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).at("write", &path)?;
        Ok(StoreLock { _flock: flock, dir: self.dir().to_owned() })
    }

    /// Begins a new generation. Clears away what a killed run left.
    pub fn begin(&self, lock: &StoreLock) -> Result<Draft, StoreError> {
        debug_assert_eq!(lock.dir, self.dir(), "a lock of another store");
        let current = self.current_number()?;
        let numbers = self.layout.generations()?;
        let next = numbers.last().copied().max(current).unwrap_or(0) + 1;
        self.clear_leftovers(&numbers, current.unwrap_or(0))?;
        Draft::make(&self.layout, next)
    }

    /// Removes generations and packs beyond the current one, and temporary names: nobody refers to them.
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

    /// Removes one generation: renamed first, so that a half removed one has no number.
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

    /// Refuses what belongs to another repository.
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

    /// Runs `read` on the current generation; again when that was replaced and collected meanwhile.
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

/// A file of the current generation that is not there is damage, not a plain "not found".
fn missing_part(error: StoreError) -> StoreError {
    let StoreError::Io { path, .. } = error else { return error };
    StoreError::Damaged { remedy: remedy(&path), path, damage: Damage::Other("the file is missing") }
}

fn is_not_found(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}
