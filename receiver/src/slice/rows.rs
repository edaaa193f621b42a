//! A set of rows of one list.

use stillmirror_protocol::list::{Dir, ListRef};

/// Rows at and below one directory, each with the directories that lead to it.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    bits: Vec<u64>,
}

impl Rows {
    /// Creates an empty set for a list.
    pub(crate) fn new(list: ListRef<'_>) -> Self {
        Self { bits: vec![0; (list.len() as usize).div_ceil(64)] }
    }

    pub(crate) fn contains(&self, row: u32) -> bool {
        self.bits.get(row as usize / 64).is_some_and(|bits| bits & (1 << (row % 64)) != 0)
    }

    /// Adds a row and the directories above it.
    pub(crate) fn add(&mut self, list: ListRef<'_>, row: u32) {
        let mut at = row;
        while self.insert(at) && at != 0 {
            at = list.parent_of(at).row();
        }
    }

    /// Adds a directory and everything below it.
    pub(crate) fn add_below(&mut self, list: ListRef<'_>, dir: Dir<'_>) {
        self.add(list, dir.row());
        let mut dirs = vec![dir.number()];
        while let Some(dir) = dirs.pop().map(|number| list.dir(number)) {
            for row in dir.rows() {
                self.insert(row);
                dirs.extend(list.row(row).dir_number());
            }
        }
    }

    /// Returns whether the row is new.
    fn insert(&mut self, row: u32) -> bool {
        let (Some(bits), bit) = (self.bits.get_mut(row as usize / 64), 1 << (row % 64)) else { return false };
        let is_new = *bits & bit == 0;
        *bits |= bit;
        is_new
    }
}
