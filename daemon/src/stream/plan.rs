//! Cutting an order into pieces of one buffer each.

use std::ops::Range;
use std::sync::Arc;

use super::layout::Layout;
use super::part::{Origin, Part, SMALL};
use super::{ItemContent, Order};
use crate::extents::Key;
use crate::file::Stored;
use crate::pool::EXTENT;

/// The maximum number of files in one batch. They are read together, while other batches are read in parallel.
const MAX_FILES: usize = 128;
/// Bytes that are planned of an extent if all of it is too much for one piece. What then remains of a whole extent still
/// counts as most of it.
const HALF: usize = EXTENT / 2;
/// The maximum number of parts in one batch, including those without a file. Their protocol bytes are sent in one call.
const MAX_PARTS: usize = 256;

/// The content of one buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Small files, small ranges of large ones, and items without file content. Empty for an order without items.
    Batch(Vec<Part>),
    /// All or most of an extent of a large file.
    Extent(ExtentPiece),
}

/// All or most of an extent of a large file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtentPiece {
    /// The item's position in its order.
    pub(super) item: u32,
    /// Bytes of the item that precede this piece.
    pub(super) before: u64,
    /// The file's row.
    pub(super) row: u32,
    pub(super) key: Key,
    /// The range of the file that the extent covers.
    pub(super) span: Range<u64>,
    /// The range within the extent that is asked for.
    pub(super) within: Range<usize>,
}

/// How far an order is planned: the next item, and the bytes of it that are planned already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Cursor {
    item: u32,
    done: u64,
}

/// The rest of an order.
pub(super) struct Plan<O> {
    order: Arc<O>,
    cursor: Cursor,
}

impl<O: Order> Plan<O> {
    /// Creates a plan for a whole order.
    pub(super) fn new(order: Arc<O>) -> Self {
        Self { order, cursor: Cursor::default() }
    }

    pub(super) fn order(&self) -> &Arc<O> {
        &self.order
    }

    pub(super) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Returns to an earlier cursor.
    pub(super) fn rewind(&mut self, cursor: Cursor) {
        self.cursor = cursor;
    }

    /// Skips the rest of an item.
    pub(super) fn skip(&mut self, item: u32) {
        if self.cursor.item == item && !self.is_done() {
            self.cursor = Cursor { item: item + 1, done: 0 };
        }
    }

    /// Returns whether the whole order is planned.
    pub(super) fn is_done(&self) -> bool {
        self.cursor.item >= self.order.len()
    }

    /// Returns the next piece if it is an extent, without planning it.
    pub(super) fn peek_extent(&self) -> Option<ExtentPiece> {
        match (!self.is_done()).then(|| self.step()) {
            Some(NextPart::Extent(extent)) => Some(extent),
            _ => None,
        }
    }

    /// Plans the next piece. Of an extent, it plans only the first [`HALF`].
    pub(super) fn next_of_extent(&mut self) -> Piece {
        let Some(mut extent) = self.peek_extent() else { return self.next() };
        extent.within.end = extent.within.end.min(extent.within.start + HALF);
        self.advance(extent.within.len());
        Piece::Extent(extent)
    }

    /// Plans the next piece.
    pub(super) fn next(&mut self) -> Piece {
        let mut parts = Vec::new();
        let (mut layout, mut files) = (Layout::default(), 0);
        while !self.is_done() && parts.len() < MAX_PARTS {
            match self.step() {
                NextPart::Extent(extent) if parts.is_empty() => {
                    self.advance(extent.within.len());
                    return Piece::Extent(extent);
                }
                NextPart::Part(part) if part.needs_no_read() => {
                    self.advance(part.len);
                    parts.push(part);
                }
                NextPart::Part(part) if files < MAX_FILES && layout.add(&part) => {
                    files += 1;
                    self.advance(part.len);
                    parts.push(part);
                }
                NextPart::Extent(_) | NextPart::Part(_) => break,
            }
        }
        Piece::Batch(parts)
    }

    /// Returns what comes next: the rest of the item within one extent of its file. If most of an extent of a large
    /// file is asked for, the extent is read as a whole, so that other sessions can use it.
    fn step(&self) -> NextPart {
        let Cursor { item, done } = self.cursor;
        let ItemContent::Bytes { row, offset, len, is_redo } = self.order.content(item) else {
            return NextPart::Part(Part { item, before: 0, origin: Origin::NoFile, offset: 0, len: 0 });
        };
        let (edition, begin) = (&self.order.pinned().edition, offset + done);
        if !self.order.pinned().may_send(row) {
            let len = usize::try_from(len - done).unwrap_or(usize::MAX);
            return NextPart::Part(Part { item, before: done, origin: Origin::Denied, offset: begin, len });
        }
        if let Some(stored) = Stored::of(&edition.generation, row).filter(|_| !is_redo) {
            let (origin, len) = (Origin::Store(row, stored), (len - done) as usize);
            return NextPart::Part(Part { item, before: done, origin, offset: begin, len });
        }
        let file = edition.tree.indexed(&edition.generation, row);
        let extent = EXTENT as u64;
        let start = begin - begin % extent;
        let span = start..(start + extent).min(file.size());
        let end = (offset + len).min(span.end);
        if file.size() <= SMALL || begin == end || (end - begin) * 2 < span.end - span.start {
            let len = (end - begin) as usize;
            return NextPart::Part(Part { item, before: done, origin: Origin::Tree(row, file), offset: begin, len });
        }
        let within = (begin - start) as usize..(end - start) as usize;
        let key = Key { file, number: start / extent };
        NextPart::Extent(ExtentPiece { item, before: done, row, key, span, within })
    }

    /// Advances by `len` bytes of the item, and to the next item if none of its bytes are left.
    fn advance(&mut self, len: usize) {
        self.cursor.done += len as u64;
        let wanted = match self.order.content(self.cursor.item) {
            ItemContent::NoFile => 0,
            ItemContent::Bytes { len, .. } => len,
        };
        if self.cursor.done >= wanted {
            self.cursor = Cursor { item: self.cursor.item + 1, done: 0 };
        }
    }
}

enum NextPart {
    Extent(ExtentPiece),
    Part(Part),
}
