//! Names that a client asked for and that are not there, listed so that it deletes them
//! (`--delete-missing-args`): entries of mode 0 in the order of the others.
//!
//! Source: a stock 3.5.0 daemon observed at protocols 27 to 31.

use super::merge::compare;
use crate::rsync::version::ListOrder;

/// The names that are still to be written, the next one last.
#[derive(Debug)]
pub(super) struct Gone {
    order: ListOrder,
    names: Vec<Vec<u8>>,
}

impl Gone {
    pub(super) fn new(mut names: Vec<Vec<u8>>, order: ListOrder) -> Self {
        names.sort_unstable_by(|a, b| compare(order, (b, false), (a, false)));
        names.dedup();
        Self { order, names }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Takes the next name, if its turn is before an entry's.
    pub(super) fn next_before(&mut self, name: &[u8], is_dir: bool) -> Option<Vec<u8>> {
        self.names.pop_if(|gone| compare(self.order, (gone, false), (name, is_dir)).is_lt())
    }

    /// Takes the next name.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        self.names.pop()
    }
}
