//! What a receiver asks.

use super::{WireError, kind};
use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::entry::Digest;
use crate::{limits, path};

/// A byte range of one file, or of its block checksum record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Item {
    /// The file's row in the pinned generation's list.
    pub row: u32,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// What a receiver asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// See [`kind::REPOSITORIES`]. Answer: bytes (see [`Repository::decode_all`](super::Repository::decode_all)).
    Repositories,
    /// See [`kind::HEAD`]. Answer: [`Reply::Pinned`](super::Reply::Pinned).
    Head {
        /// The repository's name.
        repository: String,
    },
    /// See [`kind::LIST`]. Answer: [`Reply::ListForm`](super::Reply::ListForm), then its bytes.
    List {
        /// The generation.
        handle: u32,
        /// Digest of the list that the receiver has; [`Digest::NONE`] for none.
        have: Digest,
    },
    /// See [`kind::DIR`]. Answer: bytes (see [`decode_dir`](super::decode_dir)).
    Dir {
        /// The generation.
        handle: u32,
        /// The directory, or the single file, relative to the root.
        path: Vec<u8>,
    },
    /// See [`kind::SUMS`]. Answer: for each item in turn a u32 length and that many bytes of the
    /// record. The range is cut at the record's end; a file without a record gives length 0.
    Sums {
        /// The generation.
        handle: u32,
        /// What is wanted.
        items: Vec<Item>,
    },
    /// See [`kind::DATA`]. Answer: the bytes of the items, one after the other, nothing between them,
    /// and [`Reply::ItemFailed`](super::Reply::ItemFailed) for an item of which no (further) byte comes. The range must lie
    /// within the file.
    Data {
        /// The generation.
        handle: u32,
        /// What is wanted.
        items: Vec<Item>,
    },
}

impl Request {
    /// The frame kind.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Repositories => kind::REPOSITORIES,
            Self::Head { .. } => kind::HEAD,
            Self::List { .. } => kind::LIST,
            Self::Dir { .. } => kind::DIR,
            Self::Sums { .. } => kind::SUMS,
            Self::Data { .. } => kind::DATA,
        }
    }

    /// Encodes the payload. [`limits::REQUEST_PAYLOAD`] bytes hold [`items_that_fit`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Repositories => {}
            Self::Head { repository } => put_bytes(&mut out, repository.as_bytes()),
            Self::List { handle, have } => {
                put_varint(&mut out, u64::from(*handle));
                out.extend_from_slice(&have.0);
            }
            Self::Dir { handle, path } => {
                put_varint(&mut out, u64::from(*handle));
                put_bytes(&mut out, path);
            }
            Self::Sums { handle, items } | Self::Data { handle, items } => {
                put_varint(&mut out, u64::from(*handle));
                put_varint(&mut out, items.len() as u64);
                for item in items {
                    put_varint(&mut out, u64::from(item.row));
                    put_varint(&mut out, item.offset);
                    put_varint(&mut out, item.len);
                }
            }
        }
        out
    }

    /// Decodes the payload of a request frame.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let request = match kind {
            kind::REPOSITORIES => Self::Repositories,
            kind::HEAD => Self::Head { repository: reader.text("repository", limits::REPOSITORY_NAME)?.to_owned() },
            kind::LIST => Self::List { handle: reader.varint_u32("handle")?, have: Digest(reader.array("have")?) },
            kind::DIR => {
                let handle = reader.varint_u32("handle")?;
                let path = reader.bytes("path", limits::PATH)?;
                path::check_relative(path).map_err(|_| DecodeError::Invalid("path"))?;
                Self::Dir { handle, path: path.to_vec() }
            }
            kind::SUMS => {
                let (handle, items) = decode_items(&mut reader)?;
                Self::Sums { handle, items }
            }
            kind::DATA => {
                let (handle, items) = decode_items(&mut reader)?;
                Self::Data { handle, items }
            }
            _ => return Err(WireError::Kind(kind)),
        };
        reader.finish("request")?;
        Ok(request)
    }
}

/// The most items that fit one request whatever their values: three varints of at most 5 + 10 + 10
/// bytes behind a handle and a count.
pub const fn items_that_fit() -> usize {
    (limits::REQUEST_PAYLOAD - 15) / 25
}

fn decode_items(reader: &mut Reader<'_>) -> Result<(u32, Vec<Item>), DecodeError> {
    let handle = reader.varint_u32("handle")?;
    let count = reader.varint_to("items", limits::REQUEST_ITEMS as u64)? as usize;
    // An item takes three bytes at least: a count beyond that is a lie and reserves nothing.
    let mut items = Vec::with_capacity(count.min(reader.remaining() / 3));
    for _ in 0..count {
        let row = reader.varint_u32("row")?;
        let offset = reader.varint_to("offset", limits::FILE_SIZE)?;
        let len = reader.varint_to("length", limits::FILE_SIZE - offset)?;
        items.push(Item { row, offset, len });
    }
    Ok((handle, items))
}
