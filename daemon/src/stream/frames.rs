//! What goes out for a piece: words of the dialect's own, and bytes of files where they were read to.

use std::io::IoSlice;
use std::ops::Range;

use stillmirror_protocol::wire::ItemFailure;

use crate::pipe::Part;

/// Words and bytes in order of sending.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Frames {
    words: Vec<u8>,
    spans: Vec<Span>,
    len: usize,
    literal: u64,
    failures: Vec<(u32, ItemFailure)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Span {
    /// A range of the words.
    Words(Range<usize>),
    /// A range of the piece's memory.
    Bytes(Range<usize>),
}

impl Frames {
    /// Appends words and gives their place among the words.
    pub(crate) fn words(&mut self, bytes: &[u8]) -> usize {
        self.write(|words| words.extend_from_slice(bytes))
    }

    /// Appends the words that `write` appends to what it is given, and gives their place.
    pub(crate) fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.words.len();
        write(&mut self.words);
        let end = self.words.len().max(start);
        self.len += end - start;
        match self.spans.last_mut() {
            Some(Span::Words(last)) if last.end == start => last.end = end,
            _ => self.spans.push(Span::Words(start..end)),
        }
        start
    }

    /// Overwrites words that were appended at `place`.
    pub(crate) fn rewrite(&mut self, place: usize, bytes: &[u8]) {
        self.words[place..place + bytes.len()].copy_from_slice(bytes);
    }

    /// Appends bytes of a file, by their place in the piece's memory.
    pub(crate) fn bytes(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        self.len += range.len();
        self.literal += range.len() as u64;
        self.spans.push(Span::Bytes(range));
    }

    /// Notes that nothing more of an item comes.
    pub(crate) fn fail(&mut self, item: u32, reason: ItemFailure) {
        self.failures.push((item, reason));
    }

    /// Bytes of all.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of files in them.
    pub(crate) fn literal(&self) -> u64 {
        self.literal
    }

    /// The items that fail in them.
    pub(crate) fn failures(&self) -> &[(u32, ItemFailure)] {
        &self.failures
    }

    /// Whether what is left of `begun` can be taken from these frames: they say the same.
    pub(super) fn continues(&self, begun: &Self) -> bool {
        let lens = |frames: &Self| frames.spans.iter().map(Span::len).collect::<Vec<_>>();
        self.words == begun.words && lens(self) == lens(begun)
    }

    /// All that is to be sent, with the words and the place of the piece's first byte in its file.
    pub(super) fn parts(&self, start: u64) -> (&[u8], impl Iterator<Item = Part> + Clone) {
        let part = move |span: &Span| match span {
            Span::Words(range) => Part::Words(range.clone()),
            Span::Bytes(range) => Part::Bytes(start + range.start as u64..start + range.end as u64),
        };
        (&self.words, self.spans.iter().map(part))
    }

    /// What is to be sent after the first `skip` bytes, with the piece's memory.
    pub(crate) fn slices<'a>(&'a self, memory: &'a [u8], skip: usize) -> Vec<IoSlice<'a>> {
        let bytes = |span: &Span| match span {
            Span::Words(range) => &self.words[range.clone()],
            Span::Bytes(range) => &memory[range.clone()],
        };
        let mut skip = skip;
        let mut slices = Vec::with_capacity(self.spans.len());
        for span in &self.spans {
            let skipped = skip.min(span.len());
            skip -= skipped;
            if skipped < span.len() {
                slices.push(IoSlice::new(&bytes(span)[skipped..]));
            }
        }
        slices
    }
}

impl Span {
    fn len(&self) -> usize {
        match self {
            Self::Words(range) | Self::Bytes(range) => range.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(frames: &Frames, memory: &[u8], skip: usize) -> Vec<u8> {
        frames.slices(memory, skip).iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn words_and_bytes_go_out_in_order_from_any_byte_on() {
        let mut frames = Frames::default();
        let place = frames.words(b"??");
        frames.words(b":");
        frames.bytes(1..3);
        frames.bytes(5..6);
        frames.words(b";");
        frames.rewrite(place, b"ab");
        let expected = b"ab:125;";
        for skip in 0..=expected.len() {
            assert_eq!(joined(&frames, b"0123456789", skip), &expected[skip..]);
        }
        assert_eq!((frames.len(), frames.literal()), (expected.len(), 3));
    }

    #[test]
    fn the_parts_of_frames_say_where_in_the_file_their_bytes_are() {
        let mut frames = Frames::default();
        frames.words(b"ab");
        frames.bytes(1..3);
        frames.words(b"c");
        let (words, parts) = frames.parts(1000);
        assert_eq!(words, b"abc");
        assert!(parts.eq([Part::Words(0..2), Part::Bytes(1001..1003), Part::Words(2..3)]));
    }

    #[test]
    fn frames_that_were_begun_are_not_continued_with_others() {
        let frames = |range: Range<usize>, words: &[u8]| {
            let mut frames = Frames::default();
            frames.bytes(range);
            frames.words(words);
            frames
        };
        let begun = frames(0..10, b"a");
        assert!(frames(4..14, b"a").continues(&begun));
        assert!(!frames(0..9, b"a").continues(&begun) && !frames(0..10, b"b").continues(&begun));
    }
}
