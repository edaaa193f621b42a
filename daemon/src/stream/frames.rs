//! The output for a piece: protocol bytes of the dialect, and references to file bytes in the piece's memory.

use std::io::IoSlice;
use std::ops::Range;

use stillmirror_protocol::wire::ItemFailure;

use crate::pipe::Part;

/// Protocol bytes and file bytes in sending order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Frames {
    protocol: Vec<u8>,
    spans: Vec<Span>,
    len: usize,
    literal: u64,
    failures: Vec<(u32, ItemFailure)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Span {
    /// A range of the protocol bytes.
    Protocol(Range<usize>),
    /// A range of the piece's memory.
    File(Range<usize>),
}

impl Frames {
    /// Appends protocol bytes. Returns their position, for [`Frames::overwrite`].
    pub(crate) fn push_protocol(&mut self, bytes: &[u8]) -> usize {
        self.write_protocol(|out| out.extend_from_slice(bytes))
    }

    /// Appends the protocol bytes that `write` appends to its buffer. Returns their position.
    pub(crate) fn write_protocol(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.protocol.len();
        write(&mut self.protocol);
        let end = self.protocol.len().max(start);
        self.len += end - start;
        match self.spans.last_mut() {
            Some(Span::Protocol(last)) if last.end == start => last.end = end,
            _ => self.spans.push(Span::Protocol(start..end)),
        }
        start
    }

    /// Overwrites protocol bytes that were appended at `place`.
    pub(crate) fn overwrite(&mut self, place: usize, bytes: &[u8]) {
        self.protocol[place..place + bytes.len()].copy_from_slice(bytes);
    }

    /// Appends a range of the piece's memory that holds file bytes.
    pub(crate) fn push_file(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        self.len += range.len();
        self.literal += range.len() as u64;
        self.spans.push(Span::File(range));
    }

    /// Records that the rest of an item is not sent.
    pub(crate) fn push_failure(&mut self, item: u32, reason: ItemFailure) {
        self.failures.push((item, reason));
    }

    /// Returns the total length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the number of file bytes.
    pub(crate) fn literal(&self) -> u64 {
        self.literal
    }

    /// Returns the items that fail, and why.
    pub(crate) fn failures(&self) -> &[(u32, ItemFailure)] {
        &self.failures
    }

    /// Returns whether these frames can replace `begun`, of which a part is sent already: the protocol bytes are
    /// equal, and so are the lengths of all spans.
    pub(super) fn continues(&self, begun: &Self) -> bool {
        let lens = |frames: &Self| frames.spans.iter().map(Span::len).collect::<Vec<_>>();
        self.protocol == begun.protocol && lens(self) == lens(begun)
    }

    /// Returns the protocol bytes, and what to put into a pipe. `start` is the offset of the piece's first byte in its
    /// file.
    pub(super) fn parts(&self, start: u64) -> (&[u8], impl Iterator<Item = Part> + Clone) {
        let part = move |span: &Span| match span {
            Span::Protocol(range) => Part::Protocol(range.clone()),
            Span::File(range) => Part::File(start + range.start as u64..start + range.end as u64),
        };
        (&self.protocol, self.spans.iter().map(part))
    }

    /// Returns what is to be sent after the first `skip` bytes. `memory` is the piece's memory.
    pub(crate) fn slices<'a>(&'a self, memory: &'a [u8], skip: usize) -> Vec<IoSlice<'a>> {
        let bytes = |span: &Span| match span {
            Span::Protocol(range) => &self.protocol[range.clone()],
            Span::File(range) => &memory[range.clone()],
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
            Self::Protocol(range) | Self::File(range) => range.len(),
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
    fn protocol_and_file_bytes_are_sent_in_order_from_any_offset() {
        let mut frames = Frames::default();
        let place = frames.push_protocol(b"??");
        frames.push_protocol(b":");
        frames.push_file(1..3);
        frames.push_file(5..6);
        frames.push_protocol(b";");
        frames.overwrite(place, b"ab");
        let expected = b"ab:125;";
        for skip in 0..=expected.len() {
            assert_eq!(joined(&frames, b"0123456789", skip), &expected[skip..]);
        }
        assert_eq!((frames.len(), frames.literal()), (expected.len(), 3));
    }

    #[test]
    fn parts_give_the_file_offsets_of_their_bytes() {
        let mut frames = Frames::default();
        frames.push_protocol(b"ab");
        frames.push_file(1..3);
        frames.push_protocol(b"c");
        let (protocol, parts) = frames.parts(1000);
        assert_eq!(protocol, b"abc");
        assert!(parts.eq([Part::Protocol(0..2), Part::File(1001..1003), Part::Protocol(2..3)]));
    }

    #[test]
    fn frames_that_differ_do_not_continue_those_that_were_begun() {
        let frames = |range: Range<usize>, protocol: &[u8]| {
            let mut frames = Frames::default();
            frames.push_file(range);
            frames.push_protocol(protocol);
            frames
        };
        let begun = frames(0..10, b"a");
        assert!(frames(4..14, b"a").continues(&begun));
        assert!(!frames(0..9, b"a").continues(&begun) && !frames(0..10, b"b").continues(&begun));
    }
}
