//! The primitives of the native wire and of the index formats: a [`Reader`], `put_…` functions that append to a
//! buffer, and one [`DecodeError`].
//!
//! Fixed-width integers are little-endian. A *varint* is LEB128: seven bits a byte, low bits first, at most ten bytes,
//! in its shortest form.

use thiserror::Error;

/// Why bytes do not decode. Each variant names the field, so that a log line says what a peer got wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The input ends inside the field.
    #[error("{0}: the input ends too soon")]
    Short(&'static str),
    /// A length or count is over its limit.
    #[error("{field}: {value} is over the limit of {limit}")]
    TooLarge {
        /// The field's name.
        field: &'static str,
        /// The value in the input.
        value: u64,
        /// The largest allowed value.
        limit: u64,
    },
    /// The field has an invalid value.
    #[error("{0}: invalid value")]
    Invalid(&'static str),
    /// More bytes follow the last field.
    #[error("{0}: bytes follow the end")]
    Trailing(&'static str),
}

/// Reads fields from a byte slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Creates a reader at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Returns the number of bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Reads the next `len` bytes.
    pub fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Short(field))?;
        self.rest = rest;
        Ok(head)
    }

    /// Reads the next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short(field))?;
        self.rest = rest;
        Ok(*head)
    }

    /// Reads one byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    /// Reads a `u16`.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_le_bytes)
    }

    /// Reads a `u32`.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// Reads a `u64`.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// Reads a varint. Fails if it is not in its shortest form or does not fit a `u64`.
    pub fn varint(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(field)?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
                return Err(DecodeError::Invalid(field));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid(field))
    }

    /// Reads a varint. Fails if it is greater than `limit`.
    pub fn varint_to(&mut self, field: &'static str, limit: u64) -> Result<u64, DecodeError> {
        let value = self.varint(field)?;
        if value > limit {
            return Err(DecodeError::TooLarge { field, value, limit });
        }
        Ok(value)
    }

    /// Reads a varint. Fails if it does not fit a `u32`.
    pub fn varint_u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        u32::try_from(self.varint(field)?).map_err(|_| DecodeError::Invalid(field))
    }

    /// Reads a signed (zigzag) varint.
    pub fn signed(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        let raw = self.varint(field)?;
        Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    /// Reads a varint length and that many bytes. Fails if the length is greater than `limit`.
    pub fn bytes(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let len = self.varint_to(field, limit as u64)?;
        self.take(field, len as usize)
    }

    /// Like [`Reader::bytes`], but returns UTF-8 text.
    pub fn text(&mut self, field: &'static str, limit: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(field, limit)?).map_err(|_| DecodeError::Invalid(field))
    }

    /// Reads everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Fails if there are bytes left.
    pub fn finish(&self, what: &'static str) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(what)) }
    }
}

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed (zigzag) varint.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Appends a varint length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_survive_a_round_trip_through_a_varint(value: u64, signed: i64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_signed(&mut out, signed);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint("v"), Ok(value));
            prop_assert_eq!(reader.signed("s"), Ok(signed));
            prop_assert_eq!(reader.finish("all"), Ok(()));
        }
    }

    #[test]
    fn a_padded_or_overflowing_varint_is_refused() {
        for bytes in [&[0x80, 0x00][..], &[0xff; 10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]] {
            assert_eq!(Reader::new(bytes).varint("v"), Err(DecodeError::Invalid("v")), "{bytes:x?}");
        }
    }
}
