//! The open shelf: a buffer that is filled with small files, one behind the other.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::ops::Range;
use std::sync::Arc;

use super::{Extent, Key};
use crate::pool::Buffer;
use crate::source::Source;

/// Maximum number of files on one shelf. The bookkeeping takes memory too, some 160 bytes for each file.
const FILES: usize = 1024;
/// One file is remembered as read for this many bytes of the cache.
const REMEMBERED: usize = 4096;
/// Maximum number of files that are remembered as read: 16 MiB of memory, however large the cache.
const MAX_REMEMBERED: usize = 4 << 20;

/// The open shelf, and which files were read lately.
pub(super) struct Shelf {
    /// `None` until the first file is put on the shelf.
    buffer: Option<Buffer>,
    used: usize,
    files: HashMap<Key, Range<usize>>,
    /// Remembers the files that were read. One half of a file's hash is stored at the index that the other
    /// half determines, and replaces what was there. If a file is taken for another one, that costs one
    /// needless copy.
    read: Box<[u32]>,
}

impl Shelf {
    /// Creates a shelf for a cache of `cache` bytes.
    pub(super) fn new(cache: usize) -> Self {
        let read = vec![0; (cache / REMEMBERED).clamp(1, MAX_REMEMBERED)].into();
        Self { buffer: None, used: 0, files: HashMap::new(), read }
    }

    /// Returns whether a file was read before, and remembers that it was read now.
    pub(super) fn mark_read(&mut self, key: Key) -> bool {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        let place = (hash >> 32) as usize % self.read.len();
        std::mem::replace(&mut self.read[place], hash as u32) == hash as u32
    }

    /// Returns whether a file of `len` bytes fits.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.files.len() < FILES && self.buffer.as_ref().is_some_and(|buffer| buffer.len() - self.used >= len)
    }

    /// Returns whether a file is on the shelf.
    pub(super) fn has(&self, key: Key) -> bool {
        self.files.contains_key(&key)
    }

    /// Copies a file to the shelf. The caller must check that there is room.
    pub(super) fn put(&mut self, key: Key, bytes: &[u8]) {
        let Some(buffer) = &mut self.buffer else { return };
        let range = self.used..self.used + bytes.len();
        buffer[range.clone()].copy_from_slice(bytes);
        self.used = range.end;
        self.files.insert(key, range);
    }

    /// Continues with an empty buffer, and returns the files that were on the shelf.
    pub(super) fn replace(&mut self, buffer: Buffer) -> impl Iterator<Item = (Key, Extent)> + use<> {
        let full = self.buffer.replace(buffer).map(Arc::new);
        self.used = 0;
        let extent =
            move |(key, range)| full.clone().map(|buffer| (key, Extent { buffer, range, source: Source::Cache }));
        std::mem::take(&mut self.files).into_iter().filter_map(extent)
    }
}
