//! A part of a batch: where its bytes come from.

use std::ops::Range;

use crate::extents::Key;
use crate::file::{FileState, Stored};
use crate::pool::EXTENT;

/// Files up to this size (bytes) are read many at once, and cached as a whole or not at all.
pub(super) const SMALL: u64 = 64 << 10;
/// Parts count as scattered if the bytes that must be processed exceed the requested bytes by more than this factor.
const SCATTERED_FACTOR: u64 = 8;
/// The maximum length (bytes) of the checksum behind a content.
const MAX_CHECK: u64 = 64;
/// The cost of opening a file and reading a little of it, expressed in bytes.
const OPEN_COST: u64 = 4096;

/// A range of a file, or the place of an item without file content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// The item's position in its order.
    pub(super) item: u32,
    /// Bytes of the item that precede this part.
    pub(super) before: u64,
    pub(super) origin: Origin,
    /// Offset of the first byte in the file.
    pub(super) offset: u64,
    /// Length in bytes.
    pub(super) len: usize,
}

/// Where the bytes of a part come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The part has no file content.
    NoFile,
    /// The file must not be sent to clients, so the part fails.
    Denied,
    /// The tree: the file's row and its indexed state.
    Tree(u32, FileState),
    /// The store, which has the content of the file at this row.
    Store(u32, Stored),
}

impl Part {
    /// Returns whether there is nothing to read.
    pub(super) fn needs_no_read(&self) -> bool {
        matches!(self.origin, Origin::NoFile | Origin::Denied)
    }

    /// Returns whether there is nothing to read from the tree.
    pub(super) fn is_stored(&self) -> bool {
        !matches!(self.origin, Origin::Tree(..))
    }

    /// Returns the range of its bytes in memory that holds the whole file from `start` on.
    pub(super) fn within(&self, start: usize) -> Range<usize> {
        let start = start + self.offset as usize;
        start..start + self.len
    }

    /// Returns the file that is read from the tree. `None` if the part does not come from there.
    fn file(&self) -> Option<FileState> {
        match self.origin {
            Origin::Tree(_, file) => Some(file),
            Origin::NoFile | Origin::Denied | Origin::Store(..) => None,
        }
    }

    /// Returns the extent that the part lies in, and its range there. A part never crosses the end of an extent. `None`
    /// if the part does not come from the tree.
    pub(super) fn place(&self) -> Option<(Key, Range<usize>)> {
        let file = self.file()?;
        let within = (self.offset % EXTENT as u64) as usize;
        Some((Key { file, number: self.offset / EXTENT as u64 }, within..within + self.len))
    }

    /// Returns the file if the part is the whole of a small file from the tree.
    pub(super) fn small_file(&self) -> Option<FileState> {
        let file = self.file()?;
        ((1..=SMALL).contains(&file.size()) && self.len as u64 == file.size()).then_some(file)
    }
}

/// Returns whether the parts ask for little out of much: bits of files, for which whole files have to be opened or
/// checked. Whole files never count as scattered, however small they are.
pub(super) fn is_scattered(parts: &[Part]) -> bool {
    let (mut requested, mut processed) = (0, 0);
    for part in parts {
        let len = part.len as u64;
        requested += len;
        processed += match part.origin {
            Origin::NoFile | Origin::Denied => 0,
            Origin::Store(_, stored) if u64::from(stored.len) <= len + MAX_CHECK => len,
            Origin::Store(_, stored) => u64::from(stored.len),
            Origin::Tree(_, file) if len == file.size() => len,
            Origin::Tree(..) => len.max(OPEN_COST),
        };
    }
    // A single part is quickly done.
    parts.len() > 1 && processed > requested * SCATTERED_FACTOR && processed > OPEN_COST
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
        assert!(!is_scattered(&[part(large, 3)]), "a single part is quickly done");
        assert!(!is_scattered(&[part(large, 1024); 128]), "blocks");
        assert!(!is_scattered(&[part(stored(11), 3); 256]), "whole files");
        assert!(!is_scattered(&[part(Origin::NoFile, 0); 256]));
        // One block outweighs only some of the bits beside it.
        let mixed: Vec<Part> = [part(large, 4096)].into_iter().chain(vec![part(large, 3); 127]).collect();
        assert!(is_scattered(&mixed));
    }
}
