//! Which entry of a link group was sent first.

use crate::list::{FLAG_LINKED, ListRef};

/// The index of every group's first entry, in four bytes a linked name.
#[derive(Debug)]
pub(super) struct Links {
    /// By the place of the group's leader among the list's links; [`UNSENT`] so far.
    first: Vec<u32>,
    /// The place after the last one asked for: rows mostly come in order.
    next: usize,
}

const UNSENT: u32 = u32::MAX;

/// Whether a row is one of several names of its inode.
pub(super) fn is_linked(list: ListRef<'_>, row: u32) -> bool {
    list.archived().flags.get(row as usize).is_some_and(|flags| flags & FLAG_LINKED != 0)
}

impl Links {
    pub(super) fn of(list: ListRef<'_>) -> Self {
        Self { first: vec![UNSENT; list.links().len()], next: 0 }
    }

    /// Bytes that it takes.
    pub(super) fn memory(&self) -> usize {
        size_of::<u32>() * self.first.capacity()
    }

    /// The index of the first entry of a linked row's group; none when this one, at `ndx`, is it.
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
