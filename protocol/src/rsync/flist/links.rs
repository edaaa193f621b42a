//! Records which entry of a hard link group was sent first.

use crate::list::{FLAG_LINKED, ListRef};

/// The index of each group's first entry, in four bytes per linked name.
#[derive(Debug)]
pub(super) struct Links {
    /// The indices, by the position of the group's leader among the list's links. [`UNSENT`] if none was sent.
    first: Vec<u32>,
    /// The position after the last row looked up. Rows mostly come in order.
    next: usize,
}

const UNSENT: u32 = u32::MAX;

/// Returns whether a row is one of several names of its inode.
pub(super) fn is_linked(list: ListRef<'_>, row: u32) -> bool {
    list.archived().flags.get(row as usize).is_some_and(|flags| flags & FLAG_LINKED != 0)
}

impl Links {
    pub(super) fn of(list: ListRef<'_>) -> Self {
        Self { first: vec![UNSENT; list.links().len()], next: 0 }
    }

    /// Returns the memory used, in bytes.
    pub(super) fn memory(&self) -> usize {
        size_of::<u32>() * self.first.capacity()
    }

    /// Returns the index of the first entry of a linked row's group. `None` if this row, at index `ndx`, is
    /// the first.
    pub(super) fn first(&mut self, list: ListRef<'_>, row: u32, ndx: u32) -> Option<u32> {
        let links = list.archived();
        let place = |rows: &[_], row: u32| rows.partition_point(|other: &rkyv::rend::u32_le| other.to_native() < row);
        let rows = &links.link_row[..];
        let at = if rows.get(self.next).is_some_and(|next| *next == row) { self.next } else { place(rows, row) };
        self.next = at + 1;
        let leader = links.link_leader.get(at)?.to_native();
        let leader = if leader == row { at } else { place(&rows[..at], leader) };
        let first = self.first.get_mut(leader)?;
        if *first == UNSENT {
            *first = ndx;
            return None;
        }
        Some(*first)
    }
}
