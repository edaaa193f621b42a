//! The native protocol: hellos, frames, requests and replies.
//!
//! A receiver opens with a 24-byte [`ClientHello`], and the sender answers with a [`ServerHello`]. The receiver may send
//! requests before that answer arrives. From then on, both directions carry frames: a 12-byte [`FrameHeader`] and a
//! payload. The receiver chooses a number for each request, and every reply frame carries the number of its request, so
//! replies to several requests may be interleaved. A reply ends with [`kind::END`] or [`kind::ERROR`]. The byte tables
//! and the state diagram are in `docs/native-protocol.md`.

mod answers;
mod frame;
mod hello;
mod reply;
mod request;
#[cfg(test)]
mod tests;

use thiserror::Error;

use crate::codec::DecodeError;
use crate::entry::Digest;
use crate::list;

pub use answers::{Repository, decode_dir, encode_child};
pub use frame::{FRAME_HEADER_BYTES, FrameHeader, frame, kind};
pub use hello::{
    Capabilities, ClientHello, FOLLOWING, HELLO_BYTES, MAGIC, SIGNED_HEADS, SLICE_HEADS, ServerHello, VERSION,
};
pub use reply::{ErrorCode, ItemFailure, ListForm, Reply};
pub use request::{Item, Request, items_that_fit};

/// A peer's violation of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// The peer does not speak this protocol.
    #[error("the peer does not speak the native protocol")]
    Magic,
    /// There is no common version.
    #[error("the peer speaks versions {min} to {max} of the protocol; this program speaks {VERSION}")]
    Version {
        /// The oldest version that the peer speaks.
        min: u16,
        /// The newest version that the peer speaks.
        max: u16,
    },
    /// A frame is too large.
    #[error("frame of {len} bytes, the limit is {limit}")]
    FrameTooLarge {
        /// The payload length in the header, in bytes.
        len: u32,
        /// The limit in bytes.
        limit: usize,
    },
    /// A frame's kind does not exist, or not in this direction.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    /// A field does not decode.
    #[error("malformed frame: {0}")]
    Decode(#[from] DecodeError),
}

/// Returns the digest by which a follower says which head it knows: of the encoded head and its signature, so that a head
/// that is only signed again is another one.
pub fn fingerprint(head: &[u8], signature: Option<&[u8]>) -> Digest {
    list::digest(&[head, signature.unwrap_or_default()].concat())
}
