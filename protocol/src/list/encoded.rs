//! The encoded form of a list: a header that can be read without rkyv, then one rkyv archive.

use rkyv::util::AlignedVec;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use twox_hash::XxHash3_128;

use super::{ArchivedFileList, FileList, ListRef, Offence, validate};
use crate::codec::{DecodeError, Reader};
use crate::entry::Digest;
use crate::limits;

/// The first bytes of an encoded list.
pub const MAGIC: [u8; 8] = *b"SMLIST\r\n";
/// The version of the format. A reader refuses every other one.
pub const VERSION: u16 = 1;
/// The length of the header in bytes. The archived body begins here, so this also determines the body's alignment.
pub const HEADER_BYTES: usize = 64;

/// Computes the digest that names an encoded list.
pub fn digest(encoded: &[u8]) -> Digest {
    Digest(Sha256::digest(encoded).into())
}

/// Checks an encoded list completely (header, checksum, archive and content) and returns it. The bytes must be aligned
/// to 16.
pub fn open(encoded: &[u8]) -> Result<ListRef<'_>, ListError> {
    let header = Header::decode(encoded)?;
    let body = &encoded[HEADER_BYTES..];
    if body.len() as u64 != header.body_len {
        return Err(ListError::Length { found: body.len() as u64, expected: header.body_len });
    }
    if XxHash3_128::oneshot(body) != header.checksum {
        return Err(ListError::Checksum);
    }
    open_body(body)
}

/// Like [`open`], for a body whose header and checksum the caller has checked.
pub fn open_body(body: &[u8]) -> Result<ListRef<'_>, ListError> {
    let archived = rkyv::access::<ArchivedFileList, rkyv::rancor::Error>(body)
        .map_err(|error| ListError::Archive(error.to_string().lines().next().unwrap_or_default().to_owned()))?;
    let list = ListRef::new(archived);
    validate(list)?;
    Ok(list)
}

/// Why an encoded list is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ListError {
    /// The bytes are not a list.
    #[error("not a file list (wrong magic)")]
    Magic,
    /// The list has another version of the format.
    #[error("file list format {found}; this program reads format {VERSION}")]
    Version {
        /// The version found.
        found: u16,
    },
    /// The header does not decode.
    #[error("file list header: {0}")]
    Header(#[from] DecodeError),
    /// The body is shorter or longer than the header says.
    #[error("file list of {found} bytes where the header says {expected}")]
    Length {
        /// The length of the body in bytes.
        found: u64,
        /// The length in the header, in bytes.
        expected: u64,
    },
    /// The body's checksum is wrong: the list is damaged.
    #[error("file list is damaged (checksum differs)")]
    Checksum,
    /// The body is not an archived list, although its checksum is right: the writer is faulty or hostile.
    #[error("file list does not decode: {0}")]
    Archive(String),
    /// The list decodes, but does not describe a possible repository.
    #[error("file list: {0}")]
    Offence(#[from] Offence),
}

/// The fixed header of an encoded list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The length of the body, which follows the header, in bytes.
    pub body_len: u64,
    /// The XXH3-128 checksum of the body.
    pub checksum: u128,
}

/// The settings of rkyv; another value means another format. Bit 0: little-endian, 1: aligned, 2: 64-bit pointers.
const RKYV_SETTINGS: u16 = 0b111;

impl Header {
    /// Decodes the header from the first [`HEADER_BYTES`] bytes of a list.
    pub fn decode(bytes: &[u8]) -> Result<Self, ListError> {
        let mut reader = Reader::new(bytes);
        if reader.array::<8>("magic")? != MAGIC {
            return Err(ListError::Magic);
        }
        let found = reader.u16("version")?;
        if found != VERSION {
            return Err(ListError::Version { found });
        }
        if reader.u16("rkyv settings")? != RKYV_SETTINGS {
            return Err(DecodeError::Invalid("rkyv settings").into());
        }
        if reader.u32("header length")? as usize != HEADER_BYTES {
            return Err(DecodeError::Invalid("header length").into());
        }
        let body_len = reader.u64("body length")?;
        if body_len > limits::LIST_BYTES {
            return Err(
                DecodeError::TooLarge { field: "body length", value: body_len, limit: limits::LIST_BYTES }.into()
            );
        }
        let checksum = u128::from_le_bytes(reader.array("checksum")?);
        if reader.array::<24>("reserved")? != [0; 24] {
            return Err(DecodeError::Invalid("reserved").into());
        }
        Ok(Self { body_len, checksum })
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&RKYV_SETTINGS.to_le_bytes());
        out[12..16].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.body_len.to_le_bytes());
        out[24..40].copy_from_slice(&self.checksum.to_le_bytes());
        out
    }
}

impl FileList {
    /// Encodes the list: header and body.
    pub fn encode(&self) -> AlignedVec {
        let mut out = AlignedVec::with_capacity(self.encoded_len());
        out.extend_from_slice(&[0; HEADER_BYTES]);
        // Serializing plain columns into memory cannot fail.
        let Ok(mut out) = rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Panic>(self, out);
        let body = &out[HEADER_BYTES..];
        let header = Header { body_len: body.len() as u64, checksum: XxHash3_128::oneshot(body) };
        out[..HEADER_BYTES].copy_from_slice(&header.encode());
        out
    }

    /// Estimates the length of the encoded list in bytes, rather too high than too low. If the buffer had to grow by
    /// doubling, twice as many bytes would be touched and copied.
    fn encoded_len(&self) -> usize {
        const PER_ENTRY: usize = 4 + 2 + 1 + 4 + 8 + 8 + 4 + 4;
        const PER_DIRECTORY: usize = 5 * 4 + 8;
        let digests = 32 * self.sha256.len() + 16 * (self.xxh128.len() + self.md5.len());
        let names = self.names.len() + self.targets.len() + self.owner_names.len();
        let tables = 8 * (self.target_end.len() + self.major.len() + self.link_row.len()) + 16 * self.uid.len();
        let columns_and_padding = 4096;
        PER_ENTRY * self.len() + PER_DIRECTORY * self.dir_row.len() + digests + names + tables + columns_and_padding
    }
}
