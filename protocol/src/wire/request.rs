//! Requests, which a receiver sends.

use super::{WireError, kind};
use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::entry::Digest;
use crate::{limits, path};

/// A byte range of one file, or of its block checksum record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Item {
    /// The file's row in the pinned generation's list.
    pub row: u32,
    /// The offset of the first byte.
    pub offset: u64,
    /// The number of bytes.
    pub len: u64,
}

/// A receiver's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// See [`kind::REPOSITORIES`]. Answer: bytes for [`Repository::decode_all`](super::Repository::decode_all).
    Repositories,
    /// See [`kind::HEAD`]. Answer: [`Reply::Pinned`](super::Reply::Pinned).
    Head {
        /// The repository's name.
        repository: String,
    },
    /// See [`kind::LIST`]. Answer: [`Reply::ListForm`](super::Reply::ListForm), then the bytes of that form.
    List {
        /// The handle of the generation.
        handle: u32,
        /// The digest of the list that the receiver has; [`Digest::NONE`] if it has none.
        have: Digest,
    },
    /// See [`kind::DIR`]. Answer: bytes for [`decode_dir`](super::decode_dir).
    Dir {
        /// The handle of the generation.
        handle: u32,
        /// The path of the directory, or of a single file, relative to the root.
        path: Vec<u8>,
    },
    /// See [`kind::SUMS`]. Answer: for each item in turn a u32 length and that many bytes of the record. A range is
    /// truncated at the end of the record. A file without a record gives length 0.
    Sums {
        /// The handle of the generation.
        handle: u32,
        /// The wanted ranges of block checksum records.
        items: Vec<Item>,
    },
    /// See [`kind::DATA`]. Answer: the bytes of the items, one after the other with nothing between them, and
    /// [`Reply::ItemFailed`](super::Reply::ItemFailed) for an item of which no further byte is sent. The ranges must lie
    /// within their files.
    Data {
        /// The handle of the generation.
        handle: u32,
        /// The wanted ranges of files.
        items: Vec<Item>,
    },
    /// See [`kind::FOLLOW`]. Answered with [`Reply::News`](super::Reply::News) as soon as the current head is not the known
    /// one, and after about a minute without news in any case.
    Follow {
        /// The repository's name.
        repository: String,
        /// The [`fingerprint`](super::fingerprint) of the head that the receiver knows; [`Digest::NONE`] if it knows none.
        known: Digest,
    },
}

impl Request {
    /// Returns the frame kind.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Repositories => kind::REPOSITORIES,
            Self::Head { .. } => kind::HEAD,
            Self::List { .. } => kind::LIST,
            Self::Dir { .. } => kind::DIR,
            Self::Sums { .. } => kind::SUMS,
            Self::Data { .. } => kind::DATA,
            Self::Follow { .. } => kind::FOLLOW,
        }
    }

    /// Encodes the payload. Up to [`items_that_fit`] items fit into [`limits::REQUEST_PAYLOAD`] bytes.
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
            Self::Follow { repository, known } => {
                put_bytes(&mut out, repository.as_bytes());
                out.extend_from_slice(&known.0);
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
            kind::FOLLOW => Self::Follow {
                repository: reader.text("repository", limits::REPOSITORY_NAME)?.to_owned(),
                known: Digest(reader.array("known")?),
            },
            _ => return Err(WireError::Kind(kind)),
        };
        reader.finish("request")?;
        Ok(request)
    }
}

/// Returns the number of items that fit into one request whatever their values are. An item is three varints of up to
/// 5 + 10 + 10 bytes; a handle and a count precede the items.
pub const fn items_that_fit() -> usize {
    (limits::REQUEST_PAYLOAD - 15) / 25
}

fn decode_items(reader: &mut Reader<'_>) -> Result<(u32, Vec<Item>), DecodeError> {
    let handle = reader.varint_u32("handle")?;
    let count = reader.varint_to("items", limits::REQUEST_ITEMS as u64)? as usize;
    // An item takes at least three bytes, so nothing is reserved for a count that the payload cannot hold.
    let mut items = Vec::with_capacity(count.min(reader.remaining() / 3));
    for _ in 0..count {
        let row = reader.varint_u32("row")?;
        let offset = reader.varint_to("offset", limits::FILE_SIZE)?;
        let len = reader.varint_to("length", limits::FILE_SIZE - offset)?;
        items.push(Item { row, offset, len });
    }
    Ok((handle, items))
}
