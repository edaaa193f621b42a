//! Writes a new generation, syncs it and makes it current.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::local::RecordAt;

use crate::error::{At, StoreError};
use crate::generation::{Generation, LIST_ZSTD_LEVEL, pack_uses};
use crate::kill_point;
use crate::layout::{Layout, names, sync_dir};
use crate::packs::{self, PackWriter, Record};
use crate::part::{DROPPED, ORIGIN_SIGNATURE, POOL, SIGNATURE, read_head};

/// Files of this many bytes or more are synced as soon as they are written. Smaller ones are synced together
/// at the end.
const SYNCED_AT_ONCE: usize = 1 << 20;

/// A generation that is being written to a temporary directory. Dropping it without [`Draft::publish`]
/// removes it.
#[derive(Debug)]
pub struct Draft {
    layout: Layout,
    number: u64,
    pack_number: u32,
    dir: PathBuf,
    pack: Mutex<Option<PackWriter>>,
    published: bool,
}

impl Draft {
    pub(crate) fn make(layout: &Layout, number: u64) -> Result<Self, StoreError> {
        let too_many = |_| StoreError::TooMany { dir: layout.dir().to_owned(), number };
        let pack_number = u32::try_from(number).map_err(too_many)?;
        let dir = layout.generations_dir().join(format!(".tmp-{number}"));
        fs::create_dir(&dir).at("create", &dir)?;
        kill_point("draft-made");
        let pack = Mutex::new(None);
        Ok(Self { layout: layout.clone(), number, pack_number, dir, pack, published: false })
    }

    /// The number that the generation will have.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Appends the record of the file with digest `file` to this generation's pack, and returns its location.
    /// Writes are buffered. Any thread may call this. An empty record is not written.
    pub fn append(&self, file: Digest, record: Record<'_>) -> Result<RecordAt, StoreError> {
        if record == Record::default() {
            return Ok(RecordAt::default());
        }
        let mut pack = self.pack.lock().unwrap_or_else(PoisonError::into_inner);
        if pack.is_none() {
            *pack = Some(PackWriter::create(&self.layout.sums_dir(), self.pack_number)?);
        }
        match pack.as_mut() {
            Some(pack) => pack.append(file, record),
            None => Ok(RecordAt::default()),
        }
    }

    /// Writes the encoded list, and a compressed copy beside it.
    pub fn write_list(&self, encoded: &[u8]) -> Result<(), StoreError> {
        std::thread::scope(|scope| {
            let compressor = scope.spawn(|| {
                let path = self.dir.join("list.zst");
                let compressed = zstd::bulk::compress(encoded, LIST_ZSTD_LEVEL).at("compress", &path)?;
                self.write("list.zst", &compressed)
            });
            self.write("list", encoded)?;
            kill_point("list-written");
            compressor.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Hard-links the list of another generation of this store, for a generation with the same list. The
    /// compressed list is linked only if it is right, and written again otherwise.
    pub fn link_list(&self, from: &Generation) -> Result<(), StoreError> {
        self.link("list", from)?;
        if from.list_zst_is_right() {
            return self.link("list.zst", from);
        }
        let compressed = from.compress_list().at("compress", &from.dir().join("list"))?;
        self.write("list.zst", &compressed)
    }

    /// Writes the encoded local facts.
    pub fn write_local(&self, encoded: &[u8]) -> Result<(), StoreError> {
        self.write("local", encoded)
    }

    /// Writes the encoded delta from the previous generation's list to this one's.
    pub fn write_delta(&self, encoded: &[u8]) -> Result<(), StoreError> {
        self.write("delta", encoded)
    }

    /// Writes the head. A pulled generation that has all of the origin's list passes the origin's head
    /// unchanged.
    pub fn write_head(&self, head_bytes: &[u8]) -> Result<(), StoreError> {
        self.write("head", head_bytes)
    }

    /// Writes the signature of the head.
    pub fn write_signature(&self, signature: &[u8]) -> Result<(), StoreError> {
        self.write(SIGNATURE, signature)
    }

    /// Hard-links everything except the head and its signature from a generation of this store: for a generation
    /// that says the same with another head.
    pub fn link_all(&self, from: &Generation) -> Result<(), StoreError> {
        self.link_list(from)?;
        self.link("local", from)?;
        for name in [POOL, DROPPED] {
            if from.dir().join(name).exists() {
                self.link(name, from)?;
            }
        }
        if from.delta().is_some() { self.link("delta", from) } else { Ok(()) }
    }

    /// Writes the origin's head for a partial generation, with its signature if it has one, and the origin's list
    /// unless it is this generation's list.
    pub fn write_origin(
        &self,
        head_bytes: &[u8],
        signature: Option<&[u8]>,
        list: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        self.write("origin-head", head_bytes)?;
        signature.map_or(Ok(()), |signature| self.write(ORIGIN_SIGNATURE, signature))?;
        list.map_or(Ok(()), |list| self.write("origin-list", list))
    }

    /// Makes the generation durable and then current, and returns its number. The head, the list and the
    /// local facts must have been written before.
    pub fn publish(mut self) -> Result<u64, StoreError> {
        self.write_pack_uses()?;
        self.sync_pack()?;
        self.sync_files()?;
        let generations = self.layout.generations_dir();
        let name = self.layout.generation_dir(self.number);
        fs::rename(&self.dir, &name).at("rename", &self.dir)?;
        self.published = true;
        kill_point("after-generation-rename");
        sync_dir(&generations)?;
        kill_point("after-generations-sync");
        self.replace_current()?;
        Ok(self.number)
    }

    fn replace_current(&self) -> Result<(), StoreError> {
        let (current, next) = (self.layout.current(), self.layout.dir().join("current.tmp"));
        match fs::remove_file(&next) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).at("remove", &next),
            _ => {}
        }
        symlink(format!("generations/{}", self.number), &next).at("create", &next)?;
        kill_point("before-current-rename");
        fs::rename(&next, &current).at("rename", &next)?;
        kill_point("after-current-rename");
        sync_dir(self.layout.dir())?;
        kill_point("after-current-sync");
        Ok(())
    }

    fn write_pack_uses(&self) -> Result<(), StoreError> {
        let (head, _) = read_head(&self.dir.join("head"))?;
        let uses = pack_uses(&self.dir.join("local"), &head)?;
        self.write("packs", &packs::encode_uses(&uses))
    }

    fn sync_pack(&mut self) -> Result<(), StoreError> {
        let pack = self.pack.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(pack) = pack else { return Ok(()) };
        kill_point("before-pack-sync");
        pack.sync()?;
        sync_dir(&self.layout.sums_dir())?;
        kill_point("after-pack-sync");
        Ok(())
    }

    /// Syncs all files concurrently, so that the disk can order their writes, and then their directory.
    fn sync_files(&self) -> Result<(), StoreError> {
        kill_point("before-generation-sync");
        let sync = |name: &String| {
            let path = self.dir.join(name);
            File::open(&path).and_then(|file| file.sync_all()).at("sync", &path)
        };
        std::thread::scope(|scope| {
            let syncs: Vec<_> = names(&self.dir)?.into_iter().map(|name| scope.spawn(move || sync(&name))).collect();
            let results = syncs.into_iter().map(|sync| sync.join().unwrap_or_else(|panic| resume_unwind(panic)));
            results.collect::<Result<(), StoreError>>()
        })?;
        sync_dir(&self.dir)?;
        kill_point("after-generation-sync");
        Ok(())
    }

    /// Returns the path of a file of the draft.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        let mut file = File::create(&path).at("create", &path)?;
        file.write_all(bytes).at("write", &path)?;
        // The disk can begin now, because the caller goes on computing.
        if bytes.len() >= SYNCED_AT_ONCE { file.sync_all().at("sync", &path) } else { Ok(()) }
    }

    fn link(&self, name: &str, from: &Generation) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        fs::hard_link(from.dir().join(name), &path).at("link", &path)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        // The next draft removes what cannot be removed now.
        let _ = fs::remove_dir_all(&self.dir);
        if let Some(pack) = self.pack.get_mut().unwrap_or_else(PoisonError::into_inner) {
            let _ = fs::remove_file(pack.path());
        }
    }
}
