//! Missing names that are listed so that the client deletes them (`--delete-missing-args`). They are entries
//! of mode 0 and are sorted among the others.
//!
//! Source: a stock 3.5.0 daemon observed at protocols 27 to 31.

use super::merge::compare;
use crate::rsync::version::ListOrder;

/// The names that have not been written yet, the next one last.
#[derive(Debug)]
pub(super) struct Deletions {
    order: ListOrder,
    names: Vec<Vec<u8>>,
}

impl Deletions {
    pub(super) fn new(mut names: Vec<Vec<u8>>, order: ListOrder) -> Self {
        names.sort_unstable_by(|a, b| compare(order, (b, false), (a, false)));
        names.dedup();
        Self { order, names }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Takes the next name if it comes before this entry.
    pub(super) fn next_before(&mut self, name: &[u8], is_dir: bool) -> Option<Vec<u8>> {
        self.names.pop_if(|deletion| compare(self.order, (deletion, false), (name, is_dir)).is_lt())
    }

    /// Takes the next name.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        self.names.pop()
    }
}
