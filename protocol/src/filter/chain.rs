//! Patterns in order, of which the first that matches decides.

use super::pattern::{Pattern, Subject};

/// Patterns in order. A name's first and last byte leave few of them to be compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    links: Vec<Link>,
    blocks: Vec<Block>,
}

/// A pattern and what becomes of a name that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) pattern: Pattern,
    /// Kept, not left out.
    pub(crate) include: bool,
    /// Decides on all that the pattern does not match.
    pub(crate) negated: bool,
    /// Compared with the path relative to the module, wherever the transfer begins.
    pub(crate) absolute: bool,
}

/// Which of 64 links can decide on a name, by bytes of the name; a bit a link.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    first: Box<[u64; 256]>,
    last: Box<[u64; 256]>,
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

    /// Whether the subject is kept, by the first link that decides; none when none does. Adds what it cost
    /// to `work`, and gives up when that is more than `most`.
    pub(crate) fn decide(&self, subject: &Subject<'_>, work: &mut u64, most: u64) -> Option<bool> {
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
                if *work > most {
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
