//! Stock rsync's checksums of whole files and of list entries (`-c`), under their stock names.
//!
//! Sources: bytes on the wire between stock releases 2.6.0 to 3.5.0. XXH64 and XXH3 are sent as one
//! little-endian integer, XXH128 as its low half followed by its high half. The others use the byte order of
//! their standards.

use std::fmt;
use std::hash::Hasher as _;
use std::ops::Deref;

use md4::Md4;
use md5::Md5;
use sha1::Sha1;
use sha2::Digest as _;
use twox_hash::{XxHash3_64, XxHash3_128, XxHash64};

use crate::entry::Digests;

/// A digest that a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// MD4 over the session's seed and the content. Protocols 27 to 29 use it by default for transfers.
    SeededMd4,
    /// MD4.
    Md4,
    /// MD5. Protocols from 30 on use it by default.
    Md5,
    /// SHA-1.
    Sha1,
    /// XXH64.
    Xxh64,
    /// XXH3, 64 bits.
    Xxh3,
    /// XXH3, 128 bits.
    Xxh128,
    /// No checksum: one zero byte.
    None,
}

impl Algorithm {
    /// The algorithms that a client may choose, in this sender's order of preference.
    pub const NAMED: [Self; 7] = [Self::Xxh128, Self::Xxh3, Self::Xxh64, Self::Md5, Self::Md4, Self::Sha1, Self::None];

    /// Returns the algorithm that a client calls `name`. `xxhash` is an older name of `xxh64`.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        let name = if name == b"xxhash" { b"xxh64" } else { name };
        Self::NAMED.into_iter().find(|algorithm| algorithm.name().as_bytes() == name)
    }

    /// Returns the name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::SeededMd4 | Self::Md4 => "md4",
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Xxh64 => "xxh64",
            Self::Xxh3 => "xxh3",
            Self::Xxh128 => "xxh128",
            Self::None => "none",
        }
    }

    /// Returns the digest's length on the wire, in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::SeededMd4 | Self::Md4 | Self::Md5 | Self::Xxh128 => 16,
            Self::Sha1 => 20,
            Self::Xxh64 | Self::Xxh3 => 8,
            Self::None => 1,
        }
    }

    /// Returns the digest of a whole file from the index. `None` if the index does not hold it, so that it
    /// must be computed. A list without XXH128 or MD5 has zeros in their place; `has` tells which ones this
    /// list carries.
    pub fn indexed(self, digests: &Digests, has: Indexed) -> Option<Sum> {
        match self {
            Self::Xxh128 if has.xxh128 => Some(Sum::new(&digests.xxh128)),
            Self::Md5 if has.md5 => Some(Sum::new(&digests.md5)),
            Self::None => Some(Sum::new(&[0])),
            _ => None,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The stock checksums that a list carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Indexed {
    /// XXH128.
    pub xxh128: bool,
    /// MD5.
    pub md5: bool,
}

impl Indexed {
    /// Returns the digests to offer to a client, which takes the first of its own names that is offered.
    /// Clients of 3.2.0 and builds without a current xxHash prefer XXH64, all others XXH128, and all know
    /// MD5. To agree on a digest that need not be computed, the faster ones are held back in two cases: if
    /// the list carries only MD5, and with `checksum`, which requires the digest to be in the list.
    pub fn offer(self, checksum: bool) -> Vec<Algorithm> {
        let is_held_back = |algorithm: &Algorithm| match algorithm {
            Algorithm::Xxh128 => !self.xxh128,
            Algorithm::Xxh3 | Algorithm::Xxh64 => true,
            _ => false,
        };
        let holds_back = if self.xxh128 { checksum } else { self.md5 };
        Algorithm::NAMED.into_iter().filter(|algorithm| !(holds_back && is_held_back(algorithm))).collect()
    }
}

/// A finished digest in wire form, 1 to 20 bytes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    bytes: [u8; 20],
    len: u8,
}

impl Sum {
    fn new(sum: &[u8]) -> Self {
        let mut bytes = [0; 20];
        bytes[..sum.len()].copy_from_slice(sum);
        Self { bytes, len: sum.len() as u8 }
    }
}

impl Deref for Sum {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A digest being computed.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Md4(Md4),
    Md5(Md5),
    Sha1(Sha1),
    Xxh64(Box<XxHash64>),
    Xxh3(Box<XxHash3_64>),
    Xxh128(Box<XxHash3_128>),
    None,
}

impl Hasher {
    /// Starts a digest. Only [`Algorithm::SeededMd4`] uses `seed`, the session's seed.
    pub fn new(algorithm: Algorithm, seed: i32) -> Self {
        Self(match algorithm {
            Algorithm::SeededMd4 => State::Md4(Md4::new_with_prefix(seed.to_le_bytes())),
            Algorithm::Md4 => State::Md4(Md4::new()),
            Algorithm::Md5 => State::Md5(Md5::new()),
            Algorithm::Sha1 => State::Sha1(Sha1::new()),
            Algorithm::Xxh64 => State::Xxh64(Box::new(XxHash64::with_seed(0))),
            Algorithm::Xxh3 => State::Xxh3(Box::new(XxHash3_64::new())),
            Algorithm::Xxh128 => State::Xxh128(Box::new(XxHash3_128::new())),
            Algorithm::None => State::None,
        })
    }

    /// Hashes the next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Md4(state) => state.update(bytes),
            State::Md5(state) => state.update(bytes),
            State::Sha1(state) => state.update(bytes),
            State::Xxh64(state) => state.write(bytes),
            State::Xxh3(state) => state.write(bytes),
            State::Xxh128(state) => state.write(bytes),
            State::None => {}
        }
    }

    /// Returns the digest of all bytes hashed.
    pub fn finish(self) -> Sum {
        match self.0 {
            State::Md4(state) => Sum::new(&state.finalize()),
            State::Md5(state) => Sum::new(&state.finalize()),
            State::Sha1(state) => Sum::new(&state.finalize()),
            State::Xxh64(state) => Sum::new(&state.finish().to_le_bytes()),
            State::Xxh3(state) => Sum::new(&state.finish().to_le_bytes()),
            State::Xxh128(state) => Sum::new(&state.finish_128().to_le_bytes()),
            State::None => Sum::new(&[0]),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Digest;

    const CONTENT: &[u8] = b"hello rsync wire\n";

    fn sum(algorithm: Algorithm, seed: i32, pieces: &[&[u8]]) -> String {
        let mut hasher = Hasher::new(algorithm, seed);
        pieces.iter().for_each(|piece| hasher.update(piece));
        hasher.finish().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn digests_match_those_that_stock_senders_append_to_the_same_file() {
        for (algorithm, seed, expected) in [
            (Algorithm::SeededMd4, 1_796_940_547, "6f3e973a6af7a551215162fa3cdcb191"),
            (Algorithm::SeededMd4, 1_796_941_315, "bdf4f55a9b9542ec28cc76142450ea21"),
            (Algorithm::Md4, 1_796_981_510, "dcd78d5a57801edb2d2a6738ae7afb0e"),
            (Algorithm::Md5, 1_796_981_894, "64a65fef87704b3d299488b0a707d7cd"),
            (Algorithm::Sha1, 1_796_981_126, "cc62f8082fcbe102b6923322b3f4fbac37a02867"),
            (Algorithm::Xxh64, 1_796_980_742, "2fb29c75c5fe3b5c"),
            (Algorithm::Xxh3, 1_796_988_550, "b4b4e711e5e5d110"),
            (Algorithm::Xxh128, 1_796_988_167, "4adb9129b46539f298f9a3b9ba0c645a"),
            (Algorithm::None, 1_796_987_783, "00"),
        ] {
            assert_eq!(sum(algorithm, seed, &[CONTENT]), expected, "{algorithm:?}");
            let (front, back) = CONTENT.split_at(5);
            assert_eq!(sum(algorithm, seed, &[front, b"", back]), expected, "{algorithm:?} in pieces");
            assert_eq!(expected.len(), 2 * algorithm.bytes(), "{algorithm:?}");
        }
    }

    #[test]
    fn indexed_digests_equal_computed_ones() {
        let bytes = |algorithm| {
            let mut hasher = Hasher::new(algorithm, 7);
            hasher.update(CONTENT);
            hasher.finish()
        };
        let digests = Digests {
            sha256: Digest([0; 32]),
            xxh128: (*bytes(Algorithm::Xxh128)).try_into().expect("16 bytes"),
            md5: (*bytes(Algorithm::Md5)).try_into().expect("16 bytes"),
        };
        let both = Indexed { xxh128: true, md5: true };
        for algorithm in [Algorithm::Xxh128, Algorithm::Md5, Algorithm::None] {
            assert_eq!(algorithm.indexed(&digests, both), Some(bytes(algorithm)));
        }
        for algorithm in [Algorithm::Xxh128, Algorithm::Md5, Algorithm::Sha1, Algorithm::SeededMd4] {
            assert_eq!(algorithm.indexed(&digests, Indexed::default()), None, "{algorithm:?}");
        }
    }

    #[test]
    fn a_digest_that_would_have_to_be_computed_is_held_back() {
        use Algorithm::{Md5, Xxh64, Xxh128};
        let takes = |own: &[Algorithm], xxh128, md5, checksum| {
            let offered = Indexed { xxh128, md5 }.offer(checksum);
            own.iter().copied().find(|named| offered.contains(named))
        };
        let (current, old) = (&[Xxh128, Xxh64, Md5], &[Xxh64, Md5]);
        for checksum in [false, true] {
            assert_eq!(takes(current, true, true, checksum), Some(Xxh128));
            assert_eq!(takes(current, true, false, checksum), Some(Xxh128));
            assert_eq!(takes(current, false, true, checksum), Some(Md5));
            assert_eq!(takes(old, false, true, checksum), Some(Md5));
            assert_eq!(takes(current, false, false, checksum), Some(Xxh128), "nothing is indexed");
        }
        assert_eq!(takes(old, true, true, true), Some(Md5));
        assert_eq!(takes(old, true, true, false), Some(Xxh64), "without -c it need not be in the list");
    }

    #[test]
    fn names_lead_back_to_their_algorithms() {
        for algorithm in Algorithm::NAMED {
            assert_eq!(Algorithm::from_name(algorithm.name().as_bytes()), Some(algorithm));
        }
        assert_eq!(Algorithm::from_name(b"xxhash"), Some(Algorithm::Xxh64));
        assert_eq!(Algorithm::from_name(b"XXH64"), None);
    }
}
