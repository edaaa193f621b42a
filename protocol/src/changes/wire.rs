//! The encoded list delta: the changes between two lists, named by their digests, as one zstd frame. The layout is
//! described in `docs/index-format.md`.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io::{self, Read as _};

use thiserror::Error;

use super::{Changes, Op, Put};
use crate::codec::{DecodeError, Reader, put_bytes, put_signed, put_varint};
use crate::entry::{Device, Digest, Digests, Entry, Kind, Owner, PERMISSIONS, Time};
use crate::{limits, path};

const MAGIC: [u8; 8] = *b"SMDELTA\n";
const VERSION: u16 = 1;
/// A high level, because a delta is written once and read by every mirror.
const ZSTD_LEVEL: i32 = 9;

/// Why an encoded delta is invalid.
#[derive(Debug, Error)]
pub enum DeltaError {
    /// The bytes are not a delta, or one of another format version.
    #[error("not a list delta of format {VERSION}")]
    Format,
    /// The compressed body is damaged.
    #[error("list delta does not decompress: {0}")]
    Compression(String),
    /// A field does not decode.
    #[error("list delta: {0}")]
    Decode(#[from] DecodeError),
    /// A name or path is invalid.
    #[error("list delta: {0}")]
    Name(#[from] path::PathError),
}

impl Changes {
    /// Encodes the changes as a delta from the list with digest `from` to the list with digest `to`.
    pub fn encode(&self, from: Digest, to: Digest) -> Vec<u8> {
        let body = encode_body(self);
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&from.0);
        out.extend_from_slice(&to.0);
        out.extend_from_slice(&(body.len() as u64).to_le_bytes());
        out.extend_from_slice(&compress(&body).unwrap_or_default());
        out
    }

    /// Decodes a delta. Returns the digests of the lists that it leads from and to, and the changes.
    pub fn decode(bytes: &[u8]) -> Result<(Digest, Digest, Self), DeltaError> {
        let (from, to, len, packed) = header(bytes)?;
        let mut body = Vec::new();
        decompress(packed, len, &mut body)?;
        Ok((from, to, decode_body(&body)?))
    }
}

/// Checks that an encoded delta is undamaged, by the checksum of its compressed body. Returns the digests of the lists
/// that it leads from and to.
pub fn check(bytes: &[u8]) -> Result<(Digest, Digest), DeltaError> {
    let (from, to, len, packed) = header(bytes)?;
    decompress(packed, len, &mut io::sink())?;
    Ok((from, to))
}

/// Reads the header. Returns the two digests, the body's length before compression, and the compressed body.
fn header(bytes: &[u8]) -> Result<(Digest, Digest, u64, &[u8]), DeltaError> {
    let mut reader = Reader::new(bytes);
    if reader.array("magic")? != MAGIC || reader.u16("version")? != VERSION {
        return Err(DeltaError::Format);
    }
    let from = Digest(reader.array("from")?);
    let to = Digest(reader.array("to")?);
    let len = reader.u64("body length")?;
    if len > limits::DELTA_BYTES {
        let limit = limits::DELTA_BYTES;
        return Err(DecodeError::TooLarge { field: "body length", value: len, limit }.into());
    }
    Ok((from, to, len, reader.rest()))
}

/// Compresses the body to one frame with a checksum, which every reader verifies.
fn compress(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
    compressor.include_checksum(true)?;
    compressor.compress(body)
}

/// Decompresses a body that must have exactly `len` bytes. Memory grows with the bytes that really come out, not with
/// the length that the header claims.
fn decompress(packed: &[u8], len: u64, out: &mut impl io::Write) -> Result<(), DeltaError> {
    let broken = |error: io::Error| DeltaError::Compression(error.to_string());
    let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(broken)?;
    let written = io::copy(&mut decoder.take(len + 1), out).map_err(broken)?;
    if written != len {
        return Err(DeltaError::Compression("wrong length".to_owned()));
    }
    Ok(())
}

const TAG_REMOVE: u8 = 0;
const TAG_FILE: u8 = 1;
const TAG_DIRECTORY: u8 = 2;
const TAG_SYMLINK: u8 = 3;
const TAG_CHAR: u8 = 4;
const TAG_BLOCK: u8 = 5;
const TAG_FIFO: u8 = 6;
const TAG_SOCKET: u8 = 7;
/// Flag beside the type: the number of a link group follows.
const HAS_LINK: u8 = 0x80;

const HAS_XXH128: u8 = 2;
const HAS_MD5: u8 = 4;

fn encode_body(changes: &Changes) -> Vec<u8> {
    let mut encoder = EntryEncoder::default();
    let mut out = Vec::new();
    out.push(u8::from(changes.root.is_some()));
    if let Some(put) = &changes.root {
        encoder.encode(&mut out, &put.entry);
    }
    put_varint(&mut out, changes.dirs.len() as u64);
    for (dir, ops) in &changes.dirs {
        put_bytes(&mut out, dir);
        put_varint(&mut out, ops.len() as u64);
        for (name, op) in ops {
            put_bytes(&mut out, name);
            match op {
                Op::Remove => out.push(TAG_REMOVE),
                Op::Put(put) => encoder.encode(&mut out, &put.entry),
            }
        }
    }
    out
}

fn decode_body(bytes: &[u8]) -> Result<Changes, DeltaError> {
    let mut reader = Reader::new(bytes);
    let mut decoder = EntryDecoder::default();
    let mut changes = Changes::default();
    let put = |entry| Put { entry, tag: 0 };
    if reader.u8("root")? != 0 {
        changes.root = decoder.decode(&mut reader)?.map(put);
        if !changes.root.as_ref().is_some_and(|root| root.entry.kind.is_dir()) {
            return Err(DecodeError::Invalid("root").into());
        }
    }
    for _ in 0..reader.varint_to("directories", limits::ENTRIES)? {
        let dir = path::check_relative(reader.bytes("directory", limits::PATH)?)?.to_vec();
        let mut ops = BTreeMap::new();
        for _ in 0..reader.varint_to("changes", limits::ENTRIES)? {
            let name = reader.bytes("name", limits::NAME)?;
            path::check_name(name)?;
            let op = decoder.decode(&mut reader)?.map_or(Op::Remove, |entry| Op::Put(put(entry)));
            if ops.insert(name.to_vec(), op).is_some() {
                return Err(DecodeError::Invalid("repeated name").into());
            }
        }
        if changes.dirs.insert(dir, ops).is_some() {
            return Err(DecodeError::Invalid("repeated directory").into());
        }
    }
    reader.finish("list delta")?;
    Ok(changes)
}

/// Encodes entries one after the other. An owner is written in full at its first use, and by number from then on.
#[derive(Debug, Default)]
pub struct EntryEncoder {
    owners: HashMap<Owner, u64>,
}

impl EntryEncoder {
    /// Appends one entry.
    pub fn encode(&mut self, out: &mut Vec<u8>, entry: &Entry) {
        let tag = match &entry.kind {
            Kind::File { .. } => TAG_FILE,
            Kind::Directory => TAG_DIRECTORY,
            Kind::Symlink { .. } => TAG_SYMLINK,
            Kind::CharDevice(_) => TAG_CHAR,
            Kind::BlockDevice(_) => TAG_BLOCK,
            Kind::Fifo => TAG_FIFO,
            Kind::Socket => TAG_SOCKET,
        };
        out.push(tag | if entry.link.is_some() { HAS_LINK } else { 0 });
        put_varint(out, u64::from(entry.mode));
        put_signed(out, entry.mtime.sec);
        put_varint(out, u64::from(entry.mtime.nsec));
        self.encode_owner(out, &entry.owner);
        if let Some(link) = entry.link {
            put_varint(out, link);
        }
        match &entry.kind {
            Kind::File { size, digests } => encode_file(out, *size, digests),
            Kind::Symlink { target } => put_bytes(out, target),
            Kind::CharDevice(device) | Kind::BlockDevice(device) => {
                put_varint(out, u64::from(device.major));
                put_varint(out, u64::from(device.minor));
            }
            Kind::Directory | Kind::Fifo | Kind::Socket => {}
        }
    }

    fn encode_owner(&mut self, out: &mut Vec<u8>, owner: &Owner) {
        if let Some(&number) = self.owners.get(owner) {
            put_varint(out, number);
            return;
        }
        let number = self.owners.len() as u64;
        self.owners.insert(owner.clone(), number);
        put_varint(out, number);
        put_varint(out, u64::from(owner.uid));
        put_varint(out, u64::from(owner.gid));
        put_bytes(out, &owner.user);
        put_bytes(out, &owner.group);
    }
}

fn encode_file(out: &mut Vec<u8>, size: u64, digests: &Digests) {
    let (xxh128, md5) = (digests.xxh128 != [0; 16], digests.md5 != [0; 16]);
    let flag = |is_set, bit| if is_set { bit } else { 0 };
    out.push(flag(xxh128, HAS_XXH128) | flag(md5, HAS_MD5));
    put_varint(out, size);
    out.extend_from_slice(&digests.sha256.0);
    if xxh128 {
        out.extend_from_slice(&digests.xxh128);
    }
    if md5 {
        out.extend_from_slice(&digests.md5);
    }
}

/// Decodes the entries that an [`EntryEncoder`] wrote.
#[derive(Debug, Default)]
pub struct EntryDecoder {
    owners: Vec<Owner>,
}

impl EntryDecoder {
    /// Decodes one entry. `None` if the encoder's user wrote a removal there.
    pub fn decode(&mut self, reader: &mut Reader<'_>) -> Result<Option<Entry>, DecodeError> {
        let tag = reader.u8("type")?;
        if tag == TAG_REMOVE {
            return Ok(None);
        }
        let mode = reader.varint_to("mode", u64::from(PERMISSIONS))? as u16;
        let sec = reader.signed("mtime")?;
        let nsec = reader.varint_to("mtime nanoseconds", 999_999_999)? as u32;
        let owner = self.decode_owner(reader)?;
        let link = if tag & HAS_LINK == 0 { None } else { Some(reader.varint("link")?) };
        let kind = match tag & !HAS_LINK {
            TAG_FILE => decode_file(reader)?,
            TAG_DIRECTORY if link.is_none() => Kind::Directory,
            TAG_SYMLINK => {
                let target = reader.bytes("target", limits::TARGET)?;
                if target.is_empty() || target.contains(&0) {
                    return Err(DecodeError::Invalid("target"));
                }
                Kind::Symlink { target: target.to_vec() }
            }
            TAG_CHAR => Kind::CharDevice(decode_device(reader)?),
            TAG_BLOCK => Kind::BlockDevice(decode_device(reader)?),
            TAG_FIFO => Kind::Fifo,
            TAG_SOCKET => Kind::Socket,
            _ => return Err(DecodeError::Invalid("type")),
        };
        Ok(Some(Entry { mode, mtime: Time { sec, nsec }, owner, link, kind }))
    }

    fn decode_owner(&mut self, reader: &mut Reader<'_>) -> Result<Owner, DecodeError> {
        let number = reader.varint_to("owner", self.owners.len() as u64)? as usize;
        if let Some(owner) = self.owners.get(number) {
            return Ok(owner.clone());
        }
        if number as u64 >= limits::OWNERS {
            return Err(DecodeError::Invalid("owner"));
        }
        let owner = Owner {
            uid: reader.varint_u32("uid")?,
            gid: reader.varint_u32("gid")?,
            user: reader.bytes("user", limits::OWNER_NAME)?.to_vec(),
            group: reader.bytes("group", limits::OWNER_NAME)?.to_vec(),
        };
        self.owners.push(owner.clone());
        Ok(owner)
    }
}

fn decode_file(reader: &mut Reader<'_>) -> Result<Kind, DecodeError> {
    let flags = reader.u8("file flags")?;
    if flags & !(HAS_XXH128 | HAS_MD5) != 0 {
        return Err(DecodeError::Invalid("file flags"));
    }
    let size = reader.varint_to("size", limits::FILE_SIZE)?;
    let mut digests = Digests { sha256: Digest(reader.array("sha256")?), ..Digests::default() };
    if flags & HAS_XXH128 != 0 {
        digests.xxh128 = reader.array("xxh128")?;
    }
    if flags & HAS_MD5 != 0 {
        digests.md5 = reader.array("md5")?;
    }
    Ok(Kind::File { size, digests })
}

fn decode_device(reader: &mut Reader<'_>) -> Result<Device, DecodeError> {
    Ok(Device { major: reader.varint_u32("major")?, minor: reader.varint_u32("minor")? })
}
