//! Integers, strings and file indices, as stock rsync writes them.
//!
//! Everything is little-endian but the lengths of a vstring and the middle form of a file index. In a
//! varint and a varlong the leading one-bits of the first byte count the bytes that follow beyond the
//! least; its other bits are the value's highest.

use crate::codec::{DecodeError, Reader};
use crate::rsync::version::Version;

/// The index that says "done".
pub const NDX_DONE: i32 = -1;
/// The index that says "no more sub-lists".
pub const NDX_FLIST_EOF: i32 = -2;
/// The index before counts of deletions.
pub const NDX_DEL_STATS: i32 = -3;
/// The index before the sub-list of directory `i` is this less `i`.
pub const NDX_FLIST_OFFSET: i32 = -101;
/// Bytes in a vstring.
pub const VSTRING: usize = 0x7fff;

/// Appends a varint of 1 to 5 bytes.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, value: i32) {
    if (0..0x80).contains(&value) {
        out.push(value as u8);
    } else {
        put_led(out, &value.to_le_bytes(), 1);
    }
}

/// Appends a varlong: at least `least` (3 or 4) bytes, at most 9.
#[inline]
pub fn put_varlong(out: &mut Vec<u8>, value: i64, least: usize) {
    put_led(out, &value.to_le_bytes(), least);
}

/// Appends a varint or varlong whose value is these bytes.
#[inline]
fn put_led(out: &mut Vec<u8>, value: &[u8], least: usize) {
    let significant = value.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1).max(least);
    let extra = significant - least;
    let top = value[significant - 1];
    // The first byte has `extra` one-bits, a zero bit, and the rest for the value's top byte, if that fits.
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

/// Appends a longint: 4 bytes, or 12 when the value is not in 0..2^31.
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

/// Appends an integer that is an `i32` before protocol 30 and a varint since.
#[inline]
pub fn put_int30(out: &mut Vec<u8>, version: Version, value: i32) {
    if version.facts().variable_ints {
        put_varint(out, value);
    } else {
        put_i32(out, value);
    }
}

/// Appends an integer that is a longint before protocol 30 and a varlong of at least 3 bytes since.
#[inline]
pub fn put_long30(out: &mut Vec<u8>, version: Version, value: i64) {
    if version.facts().variable_ints {
        put_varlong(out, value, 3);
    } else {
        put_longint(out, value);
    }
}

/// Appends a vstring. More than [`VSTRING`] bytes are cut off there.
pub fn put_vstring(out: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(VSTRING)];
    if bytes.len() >= 0x80 {
        out.push(0x80 | (bytes.len() >> 8) as u8);
    }
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

/// Reads a peer's integers. [`DecodeError::Short`] means that more input may help; every other error
/// is final.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    reader: Reader<'a>,
    len: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { reader: Reader::new(bytes), len: bytes.len() }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.len - self.reader.remaining()
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.reader.remaining()
    }

    /// The next `len` bytes.
    pub fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], DecodeError> {
        self.reader.take(field, len)
    }

    /// One byte.
    pub fn byte(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.reader.u8(field)
    }

    /// A `u16`.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.reader.u16(field)
    }

    /// An `i32`.
    pub fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.reader.array(field).map(i32::from_le_bytes)
    }

    /// A varint.
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

    /// A varlong of at least `least` bytes, 1 to 8.
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

    /// A longint.
    pub fn longint(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        match self.i32(field)? {
            -1 => self.reader.array(field).map(i64::from_le_bytes),
            small => Ok(i64::from(small)),
        }
    }

    /// An `i32` before protocol 30, a varint since.
    pub fn int30(&mut self, field: &'static str, version: Version) -> Result<i32, DecodeError> {
        if version.facts().variable_ints { self.varint(field) } else { self.i32(field) }
    }

    /// A longint before protocol 30, a varlong of at least 3 bytes since.
    pub fn long30(&mut self, field: &'static str, version: Version) -> Result<i64, DecodeError> {
        if version.facts().variable_ints { self.varlong(field, 3) } else { self.longint(field) }
    }

    /// A vstring of at most `limit` bytes.
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

/// The bits of a first byte that belong to the value, when `extra` ones lead it.
fn low_bits(extra: usize) -> u8 {
    (0xffu32 >> (extra + 1)) as u8
}

/// One direction's file indices: since protocol 30 each is coded against the one before it.
#[derive(Debug, Clone)]
struct Previous {
    positive: i32,
    negative: i32,
}

impl Previous {
    const START: Self = Self { positive: -1, negative: 1 };
}

/// Writes one direction's file indices.
#[derive(Debug, Clone)]
pub struct NdxEncoder {
    previous: Option<Previous>,
}

impl NdxEncoder {
    /// The state at the start of the stream.
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

/// Reads one direction's file indices.
#[derive(Debug, Clone)]
pub struct NdxDecoder {
    previous: Option<Previous>,
}

impl NdxDecoder {
    /// The state at the start of the stream.
    pub fn new(version: Version) -> Self {
        Self { previous: version.facts().variable_ints.then_some(Previous::START) }
    }

    /// The next index or special value. After an error the state is as before, so that a caller can
    /// come back with more input.
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
            // "Done" and a second sign have no place here.
            0 | 0xff => None,
            difference => before.checked_add(i32::from(difference)),
        };
        let value = value.filter(|&value| value >= i32::from(negative)).ok_or(DecodeError::Invalid(field))?;
        *before = value;
        Ok(if negative { -value } else { value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        text.split(' ').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect()
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    fn version(number: u32) -> Version {
        Version::new(number).expect("a version")
    }

    #[test]
    fn varints_are_the_bytes_that_stock_rsync_writes() {
        let vectors = [
            (0, "00"),
            (0x7f, "7f"),
            (0x1ff, "81 ff"),
            (0x4000, "c0 00 40"),
            (i32::MAX, "f0 ff ff ff 7f"),
            (-2, "f0 fe ff ff ff"),
        ];
        for (value, bytes) in vectors {
            assert_eq!(written(|out| put_varint(out, value)), hex(bytes), "{value}");
        }
    }

    #[test]
    fn varlongs_are_the_bytes_that_stock_rsync_writes() {
        let vectors = [
            (3, 17, "00 11 00"),
            (3, 346_760, "05 88 4a"),
            (3, 1 << 23, "80 00 00 80"),
            (3, 1 << 32, "c1 00 00 00 00"),
            (4, 1_714_885_505, "66 81 13 37"),
            (4, 2_208_988_800, "80 80 7e aa 83"),
            (4, -60, "f8 c4 ff ff ff ff ff ff ff"),
        ];
        for (least, value, bytes) in vectors {
            assert_eq!(written(|out| put_varlong(out, value, least)), hex(bytes), "{value}");
        }
    }

    #[test]
    fn indices_are_the_bytes_that_stock_rsync_writes() {
        let sequence = [
            (-101, "ff 64"),
            (-102, "ff 01"),
            (-2, "ff fe 80 02 00 00"),
            (0, "01"),
            (1, "01"),
            (5, "04"),
            (NDX_DONE, "00"),
            (259, "fe 00 fe"),
            (300, "29"),
            (40_000, "fe 80 40 9c 00"),
            (39_000, "fe 80 58 98 00"),
        ];
        let mut encoder = NdxEncoder::new(version(30));
        for (ndx, bytes) in sequence {
            assert_eq!(written(|out| encoder.put(out, ndx)), hex(bytes), "{ndx}");
        }
        assert_eq!(written(|out| NdxEncoder::new(version(29)).put(out, -101)), hex("9b ff ff ff"));
    }

    #[test]
    fn overlong_and_overflowing_integers_are_refused() {
        for bytes in ["f8 00 00 00 00 00", "f1 00 00 00 00", "ff ff ff ff ff ff ff"] {
            assert_eq!(Cursor::new(&hex(bytes)).varint("v"), Err(DecodeError::Invalid("v")), "{bytes}");
        }
        let nine = hex("ff 00 00 00 00 00 00 00 00 00 00");
        assert_eq!(Cursor::new(&nine).varlong("v", 3), Err(DecodeError::Invalid("v")));
        for bytes in ["ff ff", "ff 00", "ff fe 80 00 00 00"] {
            let ndx = NdxDecoder::new(version(31)).get("n", &mut Cursor::new(&hex(bytes)));
            assert_eq!(ndx, Err(DecodeError::Invalid("n")), "{bytes}");
        }
        let long = written(|out| put_vstring(out, &[b'x'; 300]));
        assert!(matches!(Cursor::new(&long).vstring("s", 299), Err(DecodeError::TooLarge { value: 300, .. })));
    }

    fn sized() -> impl Strategy<Value = i64> {
        (any::<i64>(), 0..64u32).prop_map(|(value, shift)| value >> shift)
    }

    proptest! {
        #[test]
        fn every_value_comes_back_and_every_prefix_is_short(
            number in 27..33u32, long in sized(), text in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let version = version(number);
            let int = long as i32;
            let bytes = written(|out| {
                put_varint(out, int);
                put_varlong(out, long, 3);
                put_varlong(out, long, 4);
                put_longint(out, long);
                put_int30(out, version, int);
                put_long30(out, version, long);
                put_vstring(out, &text);
            });
            let read = |bytes: &[u8]| {
                let mut cursor = Cursor::new(bytes);
                prop_assert_eq!(cursor.varint("f"), Ok(int));
                prop_assert_eq!(cursor.varlong("f", 3), Ok(long));
                prop_assert_eq!(cursor.varlong("f", 4), Ok(long));
                prop_assert_eq!(cursor.longint("f"), Ok(long));
                prop_assert_eq!(cursor.int30("f", version), Ok(int));
                prop_assert_eq!(cursor.long30("f", version), Ok(long));
                prop_assert_eq!(cursor.vstring("f", VSTRING), Ok(&text[..]));
                prop_assert_eq!(cursor.position(), bytes.len());
                Ok(())
            };
            read(&bytes)?;
            let one = written(|out| put_varlong(out, long, 3));
            for cut in 0..one.len() {
                prop_assert_eq!(Cursor::new(&one[..cut]).varlong("f", 3), Err(DecodeError::Short("f")));
            }
        }

        #[test]
        fn every_sequence_of_indices_comes_back(
            number in 27..33u32, sequence in prop::collection::vec(sized().prop_map(|long| long as i32), 0..50),
        ) {
            let (mut encoder, mut bytes) = (NdxEncoder::new(version(number)), Vec::new());
            let sequence: Vec<i32> = sequence.into_iter().filter(|&ndx| ndx != i32::MIN).collect();
            for &ndx in &sequence {
                encoder.put(&mut bytes, ndx);
            }
            let (mut decoder, mut cursor) = (NdxDecoder::new(version(number)), Cursor::new(&bytes));
            for ndx in sequence {
                prop_assert_eq!(decoder.get("ndx", &mut cursor), Ok(ndx));
            }
            prop_assert_eq!(cursor.remaining(), 0);
        }

        #[test]
        fn no_bytes_break_a_reader(bytes: Vec<u8>, number in 27..33u32) {
            let (mut decoder, mut cursor) = (NdxDecoder::new(version(number)), Cursor::new(&bytes));
            while decoder.get("ndx", &mut cursor).is_ok() {}
            let mut cursor = Cursor::new(&bytes);
            while cursor.varint("v").is_ok() && cursor.varlong("v", 3).is_ok() && cursor.vstring("v", 9).is_ok() {}
        }
    }
}
