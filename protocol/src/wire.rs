//! The native protocol: preamble, frames, requests and replies.
//!
//! A receiver opens with a 24-byte [`ClientHello`], the sender answers with a [`ServerHello`]; the
//! receiver need not wait for it to send requests. From there on both directions carry frames: a
//! 12-byte [`FrameHeader`] and a payload. A request has a number of the receiver's choice, and every
//! reply frame to it carries that number, so replies to several requests may be interleaved. A reply
//! ends with [`kind::END`] or [`kind::ERROR`]. Byte tables and the state diagram are in
//! `docs/native-protocol.md`.

mod answers;
mod frame;
mod hello;
mod reply;
mod request;
#[cfg(test)]
mod tests;

use thiserror::Error;

use crate::codec::DecodeError;

pub use answers::{Repository, decode_dir, encode_child};
pub use frame::{FRAME_HEADER_BYTES, FrameHeader, frame, kind};
pub use hello::{Capabilities, ClientHello, HELLO_BYTES, MAGIC, ServerHello, VERSION};
pub use reply::{ErrorCode, ItemFailure, ListForm, Reply};
pub use request::{Item, Request, items_that_fit};

/// What a peer sent that the protocol does not allow.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// The peer does not speak this protocol.
    #[error("the peer does not speak the native protocol")]
    Magic,
    /// No common version.
    #[error("the peer speaks versions {min} to {max} of the protocol; this program speaks {VERSION}")]
    Version {
        /// The peer's oldest.
        min: u16,
        /// The peer's newest.
        max: u16,
    },
    /// A frame is larger than it may be.
    #[error("a frame of {len} bytes where {limit} are allowed")]
    FrameTooLarge {
        /// Bytes claimed.
        len: u32,
        /// The limit.
        limit: usize,
    },
    /// A frame of a kind that does not exist, or not in this direction.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// A field does not decode.
    #[error("malformed frame: {0}")]
    Decode(#[from] DecodeError),
}
