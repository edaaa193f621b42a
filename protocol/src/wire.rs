//! The native protocol: preamble, frames, requests and replies.
//!
//! A receiver opens with a 24-byte [`ClientHello`], the sender answers with a [`ServerHello`]; the
//! receiver need not wait for it to send requests. From there on both directions carry frames: a
//! 12-byte [`FrameHeader`] and a payload. A request has a number of the receiver's choice, and every
//! reply frame to it carries that number, so replies to several requests may be interleaved. A reply
//! ends with [`kind::END`] or [`kind::ERROR`]. Byte tables and the state diagram are in
//! `docs/native-protocol.md`.

use thiserror::Error;

use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::entry::Digest;
use crate::{limits, path};

/// First bytes of both hellos. Not text, so that no line protocol is mistaken for it.
pub const MAGIC: [u8; 8] = *b"\x93STILL\r\n";
/// The version of the protocol that this program speaks, and the oldest that it understands.
pub const VERSION: u16 = 1;
/// Bytes of either hello.
pub const HELLO_BYTES: usize = 24;
/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 12;

/// Capabilities, as bits of both hellos; what both sides have set is in force. None is defined yet: a
/// side ignores bits that it does not know.
pub type Capabilities = u32;

/// What a peer sent that the protocol does not allow.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// The peer does not speak this protocol.
    #[error("the peer does not speak the native protocol")]
    Magic,
    /// No common version.
    #[error("the peer speaks versions {min} to {max} of the protocol; this program speaks {VERSION}")]
    Version {
        /// The peer's oldest.
        min: u16,
        /// The peer's newest.
        max: u16,
    },
    /// A frame is larger than it may be.
    #[error("a frame of {len} bytes where {limit} are allowed")]
    FrameTooLarge {
        /// Bytes claimed.
        len: u32,
        /// The limit.
        limit: usize,
    },
    /// A frame of a kind that does not exist, or not in this direction.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// A field does not decode.
    #[error("malformed frame: {0}")]
    Decode(#[from] DecodeError),
}

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
    /// The largest payload that the sender puts into one frame, at most [`limits::REPLY_PAYLOAD`].
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

/// Frame kinds. Requests are below 128, replies from there up.
pub mod kind {
    /// Request: the repositories that this sender serves. No payload.
    pub const REPOSITORIES: u8 = 1;
    /// Request: a repository's head; pins its current generation for the session.
    pub const HEAD: u8 = 2;
    /// Request: the file list, or what leads to it from one that the receiver has.
    pub const LIST: u8 = 3;
    /// Request: the children of one directory.
    pub const DIR: u8 = 4;
    /// Request: byte ranges of block checksum records.
    pub const SUMS: u8 = 5;
    /// Request: byte ranges of files.
    pub const DATA: u8 = 6;

    /// Reply: the connection waits for its turn (request number 0); payload: varint place in the queue.
    pub const QUEUED: u8 = 128;
    /// Reply to `HEAD`: varint handle of the pinned generation, then its head.
    pub const PINNED: u8 = 129;
    /// Reply to `LIST`: how the list comes.
    pub const LIST_FORM: u8 = 130;
    /// Reply: the next bytes of the answer.
    pub const BYTES: u8 = 131;
    /// Reply to `DATA`: one item, or the rest of it, is not coming.
    pub const ITEM_FAILED: u8 = 132;
    /// Reply: the answer is whole. No payload.
    pub const END: u8 = 133;
    /// Reply: the request failed (or, with request number 0, the session ends).
    pub const ERROR: u8 = 134;
}

/// A frame's header: payload length (u32), request number (u32), kind (u8), three zero bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Payload bytes.
    pub len: u32,
    /// The request that the frame belongs to; 0 for the session itself.
    pub request: u32,
    /// One of [`kind`].
    pub kind: u8,
}

impl FrameHeader {
    /// Encodes the header.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[..4].copy_from_slice(&self.len.to_le_bytes());
        out[4..8].copy_from_slice(&self.request.to_le_bytes());
        out[8] = self.kind;
        out
    }

    /// Decodes a header and holds its length against `limit` (bytes).
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES], limit: usize) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let (len, request, kind) = (reader.u32("length")?, reader.u32("request")?, reader.u8("kind")?);
        if reader.array("reserved")? != [0; 3] {
            return Err(DecodeError::Invalid("reserved").into());
        }
        if len as usize > limit {
            return Err(WireError::FrameTooLarge { len, limit });
        }
        Ok(Self { len, request, kind })
    }
}

/// A frame with header and payload in one buffer.
pub fn frame(request: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { len: payload.len() as u32, request, kind };
    [&header.encode()[..], payload].concat()
}

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
    /// See [`kind::REPOSITORIES`]. Answer: bytes (see [`Repository::decode_all`]).
    Repositories,
    /// See [`kind::HEAD`]. Answer: [`Reply::Pinned`].
    Head {
        /// The repository's name.
        repository: String,
    },
    /// See [`kind::LIST`]. Answer: [`Reply::ListForm`], then its bytes.
    List {
        /// The generation.
        handle: u32,
        /// Digest of the list that the receiver has; [`Digest::NONE`] for none.
        have: Digest,
    },
    /// See [`kind::DIR`]. Answer: bytes (see [`decode_dir`]).
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
    /// and [`Reply::ItemFailed`] for an item of which no (further) byte comes. The range must lie
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

const ERROR_CODES: [ErrorCode; 7] = [
    ErrorCode::Malformed,
    ErrorCode::UnknownRepository,
    ErrorCode::NotIndexed,
    ErrorCode::NotThere,
    ErrorCode::Refused,
    ErrorCode::ShuttingDown,
    ErrorCode::Internal,
];
const ITEM_FAILURES: [ItemFailure; 3] = [ItemFailure::Stale, ItemFailure::Vanished, ItemFailure::Unreadable];

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

    fn encode(&self) -> Vec<u8> {
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

/// One repository that a sender announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Its name.
    pub name: String,
    /// The operator's one-line description.
    pub comment: String,
    /// Its current encoded head; empty when it is not indexed yet.
    pub head: Vec<u8>,
}

impl Repository {
    /// Encodes a list of repositories.
    pub fn encode_all(repositories: &[Self]) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, repositories.len() as u64);
        for repository in repositories {
            put_bytes(&mut out, repository.name.as_bytes());
            let cut = repository.comment.floor_char_boundary(limits::MESSAGE);
            put_bytes(&mut out, &repository.comment.as_bytes()[..cut]);
            put_bytes(&mut out, &repository.head);
        }
        out
    }

    /// Decodes a list of repositories.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let count = reader.varint_to("repositories", limits::REPOSITORIES as u64)?;
        let one = |reader: &mut Reader<'_>| -> Result<Self, DecodeError> {
            Ok(Self {
                name: reader.text("name", limits::REPOSITORY_NAME)?.to_owned(),
                comment: reader.text("comment", limits::MESSAGE)?.to_owned(),
                head: reader.bytes("head", limits::HEAD)?.to_vec(),
            })
        };
        let repositories = (0..count).map(|_| one(&mut reader)).collect::<Result<_, _>>()?;
        reader.finish("repositories")?;
        Ok(repositories)
    }
}

/// Appends one child to the answer to [`Request::Dir`]: its name, then the entry.
pub fn encode_child(
    out: &mut Vec<u8>,
    encoder: &mut crate::changes::EntryEncoder,
    name: &[u8],
    entry: &crate::entry::Entry,
) {
    put_bytes(out, name);
    encoder.encode(out, entry);
}

/// Decodes the whole answer to [`Request::Dir`]: names and entries, in order. A single file that was
/// asked for comes as its own only child.
pub fn decode_dir(bytes: &[u8]) -> Result<Vec<(Vec<u8>, crate::entry::Entry)>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut decoder = crate::changes::EntryDecoder::default();
    let mut children = Vec::new();
    while reader.remaining() > 0 {
        let name = reader.bytes("name", limits::NAME)?;
        path::check_name(name).map_err(|_| DecodeError::Invalid("name"))?;
        let entry = decoder.decode(&mut reader)?.ok_or(DecodeError::Invalid("type"))?;
        children.push((name.to_vec(), entry));
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item() -> impl Strategy<Value = Item> {
        (any::<u32>(), 0..=limits::FILE_SIZE / 2, 0..=limits::FILE_SIZE / 2).prop_map(|(row, offset, len)| Item {
            row,
            offset,
            len,
        })
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(Request::Repositories),
            "[a-z]{1,20}".prop_map(|repository| Request::Head { repository }),
            (any::<u32>(), any::<[u8; 32]>()).prop_map(|(handle, have)| Request::List { handle, have: Digest(have) }),
            (any::<u32>(), "[a-z]{1,9}(/[a-z]{1,9}){0,3}")
                .prop_map(|(handle, path)| Request::Dir { handle, path: path.into_bytes() }),
            (any::<u32>(), prop::collection::vec(item(), 0..50))
                .prop_map(|(handle, items)| Request::Sums { handle, items }),
            (any::<u32>(), prop::collection::vec(item(), 0..50))
                .prop_map(|(handle, items)| Request::Data { handle, items }),
        ]
    }

    fn reply() -> impl Strategy<Value = Reply> {
        prop_oneof![
            any::<u64>().prop_map(|place| Reply::Queued { place }),
            (any::<u32>(), prop::collection::vec(any::<u8>(), 0..limits::HEAD))
                .prop_map(|(handle, head)| Reply::Pinned { handle, head }),
            Just(Reply::ListForm(ListForm::Unchanged)),
            prop::collection::vec(0..limits::DELTA_BYTES, 0..limits::DELTAS)
                .prop_map(|lens| Reply::ListForm(ListForm::Deltas(lens))),
            (0..limits::LIST_BYTES).prop_map(|list_len| Reply::ListForm(ListForm::Whole { list_len })),
            (any::<u32>(), 0..ITEM_FAILURES.len())
                .prop_map(|(item, reason)| Reply::ItemFailed { item, reason: ITEM_FAILURES[reason] }),
            Just(Reply::End),
            (0..ERROR_CODES.len(), "\\PC{0,40}")
                .prop_map(|(code, message)| Reply::Error { code: ERROR_CODES[code], message }),
        ]
    }

    proptest! {
        #[test]
        fn requests_come_back_as_they_were_sent(request in request()) {
            prop_assert_eq!(Request::decode(request.kind(), &request.encode()), Ok(request));
        }

        #[test]
        fn replies_come_back_as_they_were_sent(reply in reply()) {
            prop_assert_eq!(Reply::decode(reply.kind(), &reply.encode()), Ok(reply));
        }

        #[test]
        fn any_payload_decodes_or_is_refused(kind: u8, payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::decode(kind, &payload);
            let _ = Reply::decode(kind, &payload);
            let _ = Repository::decode_all(&payload);
            let _ = decode_dir(&payload);
        }
    }

    #[test]
    fn a_request_full_of_the_largest_items_fits_its_frame() {
        let largest = Item { row: u32::MAX, offset: limits::FILE_SIZE, len: 0 };
        let request = Request::Data { handle: u32::MAX, items: vec![largest; items_that_fit()] };
        assert!(request.encode().len() <= limits::REQUEST_PAYLOAD);
    }

    #[test]
    fn a_peer_of_another_version_is_told_apart_from_a_stranger() {
        let newer = ClientHello { min_version: 2, max_version: 9, capabilities: 0 };
        let decoded = ClientHello::decode(&newer.encode()).and_then(|hello| hello.negotiate());
        assert_eq!(decoded, Err(WireError::Version { min: 2, max: 9 }));
        assert_eq!(ClientHello::decode(b"@RSYNCD: 31.0 sha512 sha"), Err(WireError::Magic));
    }
}
