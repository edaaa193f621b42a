//! File indices (NDX). From protocol 30 on, each is encoded as the difference from the one before it in the
//! same direction.

use super::{Cursor, put_i32};
use crate::codec::DecodeError;
use crate::rsync::version::Version;

/// The index that means "done".
pub const NDX_DONE: i32 = -1;
/// The index that means "no more sub-lists".
pub const NDX_FLIST_EOF: i32 = -2;
/// The index before deletion statistics.
pub const NDX_DEL_STATS: i32 = -3;
/// The base of the indices that introduce sub-lists: the sub-list of directory `i` has this value minus `i`.
pub const NDX_FLIST_OFFSET: i32 = -101;

/// The last indices in one direction, which the next one is encoded against. There is one each for
/// non-negative indices and for the absolute values of negative ones.
#[derive(Debug, Clone)]
struct Previous {
    positive: i32,
    negative: i32,
}

impl Previous {
    const START: Self = Self { positive: -1, negative: 1 };
}

/// Encodes the file indices of one direction.
#[derive(Debug, Clone)]
pub struct NdxEncoder {
    previous: Option<Previous>,
}

impl NdxEncoder {
    /// Creates an encoder for the start of a stream.
    pub fn new(version: Version) -> Self {
        Self { previous: version.facts().variable_ints.then_some(Previous::START) }
    }

    /// Appends an index or one of the special values.
    pub fn put(&mut self, out: &mut Vec<u8>, ndx: i32) {
        let Some(previous) = &mut self.previous else { return put_i32(out, ndx) };
        if ndx == NDX_DONE {
            return out.push(0);
        }
        let (value, before) = if ndx < 0 {
            out.push(0xff);
            (ndx.wrapping_neg(), &mut previous.negative)
        } else {
            (ndx, &mut previous.positive)
        };
        let difference = value.wrapping_sub(*before);
        *before = value;
        match difference {
            1..=253 => out.push(difference as u8),
            0 | 254..=0x7fff => out.extend_from_slice(&[0xfe, (difference >> 8) as u8, difference as u8]),
            _ => {
                let [a, b, c, d] = value.to_le_bytes();
                out.extend_from_slice(&[0xfe, d | 0x80, a, b, c]);
            }
        }
    }
}

/// Decodes the file indices of one direction.
#[derive(Debug, Clone)]
pub struct NdxDecoder {
    previous: Option<Previous>,
}

impl NdxDecoder {
    /// Creates a decoder for the start of a stream.
    pub fn new(version: Version) -> Self {
        Self { previous: version.facts().variable_ints.then_some(Previous::START) }
    }

    /// Reads the next index or special value. An error leaves the state unchanged, so the caller can try
    /// again with more input.
    pub fn get(&mut self, field: &'static str, from: &mut Cursor<'_>) -> Result<i32, DecodeError> {
        let Some(previous) = &mut self.previous else { return from.i32(field) };
        let first = from.byte(field)?;
        if first == 0 {
            return Ok(NDX_DONE);
        }
        let negative = first == 0xff;
        let code = if negative { from.byte(field)? } else { first };
        let before = if negative { &mut previous.negative } else { &mut previous.positive };
        let value = match code {
            0xfe => {
                let [high, low] = from.reader.array(field)?;
                if high & 0x80 != 0 {
                    let [b, c] = from.reader.array(field)?;
                    Some(i32::from_le_bytes([low, b, c, high & 0x7f]))
                } else {
                    before.checked_add(i32::from(u16::from_be_bytes([high, low])))
                }
            }
            // "Done" and a second sign are invalid here.
            0 | 0xff => None,
            difference => before.checked_add(i32::from(difference)),
        };
        let value = value.filter(|&value| value >= i32::from(negative)).ok_or(DecodeError::Invalid(field))?;
        *before = value;
        Ok(if negative { -value } else { value })
    }
}
