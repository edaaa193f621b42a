//! The hellos: the first bytes that each side of a connection sends.

use super::WireError;
use crate::codec::Reader;

/// The first bytes of both hellos. They are not text, so that no line protocol is mistaken for this one.
pub const MAGIC: [u8; 8] = *b"\x93STILL\r\n";
/// The only version of the protocol that this program speaks.
pub const VERSION: u16 = 1;
/// The length of either hello in bytes.
pub const HELLO_BYTES: usize = 24;
/// Capabilities as bits of both hellos. A capability is in force if both sides have set it, and unknown bits are ignored.
pub type Capabilities = u32;
/// The receiver reads heads of format 2 and [`Reply::Signature`](super::Reply::Signature). Otherwise the sender sends
/// heads without their expiry, in format 1, and no signatures.
pub const SIGNED_HEADS: Capabilities = 1;
/// The sender tells followers what becomes current. The receiver sets it, together with [`SIGNED_HEADS`], on a connection
/// that only follows: each of its requests is a [`Request::Follow`](super::Request::Follow).
pub const FOLLOWING: Capabilities = 2;
/// The receiver reads heads of format 3. Otherwise the sender sends the heads of slices in format 1, as if they were whole.
pub const SLICE_HEADS: Capabilities = 4;

/// The receiver's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientHello {
    /// The oldest version that the receiver speaks.
    pub min_version: u16,
    /// The newest version that the receiver speaks.
    pub max_version: u16,
    /// The receiver's capabilities.
    pub capabilities: Capabilities,
}

impl ClientHello {
    /// This program's hello.
    pub const OURS: Self =
        Self { min_version: VERSION, max_version: VERSION, capabilities: SIGNED_HEADS | SLICE_HEADS };
    /// This program's hello on a connection that only follows.
    pub const FOLLOWER: Self = Self { capabilities: Self::OURS.capabilities | FOLLOWING, ..Self::OURS };

    /// Encodes the hello.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        encode_hello([self.min_version, self.max_version], self.capabilities, 0)
    }

    /// Decodes the hello.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, WireError> {
        let ([min_version, max_version], capabilities, _) = decode_hello(bytes)?;
        Ok(Self { min_version, max_version, capabilities })
    }

    /// Returns the version that both sides speak. Fails if there is none.
    pub fn negotiate(&self) -> Result<u16, WireError> {
        if (self.min_version..=self.max_version).contains(&VERSION) {
            Ok(VERSION)
        } else {
            Err(WireError::Version { min: self.min_version, max: self.max_version })
        }
    }
}

/// The sender's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerHello {
    /// The version in force. 0 if there is no common one; the connection ends then.
    pub version: u16,
    /// The number of requests in flight at which the sender stops reading.
    pub requests: u16,
    /// The sender's capabilities.
    pub capabilities: Capabilities,
    /// The largest payload of a frame from the sender in bytes, up to [`REPLY_PAYLOAD`](crate::limits::REPLY_PAYLOAD).
    pub reply_payload: u32,
}

impl ServerHello {
    /// Encodes the hello.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        encode_hello([self.version, self.requests], self.capabilities, self.reply_payload)
    }

    /// Decodes the hello.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, WireError> {
        let ([version, requests], capabilities, reply_payload) = decode_hello(bytes)?;
        if version != VERSION {
            return Err(WireError::Version { min: version, max: version });
        }
        Ok(Self { version, requests, capabilities, reply_payload })
    }
}

fn encode_hello(shorts: [u16; 2], capabilities: u32, payload: u32) -> [u8; HELLO_BYTES] {
    let mut out = [0; HELLO_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&shorts[0].to_le_bytes());
    out[10..12].copy_from_slice(&shorts[1].to_le_bytes());
    out[12..16].copy_from_slice(&capabilities.to_le_bytes());
    out[16..20].copy_from_slice(&payload.to_le_bytes());
    out
}

fn decode_hello(bytes: &[u8; HELLO_BYTES]) -> Result<([u16; 2], u32, u32), WireError> {
    let mut reader = Reader::new(bytes);
    if reader.array("magic")? != MAGIC {
        return Err(WireError::Magic);
    }
    Ok(([reader.u16("version")?, reader.u16("version")?], reader.u32("capabilities")?, reader.u32("payload")?))
}
