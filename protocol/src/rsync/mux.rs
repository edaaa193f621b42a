//! Frames that carry data and messages.
//!
//! A header is a `u32`: tag + 7 in the high byte, bytes of payload in the low three. Data frames carry
//! one stream, and their boundaries mean nothing; messages stand between them.

use crate::rsync::fault::Fault;

/// Bytes of a header.
pub const HEADER: usize = 4;
/// The largest payload that a header can name. Every client from 2.6.0 on takes data frames of it.
pub const PAYLOAD: usize = 0xff_ffff;
/// Bytes of text in one message: some clients have a buffer of 1024, and 5120 end any.
pub const TEXT: usize = 1000;
/// Bytes of a message from a client. They have numbers; whoever sends text is given a page of it.
pub const CLIENT_MESSAGE: usize = 4096;

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
    /// `i32` bits, see [`crate::rsync::replies::io_error`]; from protocol 30 on.
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

/// A frame's header. `len` is at most [`PAYLOAD`].
pub fn header(tag: u8, len: usize) -> [u8; HEADER] {
    ((u32::from(tag) + 7) << 24 | len as u32 & 0xff_ffff).to_le_bytes()
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

    /// Takes the next part off the front of `input`; none when more input is needed.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Part<'a>>, Fault> {
        let _ = input;
        unreachable!("{} {}", self.left, self.raw)
    }
}
