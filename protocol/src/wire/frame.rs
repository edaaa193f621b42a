//! Frames and their kinds.

use super::WireError;
use crate::codec::{DecodeError, Reader};

/// The length of a frame's header in bytes.
pub const FRAME_HEADER_BYTES: usize = 12;

/// Frame kinds. Requests are below 128, replies are 128 and above.
pub mod kind {
    /// Request: the repositories that this sender serves. No payload.
    pub const REPOSITORIES: u8 = 1;
    /// Request: a repository's head. Pins its current generation for the session.
    pub const HEAD: u8 = 2;
    /// Request: the file list, or the deltas that lead to it from a list that the receiver has.
    pub const LIST: u8 = 3;
    /// Request: the children of one directory.
    pub const DIR: u8 = 4;
    /// Request: byte ranges of block checksum records.
    pub const SUMS: u8 = 5;
    /// Request: byte ranges of files.
    pub const DATA: u8 = 6;
    /// Request: to be told when another head becomes current. Only with the capability
    /// [`FOLLOWING`](super::super::FOLLOWING).
    pub const FOLLOW: u8 = 7;

    /// Reply with request number 0: the connection waits in the queue. Payload: varint position in the queue.
    pub const QUEUED: u8 = 128;
    /// Reply to `HEAD`: varint handle of the pinned generation, then its head.
    pub const PINNED: u8 = 129;
    /// Reply to `LIST`: the form in which the list follows.
    pub const LIST_FORM: u8 = 130;
    /// Reply: the next bytes of the answer.
    pub const BYTES: u8 = 131;
    /// Reply to `DATA`: one item, or the rest of it, is not sent.
    pub const ITEM_FAILED: u8 = 132;
    /// Reply: the answer is complete. No payload.
    pub const END: u8 = 133;
    /// Reply: the request failed. With request number 0, the session ends.
    pub const ERROR: u8 = 134;
    /// Reply to `HEAD` after `PINNED`, and to `FOLLOW` after `NEWS`: the signature of the head. Only with the capability
    /// [`SIGNED_HEADS`](super::super::SIGNED_HEADS).
    pub const SIGNATURE: u8 = 135;
    /// Reply to `FOLLOW`: varint time in milliseconds over which followers spread their pulls, then the current head.
    pub const NEWS: u8 = 136;
}

/// A frame's header: payload length (u32), request number (u32), kind (u8), three zero bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The length of the payload in bytes.
    pub len: u32,
    /// The number of the request that the frame belongs to; 0 for the session itself.
    pub request: u32,
    /// The kind, one of the constants in [`kind`].
    pub kind: u8,
}

impl FrameHeader {
    /// Encodes the header.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[..4].copy_from_slice(&self.len.to_le_bytes());
        out[4..8].copy_from_slice(&self.request.to_le_bytes());
        out[8] = self.kind;
        out
    }

    /// Decodes a header. Fails if the payload is longer than `limit` bytes.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES], limit: usize) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let (len, request, kind) = (reader.u32("length")?, reader.u32("request")?, reader.u8("kind")?);
        if reader.array("reserved")? != [0; 3] {
            return Err(DecodeError::Invalid("reserved").into());
        }
        if len as usize > limit {
            return Err(WireError::FrameTooLarge { len, limit });
        }
        Ok(Self { len, request, kind })
    }
}

/// Returns a frame with header and payload in one buffer.
pub fn frame(request: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { len: payload.len() as u32, request, kind };
    [&header.encode()[..], payload].concat()
}
