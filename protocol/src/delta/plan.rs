//! The state of a search: what is matched so far, which checksums to ask for next, and the resulting assembly.
//!
//! A pass is [`Plan::next_ranges`], then [`Plan::accept`] for each level searched, then [`Plan::settle`].
//! [`Plan::assembly`] returns the result.

use std::collections::BTreeMap;
use std::ops::Range;

use super::scan::{BasisOffset, Hit, MAX_PLACES, Wanted};
use super::{Basis, DeltaError, SumsRange};
use crate::sums::Layout;

/// Size of a group in fine blocks. If a whole group is unmatched, a sample decides whether to fetch its fine checksums.
const GROUP: u64 = 512;
/// Length of each of the two stretches of a sample, in fine blocks.
const STRETCH: u64 = 16;
/// Levels whose checksums cost at most this fraction of the file are fetched without a sample.
const CHEAP: f64 = 1.0 / 2048.0;
/// Weight of the result of all samples when it is combined with the sample of one group, in blocks.
const PRIOR: f64 = 32.0;
/// Groups shorter than this, in fine blocks, are not worth a sample.
const MIN_GROUP: u64 = 64;
/// Limit on the items asked for in one step. It bounds memory to about 300 MB.
const MAX_ITEMS: u64 = 1 << 22;
/// Limit on the number of random matches that one pass is expected to accept.
const RISK: f64 = 1.0 / 128.0;
/// The bases are searched as a whole for finer blocks while the unmatched part of the new file is at least their total
/// length divided by this. After that, only the parts of the bases that no match used are searched.
const WHOLE_BASIS: u64 = 2;
/// Bases of up to this total size, in bytes, are always searched as a whole, which takes less than 50 ms.
const SMALL_BASIS: u64 = 32 << 20;
/// A lone match is accepted if it lies within this distance, in bytes, of where a sure neighbour predicts it.
const NEAR: u64 = 16 << 10;

/// A part of the new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Copied from a basis.
    Copy {
        /// Offset in the new file, in bytes.
        target: u64,
        /// Length in bytes.
        len: u64,
        /// The index of the basis.
        basis: u32,
        /// Offset in the basis, in bytes.
        offset: u64,
    },
    /// Fetched from the sender.
    Literal {
        /// Offset in the new file, in bytes.
        target: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Piece {
    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        match *self {
            Piece::Copy { len, .. } | Piece::Literal { len, .. } => len,
        }
    }

    /// Returns `false`: a piece has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The pieces that make up the new file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assembly {
    pieces: Vec<Piece>,
    sums_bytes: u64,
}

impl Assembly {
    /// Returns the pieces in order. They tile the new file exactly.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Returns the ranges of the new file to fetch, in order. No range touches the next.
    pub fn literals(&self) -> impl Iterator<Item = Range<u64>> {
        self.pieces.iter().filter_map(|piece| match *piece {
            Piece::Literal { target, len } => Some(target..target + len),
            Piece::Copy { .. } => None,
        })
    }

    /// Returns the number of bytes to fetch.
    pub fn literal_bytes(&self) -> u64 {
        self.literals().map(|range| range.end - range.start).sum()
    }

    /// Returns the number of bytes copied from bases.
    pub fn matched_bytes(&self) -> u64 {
        self.pieces.iter().map(Piece::len).sum::<u64>() - self.literal_bytes()
    }

    /// Returns the number of bytes of block checksums that the search used.
    pub fn sums_bytes(&self) -> u64 {
        self.sums_bytes
    }
}

/// A part of the new file that was found in a basis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Match {
    target: u64,
    len: u64,
    place: BasisOffset,
}

impl Match {
    fn end(&self) -> u64 {
        self.target + self.len
    }

    fn place_of_end(&self) -> BasisOffset {
        BasisOffset { offset: self.place.offset + self.len, ..self.place }
    }
}

/// An unmatched part of the new file.
#[derive(Debug, Clone)]
struct Region {
    range: Range<u64>,
    /// The level that is tried next or being tried.
    level: usize,
    sampling: Sampling,
}

/// How a region relates to samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sampling {
    /// No sample of its group was taken.
    No,
    /// The region is a stretch of a sample.
    Sample,
    /// A sample of its group was taken, and the region is not part of it.
    Done,
}

/// The number of blocks tried and found.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    tried: f64,
    found: f64,
}

/// The result of a group's sample, or of all samples, at the finest level and at the level above it.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    fine: Tally,
    above: Tally,
}

#[derive(Debug)]
pub(super) struct Plan {
    layout: Layout,
    /// Disjoint, in ascending order of target.
    matches: Vec<Match>,
    /// Unmatched regions that wait for a decision.
    open: Vec<Region>,
    /// Regions whose checksums were asked for.
    asked: Vec<Region>,
    /// The samples by group number.
    samples: BTreeMap<u64, Sample>,
    all_samples: Sample,
}

impl Plan {
    pub(super) fn new(layout: Layout) -> Plan {
        let open = vec![Region { range: 0..layout.size(), level: 0, sampling: Sampling::No }];
        Plan { layout, matches: vec![], open, asked: vec![], samples: BTreeMap::new(), all_samples: Sample::default() }
    }

    /// Decides about the open regions. Returns the ranges to fetch, in ascending order, or none if the search has ended.
    pub(super) fn next_ranges(&mut self) -> Vec<SumsRange> {
        let mut items = 0;
        for mut region in std::mem::take(&mut self.open) {
            while !region.range.is_empty() && items < MAX_ITEMS {
                let rest = self.end_of_part(&region)..region.range.end;
                let part = Region { range: region.range.start..rest.start, ..region };
                items += self.decide(part);
                region.range = rest;
            }
            self.open.push(region);
        }
        self.open.retain(|region| !region.range.is_empty());
        self.asked.sort_by_key(|region| (region.level, region.range.start));
        let mut ranges: Vec<SumsRange> = Vec::new();
        for region in &self.asked {
            let range = self.items_of(region);
            match ranges.last_mut() {
                Some(last) if last.level == range.level && last.first + last.count >= range.first => {
                    last.count = last.count.max(range.first + range.count - last.first);
                }
                _ => ranges.push(range),
            }
        }
        ranges
    }

    /// Returns the end of the next part of a region to decide about. A part ends with its group if a sample may be
    /// taken, else after as many blocks as fit in one step.
    fn end_of_part(&self, region: &Region) -> u64 {
        let Some(level) = self.layout.levels().get(region.level) else { return region.range.end };
        let grouped = region.sampling == Sampling::No && self.is_expensive(region.level);
        let unit = if grouped { self.group_len() } else { MAX_ITEMS * u64::from(level.block_size) };
        (region.range.start / unit + 1).saturating_mul(unit).min(region.range.end)
    }

    /// Asks for the next checksums of a region, if they promise to save more than they cost. Returns their number.
    fn decide(&mut self, mut region: Region) -> u64 {
        if region.level >= self.layout.levels().len() {
            return 0;
        }
        if region.sampling == Sampling::No && self.is_expensive(region.level) && self.is_whole_group(&region.range) {
            return self.ask_sample(&region);
        }
        if region.sampling == Sampling::Done {
            let finest = self.layout.levels().len() - 1;
            let sample = self.estimate(region.range.start / self.group_len());
            if sample.fine.found < 2.0 * self.rate(finest) {
                return 0;
            }
            if sample.above.found * self.rate(finest) < self.rate(finest.saturating_sub(1)) {
                region.level = finest;
            }
        }
        let count = self.items_of(&region).count;
        self.asked.push(region);
        count
    }

    /// Asks for a sample of a group, which consists of two stretches. The rest of the group stays open.
    fn ask_sample(&mut self, group: &Region) -> u64 {
        let finest = self.layout.levels().len() - 1;
        let stretch_len = STRETCH * u64::from(self.layout.levels()[finest].block_size);
        let Range { start, end } = group.range;
        let mut rest = start;
        for quarter in [1, 3] {
            let at = start + (end - start) * quarter / 4 / stretch_len * stretch_len;
            let stretch = at..at + stretch_len;
            self.open.push(Region { range: rest..stretch.start, level: group.level, sampling: Sampling::Done });
            rest = stretch.end;
            self.asked.push(Region { range: stretch, level: finest, sampling: Sampling::Sample });
        }
        self.open.push(Region { range: rest..end, level: group.level, sampling: Sampling::Done });
        2 * STRETCH
    }

    /// Ends a pass: counts the results of the samples, and opens what is still unmatched at the next finer level.
    pub(super) fn settle(&mut self) {
        for region in std::mem::take(&mut self.asked) {
            let unmatched = self.unmatched(&region.range);
            if region.sampling == Sampling::Sample {
                self.count_sample(&region.range, &unmatched);
            }
            let level = region.level + 1;
            self.open.extend(unmatched.into_iter().map(|range| Region { range, level, ..region }));
        }
    }

    fn count_sample(&mut self, range: &Range<u64>, unmatched: &[Range<u64>]) {
        let levels = self.layout.levels();
        let count = |block: u64| {
            let touched: u64 = unmatched.iter().map(|r| r.end.div_ceil(block) - r.start / block).sum();
            let tried = (range.end - range.start).div_ceil(block);
            Tally { tried: tried as f64, found: tried.saturating_sub(touched) as f64 }
        };
        let fine = count(u64::from(levels[levels.len() - 1].block_size));
        let above = if levels.len() > 1 { count(u64::from(levels[levels.len() - 2].block_size)) } else { fine };
        let sample = self.samples.entry(range.start / self.group_len()).or_default();
        for sum in [sample, &mut self.all_samples] {
            sum.fine.add(fine);
            sum.above.add(above);
        }
    }

    /// Estimates the fraction of a group's blocks that a search would find. The fractions are in `found`.
    fn estimate(&self, group: u64) -> Sample {
        let sample = self.samples.get(&group).copied().unwrap_or_default();
        let fraction = |own: Tally, all: Tally, prior: f64| {
            let mean = if all.tried > 0.0 { all.found / all.tried } else { 0.0 };
            Tally { tried: 1.0, found: (own.found + prior * mean) / (own.tried + prior) }
        };
        Sample {
            fine: fraction(sample.fine, self.all_samples.fine, PRIOR),
            above: fraction(sample.above, self.all_samples.above, PRIOR / 8.0),
        }
    }

    /// Turns hits into matches. A lone hit is accepted only if random hits are improbable, or if it lies near a sure
    /// match. `is_at` returns whether an item's block lies at a place that was not recorded as a hit; it is called up
    /// to twice per block.
    pub(super) fn accept(
        &mut self,
        wanted: &Wanted,
        hits: &[Hit],
        offsets_searched: u64,
        is_at: impl Fn(u32, BasisOffset) -> Result<bool, DeltaError>,
    ) -> Result<(), DeltaError> {
        let random = offsets_searched as f64 * wanted.distinct() as f64 / wanted.item_values();
        let len = wanted.block_size();
        let (mut sure, mut lone) = (Vec::<Match>::new(), Vec::new());
        for (index, &(block, item)) in wanted.blocks().iter().enumerate() {
            let Some(first) = hits_of(hits, item).first() else { continue };
            let target = block * len;
            let supported = match self.unrecorded(wanted, hits, index, sure.last(), &is_at)? {
                Some(place) => Some(place),
                None => self.supported(wanted, hits, index, sure.last()),
            };
            if supported.is_some() || random <= RISK {
                sure.push(Match { target, len, place: supported.unwrap_or(first.place) });
            } else {
                lone.push((target, item));
            }
        }
        self.insert(sure);
        let near = |(target, item)| {
            let near = hits_of(hits, item).iter().find(|hit| self.is_near(target, hit.place))?;
            Some(Match { target, len, place: near.place })
        };
        let near = lone.into_iter().filter_map(near).collect();
        self.insert(near);
        Ok(())
    }

    /// Finds a place for a block that occurs in more places than are recorded, such as a block of zeros. Tries the
    /// place after the preceding match, then the offset that the block has in the new file. A long run of equal blocks
    /// thus becomes one match instead of many matches with the same few places.
    fn unrecorded(
        &self,
        wanted: &Wanted,
        hits: &[Hit],
        index: usize,
        last: Option<&Match>,
        is_at: impl Fn(u32, BasisOffset) -> Result<bool, DeltaError>,
    ) -> Result<Option<BasisOffset>, DeltaError> {
        let (block, item) = wanted.blocks()[index];
        let hits = hits_of(hits, item);
        if hits.len() < MAX_PLACES as usize {
            return Ok(None);
        }
        let start = block * wanted.block_size();
        let before = self.place_before(start, last);
        if let Some(place) = before.filter(|place| hits.iter().any(|hit| hit.place == *place)) {
            return Ok(Some(place));
        }
        let aligned = hits.first().map(|hit| BasisOffset { offset: start, ..hit.place });
        for place in before.into_iter().chain(aligned) {
            if is_at(item, place)? {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// Returns the basis offset at which the match that ends at `target` ends. `last` is the last match of this pass.
    fn place_before(&self, target: u64, last: Option<&Match>) -> Option<BasisOffset> {
        let before = last.copied().filter(|m| m.end() == target).or_else(|| self.match_ending(target));
        before.map(|m| m.place_of_end())
    }

    /// Returns a hit of a block that continues the preceding match or leads on to what follows. `last` is the last match
    /// of this pass.
    fn supported(&self, wanted: &Wanted, hits: &[Hit], index: usize, last: Option<&Match>) -> Option<BasisOffset> {
        let (block, item) = wanted.blocks()[index];
        let (start, len) = (block * wanted.block_size(), wanted.block_size());
        let before = self.place_before(start, last);
        let after = self.match_starting(start + len).map(|m| m.place);
        let next = wanted.blocks().get(index + 1).filter(|next| next.0 == block + 1);
        let next = next.map_or(&[][..], |&(_, item)| hits_of(hits, item));
        let leads_on = |place: &BasisOffset| {
            let end = BasisOffset { offset: place.offset + len, ..*place };
            after == Some(end) || next.iter().any(|hit| hit.place == end)
        };
        let mut places = hits_of(hits, item).iter().map(|hit| hit.place);
        places.clone().find(|place| Some(*place) == before).or_else(|| places.find(leads_on))
    }

    /// Adds a match of the short last block.
    pub(super) fn accept_tail(&mut self, wanted: &Wanted, place: BasisOffset) {
        if let Some((block, len)) = wanted.tail() {
            self.insert(vec![Match { target: block * wanted.block_size(), len, place }]);
        }
    }

    /// Returns the likely places of the short last block: after the preceding match, and at the end of each basis.
    pub(super) fn tail_places(&self, wanted: &Wanted, bases: &[&dyn Basis]) -> Vec<BasisOffset> {
        let Some((block, len)) = wanted.tail() else { return Vec::new() };
        let follows = self.match_ending(block * wanted.block_size()).map(|m| m.place_of_end());
        let ends = (0u32..)
            .zip(bases)
            .filter_map(|(basis, file)| Some(BasisOffset { basis, offset: file.len().checked_sub(len)? }));
        follows.into_iter().chain(ends).collect()
    }

    /// Returns the ranges of the bases to search: everything while much of the new file is unmatched or the bases are
    /// small, later only what no match used, extended by `margin` bytes on both sides.
    pub(super) fn places_to_search(&self, bases: &[&dyn Basis], margin: u64) -> Vec<(u32, Range<u64>)> {
        let total: u64 = bases.iter().map(|basis| basis.len()).sum();
        let matched: u64 = self.matches.iter().map(|m| m.len).sum();
        let mut places: Vec<(u32, Range<u64>)> = Vec::new();
        let all = total <= SMALL_BASIS || self.layout.size() - matched >= total / WHOLE_BASIS;
        let mut used: Vec<Match> = if all { Vec::new() } else { self.matches.clone() };
        used.sort_by_key(|m| m.place);
        let mut used = used.into_iter().peekable();
        for (basis, file) in (0u32..).zip(bases) {
            let mut start = 0;
            let mut add = |range: Range<u64>| {
                let range = range.start.saturating_sub(margin)..range.end.saturating_add(margin).min(file.len());
                match places.last_mut() {
                    Some((b, last)) if *b == basis && last.end >= range.start => last.end = range.end,
                    _ => places.push((basis, range)),
                }
            };
            while let Some(m) = used.next_if(|m| m.place.basis == basis) {
                if m.place.offset > start {
                    add(start..m.place.offset);
                }
                start = start.max(m.place_of_end().offset);
            }
            if start < file.len() {
                add(start..file.len());
            }
        }
        places
    }

    /// Returns the pieces of the new file as known now.
    pub(super) fn assembly(&self, sums_bytes: u64) -> Assembly {
        let mut pieces = Vec::with_capacity(2 * self.matches.len() + 1);
        let mut target = 0;
        for m in &self.matches {
            if m.target > target {
                pieces.push(Piece::Literal { target, len: m.target - target });
            }
            pieces.push(Piece::Copy { target: m.target, len: m.len, basis: m.place.basis, offset: m.place.offset });
            target = m.end();
        }
        if target < self.layout.size() {
            pieces.push(Piece::Literal { target, len: self.layout.size() - target });
        }
        Assembly { pieces, sums_bytes }
    }

    /// Adds matches, which are in ascending order of target. Parts that are matched already are left out.
    fn insert(&mut self, found: Vec<Match>) {
        let mut new = Vec::with_capacity(found.len());
        for m in found {
            for free in self.unmatched(&(m.target..m.end())) {
                let offset = m.place.offset + (free.start - m.target);
                new.push(Match {
                    target: free.start,
                    len: free.end - free.start,
                    place: BasisOffset { offset, ..m.place },
                });
            }
        }
        self.matches.append(&mut new);
        self.matches.sort_by_key(|m| m.target);
        self.matches.dedup_by(|next, m| {
            let continues = m.end() == next.target && m.place_of_end() == next.place;
            if continues {
                m.len += next.len;
            }
            continues
        });
    }

    /// Returns the parts of `range` that no match covers.
    fn unmatched(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let (mut free, mut start) = (Vec::new(), range.start);
        let first = self.matches.partition_point(|m| m.end() <= range.start);
        for m in self.matches[first..].iter().take_while(|m| m.target < range.end) {
            if m.target > start {
                free.push(start..m.target);
            }
            start = m.end();
        }
        if start < range.end {
            free.push(start..range.end);
        }
        free
    }

    fn match_ending(&self, target: u64) -> Option<Match> {
        let index = self.matches.partition_point(|m| m.end() < target);
        self.matches.get(index).copied().filter(|m| m.end() == target)
    }

    fn match_starting(&self, target: u64) -> Option<Match> {
        let index = self.matches.partition_point(|m| m.target < target);
        self.matches.get(index).copied().filter(|m| m.target == target)
    }

    /// Returns whether `place` is close to where a neighbouring match predicts it.
    fn is_near(&self, target: u64, place: BasisOffset) -> bool {
        let next = self.matches.partition_point(|m| m.target < target);
        let neighbours = self.matches[next.saturating_sub(1)..].iter().take(2);
        neighbours.filter(|m| m.place.basis == place.basis).any(|m| {
            // By how much the offset in the basis exceeds the one in the new file; compared here and at the neighbour.
            let ahead = |place: BasisOffset, target: u64| place.offset.wrapping_sub(target);
            let drift = ahead(place, target).wrapping_sub(ahead(m.place, m.target)) as i64;
            let distance = target.abs_diff(target.clamp(m.target, m.end()));
            drift.unsigned_abs() <= NEAR && distance <= 4 * NEAR
        })
    }

    fn items_of(&self, region: &Region) -> SumsRange {
        let block = u64::from(self.layout.levels()[region.level].block_size);
        let first = region.range.start / block;
        SumsRange { level: region.level as u8, first, count: region.range.end.div_ceil(block) - first }
    }

    /// Returns the bytes of checksums per byte of the file.
    fn rate(&self, level: usize) -> f64 {
        let level = self.layout.levels()[level];
        level.item_len() as f64 / f64::from(level.block_size)
    }

    /// Returns whether a level is fetched only where a sample justifies it. The coarsest level is always fetched; a
    /// finer one needs a sample if it is not [`CHEAP`] or if nothing has been found yet.
    fn is_expensive(&self, level: usize) -> bool {
        level > 0 && (self.rate(level) > CHEAP || self.matches.is_empty())
    }

    fn group_len(&self) -> u64 {
        self.layout.levels().last().map_or(u64::MAX, |finest| GROUP * u64::from(finest.block_size))
    }

    fn is_whole_group(&self, range: &Range<u64>) -> bool {
        let group = self.group_len();
        let end = range.start.saturating_add(group).min(self.layout.size());
        range.start.is_multiple_of(group) && range.end == end && (end - range.start) >= group / GROUP * MIN_GROUP
    }
}

/// Returns the hits of an item. `hits` must be sorted.
fn hits_of(hits: &[Hit], item: u32) -> &[Hit] {
    let start = hits.partition_point(|hit| hit.item < item);
    let count = hits[start..].iter().take_while(|hit| hit.item == item).count();
    &hits[start..start + count]
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.tried += other.tried;
        self.found += other.found;
    }
}
