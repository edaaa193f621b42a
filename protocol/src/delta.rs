//! The receiver's search: which parts of a new file lie in local files already.
//!
//! The sender did its part when it indexed the file ([`crate::sums`]). A [`Search`] asks for ranges of block
//! checksums, coarse levels first, looks for these blocks at every offset of the local *bases*, asks for finer
//! checksums only where blocks were not found and finer ones promise more than they cost, and ends in an
//! [`Assembly`]: copies from bases, and literal ranges to fetch. It does no I/O of its own but through [`Basis`].
//!
//! What counts is the sum of literal data and checksums. Three rules keep it small:
//!
//! - A stretch that was found at a coarse level costs nothing at the finer ones.
//! - Where a whole group of 512 fine blocks is unmatched, a sample of it is tried before its fine checksums are
//!   fetched: a file that shares nothing with its bases costs less than 0.1 % of its size.
//! - Fine checksums are too short to stand alone. A lone match is believed only where few others were possible,
//!   or near a match that is sure.
//!
//! ```text
//! let mut search = Search::new(layout);
//! let mut step = search.start();
//! while let Step::NeedSums(ranges) = step {
//!     for range in ranges { search.supply(range, &fetch(range))?; }
//!     step = search.advance(&bases)?;
//! }
//! ```

mod plan;
mod scan;

use std::collections::BTreeMap;
use std::io;

use crate::sums::Layout;
use plan::Plan;
pub use plan::{Assembly, Piece};
use scan::Wanted;

/// A local file that may hold parts of the new one.
pub trait Basis: Sync {
    /// Length in bytes. Must not change during a search.
    fn len(&self) -> u64;

    /// Fills `buf` from `offset`. The search never asks for bytes past [`Basis::len`].
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Basis for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = start.checked_add(buf.len()).and_then(|end| self.get(start..end));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl Basis for Vec<u8> {
    fn len(&self) -> u64 {
        Basis::len(self.as_slice())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, buf)
    }
}

/// A contiguous range of the items of one level. [`Layout::items`] says where it lies in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SumsRange {
    /// 0 is the coarsest level.
    pub level: u8,
    /// The first block.
    pub first: u64,
    /// Number of blocks, at least one.
    pub count: u64,
}

/// What the search needs next.
#[derive(Debug)]
pub enum Step {
    /// Items to fetch, at least one range. Pass each to [`Search::supply`], then call [`Search::advance`].
    NeedSums(Vec<SumsRange>),
    /// The search has ended.
    Done(Assembly),
}

/// The search for one new file. See the module for the loop that drives it.
#[derive(Debug)]
pub struct Search {
    layout: Layout,
    plan: Plan,
    /// Ranges asked for and, once supplied, their items.
    pending: BTreeMap<SumsRange, Option<Vec<u8>>>,
    sums_bytes: u64,
    lookups: u64,
}

impl Search {
    /// A search for the file whose checksums have this layout.
    pub fn new(layout: Layout) -> Search {
        Search { plan: Plan::new(layout.clone()), layout, pending: BTreeMap::new(), sums_bytes: 0, lookups: 0 }
    }

    /// The first step: the whole coarsest level, or the end when the file has no checksums.
    pub fn start(&mut self) -> Step {
        self.next_step()
    }

    /// Takes the items of a range that the last step asked for.
    ///
    /// # Errors
    /// [`DeltaError::UnexpectedSums`] and [`DeltaError::WrongLength`] are the sender's fault, or the caller's.
    pub fn supply(&mut self, range: SumsRange, items: &[u8]) -> Result<(), DeltaError> {
        let slot = self.pending.get_mut(&range).filter(|items| items.is_none());
        let slot = slot.ok_or(DeltaError::UnexpectedSums(range))?;
        let expected = range.count * self.layout.levels()[usize::from(range.level)].item_len() as u64;
        if items.len() as u64 != expected {
            return Err(DeltaError::WrongLength { range, expected, found: items.len() as u64 });
        }
        *slot = Some(items.to_vec());
        self.sums_bytes += expected;
        Ok(())
    }

    /// Searches the bases for the blocks supplied. Takes CPU time in proportion to the bases' length, on all
    /// threads of the current rayon pool. `bases` must be the same at every call; pieces refer to its indices.
    ///
    /// # Errors
    /// [`DeltaError::Missing`] before all ranges are supplied, [`DeltaError::Basis`] when a basis cannot be read.
    pub fn advance(&mut self, bases: &[&dyn Basis]) -> Result<Step, DeltaError> {
        if let Some((range, _)) = self.pending.iter().find(|(_, items)| items.is_none()) {
            return Err(DeltaError::Missing(*range));
        }
        let pending = std::mem::take(&mut self.pending);
        let supplied: Vec<_> = pending.iter().filter_map(|(range, items)| Some((*range, items.as_deref()?))).collect();
        for of_level in supplied.chunk_by(|(a, _), (b, _)| a.level == b.level) {
            let wanted = Wanted::new(&self.layout, usize::from(of_level[0].0.level), of_level);
            let places = self.plan.places_to_search(bases, wanted.block_size());
            let found = scan::search(&wanted, bases, &places)?;
            self.lookups += found.lookups;
            let searched = places.iter().map(|(_, place)| place.end - place.start).sum();
            let is_at = |item, place| scan::is_at(&wanted, bases, item, place);
            self.plan.accept(&wanted, &found.hits, searched, is_at)?;
            let tail_places = self.plan.tail_places(&wanted, bases);
            if let Some(place) = scan::find_tail(&wanted, bases, &tail_places)? {
                self.plan.accept_tail(&wanted, place);
            }
        }
        self.plan.settle();
        Ok(self.next_step())
    }

    /// How often a checksum of the bases was looked up among those supplied: what the search costs beside reading.
    pub fn lookups(&self) -> u64 {
        self.lookups
    }

    fn next_step(&mut self) -> Step {
        let ranges = self.plan.next_ranges();
        if ranges.is_empty() {
            return Step::Done(self.plan.assembly(self.sums_bytes));
        }
        self.pending = ranges.iter().map(|&range| (range, None)).collect();
        Step::NeedSums(ranges)
    }
}

/// Why a search could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// Items arrived that the search did not ask for.
    #[error("block checksums that were not asked for: {0:?}")]
    UnexpectedSums(SumsRange),
    /// Items of the wrong length arrived.
    #[error("{found} bytes of block checksums for {range:?}, expected {expected}")]
    WrongLength {
        /// What was asked for.
        range: SumsRange,
        /// Bytes that it must have.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// [`Search::advance`] was called too early.
    #[error("block checksums are missing: {0:?}")]
    Missing(SumsRange),
    /// A basis cannot be read.
    #[error("basis {basis}: {source}")]
    Basis {
        /// Its index.
        basis: u32,
        /// The cause.
        source: io::Error,
    },
}
