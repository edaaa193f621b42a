//! A buffer that is filled with small files, one behind the other.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::ops::Range;
use std::sync::Arc;

use super::{Extent, Key};
use crate::pool::Buffer;

/// Files on one shelf: what is known of each takes memory too, some 160 bytes.
const FILES: usize = 1024;
/// Bytes of the cache for each file that is remembered as read.
const REMEMBERED: usize = 4096;
/// Files that are remembered at the most: 16 MiB of memory, whatever the cache.
const MOST_REMEMBERED: usize = 4 << 20;

/// The shelf in hand, and which files were read lately.
pub(super) struct Shelf {
    /// None as long as there is nothing to put anywhere.
    buffer: Option<Buffer>,
    used: usize,
    files: HashMap<Key, Range<usize>>,
    /// Half of a file's hash at the place that the other half gives: the last one there is remembered. A file
    /// that is taken for another one costs a copy, no more.
    read: Box<[u32]>,
}

impl Shelf {
    /// For a cache of so many bytes.
    pub(super) fn new(cache: usize) -> Self {
        let read = vec![0; (cache / REMEMBERED).clamp(1, MOST_REMEMBERED)].into();
        Self { buffer: None, used: 0, files: HashMap::new(), read }
    }

    /// Whether a file was read before; from now on it was.
    pub(super) fn was_read(&mut self, key: Key) -> bool {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        let place = (hash >> 32) as usize % self.read.len();
        std::mem::replace(&mut self.read[place], hash as u32) == hash as u32
    }

    /// Whether a file of that many bytes fits.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.files.len() < FILES && self.buffer.as_ref().is_some_and(|buffer| buffer.len() - self.used >= len)
    }

    /// Whether a file lies there.
    pub(super) fn has(&self, key: Key) -> bool {
        self.files.contains_key(&key)
    }

    /// Puts a file there, for which there must be room.
    pub(super) fn put(&mut self, key: Key, bytes: &[u8]) {
        let Some(buffer) = &mut self.buffer else { return };
        let range = self.used..self.used + bytes.len();
        buffer[range.clone()].copy_from_slice(bytes);
        self.used = range.end;
        self.files.insert(key, range);
    }

    /// Goes on with an empty buffer, and gives what was put there so far.
    pub(super) fn replace(&mut self, buffer: Buffer) -> impl Iterator<Item = (Key, Extent)> + use<> {
        let full = self.buffer.replace(buffer).map(Arc::new);
        self.used = 0;
        let extent = move |(key, range)| full.clone().map(|buffer| (key, Extent { buffer, range }));
        std::mem::take(&mut self.files).into_iter().filter_map(extent)
    }
}
