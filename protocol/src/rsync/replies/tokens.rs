//! The encoding of literal data: plain tokens, or a compressor's format that stores the data uncompressed.
//!
//! A session with compression gets stored deflate blocks, raw Zstandard blocks, or LZ4 blocks that hold only
//! literals. Clients that asked for `-z` can read them; they cost no CPU time and hardly any bytes.
//!
//! Sources: RFC 1951, RFC 8878, the LZ4 block format; clients 2.6.0 to 3.5.0.

use crate::rsync::arguments::Compression;
use crate::rsync::codec::put_i32;

/// Maximum length of a plain token, in bytes. Several releases (3.4.3, 3.4.4, Debian's 3.2.7) abort on a longer one.
const PLAIN: usize = 32 << 10;
/// Maximum data length of a compressed token, in bytes. A token has a 14-bit length, which leaves room for
/// each format's header below.
const WRAPPED: usize = (16 << 10) - 128;
/// The header of a Zstandard frame: magic number, no size, no checksum, and a window of 128 KiB.
const ZSTD_FRAME: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0, 0x38];
/// An empty raw block that is the last one of a frame.
const ZSTD_LAST: [u8; 3] = [1, 0, 0];

/// Writes the tokens of one file after another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens {
    compression: Compression,
    /// Whether data has been written for the current file.
    begun: bool,
}

impl Tokens {
    pub(super) fn new(compression: Compression) -> Self {
        Self { compression, begun: false }
    }

    /// Returns the maximum data length of one token, in bytes.
    pub(super) fn slice(self) -> usize {
        if self.compression == Compression::None { PLAIN } else { WRAPPED }
    }

    /// Appends what precedes `len` bytes of data.
    pub(super) fn literal(&mut self, out: &mut Vec<u8>, len: usize) {
        debug_assert!((1..=self.slice()).contains(&len), "a token of {len} bytes");
        let first = !std::mem::replace(&mut self.begun, true);
        match self.compression {
            Compression::None => put_i32(out, len as i32),
            Compression::Zlib | Compression::Zlibx => {
                // The header of a stored block: no compression, the length and its complement.
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
                // A raw block that is not the last one.
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

    /// Appends what follows the last byte of a file.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) {
        let begun = std::mem::take(&mut self.begun);
        match self.compression {
            Compression::None => return put_i32(out, 0),
            // The first byte of an empty stored block. Clients append its other four bytes themselves.
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

/// Appends the header of a token with `len` compressed bytes.
fn put_wrapped(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&(0x4000 | len as u16).to_be_bytes());
}
