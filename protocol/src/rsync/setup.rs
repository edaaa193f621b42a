//! The binary negotiation after the arguments, and what it comes to.

use crate::rsync::arguments::{Compression, Options};
use crate::rsync::digest::Algorithm;
use crate::rsync::fault::Fault;
use crate::rsync::version::Version;

/// What this sender can do for a session.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Digests, the preferred first; without [`Algorithm::SeededMd4`].
    pub digests: &'a [Algorithm],
    /// Compressions, the preferred first.
    pub compressions: &'a [Compression],
    /// The seed, unless the client fixes it.
    pub seed: i32,
    /// Whether the list may be sent in parts, if the client can take it.
    pub incremental: bool,
    /// The idle limit in seconds to tell clients that understand it (the client's own is used if it is shorter).
    pub timeout: Option<u32>,
}

/// What is in force after the setup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// The version.
    pub version: Version,
    /// Digest behind every file.
    pub transfer: Algorithm,
    /// Digest in the list, with `-c`; never seeded.
    pub list: Algorithm,
    /// Wrapping of literal data.
    pub compression: Compression,
    /// The session's seed.
    pub seed: i32,
    /// The list goes out in parts.
    pub incremental: bool,
    /// An I/O error may ride on the list's end mark.
    pub safe_list: bool,
    /// Entries' flags are varints.
    pub varint_flags: bool,
    /// Id lists end with the names of id 0.
    pub id0_names: bool,
    /// Seconds after which the client gives up on silence; keep alive at half of it.
    pub timeout: Option<u32>,
}

/// A negotiation that waits for the client's names.
#[derive(Debug)]
pub struct Negotiation {
    _todo: (),
}

impl Setup {
    /// Begins: what to send, in one write, and what then waits for the client's answer. The bytes stand even if
    /// `options.fault` is set or the negotiation fails: the client reads error frames only behind them.
    pub fn begin(options: &Options, offer: &Offer<'_>) -> (Vec<u8>, Negotiation) {
        unreachable!("{options:?}{offer:?}")
    }
}

impl Negotiation {
    /// Takes bytes of the client (first those left over from the greeting).
    pub fn receive(&mut self, bytes: &[u8]) {
        unreachable!("{bytes:?}")
    }
    /// What was agreed; none until the client has said its part.
    pub fn next(&mut self) -> Result<Option<Setup>, Fault> {
        unreachable!()
    }
    /// Bytes that the client sent after its part: the first of its requests.
    pub fn into_rest(self) -> Vec<u8> {
        unreachable!()
    }
}
