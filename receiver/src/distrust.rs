//! The reasons not to trust a head.

use stillmirror_protocol::entry::{Digest, Time};
use stillmirror_protocol::signature::SignatureError;
use thiserror::Error;

/// Why a head is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TrustError {
    /// The sender sent no signature.
    #[error("it is not signed, or the sender is too old to send signatures")]
    Unsigned,
    /// The signature is not one of a trusted key for this head.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The head never expires, so a sender could show it forever.
    #[error("it is signed, but does not expire: sign with `stillmirror index --sign` or `stillmirror sign`")]
    NoExpiry,
    /// The head expired before the pull began.
    #[error("it expired at {}: the origin has stopped signing, or the sender no longer follows it", shown(*.at))]
    Expired {
        /// When it expired.
        at: Time,
    },
    /// A newer head was accepted before.
    #[error("it is generation {found}, but generation {accepted} was accepted before")]
    Older {
        /// The head's generation.
        found: u64,
        /// The highest generation that was accepted with this key.
        accepted: u64,
    },
    /// The key has signed two different trees as the same generation.
    #[error(
        "generation {generation} is signed with the list {found}, but it was accepted with the list {accepted}: \
         the origin or somebody with its key signs two trees at once"
    )]
    Equivocation {
        /// The generation of both heads.
        generation: u64,
        /// The digest of the list in this head.
        found: Digest,
        /// The digest of the list in the head that was accepted.
        accepted: Digest,
    },
}

fn shown(time: Time) -> String {
    jiff::Timestamp::new(time.sec, 0).map_or_else(|_| format!("{} s", time.sec), |stamp| stamp.to_string())
}
