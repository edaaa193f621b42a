//! Cutting a request into pieces of one buffer each.

use std::ops::Range;
use std::sync::Arc;

use super::Order;
use crate::extents::Key;
use crate::file::{FileState, OpenFile};
use crate::pool::EXTENT;

/// Files up to this size (bytes) are read beside each other and not kept for other clients: the next
/// one would have to ask within milliseconds for that to pay.
const SMALL: u64 = 64 << 10;
/// Parts of one batch: they are read one after the other, while other batches are read beside it.
const BATCH: usize = 32;

/// What is read into one buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// No bytes: the end of a request that asks for none.
    Nothing,
    /// Small files, and small ranges of large ones.
    Batch(Vec<Part>),
    /// All or most of an extent of a large file.
    Extent {
        /// Its place in the request.
        item: u32,
        /// The file's row.
        row: u32,
        /// The extent.
        key: Key,
        /// Bytes of the file that the extent covers.
        span: Range<u64>,
        /// The part of the extent that is asked for.
        within: Range<usize>,
    },
}

/// A range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Its place in the request.
    pub(super) item: u32,
    /// The file's row.
    pub(super) row: u32,
    /// First byte.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: usize,
}

/// How far a request is planned: items, and bytes of the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Cursor {
    item: usize,
    done: u64,
}

/// The rest of a request.
pub(super) struct Plan {
    order: Arc<Order>,
    cursor: Cursor,
}

impl Plan {
    /// All of a request.
    pub(super) fn new(order: Arc<Order>) -> Self {
        let mut plan = Self { order, cursor: Cursor::default() };
        plan.normalise();
        plan
    }

    /// The request.
    pub(super) fn order(&self) -> &Arc<Order> {
        &self.order
    }

    /// Where the plan stands.
    pub(super) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Goes back to where it stood before.
    pub(super) fn rewind(&mut self, cursor: Cursor) {
        self.cursor = cursor;
    }

    /// Plans nothing more of an item.
    pub(super) fn skip(&mut self, item: u32) {
        if self.cursor.item == item as usize {
            self.cursor = Cursor { item: self.cursor.item + 1, done: 0 };
            self.normalise();
        }
    }

    /// Whether all is planned.
    pub(super) fn is_done(&self) -> bool {
        self.cursor.item >= self.order.items.len()
    }

    /// The extent that comes next, if one does.
    pub(super) fn peek_extent(&self) -> Option<Key> {
        match (!self.is_done()).then(|| self.step()) {
            Some(Step::Extent(Piece::Extent { key, .. })) => Some(key),
            _ => None,
        }
    }

    /// Plans the next piece.
    pub(super) fn next(&mut self) -> Piece {
        let mut parts = Vec::new();
        let mut room = EXTENT;
        while !self.is_done() {
            match self.step() {
                Step::Extent(piece) if parts.is_empty() => {
                    if let Piece::Extent { within, .. } = &piece {
                        self.advance(within.len());
                    }
                    return piece;
                }
                Step::Part(part) if parts.len() < BATCH && OpenFile::room(part.offset, part.len) <= room => {
                    room -= OpenFile::room(part.offset, part.len);
                    self.advance(part.len);
                    parts.push(part);
                }
                Step::Extent(_) | Step::Part(_) => break,
            }
        }
        if parts.is_empty() { Piece::Nothing } else { Piece::Batch(parts) }
    }

    /// What comes next: the rest of the item within one extent of its file. Most of the extent of a
    /// large file is read as a whole, for others to use.
    fn step(&self) -> Step {
        let item = self.order.items[self.cursor.item];
        let generation = &self.order.pinned.edition.generation;
        let file = FileState::indexed(generation, item.row);
        let begin = item.offset + self.cursor.done;
        let extent = EXTENT as u64;
        let start = begin - begin % extent;
        let span = start..(start + extent).min(file.size());
        let end = (item.offset + item.len).min(span.end);
        let len = (end - begin) as usize;
        let at = self.cursor.item as u32;
        if file.size() <= SMALL || (end - begin) * 2 < span.end - span.start {
            return Step::Part(Part { item: at, row: item.row, offset: begin, len });
        }
        let within = (begin - start) as usize..(end - start) as usize;
        let key = Key { file, number: start / extent };
        Step::Extent(Piece::Extent { item: at, row: item.row, key, span, within })
    }

    fn advance(&mut self, len: usize) {
        self.cursor.done += len as u64;
        self.normalise();
    }

    /// Leaves items behind of which nothing is left.
    fn normalise(&mut self) {
        while self.order.items.get(self.cursor.item).is_some_and(|item| self.cursor.done >= item.len) {
            self.cursor = Cursor { item: self.cursor.item + 1, done: 0 };
        }
    }
}

enum Step {
    Extent(Piece),
    Part(Part),
}
