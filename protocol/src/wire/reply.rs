//! Replies, which a sender sends.

use super::{WireError, frame, kind};
use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::limits;

/// A reply frame other than [`kind::BYTES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// See [`kind::QUEUED`].
    Queued {
        /// The number of connections before this one.
        place: u64,
    },
    /// See [`kind::PINNED`].
    Pinned {
        /// The handle of the generation, for this session's further requests.
        handle: u32,
        /// The encoded head.
        head: Vec<u8>,
    },
    /// See [`kind::SIGNATURE`]. The bytes of a minisign signature file.
    Signature(Vec<u8>),
    /// See [`kind::NEWS`].
    News {
        /// The time, in milliseconds, over which followers spread their pulls.
        spread: u32,
        /// The encoded head.
        head: Vec<u8>,
    },
    /// See [`kind::LIST_FORM`].
    ListForm(ListForm),
    /// See [`kind::ITEM_FAILED`].
    ItemFailed {
        /// The item's index in the request, from 0.
        item: u32,
        /// Why the item failed.
        reason: ItemFailure,
    },
    /// See [`kind::END`].
    End,
    /// See [`kind::ERROR`].
    Error {
        /// Why the request or the session failed.
        code: ErrorCode,
        /// The error as text for people.
        message: String,
    },
}

/// The form in which a list is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListForm {
    /// The receiver has the list already. No bytes follow.
    Unchanged,
    /// Deltas of these lengths in bytes follow, one after the other, to be applied in this order.
    Deltas(Vec<u64>),
    /// The whole list follows, compressed with zstd.
    Whole {
        /// The length of the encoded list before compression, in bytes.
        list_len: u64,
    },
}

/// Why an item of a data request is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemFailure {
    /// The file on the sender's disk is no longer the indexed one.
    Stale,
    /// The file no longer exists.
    Vanished,
    /// The sender cannot read it.
    Unreadable,
}

/// Why a request or a session fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The peer violates the protocol.
    Malformed,
    /// There is no repository of this name.
    UnknownRepository,
    /// The repository has no generation yet.
    NotIndexed,
    /// A handle, row, path or range does not exist.
    NotThere,
    /// The sender is at a limit, or the peer is too slow.
    Refused,
    /// The sender is shutting down.
    ShuttingDown,
    /// The sender failed.
    Internal,
}

pub(super) const ERROR_CODES: [ErrorCode; 7] = [
    ErrorCode::Malformed,
    ErrorCode::UnknownRepository,
    ErrorCode::NotIndexed,
    ErrorCode::NotThere,
    ErrorCode::Refused,
    ErrorCode::ShuttingDown,
    ErrorCode::Internal,
];
pub(super) const ITEM_FAILURES: [ItemFailure; 3] = [ItemFailure::Stale, ItemFailure::Vanished, ItemFailure::Unreadable];

impl Reply {
    /// Returns the frame kind.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Queued { .. } => kind::QUEUED,
            Self::Pinned { .. } => kind::PINNED,
            Self::Signature(_) => kind::SIGNATURE,
            Self::News { .. } => kind::NEWS,
            Self::ListForm(_) => kind::LIST_FORM,
            Self::ItemFailed { .. } => kind::ITEM_FAILED,
            Self::End => kind::END,
            Self::Error { .. } => kind::ERROR,
        }
    }

    /// Returns the whole frame that carries this reply to `request`.
    pub fn frame(&self, request: u32) -> Vec<u8> {
        frame(request, self.kind(), &self.encode())
    }

    /// Returns the payload of the frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Queued { place } => put_varint(&mut out, *place),
            Self::Pinned { handle: number, head } | Self::News { spread: number, head } => {
                put_varint(&mut out, u64::from(*number));
                out.extend_from_slice(head);
            }
            Self::Signature(signature) => out.extend_from_slice(signature),
            Self::ListForm(ListForm::Unchanged) => out.push(0),
            Self::ListForm(ListForm::Deltas(lens)) => {
                out.push(1);
                put_varint(&mut out, lens.len() as u64);
                lens.iter().for_each(|&len| put_varint(&mut out, len));
            }
            Self::ListForm(ListForm::Whole { list_len }) => {
                out.push(2);
                put_varint(&mut out, *list_len);
            }
            Self::ItemFailed { item, reason } => {
                put_varint(&mut out, u64::from(*item));
                out.push(*reason as u8);
            }
            Self::End => {}
            Self::Error { code, message } => {
                out.push(*code as u8);
                let cut = message.floor_char_boundary(limits::MESSAGE);
                put_bytes(&mut out, &message.as_bytes()[..cut]);
            }
        }
        out
    }

    /// Decodes the payload of a reply frame. The payload of [`kind::BYTES`] has no structure, so that kind is refused.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let reply = match kind {
            kind::QUEUED => Self::Queued { place: reader.varint("place")? },
            kind::PINNED => Self::Pinned { handle: reader.varint_u32("handle")?, head: decode_head(&mut reader)? },
            kind::NEWS => Self::News { spread: reader.varint_u32("spread")?, head: decode_head(&mut reader)? },
            kind::SIGNATURE => {
                if reader.remaining() > limits::SIGNATURE {
                    return Err(DecodeError::Trailing("signature").into());
                }
                Self::Signature(reader.rest().to_vec())
            }
            kind::LIST_FORM => Self::ListForm(decode_list_form(&mut reader)?),
            kind::ITEM_FAILED => {
                let item = reader.varint_u32("item")?;
                let reason = ITEM_FAILURES.get(usize::from(reader.u8("reason")?));
                Self::ItemFailed { item, reason: *reason.ok_or(DecodeError::Invalid("reason"))? }
            }
            kind::END => Self::End,
            kind::ERROR => {
                let code = ERROR_CODES.get(usize::from(reader.u8("code")?));
                let message = reader.text("message", limits::MESSAGE)?.to_owned();
                Self::Error { code: *code.ok_or(DecodeError::Invalid("code"))?, message }
            }
            _ => return Err(WireError::Kind(kind)),
        };
        reader.finish("reply")?;
        Ok(reply)
    }
}

fn decode_head(reader: &mut Reader<'_>) -> Result<Vec<u8>, DecodeError> {
    if reader.remaining() > limits::HEAD {
        return Err(DecodeError::Trailing("head"));
    }
    Ok(reader.rest().to_vec())
}

fn decode_list_form(reader: &mut Reader<'_>) -> Result<ListForm, DecodeError> {
    Ok(match reader.u8("form")? {
        0 => ListForm::Unchanged,
        1 => {
            let count = reader.varint_to("deltas", limits::DELTAS as u64)?;
            let lens = (0..count).map(|_| reader.varint_to("delta length", limits::DELTA_BYTES));
            ListForm::Deltas(lens.collect::<Result<_, _>>()?)
        }
        2 => ListForm::Whole { list_len: reader.varint_to("list length", limits::LIST_BYTES)? },
        _ => return Err(DecodeError::Invalid("form")),
    })
}
