//! The disk that encoded lists take, counted for as long as they take it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Files take whole blocks.
const BLOCK: u64 = 4096;

/// Bytes of disk for encoded lists, whether they have a name, are mapped, or are being written.
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

    /// Bytes taken beyond the limit: files that were there before this process.
    pub(super) fn excess(&self) -> u64 {
        self.taken().saturating_sub(self.limit)
    }
}

/// What one file takes of the budget. The file's name and everybody who maps it share it, so that a file that was
/// removed counts until the last of them is done with it.
#[derive(Debug)]
pub(super) struct Space {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Space {
    /// For a file that is still to be written.
    pub(super) fn none(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    /// Of a file that is there, whatever the limit.
    pub(super) fn of_file(budget: &Arc<Budget>, len: u64) -> Self {
        let bytes = len.next_multiple_of(BLOCK);
        budget.taken.fetch_add(bytes, Ordering::Relaxed);
        Self { budget: Arc::clone(budget), bytes }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes so much more, if there is as much left.
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        let fits = |taken: u64| taken.checked_add(bytes).filter(|&taken| taken <= self.budget.limit);
        let has_grown = self.budget.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if has_grown {
            self.bytes += bytes;
        }
        has_grown
    }

    /// Gives back what a file of `len` bytes does not need.
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
