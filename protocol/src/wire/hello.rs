//! How a connection begins: each side's first bytes.

use super::WireError;
use crate::codec::Reader;

/// First bytes of both hellos. Not text, so that no line protocol is mistaken for it.
pub const MAGIC: [u8; 8] = *b"\x93STILL\r\n";
/// The version of the protocol that this program speaks, and the oldest that it understands.
pub const VERSION: u16 = 1;
/// Bytes of either hello.
pub const HELLO_BYTES: usize = 24;
/// Capabilities, as bits of both hellos; what both sides have set is in force. None is defined yet: a
/// side ignores bits that it does not know.
pub type Capabilities = u32;

/// The receiver's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientHello {
    /// Oldest version that the receiver speaks.
    pub min_version: u16,
    /// Newest version that the receiver speaks.
    pub max_version: u16,
    /// Capabilities.
    pub capabilities: Capabilities,
}

impl ClientHello {
    /// This program's hello.
    pub const OURS: Self = Self { min_version: VERSION, max_version: VERSION, capabilities: 0 };

    /// Encodes the hello.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        hello([self.min_version, self.max_version], self.capabilities, 0)
    }

    /// Decodes the hello.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, WireError> {
        let ([min_version, max_version], capabilities, _) = read_hello(bytes)?;
        Ok(Self { min_version, max_version, capabilities })
    }

    /// The version that both sides speak.
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
    /// The version in force; 0 when there is no common one, and the connection ends.
    pub version: u16,
    /// Requests that the sender reads before it stops reading.
    pub requests: u16,
    /// Capabilities.
    pub capabilities: Capabilities,
    /// The largest payload that the sender puts into one frame, at most [`REPLY_PAYLOAD`](crate::limits::REPLY_PAYLOAD).
    pub reply_payload: u32,
}

impl ServerHello {
    /// Encodes the hello.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        hello([self.version, self.requests], self.capabilities, self.reply_payload)
    }

    /// Decodes the hello.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, WireError> {
        let ([version, requests], capabilities, reply_payload) = read_hello(bytes)?;
        if version != VERSION {
            return Err(WireError::Version { min: version, max: version });
        }
        Ok(Self { version, requests, capabilities, reply_payload })
    }
}

fn hello(shorts: [u16; 2], capabilities: u32, payload: u32) -> [u8; HELLO_BYTES] {
    let mut out = [0; HELLO_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&shorts[0].to_le_bytes());
    out[10..12].copy_from_slice(&shorts[1].to_le_bytes());
    out[12..16].copy_from_slice(&capabilities.to_le_bytes());
    out[16..20].copy_from_slice(&payload.to_le_bytes());
    out
}

fn read_hello(bytes: &[u8; HELLO_BYTES]) -> Result<([u16; 2], u32, u32), WireError> {
    let mut reader = Reader::new(bytes);
    if reader.array("magic")? != MAGIC {
        return Err(WireError::Magic);
    }
    Ok(([reader.u16("version")?, reader.u16("version")?], reader.u32("capabilities")?, reader.u32("payload")?))
}
