//! Frames that carry data and messages.
//!
//! A header is a `u32`: tag + 7 in the high byte, bytes of payload in the low three. Data frames carry
//! one stream, and their boundaries mean nothing; messages stand between them.

use crate::codec::{DecodeError, Reader};
use crate::rsync::fault::Fault;

/// Bytes of a header.
pub const HEADER: usize = 4;
/// The largest payload that a header can name. Every client from 2.6.0 on takes data frames of it.
pub const PAYLOAD: usize = 0xff_ffff;
/// Bytes of text in one message: some clients have a buffer of 1024, and 5120 end any.
pub const TEXT: usize = 1000;
/// Bytes of a message from a client. They have numbers; whoever sends text is given a page of it.
pub const CLIENT_MESSAGE: usize = 4096;

/// What is added to a tag in a header.
const TAG_BASE: u32 = 7;

/// What a frame carries.
pub mod tag {
    /// A piece of the data stream; an empty one keeps the connection alive.
    pub const DATA: u8 = 0;
    /// Text of an error that makes the client exit 23.
    pub const ERROR_XFER: u8 = 1;
    /// Text.
    pub const INFO: u8 = 2;
    /// Text of an error, from protocol 30 on.
    pub const ERROR: u8 = 3;
    /// Text of a warning, from protocol 30 on.
    pub const WARNING: u8 = 4;
    /// `i32` bits, see [`crate::rsync::exit::io_error`]; from protocol 30 on.
    pub const IO_ERROR: u8 = 22;
    /// `i32` seconds after which the client gives up on silence; from protocol 31 on.
    pub const IO_TIMEOUT: u8 = 33;
    /// Nothing; keeps the connection alive.
    pub const NOOP: u8 = 42;
    /// The sender of it ends, with this `i32` exit code; empty: so be it. From protocol 31 on.
    pub const ERROR_EXIT: u8 = 86;
    /// `i32` index of a file that the client has.
    pub const SUCCESS: u8 = 100;
    /// `i32` index of a file that will not come; from protocol 30 on.
    pub const NO_SEND: u8 = 102;
}

/// How grave a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// A word to the user.
    Info,
    /// A warning; no exit code by itself.
    Warning,
    /// An error; no exit code by itself.
    Error,
    /// An error that makes the client exit 23.
    Transfer,
}

/// A frame's header. `len` is at most [`PAYLOAD`].
pub fn header(tag: u8, len: usize) -> [u8; HEADER] {
    debug_assert!(len <= PAYLOAD, "a payload of {len} bytes");
    ((u32::from(tag) + TAG_BASE) << 24 | len as u32).to_le_bytes()
}

/// Appends a whole frame.
pub fn put_frame(out: &mut Vec<u8>, tag: u8, payload: &[u8]) {
    out.extend_from_slice(&header(tag, payload.len()));
    out.extend_from_slice(payload);
}

/// Takes a client's frames apart.
#[derive(Debug, Clone)]
pub struct Demux {
    /// Bytes of the data frame under way that have not come yet.
    left: usize,
    /// Every byte is data: the client does not frame (for now).
    raw: bool,
}

/// A part of what a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// Bytes of the data stream.
    Data(&'a [u8]),
    /// A whole message, or an empty data frame.
    Message {
        /// What it is.
        tag: u8,
        /// Its content.
        payload: &'a [u8],
    },
}

impl Demux {
    /// At the start of a client's frames, or of its bare data.
    pub fn new(framed: bool) -> Self {
        Self { left: 0, raw: !framed }
    }

    /// Between frames: what follows is bare data, or frames again. False inside a frame, where the client has no
    /// business to change.
    pub fn set_raw(&mut self, raw: bool) -> bool {
        self.raw = raw;
        self.left == 0
    }

    /// Takes the next part off the front of `input`; none when more input is needed.
    #[allow(clippy::should_implement_trait, reason = "it takes its input by call")]
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Part<'a>>, Fault> {
        if self.raw || self.left > 0 {
            return Ok(self.data(input));
        }
        let mut reader = Reader::new(input);
        let Ok(word) = reader.u32("frame header") else { return Ok(None) };
        let len = word as usize & PAYLOAD;
        let fault = Fault::Frame { tag: (word >> 24) as u8, len };
        let Some(tag) = (word >> 24).checked_sub(TAG_BASE) else { return Err(fault) };
        let tag = tag as u8;
        if tag == tag::DATA && len > 0 {
            *input = reader.rest();
            self.left = len;
            return Ok(self.data(input));
        }
        if len > CLIENT_MESSAGE {
            return Err(Fault::Frame { tag, len });
        }
        match reader.take("message", len) {
            Ok(payload) => {
                *input = reader.rest();
                Ok(Some(Part::Message { tag, payload }))
            }
            Err(DecodeError::Short(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn data<'a>(&mut self, input: &mut &'a [u8]) -> Option<Part<'a>> {
        let len = if self.raw { input.len() } else { self.left.min(input.len()) };
        let (data, rest) = input.split_at(len);
        *input = rest;
        self.left = self.left.saturating_sub(len);
        (!data.is_empty()).then_some(Part::Data(data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(framed: bool, mut input: &[u8]) -> Result<Vec<Part<'_>>, Fault> {
        let mut demux = Demux::new(framed);
        std::iter::from_fn(|| demux.next(&mut input).transpose()).collect()
    }

    #[test]
    fn a_header_is_the_tag_above_the_length() {
        assert_eq!(header(tag::ERROR_EXIT, 4), [4, 0, 0, 0x5d]);
        assert_eq!(header(tag::DATA, PAYLOAD), [0xff, 0xff, 0xff, 7]);
    }

    #[test]
    fn messages_come_between_pieces_of_data() {
        let mut input = Vec::new();
        put_frame(&mut input, tag::DATA, b"one");
        put_frame(&mut input, tag::DATA, b"");
        put_frame(&mut input, tag::ERROR_EXIT, &[1, 0, 0, 0]);
        put_frame(&mut input, tag::DATA, b"two");
        let expected = [
            Part::Data(b"one"),
            Part::Message { tag: tag::DATA, payload: b"" },
            Part::Message { tag: tag::ERROR_EXIT, payload: &[1, 0, 0, 0] },
            Part::Data(b"tw"),
        ];
        assert_eq!(parts(true, &input[..input.len() - 1]).as_deref(), Ok(&expected[..]));
    }

    #[test]
    fn bare_data_has_no_frames() {
        assert_eq!(parts(false, &[0, 0, 0, 0]).as_deref(), Ok(&[Part::Data(&[0, 0, 0, 0])][..]));
    }

    #[test]
    fn a_frame_that_no_client_sends_is_a_fault_before_its_payload_comes() {
        assert_eq!(parts(true, &[1, 0, 0, 6]), Err(Fault::Frame { tag: 6, len: 1 }));
        assert_eq!(parts(true, &[1, 0x10, 0, 9]), Err(Fault::Frame { tag: tag::INFO, len: 4097 }));
    }
}
