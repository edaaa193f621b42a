//! An ordered list of patterns, of which the first that matches decides.

use super::pattern::{Pattern, Subject};

/// An ordered list of patterns. Blocks of bit sets select the few patterns that can match a name, by the name's first and
/// last byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    links: Vec<Link>,
    blocks: Vec<Block>,
}

/// A pattern, and what happens to a name that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) pattern: Pattern,
    /// Whether the name is kept, rather than excluded.
    pub(crate) include: bool,
    /// Whether the link decides about names that the pattern does not match, rather than those that it matches.
    pub(crate) negated: bool,
    /// Whether the pattern is compared with the path relative to the module, even if the transfer begins below it.
    pub(crate) absolute: bool,
}

/// Up to 64 consecutive links: bit sets of the links that can decide about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    /// By the first byte of the name.
    first: Box<[u64; 256]>,
    /// By the last byte of the name.
    last: Box<[u64; 256]>,
    /// The links that can decide about non-directories.
    files: u64,
}

impl Chain {
    pub(crate) fn push(&mut self, link: Link) {
        let bit = 1 << (self.links.len() % 64);
        if bit == 1 {
            self.blocks.push(Block { first: Box::new([0; 256]), last: Box::new([0; 256]), files: 0 });
        }
        if let Some(block) = self.blocks.last_mut() {
            let (first, last) = (link.pattern.first_bytes(), link.pattern.last_bytes());
            for byte in 0..=u8::MAX {
                let mark = |set: &mut u64, can: bool| *set |= if can || link.negated { bit } else { 0 };
                mark(&mut block.first[usize::from(byte)], first.has(byte));
                mark(&mut block.last[usize::from(byte)], last.has(byte));
            }
            block.files |= if link.pattern.directories_only() && !link.negated { 0 } else { bit };
        }
        self.links.push(link);
    }

    pub(crate) fn links(&self) -> &[Link] {
        &self.links
    }

    /// Returns whether the first link that decides keeps the subject. `None` if no link decides. Adds the number of
    /// matching steps to `work` and gives up, with `None`, when that exceeds `limit`.
    pub(crate) fn decide(&self, subject: &Subject<'_>, work: &mut u64, limit: u64) -> Option<bool> {
        let name = &subject.path[subject.name..];
        let (first, last) = (usize::from(*name.first()?), usize::from(*name.last()?));
        for (block, links) in self.blocks.iter().zip(self.links.chunks(64)) {
            let mut candidates = block.first[first] & block.last[last];
            if !subject.is_dir {
                candidates &= block.files;
            }
            while candidates != 0 {
                let link = &links[candidates.trailing_zeros() as usize];
                candidates &= candidates - 1;
                if *work > limit {
                    return None;
                }
                if link.pattern.matches(subject, link.absolute, work) != link.negated {
                    return Some(link.include);
                }
            }
        }
        None
    }
}
