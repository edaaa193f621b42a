//! The checks of a record. They show whether a pack still holds what was written for this very file.
//!
//! Each check is seeded with the file's digest. So a record that belongs to another file fails its check like
//! one with a flipped byte, whether the pack, the table of local facts or the list has rotted.

use std::path::PathBuf;

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::local::{CHECK_BYTES, SUMS_PER_CHECK};
use thiserror::Error;
use twox_hash::XxHash3_64;

/// A record that is missing or is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: the record at byte {offset} is damaged", .path.display())]
pub struct BadRecord {
    /// The pack.
    pub path: PathBuf,
    /// The record's offset in the pack, in bytes.
    pub offset: u64,
}

/// Returns the check of a small file's content.
pub(crate) fn of_content(file: Digest, content: &[u8]) -> [u8; CHECK_BYTES as usize] {
    check(file, 0, content)
}

/// Returns the checks of a file's block checksums, one for each [`SUMS_PER_CHECK`] bytes, in order.
pub(crate) fn of_sums(file: Digest, sums: &[u8]) -> impl Iterator<Item = [u8; CHECK_BYTES as usize]> {
    (1..).zip(sums.chunks(SUMS_PER_CHECK as usize)).map(move |(part, bytes)| check(file, part, bytes))
}

/// Returns whether `bytes`, a content followed by its check, belong to the file.
pub(crate) fn is_content(file: Digest, bytes: &[u8]) -> bool {
    bytes.split_last_chunk().is_some_and(|(content, found)| of_content(file, content) == *found)
}

/// Returns whether a byte range of block checksums belongs to the file. `sums` are all block checksums of the
/// record; `checks` are the bytes behind them, which begin with their checks.
pub(crate) fn are_sums(file: Digest, sums: &[u8], checks: &[u8], range: std::ops::Range<u64>) -> bool {
    let (checks, _) = checks.as_chunks();
    let (first, end) = (range.start / SUMS_PER_CHECK, range.end.div_ceil(SUMS_PER_CHECK));
    let mut parts = (0..).zip(sums.chunks(SUMS_PER_CHECK as usize).zip(checks)).skip(first as usize);
    let mut wanted = std::iter::from_fn(|| parts.next().filter(|(part, _)| *part < end));
    wanted.all(|(part, (bytes, found))| check(file, part + 1, bytes) == *found)
}

fn check(file: Digest, part: u64, bytes: &[u8]) -> [u8; CHECK_BYTES as usize] {
    let [a, b, c, d, e, f, g, h, ..] = file.0;
    let seed = u64::from_le_bytes([a, b, c, d, e, f, g, h]).wrapping_add(part);
    XxHash3_64::oneshot_with_seed(seed, bytes).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Digest = Digest([7; 32]);

    #[test]
    fn content_with_a_flipped_bit_or_of_another_file_is_refused() {
        let mut bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        bytes.extend(of_content(FILE, &bytes));
        assert!(is_content(FILE, &bytes) && !is_content(Digest([8; 32]), &bytes) && !is_content(FILE, &bytes[..7]));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_content(FILE, &bytes), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_flipped_byte_only_fails_ranges_that_share_its_check() {
        let part = SUMS_PER_CHECK;
        let mut sums = vec![5; 2 * part as usize + 100];
        let checks: Vec<u8> = of_sums(FILE, &sums).flatten().collect();
        let all = 0..sums.len() as u64;
        assert!(are_sums(FILE, &sums, &checks, all.clone()) && are_sums(FILE, &sums, &checks, 0..u64::MAX));
        assert!(!are_sums(Digest([8; 32]), &sums, &checks, all.clone()));
        sums[part as usize] ^= 1;
        assert!(!are_sums(FILE, &sums, &checks, all));
        assert!(are_sums(FILE, &sums, &checks, 0..part) && are_sums(FILE, &sums, &checks, 2 * part..2 * part + 9));
        assert!(!are_sums(FILE, &sums, &checks, part - 1..part + 1));
        assert!(!are_sums(FILE, &sums, &checks, 2 * part - 1..2 * part));
    }
}
