//! File lists for stock clients, encoded once and mapped.
//!
//! One file for every (list, class, selection, rules) that clients ask for, in `<store>/lists/`. Nothing
//! depends on them: a file that is missing, damaged or of another version is built again, so they are not
//! synced. The byte table is in `docs/index-format.md`.

mod build;
mod file;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::list::ListRef;
use stillmirror_protocol::rsync::flist::{Class, ListWriter};
use stillmirror_protocol::rsync::selection::Hides;

use crate::error::{At, Damage, StoreError};
use crate::store::{Store, names};

pub use file::{CachedList, Mark};

/// How often a file's time of last use is written down.
const USE_INTERVAL: Duration = Duration::from_secs(60);
/// A draft older than this belongs to nobody.
const DRAFT_AGE: Duration = Duration::from_secs(3600);

/// The encoded lists of one store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ListCache {
    dir: PathBuf,
    bounds: Bounds,
}

/// How much the encoded lists of one store may take. The ones used least recently go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Files.
    pub files: usize,
    /// Bytes.
    pub bytes: u64,
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

impl Store {
    /// The encoded lists of this store, kept within it.
    pub fn list_cache(&self, bounds: Bounds) -> ListCache {
        ListCache::new(self.dir().join("lists"), bounds)
    }
}

impl ListCache {
    /// The encoded lists of one store that are kept in `dir`, which is made when there is something to keep.
    pub fn new(dir: PathBuf, bounds: Bounds) -> Self {
        Self { dir, bounds }
    }

    /// An encoded list, mapped; none when it is not there. A damaged file is removed and reported. Costs
    /// one pass over the file, for its checksum.
    pub fn open(&self, key: &Key) -> Result<Option<Arc<CachedList>>, StoreError> {
        let path = self.dir.join(key.file_name());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).at("open", &path),
        };
        match CachedList::open(&file, &key.digest).at("read", &path)? {
            Ok(list) => {
                note_use(&file);
                Ok(Some(Arc::new(list)))
            }
            Err(damage) => {
                fs::remove_file(&path).at("remove", &path)?;
                let remedy = "it is removed and will be built again".to_owned();
                Err(StoreError::Damaged { path, damage: Damage::Other(damage), remedy })
            }
        }
    }

    /// Writes the list that `writer` is at the start of, publishes it and opens it; older files make way.
    /// Takes one core for as long as the list takes, and little memory. One at a time is enough.
    pub fn build(
        &self,
        key: &Key,
        list: ListRef<'_>,
        writer: ListWriter,
        hides: &impl Hides,
    ) -> Result<Arc<CachedList>, StoreError> {
        fs::create_dir_all(&self.dir).at("create", &self.dir)?;
        let path = self.dir.join(key.file_name());
        let file = build::build(&self.dir, &path, key, list, writer, hides)?;
        let built = CachedList::open(&file, &key.digest).at("read", &path)?;
        self.make_room(&key.file_name())?;
        built.map(Arc::new).map_err(|damage| StoreError::Damaged {
            path,
            damage: Damage::Other(damage),
            remedy: "check the disk".to_owned(),
        })
    }

    /// Removes the lists of generations that are gone, and drafts that a crash left. Sessions that have
    /// one open go on reading it.
    pub fn sweep(&self, is_kept: impl Fn(u64) -> bool) -> Result<(), StoreError> {
        for (path, name) in self.files()? {
            let is_gone = match generation_of(&name) {
                Some(generation) => !is_kept(generation),
                None => used(&path).is_some_and(|used| is_older(used, DRAFT_AGE)),
            };
            if is_gone {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes what was used least recently until the rest, with the file `newest`, is within bounds.
    fn make_room(&self, newest: &str) -> Result<(), StoreError> {
        let mut files: Vec<_> = self
            .files()?
            .into_iter()
            .filter(|(_, name)| generation_of(name).is_some())
            .filter_map(|(path, name)| Some((name == newest, used(&path)?, fs::metadata(&path).ok()?.len(), path)))
            .collect();
        files.sort_unstable();
        let (mut count, mut bytes) = (files.len(), files.iter().map(|(_, _, len, _)| len).sum::<u64>());
        for (_, _, len, path) in files {
            if count <= self.bounds.files && bytes <= self.bounds.bytes {
                break;
            }
            remove(&path)?;
            count -= 1;
            bytes -= len;
        }
        Ok(())
    }

    /// Paths and names.
    fn files(&self) -> Result<Vec<(PathBuf, String)>, StoreError> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        Ok(names(&self.dir)?.into_iter().map(|name| (self.dir.join(&name), name)).collect())
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

/// Only a hint for [`ListCache::make_room`]: a store that cannot be written is served all the same.
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
