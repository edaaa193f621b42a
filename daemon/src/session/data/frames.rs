//! The frames that carry a piece: headers of their own, payloads where they were read to.

use std::io::IoSlice;
use std::ops::Range;

use stillmirror_protocol::wire::{FRAME_HEADER_BYTES, FrameHeader, ItemFailure, Reply, kind};

/// Frames in order of sending.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frames {
    request: u32,
    /// Headers and small frames.
    heads: Vec<u8>,
    spans: Vec<Span>,
    /// Where in `heads` the frame of bytes begins that more bytes may join.
    open: Option<usize>,
    len: usize,
    literal: u64,
    failures: Vec<(u32, ItemFailure)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Span {
    Head(Range<usize>),
    Body(Range<usize>),
}

impl Frames {
    /// No frames, in answer to a request.
    pub(super) fn new(request: u32) -> Self {
        Self { request, heads: Vec::new(), spans: Vec::new(), open: None, len: 0, literal: 0, failures: Vec::new() }
    }

    /// Appends bytes of an item, by their place in the piece. Those of successive items share a frame.
    pub(super) fn bytes(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let added = range.len();
        let header = match self.open {
            Some(at) => at,
            None => {
                let at = self.heads.len();
                self.head(&[0; FRAME_HEADER_BYTES]);
                at
            }
        };
        self.open = Some(header);
        self.spans.push(Span::Body(range));
        self.len += added;
        self.literal += added as u64;
        let bytes = &mut self.heads[header..header + FRAME_HEADER_BYTES];
        let before = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let len = before + added as u32;
        bytes.copy_from_slice(&FrameHeader { len, request: self.request, kind: kind::BYTES }.encode());
    }

    /// Appends the news that nothing more of an item comes.
    pub(super) fn item_failed(&mut self, item: u32, reason: ItemFailure) {
        self.failures.push((item, reason));
        self.reply(&Reply::ItemFailed { item, reason });
    }

    /// Appends the end of the answer.
    pub(super) fn end(&mut self) {
        self.reply(&Reply::End);
    }

    /// Bytes of all frames.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of files in them.
    pub(super) fn literal(&self) -> u64 {
        self.literal
    }

    /// The items that fail in them.
    pub(super) fn failures(&self) -> &[(u32, ItemFailure)] {
        &self.failures
    }

    /// Whether what is left of `begun` can be taken from these frames: they say the same.
    pub(super) fn continues(&self, begun: &Self) -> bool {
        let lens = |frames: &Self| frames.spans.iter().map(Span::len).collect::<Vec<_>>();
        self.heads == begun.heads && lens(self) == lens(begun)
    }

    /// What is to be sent after the first `skip` bytes, with the piece's memory.
    pub(super) fn slices<'a>(&'a self, body: &'a [u8], skip: usize) -> Vec<IoSlice<'a>> {
        let bytes = |span: &Span| match span {
            Span::Head(range) => &self.heads[range.clone()],
            Span::Body(range) => &body[range.clone()],
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

    fn reply(&mut self, reply: &Reply) {
        self.open = None;
        self.head(&reply.frame(self.request));
    }

    fn head(&mut self, bytes: &[u8]) {
        let start = self.heads.len();
        self.heads.extend_from_slice(bytes);
        self.spans.push(Span::Head(start..self.heads.len()));
        self.len += bytes.len();
    }
}

impl Span {
    fn len(&self) -> usize {
        match self {
            Self::Head(range) | Self::Body(range) => range.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(frames: &Frames, body: &[u8], skip: usize) -> Vec<u8> {
        frames.slices(body, skip).iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn successive_items_share_a_frame_that_a_failure_ends() {
        let body = b"0123456789";
        let mut frames = Frames::new(7);
        frames.bytes(1..3);
        frames.bytes(5..6);
        frames.item_failed(2, ItemFailure::Stale);
        frames.bytes(8..10);
        frames.end();
        let expected = [
            stillmirror_protocol::wire::frame(7, kind::BYTES, b"125"),
            Reply::ItemFailed { item: 2, reason: ItemFailure::Stale }.frame(7),
            stillmirror_protocol::wire::frame(7, kind::BYTES, b"89"),
            Reply::End.frame(7),
        ]
        .concat();
        assert_eq!(joined(&frames, body, 0), expected);
        assert_eq!((frames.len(), frames.literal()), (expected.len(), 5));
        for skip in 0..=expected.len() {
            assert_eq!(joined(&frames, body, skip), expected[skip..]);
        }
    }

    #[test]
    fn frames_that_were_begun_are_not_continued_with_others() {
        let mut begun = Frames::new(1);
        begun.bytes(0..10);
        let mut same = Frames::new(1);
        same.bytes(4..14);
        let mut shorter = Frames::new(1);
        shorter.bytes(0..9);
        let mut failed = Frames::new(1);
        failed.item_failed(0, ItemFailure::Vanished);
        assert!(same.continues(&begun));
        assert!(!shorter.continues(&begun) && !failed.continues(&begun));
    }
}
