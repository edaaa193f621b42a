//! Counts the disk space of encoded lists for as long as they take it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Files take a multiple of this many bytes.
const BLOCK: u64 = 4096;

/// The disk space, in bytes, for all encoded lists: finished ones, removed ones that are still mapped, and
/// drafts.
#[derive(Debug)]
pub(super) struct Budget {
    limit: u64,
    taken: AtomicU64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, taken: AtomicU64::new(0) })
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes taken beyond the limit. Files of earlier processes can exceed it.
    pub(super) fn excess(&self) -> u64 {
        self.taken().saturating_sub(self.limit)
    }
}

/// One file's share of the budget. The cache's entry for the file and all its mappings hold a reference, so
/// that a removed file counts until its last mapping is dropped.
#[derive(Debug)]
pub(super) struct Space {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Space {
    /// Creates an empty share, for a file that is yet to be written.
    pub(super) fn none(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    /// Counts an existing file of `len` bytes, even beyond the limit.
    pub(super) fn of_file(budget: &Arc<Budget>, len: u64) -> Self {
        let bytes = len.next_multiple_of(BLOCK);
        budget.taken.fetch_add(bytes, Ordering::Relaxed);
        Self { budget: Arc::clone(budget), bytes }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `bytes` more of the budget. Returns false, and takes nothing, if there is not enough left.
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        let fits = |taken: u64| taken.checked_add(bytes).filter(|&taken| taken <= self.budget.limit);
        let has_grown = self.budget.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if has_grown {
            self.bytes += bytes;
        }
        has_grown
    }

    /// Returns the bytes that a file of `len` bytes does not need to the budget.
    pub(super) fn shrink(&mut self, len: u64) {
        let spare = self.bytes.saturating_sub(len.next_multiple_of(BLOCK));
        self.budget.taken.fetch_sub(spare, Ordering::Relaxed);
        self.bytes -= spare;
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
