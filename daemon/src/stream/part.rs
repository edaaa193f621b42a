//! A part of a batch: where its bytes come from.

use std::ops::Range;

use crate::extents::Key;
use crate::file::{FileState, Stored};
use crate::pool::EXTENT;

/// Files up to this size (bytes) are read beside each other, and kept as a whole or not at all.
pub(super) const SMALL: u64 = 64 << 10;
/// How many bytes have to be worked for one that is asked for before parts count as scattered.
const SCATTERED: u64 = 8;
/// Bytes of the check behind a content, at most.
const CHECK: u64 = 64;
/// Bytes that opening a file, and reading a little of it, costs as much as.
const OPENED: u64 = 4096;

/// A range of a file, or a place for words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// The item's place in its order.
    pub(super) item: u32,
    /// Bytes of the item that come before.
    pub(super) before: u64,
    /// Where its bytes are.
    pub(super) origin: Origin,
    /// First byte, in the file.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: usize,
}

/// Where the bytes of a part are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// There are none.
    Words,
    /// In a file that is not for clients: the part fails.
    Denied,
    /// In the tree: the file's row, and the file.
    Tree(u32, FileState),
    /// In the store, which has the content of the file at that row.
    Store(u32, Stored),
}

impl Part {
    /// Whether there is nothing to read.
    pub(super) fn is_words(&self) -> bool {
        matches!(self.origin, Origin::Words | Origin::Denied)
    }

    /// Whether there is nothing to read from the tree.
    pub(super) fn is_stored(&self) -> bool {
        !matches!(self.origin, Origin::Tree(..))
    }

    /// Its bytes in memory where the whole file begins at `start`.
    pub(super) fn within(&self, start: usize) -> Range<usize> {
        let start = start + self.offset as usize;
        start..start + self.len
    }

    /// The file of the tree that it is of.
    fn file(&self) -> Option<FileState> {
        match self.origin {
            Origin::Tree(_, file) => Some(file),
            Origin::Words | Origin::Denied | Origin::Store(..) => None,
        }
    }

    /// The extent that it lies in, and where in it. No part crosses the end of one.
    pub(super) fn place(&self) -> Option<(Key, Range<usize>)> {
        let file = self.file()?;
        let within = (self.offset % EXTENT as u64) as usize;
        Some((Key { file, number: self.offset / EXTENT as u64 }, within..within + self.len))
    }

    /// The small file of the tree of which it is the whole, if it is.
    pub(super) fn small_file(&self) -> Option<FileState> {
        let file = self.file()?;
        ((1..=SMALL).contains(&file.size()) && self.len as u64 == file.size()).then_some(file)
    }
}

/// Whether the parts ask for little out of much: bits of files, for which whole files have to be opened or checked. Whole
/// files never do, however small they are.
pub(super) fn is_scattered(parts: &[Part]) -> bool {
    let (mut asked, mut worked) = (0, 0);
    for part in parts {
        let len = part.len as u64;
        asked += len;
        worked += match part.origin {
            Origin::Words | Origin::Denied => 0,
            Origin::Store(_, stored) if u64::from(stored.len) <= len + CHECK => len,
            Origin::Store(_, stored) => u64::from(stored.len),
            Origin::Tree(_, file) if len == file.size() => len,
            Origin::Tree(..) => len.max(OPENED),
        };
    }
    // One is soon done.
    parts.len() > 1 && worked > asked * SCATTERED && worked > OPENED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::state;

    fn part(origin: Origin, len: usize) -> Part {
        Part { item: 0, before: 0, origin, offset: 0, len }
    }

    #[test]
    fn bits_of_many_files_are_scattered_and_whole_files_and_blocks_are_not() {
        let stored = |len| Origin::Store(0, Stored { pack: 0, file: 0, at: 0, len });
        let large = Origin::Tree(0, state(1));
        assert!(is_scattered(&[part(large, 3); 128]) && is_scattered(&[part(stored(16 << 10), 3); 128]));
        assert!(!is_scattered(&[part(large, 3)]), "one is soon done");
        assert!(!is_scattered(&[part(large, 1024); 128]), "blocks");
        assert!(!is_scattered(&[part(stored(11), 3); 256]), "whole files");
        assert!(!is_scattered(&[part(Origin::Words, 0); 256]));
        // A block among bits pays for some of them alone.
        let mixed: Vec<Part> = [part(large, 4096)].into_iter().chain(vec![part(large, 3); 127]).collect();
        assert!(is_scattered(&mixed));
    }
}
