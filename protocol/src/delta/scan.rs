//! One pass over the bases, which finds the places of the wanted blocks of one level.
//!
//! The weak checksum rolls over every offset. A bitmap rules out most offsets, and a strong checksum is computed only
//! where a wanted block has the same weak checksum. [`Wanted`] is the index of the blocks, [`search`] scans the bases
//! for full blocks on all threads, and [`find_tail`] looks for the short last block.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use rayon::prelude::*;

use super::{Basis, DeltaError, SumsRange};
use crate::sums::{Layout, Level, MULTIPLIER, Scheme, power, weak};

/// Limit on distinct strong checksums per weak checksum. Only a hostile sender exceeds it.
const MAX_CHAIN: usize = 8;
/// Limit on recorded places per distinct block, so that runs of equal blocks (zeros) stay small.
pub(super) const MAX_PLACES: u32 = 8;
/// A bit of the bitmap is cleared only if at most this many items share it. Honest senders stay below; for a hostile
/// one, the limit avoids going through many items again and again.
const MAX_SHARING: usize = 16;
/// Limit on bytes hashed with the strong checksum in vain, per byte searched. Random weak matches stay below 1; the
/// limit stops a hostile sender who knows the basis.
const MAX_WASTE: usize = 8;
/// Independent rolling checksums per thread. A single one would stall on its multiplication.
const LANES: usize = 4;
/// Offsets that lanes roll over before their candidates are examined. Their checksums stay in the L1 cache.
const STRIP: usize = 1024;
/// Sizes of the bitmap in words for few, many and very many blocks. It stays within the L2 cache where possible.
const BITMAPS: [usize; 3] = [1 << 13, 1 << 16, 1 << 20];

/// A place where a wanted block was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hit {
    /// The number of the distinct block, see [`Wanted::blocks`].
    pub(super) item: u32,
    pub(super) place: BasisOffset,
}

/// An offset in a basis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BasisOffset {
    pub(super) basis: u32,
    pub(super) offset: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    weak: u32,
    strong: u64,
}

/// The blocks of one level to look for, and the index that finds them.
#[derive(Debug)]
pub(super) struct Wanted {
    scheme: Scheme,
    level: usize,
    block_size: usize,
    /// The blocks of full length in ascending order: block number and index of the item.
    blocks: Vec<(u64, u32)>,
    /// The file's last block if it is short: block number, item and length. It is looked for at a few places only.
    tail: Option<(u64, Item, usize)>,
    /// The distinct items in ascending order, except those that [`MAX_CHAIN`] removed.
    items: Vec<Item>,
    /// `items` in buckets by the top bits of the weak checksum: bucket `b` is `starts[b]..starts[b + 1]`.
    starts: Vec<u32>,
    bucket_shift: u32,
    /// One bit per value of the weak checksum's top bits. The length is one of [`BITMAPS`].
    bitmap: Vec<u64>,
}

impl Wanted {
    /// Builds the index from ranges of `level` in ascending order, each with its items.
    pub(super) fn new(layout: &Layout, level: usize, ranges: &[(SumsRange, &[u8])]) -> Wanted {
        let Level { block_size, strong_len } = layout.levels()[level];
        let item_len = layout.levels()[level].item_len();
        let mut wanted: Vec<(Item, u64)> = Vec::new();
        for (range, bytes) in ranges {
            let items = bytes.chunks_exact(item_len).map(|item| parse_item(item, strong_len));
            wanted.extend(items.zip(range.first..));
        }
        let last = wanted.last().map_or(0..0, |&(_, block)| layout.block_range(level, block).unwrap_or(0..0));
        let tail_len = (last.end - last.start) as usize;
        let short = tail_len < block_size as usize;
        let tail = if short { wanted.pop().map(|(item, block)| (block, item, tail_len)) } else { None };

        wanted.sort_unstable();
        let mut items: Vec<Item> = Vec::with_capacity(wanted.len());
        let mut blocks = Vec::with_capacity(wanted.len());
        for (item, block) in wanted {
            if items.last() != Some(&item) {
                let chain = items.len().checked_sub(MAX_CHAIN).map(|i| items[i].weak);
                if chain == Some(item.weak) {
                    continue;
                }
                items.push(item);
            }
            blocks.push((block, (items.len() - 1) as u32));
        }
        blocks.sort_unstable();

        let bucket_bits = (items.len().max(2) as u32).ilog2();
        let bucket_shift = 32 - bucket_bits;
        let mut starts = vec![0u32; (1 << bucket_bits) + 1];
        let words = BITMAPS.into_iter().find(|words| items.len() <= *words).unwrap_or(BITMAPS[2]);
        let mut bitmap = vec![0u64; words];
        for item in &items {
            starts[(item.weak >> bucket_shift) as usize + 1] += 1;
            let (word, bit) = bitmap_position(item.weak, words);
            bitmap[word] |= 1 << bit;
        }
        for bucket in 1..starts.len() {
            starts[bucket] += starts[bucket - 1];
        }
        let scheme = layout.scheme().clone();
        let block_size = block_size as usize;
        Wanted { scheme, level, block_size, blocks, tail, items, starts, bucket_shift, bitmap }
    }

    pub(super) fn block_size(&self) -> u64 {
        self.block_size as u64
    }

    /// Returns the blocks of full length in ascending order: block number and index of the item.
    pub(super) fn blocks(&self) -> &[(u64, u32)] {
        &self.blocks
    }

    /// Returns the number and the length of the short last block, if it is wanted.
    pub(super) fn tail(&self) -> Option<(u64, u64)> {
        self.tail.map(|(block, _, len)| (block, len as u64))
    }

    /// Returns the number of distinct items.
    pub(super) fn distinct(&self) -> usize {
        self.items.len()
    }

    /// Returns the number of values that an item can have.
    pub(super) fn item_values(&self) -> f64 {
        2f64.powi(32 + 8 * i32::from(self.scheme.levels()[self.level].strong_len))
    }

    /// Returns the indices of the items with this weak checksum.
    fn with_weak(&self, weak: u32) -> Range<usize> {
        let bucket = (weak >> self.bucket_shift) as usize;
        let (start, end) = (self.starts[bucket] as usize, self.starts[bucket + 1] as usize);
        let bucket = &self.items[start..end];
        let first = bucket.partition_point(|item| item.weak < weak);
        let count = bucket[first..].iter().take_while(|item| item.weak == weak).count();
        start + first..start + first + count
    }

    /// Returns the indices of the items that share a bit with this weak checksum in a bitmap of `words` words. At most
    /// [`MAX_SHARING`] + 1 of them are returned.
    fn with_bit_of(&self, weak: u32, words: usize) -> Range<usize> {
        let shift = 26 - words.ilog2();
        let start = self.items.partition_point(|item| item.weak >> shift < weak >> shift);
        let rest = self.items[start..].iter().take(MAX_SHARING + 1);
        start..start + rest.take_while(|item| item.weak >> shift == weak >> shift).count()
    }

    /// Returns whether a block has the checksums of an item.
    pub(super) fn is_item(&self, item: u32, block: &[u8]) -> bool {
        let Some(item) = self.items.get(item as usize) else { return false };
        weak(block) == item.weak && self.strong(block) == item.strong
    }

    fn strong(&self, block: &[u8]) -> u64 {
        truncate(self.scheme.strong(self.level, block), self.scheme.levels()[self.level].strong_len)
    }
}

/// Returns the word and the bit of a weak checksum in a bitmap of `words` words, which is a power of two.
#[inline(always)]
fn bitmap_position(weak: u32, words: usize) -> (usize, u32) {
    let bits = words.ilog2();
    ((weak >> (32 - bits)) as usize, weak >> (26 - bits) & 63)
}

fn parse_item(item: &[u8], strong_len: u8) -> Item {
    let mut strong = [0; 8];
    strong[..usize::from(strong_len)].copy_from_slice(&item[4..]);
    Item { weak: u32::from_le_bytes([item[0], item[1], item[2], item[3]]), strong: u64::from_le_bytes(strong) }
}

fn truncate(strong: u64, len: u8) -> u64 {
    strong & u64::MAX.checked_shr(64 - 8 * u32::from(len)).unwrap_or(0)
}

/// The result of a search.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Sorted by item, then by place.
    pub(super) hits: Vec<Hit>,
    /// How often a weak checksum was looked up.
    pub(super) lookups: u64,
}

/// State shared by all threads of a search.
struct Known {
    /// The number of known places per item.
    places: Vec<AtomicU32>,
    /// The bitmap of the items of which more places are wanted. It makes a block that is found everywhere, such as one
    /// of zeros, as cheap as one that is found nowhere.
    bitmap: Vec<AtomicU64>,
}

impl Known {
    fn new(wanted: &Wanted) -> Self {
        Self {
            places: std::iter::repeat_with(AtomicU32::default).take(wanted.items.len()).collect(),
            bitmap: wanted.bitmap.iter().copied().map(AtomicU64::new).collect(),
        }
    }

    fn is_full(&self, item: usize) -> bool {
        self.places[item].load(Ordering::Relaxed) >= MAX_PLACES
    }

    /// Clears the bit of a weak checksum if all items that share it have all their places.
    fn forget(&self, wanted: &Wanted, weak: u32) {
        let words = self.bitmap.len();
        let mut sharing = wanted.with_bit_of(weak, words);
        if sharing.len() <= MAX_SHARING && sharing.all(|item| self.is_full(item)) {
            let (word, bit) = bitmap_position(weak, words);
            self.bitmap[word].fetch_and(!(1 << bit), Ordering::Relaxed);
        }
    }

    /// Writes the indices of those weak checksums that a wanted block may have to `candidates`. Returns their number.
    fn candidates(&self, rolled: &[u32], candidates: &mut [u16; STRIP]) -> usize {
        if let Ok(bitmap) = self.bitmap.as_slice().try_into() {
            candidates_of::<{ BITMAPS[0] }>(rolled, bitmap, candidates)
        } else if let Ok(bitmap) = self.bitmap.as_slice().try_into() {
            candidates_of::<{ BITMAPS[1] }>(rolled, bitmap, candidates)
        } else {
            let bitmap = self.bitmap.first_chunk();
            bitmap.map_or(0, |bitmap| candidates_of::<{ BITMAPS[2] }>(rolled, bitmap, candidates))
        }
    }
}

/// Looks for the wanted blocks in `places`, which are ranges of the bases.
pub(super) fn search(wanted: &Wanted, bases: &[&dyn Basis], places: &[(u32, Range<u64>)]) -> Result<Found, DeltaError> {
    if wanted.items.is_empty() {
        return Ok(Found::default());
    }
    let block_size = wanted.block_size as u64;
    // Long enough that computing the first checksum of every lane is cheap in comparison.
    let segment_len = (1 << 20).max(16 * block_size);
    let segments: Vec<(u32, Range<u64>)> = places
        .iter()
        .filter(|(_, place)| place.end - place.start >= block_size)
        .flat_map(|(basis, place)| {
            let starts = place.start..place.end - block_size + 1;
            let segment = move |start: u64| (*basis, start..(start + segment_len).min(starts.end) + block_size - 1);
            (place.start..place.end - block_size + 1).step_by(segment_len as usize).map(segment)
        })
        .collect();
    let known = Known::new(wanted);
    let next = AtomicUsize::new(0);
    let worker = |_| {
        let (mut buffer, mut found) = (Vec::new(), Found::default());
        while let Some((basis, segment)) = segments.get(next.fetch_add(1, Ordering::Relaxed)).cloned() {
            buffer.resize((segment.end - segment.start) as usize, 0);
            let read = bases[basis as usize].read_at(segment.start, &mut buffer);
            read.map_err(|source| DeltaError::Basis { basis, source })?;
            let mut scan = Scan::new(wanted, &known, &buffer, BasisOffset { basis, offset: segment.start });
            scan.run();
            found.hits.append(&mut scan.found.hits);
            found.lookups += scan.found.lookups;
        }
        Ok(found)
    };
    // One worker per thread reuses its buffer for all its segments.
    let workers = rayon::current_num_threads().min(segments.len());
    let found: Result<Vec<Found>, DeltaError> = (0..workers).into_par_iter().map(worker).collect();
    let mut all = Found::default();
    for mut found in found? {
        all.hits.append(&mut found.hits);
        all.lookups += found.lookups;
    }
    all.hits.sort_unstable();
    Ok(all)
}

/// Returns whether a block of full length with the checksums of `item` lies at `place`.
pub(super) fn is_at(wanted: &Wanted, bases: &[&dyn Basis], item: u32, place: BasisOffset) -> Result<bool, DeltaError> {
    let BasisOffset { basis, offset } = place;
    let Some(file) = bases.get(basis as usize) else { return Ok(false) };
    if offset.checked_add(wanted.block_size()).is_none_or(|end| end > file.len()) {
        return Ok(false);
    }
    let mut block = vec![0; wanted.block_size];
    file.read_at(offset, &mut block).map_err(|source| DeltaError::Basis { basis, source })?;
    Ok(wanted.is_item(item, &block))
}

/// Returns the first of `places` at which the short last block lies.
pub(super) fn find_tail(
    wanted: &Wanted,
    bases: &[&dyn Basis],
    places: &[BasisOffset],
) -> Result<Option<BasisOffset>, DeltaError> {
    let Some((_, item, len)) = wanted.tail else { return Ok(None) };
    let mut buffer = vec![0; len];
    for &place in places {
        let basis = bases[place.basis as usize];
        if place.offset.checked_add(len as u64).is_none_or(|end| end > basis.len()) {
            continue;
        }
        let read = basis.read_at(place.offset, &mut buffer);
        read.map_err(|source| DeltaError::Basis { basis: place.basis, source })?;
        if weak(&buffer) == item.weak && wanted.strong(&buffer) == item.strong {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// The search of one segment of a basis.
struct Scan<'a> {
    wanted: &'a Wanted,
    data: &'a [u8],
    start: BasisOffset,
    found: Found,
    known: &'a Known,
    /// The last weak checksum looked up of which no more places are wanted.
    full: Option<u32>,
    /// The number of bytes that may still be hashed with the strong checksum in vain.
    waste: usize,
    /// The contribution of each byte value to the checksum when it leaves the window.
    leaving: [u32; 256],
}

/// A rolling window over a part of a segment.
#[derive(Default, Clone, Copy)]
struct Lane {
    /// The offset of the window. Its block was looked up already.
    pos: usize,
    /// The end of the part's offsets.
    end: usize,
    weak: u32,
}

impl<'a> Scan<'a> {
    fn new(wanted: &'a Wanted, known: &'a Known, data: &'a [u8], start: BasisOffset) -> Scan<'a> {
        let factor = power(wanted.block_size as u64);
        let leaving = std::array::from_fn(|byte| factor.wrapping_mul(byte as u32));
        Scan { wanted, data, start, found: Found::default(), known, full: None, waste: MAX_WASTE * data.len(), leaving }
    }

    fn run(&mut self) {
        let block_size = self.wanted.block_size;
        let starts = self.data.len() + 1 - block_size;
        let part = (4 * block_size).max(16 << 10);
        let mut parts = (0..starts).step_by(part).map(|pos| pos..(pos + part).min(starts));
        let mut lanes: [Lane; LANES] = Default::default();
        loop {
            let mut active = 0;
            for index in 0..LANES {
                while lanes[index].pos + 1 >= lanes[index].end {
                    let Some(part) = parts.next() else { break };
                    (lanes[index].pos, lanes[index].end) = (part.start, part.end);
                    self.settle(&mut lanes[index]);
                }
                if lanes[index].pos + 1 < lanes[index].end {
                    lanes.swap(active, index);
                    active += 1;
                }
            }
            match active {
                0 => return,
                LANES => self.roll(&mut lanes),
                _ => lanes[..active].iter_mut().for_each(|lane| self.roll(std::array::from_mut(lane))),
            }
        }
    }

    /// Skips adjacent blocks as long as they are found, and stops at the first that is not.
    fn settle(&mut self, lane: &mut Lane) {
        let block_size = self.wanted.block_size;
        let mut common = None;
        while lane.pos < lane.end {
            lane.weak = weak(&self.data[lane.pos..lane.pos + block_size]);
            let is_common = self.is_common(lane.pos, lane.weak);
            if !is_common && !self.lookup(lane.pos, lane.weak) {
                break;
            }
            common = is_common.then_some(*lane);
            lane.pos += block_size;
        }
        if let Some(last) = common {
            // The last block was not recorded, so it must not hide a block that begins within it. For example, a run of
            // zeros ends somewhere.
            *lane = last;
        }
    }

    /// Rolls all lanes by the same number of offsets, then examines their candidates.
    fn roll<const N: usize>(&mut self, lanes: &mut [Lane; N]) {
        let block_size = self.wanted.block_size;
        let count = lanes.iter().map(|lane| lane.end - lane.pos - 1).min().unwrap_or(0).min(STRIP);
        let windows = std::array::from_fn(|i| {
            let window = &self.data[lanes[i].pos..];
            (&window[..count], &window[block_size..block_size + count])
        });
        let mut sums = std::array::from_fn(|i| lanes[i].weak);
        let mut rolled = [[0; STRIP]; N];
        roll_lanes(windows, &self.leaving, &mut sums, &mut rolled);
        for i in 0..N {
            lanes[i].weak = sums[i];
            self.examine(&mut lanes[i], &rolled[i][..count]);
        }
    }

    /// Looks up the checksums that a lane rolled over. Leaves the lane after the last block found, or at the last
    /// offset.
    fn examine(&mut self, lane: &mut Lane, rolled: &[u32]) {
        let mut candidates = [0; STRIP];
        let count = self.known.candidates(rolled, &mut candidates);
        let mut next = lane.pos;
        for &index in &candidates[..count] {
            let pos = lane.pos + 1 + usize::from(index);
            if pos >= next && self.lookup(pos, rolled[usize::from(index)]) {
                next = pos + self.wanted.block_size;
            }
        }
        lane.pos += rolled.len();
        if next > lane.pos {
            lane.pos = next;
            self.settle(lane);
        }
    }

    /// Returns whether the block at `pos` was found so often that no more places are recorded.
    fn is_common(&mut self, pos: usize, weak: u32) -> bool {
        let same_weak = self.same_weak(weak);
        let are_full = !same_weak.is_empty() && same_weak.clone().all(|item| self.known.is_full(item));
        are_full && self.item_at(pos, same_weak).is_some()
    }

    fn same_weak(&mut self, weak: u32) -> Range<usize> {
        self.found.lookups += 1;
        self.wanted.with_weak(weak)
    }

    /// Returns which of these items lies at `pos`, by its strong checksum.
    fn item_at(&mut self, pos: usize, mut items: Range<usize>) -> Option<usize> {
        if items.is_empty() || self.waste < self.wanted.block_size {
            return None;
        }
        let strong = self.wanted.strong(&self.data[pos..pos + self.wanted.block_size]);
        let item = items.find(|&item| self.wanted.items[item].strong == strong);
        if item.is_none() {
            self.waste -= self.wanted.block_size;
        }
        item
    }

    /// Looks up the block at `pos` and records a hit. Returns whether the scan may skip the block.
    fn lookup(&mut self, pos: usize, weak: u32) -> bool {
        if self.full == Some(weak) {
            return false;
        }
        let same_weak = self.same_weak(weak);
        if same_weak.clone().all(|item| self.known.is_full(item)) {
            self.full = Some(weak);
            return false;
        }
        let Some(item) = self.item_at(pos, same_weak) else { return false };
        let known = self.known.places[item].fetch_add(1, Ordering::Relaxed);
        let repeats = self.found.hits.last().is_some_and(|hit| hit.item == item as u32);
        if known < MAX_PLACES {
            let place = BasisOffset { offset: self.start.offset + pos as u64, ..self.start };
            self.found.hits.push(Hit { item: item as u32, place });
        }
        if known + 1 == MAX_PLACES {
            self.known.forget(self.wanted, weak);
        }
        known == 0 || repeats
    }
}

/// Rolls every lane over as many offsets as its windows have bytes. A window is a pair: the bytes that leave, and the
/// bytes that enter.
fn roll_lanes<const N: usize>(
    windows: [(&[u8], &[u8]); N],
    leaving: &[u32; 256],
    sums: &mut [u32; N],
    rolled: &mut [[u32; STRIP]; N],
) {
    let count = windows[0].0.len().min(STRIP);
    let windows = windows.map(|(leaves, enters)| (&leaves[..count], &enters[..count]));
    #[expect(clippy::needless_range_loop, reason = "the offset indexes all lanes")]
    for offset in 0..count {
        for i in 0..N {
            let (leaves, enters) = (windows[i].0[offset], windows[i].1[offset]);
            let sum = sums[i].wrapping_mul(MULTIPLIER).wrapping_add(u32::from(enters));
            sums[i] = sum.wrapping_sub(leaving[usize::from(leaves)]);
            rolled[i][offset] = sums[i];
        }
    }
}

/// Writes the indices of the checksums whose bit is set to `candidates`. Returns their number.
fn candidates_of<const WORDS: usize>(
    rolled: &[u32],
    bitmap: &[AtomicU64; WORDS],
    candidates: &mut [u16; STRIP],
) -> usize {
    let mut count = 0;
    for (index, &sum) in rolled.iter().enumerate() {
        let (word, bit) = bitmap_position(sum, WORDS);
        candidates[count % STRIP] = index as u16;
        count += (bitmap[word].load(Ordering::Relaxed) >> bit & 1) as usize;
    }
    count
}
