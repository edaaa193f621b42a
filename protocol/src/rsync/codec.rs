//! Integers, strings and file indices in stock rsync's encodings.
//!
//! All integers are little-endian, except the length of a vstring and the middle form of a file index. In a
//! varint or varlong, the number of leading one-bits in the first byte is the number of bytes that follow
//! beyond the minimum. The other bits of the first byte are the highest bits of the value.

mod ndx;
#[cfg(test)]
mod tests;

use crate::codec::{DecodeError, Reader};
use crate::rsync::version::Version;

pub use ndx::{NDX_DEL_STATS, NDX_DONE, NDX_FLIST_EOF, NDX_FLIST_OFFSET, NdxDecoder, NdxEncoder};

/// Maximum length of a vstring, in bytes.
pub const VSTRING: usize = 0x7fff;

/// Appends a varint of 1 to 5 bytes.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, value: i32) {
    if (0..0x80).contains(&value) {
        out.push(value as u8);
    } else {
        put_with_lead(out, &value.to_le_bytes(), 1);
    }
}

/// Appends a varlong of `least` (3 or 4) to 9 bytes.
#[inline]
pub fn put_varlong(out: &mut Vec<u8>, value: i64, least: usize) {
    put_with_lead(out, &value.to_le_bytes(), least);
}

/// Appends a varint or varlong. `value` is the integer's little-endian bytes.
#[inline]
fn put_with_lead(out: &mut Vec<u8>, value: &[u8], least: usize) {
    let significant = value.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1).max(least);
    let extra = significant - least;
    let top = value[significant - 1];
    // The first byte holds `extra` one-bits, a zero bit, and then the value's top byte if it fits in the rest.
    let fits = u32::from(top) < 1 << (7 - extra);
    let ones = |count: usize| !(0xffu32 >> count) as u8;
    let mut bytes = [0; 9];
    let tail = if fits { significant - 1 } else { significant };
    bytes[0] = if fits { ones(extra) | top } else { ones(extra + 1) };
    bytes[1..=tail].copy_from_slice(&value[..tail]);
    out.extend_from_slice(&bytes[..=tail]);
}

/// Appends an `i32`.
#[inline]
pub fn put_i32(out: &mut Vec<u8>, value: i32) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a longint: 4 bytes if the value is in 0..2^31, otherwise 12.
#[inline]
pub fn put_longint(out: &mut Vec<u8>, value: i64) {
    match i32::try_from(value) {
        Ok(small @ 0..) => put_i32(out, small),
        _ => {
            put_i32(out, -1);
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}

/// Appends an `i32` before protocol 30, a varint from 30 on.
#[inline]
pub fn put_int30(out: &mut Vec<u8>, version: Version, value: i32) {
    if version.facts().variable_ints {
        put_varint(out, value);
    } else {
        put_i32(out, value);
    }
}

/// Appends a longint before protocol 30, a varlong of at least 3 bytes from 30 on.
#[inline]
pub fn put_long30(out: &mut Vec<u8>, version: Version, value: i64) {
    if version.facts().variable_ints {
        put_varlong(out, value, 3);
    } else {
        put_longint(out, value);
    }
}

/// Appends a vstring, truncated to [`VSTRING`] bytes.
pub fn put_vstring(out: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(VSTRING)];
    if bytes.len() >= 0x80 {
        out.push(0x80 | (bytes.len() >> 8) as u8);
    }
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

/// Reads integers and strings that a peer sent. [`DecodeError::Short`] means that more input may help. All
/// other errors are final.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    reader: Reader<'a>,
    len: usize,
}

impl<'a> Cursor<'a> {
    /// Creates a cursor at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { reader: Reader::new(bytes), len: bytes.len() }
    }

    /// The number of bytes read so far.
    pub fn position(&self) -> usize {
        self.len - self.reader.remaining()
    }

    /// The number of bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.reader.remaining()
    }

    /// Reads `len` bytes.
    pub fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], DecodeError> {
        self.reader.take(field, len)
    }

    /// Reads one byte.
    pub fn byte(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.reader.u8(field)
    }

    /// Reads a `u16`.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.reader.u16(field)
    }

    /// Reads an `i32`.
    pub fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.reader.array(field).map(i32::from_le_bytes)
    }

    /// Reads a varint.
    pub fn varint(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        let lead = self.byte(field)?;
        let extra = lead.leading_ones() as usize;
        if extra > 4 {
            return Err(DecodeError::Invalid(field));
        }
        let mut value = [0; 5];
        value[..extra].copy_from_slice(self.take(field, extra)?);
        value[extra] = lead & low_bits(extra);
        let [low @ .., high] = value;
        if high == 0 { Ok(i32::from_le_bytes(low)) } else { Err(DecodeError::Invalid(field)) }
    }

    /// Reads a varlong of at least `least` (1 to 8) bytes.
    pub fn varlong(&mut self, field: &'static str, least: usize) -> Result<i64, DecodeError> {
        let lead = self.byte(field)?;
        let extra = lead.leading_ones() as usize;
        let low = least - 1 + extra;
        if low > 8 {
            return Err(DecodeError::Invalid(field));
        }
        let mut value = [0; 9];
        value[..low].copy_from_slice(self.take(field, low)?);
        value[low] = lead & low_bits(extra);
        let [low @ .., high] = value;
        if high == 0 { Ok(i64::from_le_bytes(low)) } else { Err(DecodeError::Invalid(field)) }
    }

    /// Reads a longint.
    pub fn longint(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        match self.i32(field)? {
            -1 => self.reader.array(field).map(i64::from_le_bytes),
            small => Ok(i64::from(small)),
        }
    }

    /// Reads an `i32` before protocol 30, a varint from 30 on.
    pub fn int30(&mut self, field: &'static str, version: Version) -> Result<i32, DecodeError> {
        if version.facts().variable_ints { self.varint(field) } else { self.i32(field) }
    }

    /// Reads a longint before protocol 30, a varlong of at least 3 bytes from 30 on.
    pub fn long30(&mut self, field: &'static str, version: Version) -> Result<i64, DecodeError> {
        if version.facts().variable_ints { self.varlong(field, 3) } else { self.longint(field) }
    }

    /// Reads a vstring. Fails if it is longer than `limit` bytes.
    pub fn vstring(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let mut len = usize::from(self.byte(field)?);
        if len & 0x80 != 0 {
            len = (len & 0x7f) << 8 | usize::from(self.byte(field)?);
        }
        if len > limit {
            return Err(DecodeError::TooLarge { field, value: len as u64, limit: limit as u64 });
        }
        self.take(field, len)
    }
}

/// Masks the value bits of a first byte that begins with `extra` one-bits.
fn low_bits(extra: usize) -> u8 {
    (0xffu32 >> (extra + 1)) as u8
}
