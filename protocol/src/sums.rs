//! Block checksums at several levels. A sender computes them once, and a receiver fetches ranges of them.
//!
//! A file is cut into blocks of equal length at several *levels*, from coarse to fine. The block size of a level is a
//! multiple of the next level's. Each block has an *item*: a weak rolling checksum (4 bytes) and a truncated strong
//! checksum. A receiver fetches the coarse items first, and finer ones only below blocks that it did not find.
//!
//! Both checksums compose. A sender therefore reads a file once, and computes checksums of its data only at the finest
//! level:
//!
//! - weak: `H(b) = Σ b[i] · M^(n-1-i) mod 2^32`. It rolls, and `H(ab) = H(a) · M^|b| + H(b)`.
//! - strong: at the finest level XXH3-64 of the block; above it XXH3-64 of the full strong checksums of the blocks one
//!   level below (8 bytes each, little-endian, in order).
//!
//! The last block of a level contains the rest of the file and may be short. Block checksums are a hint; the SHA-256 of
//! the whole file decides.
//!
//! A [`Scheme`] is the list of levels, chosen by a [`SumsPolicy`]. A [`SumsBuilder`] makes a file's record while the file
//! is read. A [`Layout`] locates items in a record, and a [`SumsRef`] reads a whole one. The format of a record, with
//! little-endian integers:
//!
//! | bytes | what |
//! |---|---|
//! | 2 | magic `b"BS"` |
//! | 1 | format version, 1 |
//! | 1 | number of levels, 0 to 8 |
//! | 8 | file size |
//! | 5 each | levels, coarse to fine: block size (4), strong length (1) |
//! | rest | the items of each level in block order: weak (4), strong (the low bytes of the 64-bit value) |

mod builder;
mod weak;

use std::ops::Range;

use twox_hash::XxHash3_64;

pub use builder::SumsBuilder;
pub(crate) use weak::{MULTIPLIER, power, weak};

/// The maximum number of levels in a scheme.
pub const MAX_LEVELS: usize = 8;
/// The smallest block size in bytes. A smaller one would cost more than it finds, and would let a peer inflate the number
/// of blocks.
pub const MIN_BLOCK: u32 = 64;
/// The largest block size in bytes. It is limited because a receiver holds a few blocks in memory.
pub const MAX_BLOCK: u32 = 4 << 20;
/// The maximum length of an item's strong checksum in bytes.
pub const MAX_STRONG: u8 = 8;

const MAGIC: [u8; 2] = *b"BS";
const VERSION: u8 = 1;
const FIXED_HEADER: usize = 12;
const LEVEL_HEADER: usize = 5;
/// Ratio of the block sizes of neighbouring levels. With a larger one, a small change costs more fine checksums; with a
/// smaller one, the additional levels cost more than they save.
const RATIO: u32 = 8;
/// Minimum number of blocks at the coarsest level.
const MIN_BLOCKS: u64 = 12;
/// Largest block size of the coarsest level, in bytes.
const COARSEST: u32 = 1 << 20;

/// One level of checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Level {
    /// The block size in bytes, [`MIN_BLOCK`] to [`MAX_BLOCK`].
    pub block_size: u32,
    /// The number of bytes of the strong checksum in an item, up to [`MAX_STRONG`].
    pub strong_len: u8,
}

impl Level {
    /// Returns the length of an item in bytes: the weak and the truncated strong checksum.
    pub fn item_len(self) -> usize {
        4 + usize::from(self.strong_len)
    }

    /// Returns the number of blocks of a file of `size` bytes, including a short last one.
    pub fn blocks(self, size: u64) -> u64 {
        size.div_ceil(u64::from(self.block_size))
    }
}

/// A publisher's settings for block checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SumsPolicy {
    /// Whether there are block checksums. Without them, receivers fetch whole files. `false` suits files whose bytes all
    /// change with every version, such as compressed ones.
    pub enabled: bool,
    /// The block size of the finest level in bytes, for files of up to 256 MiB. It doubles above 256 MiB and again above
    /// 4 GiB. Default 512. Halving it doubles the size of the checksums (by default 1.2 to 1.4 % of the file) and saves a
    /// tenth to a half of the literal data of an update.
    pub finest: u32,
    /// Files smaller than this, in bytes, have no checksums. Default 4096: fetching a smaller file whole costs about as
    /// little as the checksums and the round trip.
    pub min_size: u64,
}

impl Default for SumsPolicy {
    fn default() -> Self {
        SumsPolicy { enabled: true, finest: 512, min_size: 4096 }
    }
}

/// The levels of a file's block checksums, coarse to fine. It is empty if the file has no checksums.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scheme {
    levels: Vec<Level>,
}

impl Scheme {
    /// Returns the scheme for a file of `size` bytes. For 20 MB and the default policy, the blocks have 256 KiB, 32 KiB,
    /// 4 KiB and 512 bytes. The scheme is empty if the policy gives the file no checksums.
    pub fn for_size(size: u64, policy: &SumsPolicy) -> Scheme {
        if !policy.enabled || size < policy.min_size.max(1) {
            return Scheme::default();
        }
        let growth = u8::from(size > 256 << 20) + u8::from(size > 4 << 30);
        let finest = policy.finest.clamp(MIN_BLOCK, MAX_BLOCK >> 2).next_power_of_two() << growth;
        // The finest level can do with short checksums, because a doubtful match is only accepted near a sure one.
        let strong_len = strong_bytes(size, finest, FINEST_SURE).clamp(1, 2 + growth);
        let mut levels = vec![Level { block_size: finest, strong_len }];
        while levels.len() < MAX_LEVELS {
            let block_size = levels[levels.len() - 1].block_size.saturating_mul(RATIO);
            if block_size > COARSEST || size / u64::from(block_size) < MIN_BLOCKS {
                break;
            }
            levels.push(Level { block_size, strong_len: strong_bytes(size, block_size, COARSE_SURE).max(2) });
        }
        levels.reverse();
        Scheme { levels }
    }

    /// Checks levels that came from outside and makes a scheme of them.
    pub fn new(levels: Vec<Level>) -> Result<Scheme, SumsError> {
        if levels.len() > MAX_LEVELS {
            return Err(SumsError::TooManyLevels(levels.len()));
        }
        for (index, level) in levels.iter().enumerate() {
            let size_ok = (MIN_BLOCK..=MAX_BLOCK).contains(&level.block_size) && level.block_size.is_multiple_of(8);
            let nests = index == 0 || {
                let coarser = levels[index - 1].block_size;
                coarser > level.block_size && coarser.is_multiple_of(level.block_size)
            };
            if !size_ok || !nests || level.strong_len > MAX_STRONG {
                return Err(SumsError::BadLevel { index, level: *level });
            }
        }
        Ok(Scheme { levels })
    }

    /// Returns the levels, coarse to fine.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// Returns whether the file has no checksums.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Computes the full strong checksum of one block of `level`. `data` is the block, possibly the short last one.
    pub(crate) fn strong(&self, level: usize, data: &[u8]) -> u64 {
        let Some(finer) = self.levels.get(level + 1) else {
            return XxHash3_64::oneshot(data);
        };
        let mut below = Vec::with_capacity((self.levels[level].block_size / finer.block_size) as usize * 8);
        for block in data.chunks(finer.block_size as usize) {
            below.extend_from_slice(&self.strong(level + 1, block).to_le_bytes());
        }
        XxHash3_64::oneshot(&below)
    }
}

/// At the finest level, fewer than one in 2^n files may have a random match.
const FINEST_SURE: u32 = 7;
/// At every other level, fewer than one in 2^n files may have a random match.
const COARSE_SURE: u32 = 16;

/// Returns the length of strong checksum in bytes that makes random matches rare: if all blocks of a file are compared
/// with all offsets of a basis of the same size, fewer than one in 2^`sure_bits` files has one.
fn strong_bytes(size: u64, block_size: u32, sure_bits: u32) -> u8 {
    let pair_bits = (size as f64).log2() + (size as f64 / f64::from(block_size)).max(1.0).log2();
    let strong_bits = (pair_bits.ceil() as u32 + sure_bits).saturating_sub(32);
    strong_bits.div_ceil(8).min(u32::from(MAX_STRONG)) as u8
}

/// The layout of a record, which follows from the file's size and the levels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    size: u64,
    scheme: Scheme,
}

impl Layout {
    /// Returns the layout of the record of a file of `size` bytes.
    ///
    /// # Errors
    /// [`SumsError::TooLarge`] if the size or the record's length does not fit into 63 bits.
    pub fn new(size: u64, scheme: Scheme) -> Result<Layout, SumsError> {
        let layout = Layout { size, scheme };
        let header = layout.header_len() as u64;
        let fits =
            layout.scheme.levels.iter().try_fold(header, |sum, level| {
                sum.checked_add(level.blocks(size).checked_mul(level.item_len() as u64)?)
            });
        match fits {
            Some(len) if len.max(size) <= i64::MAX as u64 => Ok(layout),
            _ => Err(SumsError::TooLarge(size)),
        }
    }

    /// Returns the size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the levels, coarse to fine.
    pub fn levels(&self) -> &[Level] {
        self.scheme.levels()
    }

    pub(crate) fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// Returns the number of blocks of a level. `None` if there is no such level.
    pub fn blocks(&self, level: usize) -> Option<u64> {
        Some(self.levels().get(level)?.blocks(self.size))
    }

    /// Returns the range of the file that a block covers, which is empty past the end. `None` if there is no such level.
    pub fn block_range(&self, level: usize, block: u64) -> Option<Range<u64>> {
        let block_size = u64::from(self.levels().get(level)?.block_size);
        let start = block.checked_mul(block_size)?.min(self.size);
        Some(start..(start + block_size).min(self.size))
    }

    /// Returns the place in the record of the items of `count` blocks from `first`: one contiguous range of bytes.
    /// `None` if there is no such level or block.
    pub fn items(&self, level: usize, first: u64, count: u64) -> Option<Range<u64>> {
        let item_len = self.levels().get(level)?.item_len() as u64;
        let end = first.checked_add(count).filter(|&end| Some(end) <= self.blocks(level))?;
        let start = self.header_len() as u64 + self.levels()[..level].iter().map(|l| self.level_len(l)).sum::<u64>();
        Some(start + first * item_len..start + end * item_len)
    }

    /// Returns the length of the whole record in bytes.
    pub fn record_len(&self) -> u64 {
        self.header_len() as u64 + self.levels().iter().map(|l| self.level_len(l)).sum::<u64>()
    }

    fn level_len(&self, level: &Level) -> u64 {
        level.blocks(self.size) * level.item_len() as u64
    }

    fn header_len(&self) -> usize {
        FIXED_HEADER + self.levels().len() * LEVEL_HEADER
    }
}

/// A checked record.
#[derive(Debug, Clone)]
pub struct SumsRef<'a> {
    layout: Layout,
    bytes: &'a [u8],
}

impl<'a> SumsRef<'a> {
    /// Checks a record: the header, the levels, and that the length is exactly the implied one. The items are not
    /// checked, because any value is possible.
    pub fn parse(bytes: &'a [u8]) -> Result<SumsRef<'a>, SumsError> {
        let (header, rest) = bytes.split_at_checked(FIXED_HEADER).ok_or(SumsError::Truncated)?;
        if header[..2] != MAGIC {
            return Err(SumsError::BadMagic);
        }
        if header[2] != VERSION {
            return Err(SumsError::UnknownVersion(header[2]));
        }
        let size = u64::from_le_bytes(header[4..].try_into().map_err(|_| SumsError::Truncated)?);
        let levels = rest.get(..usize::from(header[3]) * LEVEL_HEADER).ok_or(SumsError::Truncated)?;
        let levels = levels
            .chunks_exact(LEVEL_HEADER)
            .map(|l| Level { block_size: u32::from_le_bytes([l[0], l[1], l[2], l[3]]), strong_len: l[4] });
        let layout = Layout::new(size, Scheme::new(levels.collect())?)?;
        let (expected, found) = (layout.record_len(), bytes.len() as u64);
        if expected != found {
            return Err(SumsError::WrongLength { expected, found });
        }
        Ok(SumsRef { layout, bytes })
    }

    /// Returns the layout of the record.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.layout.size
    }

    /// Returns the levels, coarse to fine.
    pub fn levels(&self) -> &[Level] {
        self.layout.levels()
    }

    /// Returns the items of `count` blocks from `first`. `None` if there is no such level or block.
    pub fn range(&self, level: usize, first: u64, count: u64) -> Option<&'a [u8]> {
        let items = self.layout.items(level, first, count)?;
        self.bytes.get(items.start as usize..items.end as usize)
    }
}

/// Why block checksums are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SumsError {
    /// The record ends within its header.
    #[error("block checksums: the header is truncated")]
    Truncated,
    /// The bytes are not a record of block checksums.
    #[error("block checksums: wrong magic")]
    BadMagic,
    /// The record has another version of the format.
    #[error("block checksums: unknown format version {0}")]
    UnknownVersion(u8),
    /// There are more than [`MAX_LEVELS`] levels.
    #[error("block checksums: {0} levels, the limit is {MAX_LEVELS}")]
    TooManyLevels(usize),
    /// A block size or strong length is outside its limits, or a block size does not divide the next coarser one.
    #[error("block checksums: invalid level {index}: {level:?}")]
    BadLevel {
        /// The index of the level; 0 is the coarsest.
        index: usize,
        /// The invalid level.
        level: Level,
    },
    /// The file's size is too large for a record. The field is the size in bytes.
    #[error("block checksums: invalid file size {0}")]
    TooLarge(u64),
    /// The record does not have the length that its header implies.
    #[error("block checksums: {found} bytes, the header implies {expected}")]
    WrongLength {
        /// The implied length in bytes.
        expected: u64,
        /// The length found in bytes.
        found: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_levels_cost_about_one_percent() {
        for size in [4 << 10, 100 << 10, 1 << 20, 100 << 20, 10 << 30, 1 << 50] {
            let layout = Layout::new(size, Scheme::for_size(size, &SumsPolicy::default())).expect("possible");
            assert!(layout.record_len() < size / 70, "{size}: {}", layout.record_len());
        }
    }
}
