//! How literal data is wrapped: plain tokens, or a compressor's format that holds the data as it is.
//!
//! A compressed session is served with stored deflate blocks, raw Zstandard blocks or LZ4 blocks of literals
//! alone: what a client that asked for `-z` can read, at no cost in CPU and hardly any in bytes. Sources:
//! RFC 1951, RFC 8878, the LZ4 block format; clients 2.6.0 to 3.5.0.

use crate::rsync::arguments::Compression;
use crate::rsync::codec::put_i32;

/// Bytes of one plain token. Several releases (3.4.3, 3.4.4, Debian's 3.2.7) end at a larger one.
const PLAIN: usize = 32 << 10;
/// Bytes of data in one compressed token: its 14 bits of length leave room for every head below.
const WRAPPED: usize = (16 << 10) - 128;
/// Opens a Zstandard frame: magic number, no size, no checksum, and a window of 128 KiB.
const ZSTD_FRAME: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0, 0x38];
/// An empty raw block that is the last of a frame.
const ZSTD_LAST: [u8; 3] = [1, 0, 0];

/// Writes the tokens of one file after another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens {
    compression: Compression,
    /// Data has gone out for the file under way.
    begun: bool,
}

impl Tokens {
    pub(super) fn new(compression: Compression) -> Self {
        Self { compression, begun: false }
    }

    /// The most bytes of one token.
    pub(super) fn slice(self) -> usize {
        if self.compression == Compression::None { PLAIN } else { WRAPPED }
    }

    /// What goes before `len` bytes.
    pub(super) fn literal(&mut self, out: &mut Vec<u8>, len: usize) {
        debug_assert!((1..=self.slice()).contains(&len), "a token of {len} bytes");
        let first = !std::mem::replace(&mut self.begun, true);
        match self.compression {
            Compression::None => put_i32(out, len as i32),
            Compression::Zlib | Compression::Zlibx => {
                // A stored block: no compression, length, and its complement.
                put_wrapped(out, 5 + len);
                let len = len as u16;
                out.push(0);
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(&(!len).to_le_bytes());
            }
            Compression::Zstd => {
                let frame = if first { &ZSTD_FRAME[..] } else { &[] };
                put_wrapped(out, frame.len() + 3 + len);
                out.extend_from_slice(frame);
                // A raw block that is not the last.
                out.extend_from_slice(&((len as u32) << 3).to_le_bytes()[..3]);
            }
            Compression::Lz4 => {
                let more = len.checked_sub(15);
                put_wrapped(out, 1 + more.map_or(0, |more| more / 255 + 1) + len);
                out.push((len.min(15) as u8) << 4);
                if let Some(more) = more {
                    out.resize(out.len() + more / 255, 0xff);
                    out.push((more % 255) as u8);
                }
            }
        }
    }

    /// What goes behind a file's last byte.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) {
        let begun = std::mem::take(&mut self.begun);
        match self.compression {
            Compression::None => return put_i32(out, 0),
            // The first byte of an empty stored block; clients add the four others of it themselves.
            Compression::Zlib | Compression::Zlibx if begun => {
                put_wrapped(out, 1);
                out.push(0);
            }
            Compression::Zstd if begun => {
                put_wrapped(out, ZSTD_LAST.len());
                out.extend_from_slice(&ZSTD_LAST);
            }
            _ => {}
        }
        out.push(0);
    }
}

/// The head of a token of compressed bytes.
fn put_wrapped(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&(0x4000 | len as u16).to_be_bytes());
}
