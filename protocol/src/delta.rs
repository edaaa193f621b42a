//! The receiver's search: finds the parts of a new file that local files already contain.
//!
//! The sender computed the block checksums when it indexed the file ([`crate::sums`]). A [`Search`] asks for ranges
//! of them, coarse levels first, and looks for these blocks at every offset of the local *bases*. It asks for finer
//! checksums only where blocks were not found and the finer ones promise to save more than they cost. The result is
//! an [`Assembly`]: copies from bases, and literal ranges to fetch. The search does no I/O except through [`Basis`].
//!
//! The cost of an update is the sum of literal data and checksums. Three rules keep it small:
//!
//! - A stretch that is found at a coarse level costs nothing at the finer levels.
//! - If a whole group of 512 fine blocks is unmatched, a sample of it is tried before its fine checksums are fetched.
//!   A file that shares nothing with its bases therefore costs less than 0.1 % of its size.
//! - Fine checksums are too short to be trusted alone. A lone match is accepted only if random matches are improbable,
//!   or if it lies near a sure match.
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

/// A local file that may contain parts of the new one.
pub trait Basis: Sync {
    /// Returns the length in bytes. It must not change during a search.
    fn len(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on. The search never asks for bytes past [`Basis::len`].
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Returns whether the file is empty.
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

/// A contiguous range of items of one level. [`Layout::items`] returns its place in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SumsRange {
    /// The level; 0 is the coarsest.
    pub level: u8,
    /// The first block.
    pub first: u64,
    /// The number of blocks, at least one.
    pub count: u64,
}

/// The next step of a search.
#[derive(Debug)]
pub enum Step {
    /// Fetch the items of these ranges (at least one), pass each to [`Search::supply`], then call [`Search::advance`].
    NeedSums(Vec<SumsRange>),
    /// The search has ended with this result.
    Done(Assembly),
}

/// The search for one new file. The module's documentation shows the loop that drives it.
#[derive(Debug)]
pub struct Search {
    layout: Layout,
    plan: Plan,
    /// The ranges asked for, each with its items once they are supplied.
    pending: BTreeMap<SumsRange, Option<Vec<u8>>>,
    sums_bytes: u64,
    lookups: u64,
}

impl Search {
    /// Creates a search for the file whose checksums have this layout.
    pub fn new(layout: Layout) -> Search {
        Search { plan: Plan::new(layout.clone()), layout, pending: BTreeMap::new(), sums_bytes: 0, lookups: 0 }
    }

    /// Returns the first step: fetch the coarsest level, or the end if the file has no checksums.
    pub fn start(&mut self) -> Step {
        self.next_step()
    }

    /// Accepts the items of a range that the last step asked for.
    ///
    /// # Errors
    /// [`DeltaError::UnexpectedSums`] if the last step did not ask for this range, or if it was supplied already;
    /// [`DeltaError::WrongLength`] if the number of bytes is wrong. Either the sender or the caller made a mistake.
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

    /// Searches the bases for the supplied blocks and returns the next step. Takes CPU time in proportion to the
    /// length of the bases, on all threads of the current rayon pool. `bases` must be the same in every call, because
    /// pieces refer to its indices.
    ///
    /// # Errors
    /// [`DeltaError::Missing`] if a range has not been supplied, [`DeltaError::Basis`] if a basis cannot be read.
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

    /// Returns how often a checksum of the bases was looked up among the supplied ones. This is the cost of the search
    /// besides reading the bases.
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

/// Why a search cannot continue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// Items arrived that the search did not ask for.
    #[error("unexpected block checksums: {0:?}")]
    UnexpectedSums(SumsRange),
    /// Items of the wrong length arrived.
    #[error("{found} bytes of block checksums for {range:?}, expected {expected}")]
    WrongLength {
        /// The range that was asked for.
        range: SumsRange,
        /// The length of its items in bytes.
        expected: u64,
        /// The number of bytes supplied.
        found: u64,
    },
    /// [`Search::advance`] was called before this range was supplied.
    #[error("block checksums are missing: {0:?}")]
    Missing(SumsRange),
    /// A basis cannot be read.
    #[error("cannot read basis {basis}: {source}")]
    Basis {
        /// The index of the basis.
        basis: u32,
        /// The cause.
        source: io::Error,
    },
}
