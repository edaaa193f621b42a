//! What a sender answers.

use super::{WireError, frame, kind};
use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::limits;

/// What a sender answers, one value a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// See [`kind::QUEUED`].
    Queued {
        /// Connections before this one.
        place: u64,
    },
    /// See [`kind::PINNED`].
    Pinned {
        /// Names the generation in this session's further requests.
        handle: u32,
        /// The encoded head.
        head: Vec<u8>,
    },
    /// See [`kind::LIST_FORM`].
    ListForm(ListForm),
    /// See [`kind::ITEM_FAILED`].
    ItemFailed {
        /// The item's place in the request, from 0.
        item: u32,
        /// Why.
        reason: ItemFailure,
    },
    /// See [`kind::END`].
    End,
    /// See [`kind::ERROR`].
    Error {
        /// Why.
        code: ErrorCode,
        /// For people.
        message: String,
    },
}

/// How a list comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListForm {
    /// The receiver has it. No bytes follow.
    Unchanged,
    /// Deltas of these lengths follow, one after the other, to be applied in turn.
    Deltas(Vec<u64>),
    /// The whole list follows, zstd-compressed, of this length when decompressed.
    Whole {
        /// Bytes of the encoded list.
        list_len: u64,
    },
}

/// Why an item of a data request is not coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemFailure {
    /// The file on the sender's disk is no longer the indexed one.
    Stale,
    /// The file is gone.
    Vanished,
    /// The sender cannot read it.
    Unreadable,
}

/// Why a request or a session fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The peer's bytes do not follow the protocol.
    Malformed,
    /// No such repository.
    UnknownRepository,
    /// The repository has no generation yet.
    NotIndexed,
    /// A handle, row, path or range that the generation does not have.
    NotThere,
    /// The sender is at its limit, or the peer is too slow.
    Refused,
    /// The sender is going down.
    ShuttingDown,
    /// A fault on the sender's side.
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
    /// The frame kind.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Queued { .. } => kind::QUEUED,
            Self::Pinned { .. } => kind::PINNED,
            Self::ListForm(_) => kind::LIST_FORM,
            Self::ItemFailed { .. } => kind::ITEM_FAILED,
            Self::End => kind::END,
            Self::Error { .. } => kind::ERROR,
        }
    }

    /// The whole frame that carries this reply to `request`.
    pub fn frame(&self, request: u32) -> Vec<u8> {
        frame(request, self.kind(), &self.encode())
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Queued { place } => put_varint(&mut out, *place),
            Self::Pinned { handle, head } => {
                put_varint(&mut out, u64::from(*handle));
                out.extend_from_slice(head);
            }
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

    /// Decodes a reply frame's payload. [`kind::BYTES`] has no structure and is not decoded here.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let reply = match kind {
            kind::QUEUED => Self::Queued { place: reader.varint("place")? },
            kind::PINNED => {
                let handle = reader.varint_u32("handle")?;
                if reader.remaining() > limits::HEAD {
                    return Err(DecodeError::Trailing("head").into());
                }
                Self::Pinned { handle, head: reader.rest().to_vec() }
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
