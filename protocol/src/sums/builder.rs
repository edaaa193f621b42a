//! Builds a record from the bytes of a file while they are read.

use twox_hash::XxHash3_64;

use super::{FIXED_HEADER, LEVEL_HEADER, Level, MAGIC, Scheme, VERSION, power, weak};

/// Builds a record while a file is read.
///
/// Computes one XXH3 and one weak checksum over the data, whatever the number of levels. Call [`SumsBuilder::update`]
/// with the file's bytes in order, then [`SumsBuilder::finish`].
#[derive(Debug)]
pub struct SumsBuilder {
    scheme: Scheme,
    /// The unfinished block of the finest level.
    partial: Vec<u8>,
    /// One builder per level, coarse to fine.
    levels: Vec<LevelBuilder>,
    size: u64,
}

#[derive(Debug)]
struct LevelBuilder {
    level: Level,
    /// `M` to the power of the block size.
    power: u32,
    items: Vec<u8>,
    // The unfinished block:
    /// Its length so far in bytes.
    len: u64,
    /// Its weak checksum so far.
    weak: u32,
    /// The strong checksums of its blocks one level below.
    below: Vec<u8>,
}

impl SumsBuilder {
    /// Creates a builder. `size` is the expected file size in bytes and only a hint for allocation. The record describes
    /// the bytes that are passed to [`SumsBuilder::update`].
    pub fn new(scheme: Scheme, size: u64) -> SumsBuilder {
        let levels = scheme.levels.iter().map(|&level| {
            // A wrong size must not cost memory, so the initial capacity is limited; the vector grows as needed.
            let expected = (level.blocks(size) as usize).saturating_mul(level.item_len()).min(1 << 20);
            let items = Vec::with_capacity(expected);
            LevelBuilder { level, power: power(u64::from(level.block_size)), items, len: 0, weak: 0, below: Vec::new() }
        });
        SumsBuilder { levels: levels.collect(), scheme, partial: Vec::new(), size: 0 }
    }

    /// Adds the next bytes of the file.
    pub fn update(&mut self, mut data: &[u8]) {
        self.size += data.len() as u64;
        let Some(finest) = self.levels.last() else { return };
        let block_size = finest.level.block_size as usize;
        if !self.partial.is_empty() {
            let (head, rest) = data.split_at(data.len().min(block_size - self.partial.len()));
            self.partial.extend_from_slice(head);
            data = rest;
            if self.partial.len() < block_size {
                return;
            }
            let block = std::mem::take(&mut self.partial);
            self.block(&block);
            self.partial = block;
            self.partial.clear();
        }
        let mut blocks = data.chunks_exact(block_size);
        for block in &mut blocks {
            self.block(block);
        }
        self.partial.extend_from_slice(blocks.remainder());
    }

    /// Returns the finished record.
    pub fn finish(mut self) -> Vec<u8> {
        if !self.partial.is_empty() {
            let block = std::mem::take(&mut self.partial);
            self.block(&block);
        }
        for index in (0..self.levels.len().saturating_sub(1)).rev() {
            if self.levels[index].len > 0 {
                self.close(index);
            }
        }
        let mut record =
            Vec::with_capacity(FIXED_HEADER + self.levels.iter().map(|l| LEVEL_HEADER + l.items.len()).sum::<usize>());
        record.extend_from_slice(&MAGIC);
        record.push(VERSION);
        record.push(self.levels.len() as u8);
        record.extend_from_slice(&self.size.to_le_bytes());
        for level in self.scheme.levels() {
            record.extend_from_slice(&level.block_size.to_le_bytes());
            record.push(level.strong_len);
        }
        for level in &self.levels {
            record.extend_from_slice(&level.items);
        }
        record
    }

    fn block(&mut self, block: &[u8]) {
        let finest = self.levels.len() - 1;
        let (weak, strong) = (weak(block), XxHash3_64::oneshot(block));
        self.levels[finest].push_item(weak, strong);
        self.add_below(finest, block.len() as u64, weak, strong);
    }

    /// Adds a finished block of level `index` to the block above it.
    fn add_below(&mut self, index: usize, len: u64, weak: u32, strong: u64) {
        let Some(above) = index.checked_sub(1) else { return };
        let factor =
            if len == u64::from(self.levels[index].level.block_size) { self.levels[index].power } else { power(len) };
        let level = &mut self.levels[above];
        level.len += len;
        level.weak = level.weak.wrapping_mul(factor).wrapping_add(weak);
        level.below.extend_from_slice(&strong.to_le_bytes());
        if level.len == u64::from(level.level.block_size) {
            self.close(above);
        }
    }

    fn close(&mut self, index: usize) {
        let level = &mut self.levels[index];
        let (len, weak, strong) = (level.len, level.weak, XxHash3_64::oneshot(&level.below));
        level.push_item(weak, strong);
        (level.len, level.weak) = (0, 0);
        level.below.clear();
        self.add_below(index, len, weak, strong);
    }
}

impl LevelBuilder {
    fn push_item(&mut self, weak: u32, strong: u64) {
        self.items.extend_from_slice(&weak.to_le_bytes());
        self.items.extend_from_slice(&strong.to_le_bytes()[..usize::from(self.level.strong_len)]);
    }
}
