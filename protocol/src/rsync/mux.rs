//! Multiplexed frames of data and messages.
//!
//! A frame header is a `u32`: the tag plus 7 in the high byte, the payload length in the low three bytes. The
//! payloads of data frames form one stream whose frame boundaries mean nothing. Messages may stand between
//! any two data frames.

use crate::codec::{DecodeError, Reader};
use crate::rsync::fault::Fault;

/// Length of a frame header, in bytes.
pub const HEADER: usize = 4;
/// The largest payload length that a header can express, in bytes. Every client since 2.6.0 accepts data
/// frames of this size.
pub const PAYLOAD: usize = 0xff_ffff;
/// Maximum text length of one message, in bytes. Some clients have a 1024-byte buffer, and 5120 bytes end any client.
pub const TEXT: usize = 1000;
/// Maximum payload of a message from a client, in bytes. Clients' messages carry numbers; one that carries
/// text may use up to a page.
pub const CLIENT_MESSAGE: usize = 4096;

/// Offset of the tag in a header.
const TAG_BASE: u32 = 7;

/// Frame tags.
pub mod tag {
    /// Part of the data stream. An empty frame is a keep-alive.
    pub const DATA: u8 = 0;
    /// Error text; the client exits with 23.
    pub const ERROR_XFER: u8 = 1;
    /// Informational text.
    pub const INFO: u8 = 2;
    /// Error text, from protocol 30 on.
    pub const ERROR: u8 = 3;
    /// Warning text, from protocol 30 on.
    pub const WARNING: u8 = 4;
    /// An `i32` with bits of [`crate::rsync::exit::io_error`], from protocol 30 on.
    pub const IO_ERROR: u8 = 22;
    /// The timeout after which the client gives up on a silent peer: an `i32`, in seconds. From protocol 31 on.
    pub const IO_TIMEOUT: u8 = 33;
    /// An empty keep-alive.
    pub const NOOP: u8 = 42;
    /// The peer is exiting with this `i32` exit code. An empty payload acknowledges that. From protocol 31 on.
    pub const ERROR_EXIT: u8 = 86;
    /// The `i32` index of a file that the client has received.
    pub const SUCCESS: u8 = 100;
    /// The `i32` index of a file that will not be sent, from protocol 30 on.
    pub const NO_SEND: u8 = 102;
}

/// The severity of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Informational text.
    Info,
    /// A warning. It does not set an exit code by itself.
    Warning,
    /// An error. It does not set an exit code by itself.
    Error,
    /// An error that makes the client exit 23.
    Transfer,
}

/// Returns a frame header. `len` must be at most [`PAYLOAD`].
pub fn header(tag: u8, len: usize) -> [u8; HEADER] {
    debug_assert!(len <= PAYLOAD, "a payload of {len} bytes");
    ((u32::from(tag) + TAG_BASE) << 24 | len as u32).to_le_bytes()
}

/// Appends a complete frame.
pub fn put_frame(out: &mut Vec<u8>, tag: u8, payload: &[u8]) {
    out.extend_from_slice(&header(tag, payload.len()));
    out.extend_from_slice(payload);
}

/// Splits a client's bytes into frames.
#[derive(Debug, Clone)]
pub struct Demux {
    /// Bytes of the current data frame that have not arrived yet.
    left: usize,
    /// Whether the client sends bare data, without frames (for now).
    raw: bool,
}

/// One part of a client's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// Bytes of the data stream.
    Data(&'a [u8]),
    /// A complete message, or an empty data frame.
    Message {
        /// The tag, see [`tag`].
        tag: u8,
        /// The payload.
        payload: &'a [u8],
    },
}

impl Demux {
    /// Creates a demultiplexer for a client that sends frames, or bare data if `framed` is false.
    pub fn new(framed: bool) -> Self {
        Self { left: 0, raw: !framed }
    }

    /// Switches between bare data (`true`) and frames. Returns whether the switch is at a frame boundary:
    /// inside a frame, the client must not switch.
    pub fn set_raw(&mut self, raw: bool) -> bool {
        self.raw = raw;
        self.left == 0
    }

    /// Takes the next part off the front of `input`. `None` if more input is needed. Fails on a frame that no
    /// client may send.
    #[allow(clippy::should_implement_trait, reason = "the input is passed with each call")]
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
    fn a_header_holds_the_tag_above_the_length() {
        assert_eq!(header(tag::ERROR_EXIT, 4), [4, 0, 0, 0x5d]);
        assert_eq!(header(tag::DATA, PAYLOAD), [0xff, 0xff, 0xff, 7]);
    }

    #[test]
    fn messages_may_stand_between_pieces_of_data() {
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
    fn an_invalid_frame_is_a_fault_before_its_payload_arrives() {
        assert_eq!(parts(true, &[1, 0, 0, 6]), Err(Fault::Frame { tag: 6, len: 1 }));
        assert_eq!(parts(true, &[1, 0x10, 0, 9]), Err(Fault::Frame { tag: tag::INFO, len: 4097 }));
    }
}
