//! The weak checksum: a polynomial over the bytes that rolls and composes.

use fearless_simd::{Level as Instructions, dispatch};

/// The multiplier of the weak checksum. It is odd, and its powers are well mixed.
pub(crate) const MULTIPLIER: u32 = 0x8DA6_B343;

const CHUNK: usize = 256;
/// The powers of [`MULTIPLIER`] that weight the bytes of a chunk, split into signed low halves and the remaining high
/// halves.
const WEIGHTS: ([i16; CHUNK], [i16; CHUNK]) = {
    let (mut low, mut high) = ([0; CHUNK], [0; CHUNK]);
    let (mut weight, mut i) = (1u32, CHUNK);
    while i > 0 {
        i -= 1;
        low[i] = weight as i16;
        high[i] = (weight.wrapping_sub(low[i] as u32) >> 16) as i16;
        weight = weight.wrapping_mul(MULTIPLIER);
    }
    (low, high)
};
const CHUNK_POWER: u32 = power(CHUNK as u64);

/// Returns `MULTIPLIER` to the power of `exponent`.
pub(crate) const fn power(mut exponent: u64) -> u32 {
    let (mut result, mut square) = (1u32, MULTIPLIER);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result.wrapping_mul(square);
        }
        square = square.wrapping_mul(square);
        exponent >>= 1;
    }
    result
}

/// Computes the weak checksum of a block with the widest SIMD instructions of the machine.
pub(crate) fn weak(block: &[u8]) -> u32 {
    dispatch!(Instructions::new(), _widest => weak_by_chunks(block))
}

#[inline(always)]
fn weak_by_chunks(block: &[u8]) -> u32 {
    let (chunks, rest) = block.as_chunks::<CHUNK>();
    let sum = chunks.iter().fold(0u32, |sum, chunk| sum.wrapping_mul(CHUNK_POWER).wrapping_add(weigh(chunk)));
    rest.iter().fold(sum, |sum, &byte| sum.wrapping_mul(MULTIPLIER).wrapping_add(u32::from(byte)))
}

/// Returns the sum of a chunk's weighted bytes. SIMD instructions are good at products of 16-bit numbers, so each half of
/// the weights makes a sum of its own. The high one counts modulo 2^16.
#[inline(always)]
fn weigh(chunk: &[u8; CHUNK]) -> u32 {
    let mut bytes = [0i16; CHUNK];
    bytes.iter_mut().zip(chunk).for_each(|(wide, &byte)| *wide = i16::from(byte));
    // The absolute value is at most 256 · 255 · 2^15, which fits an i32.
    let low: i32 = bytes.iter().zip(&WEIGHTS.0).map(|(&byte, &weight)| i32::from(byte) * i32::from(weight)).sum();
    let high =
        bytes.iter().zip(&WEIGHTS.1).fold(0i16, |sum, (byte, weight)| sum.wrapping_add(byte.wrapping_mul(*weight)));
    low.cast_unsigned().wrapping_add(u32::from(high.cast_unsigned()) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weak_checksum_equals_the_polynomial_at_any_length() {
        let bytes: Vec<u8> = (0..3000u32).map(|i| ((i * i) >> 3) as u8 | (0xE0 * u8::from(i > 1500))).collect();
        for len in [0, 1, 255, 256, 257, 512, 1000, 3000] {
            let one_by_one = |sum: u32, &byte: &u8| sum.wrapping_mul(MULTIPLIER).wrapping_add(u32::from(byte));
            assert_eq!(weak(&bytes[..len]), bytes[..len].iter().fold(0, one_by_one));
            assert_eq!(weak(&vec![255; len]), vec![255; len].iter().fold(0, one_by_one));
        }
    }

    #[test]
    fn the_weak_checksum_composes() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let (a, b) = bytes.split_at(300);
        assert_eq!(weak(&bytes), weak(a).wrapping_mul(power(700)).wrapping_add(weak(b)));
    }
}
