//! The file `sums` in the staging directory: the block checksums that were received, so that a pull that continues after
//! a kill does not request them again.
//!
//! Records follow each other: the content's SHA-256 (32 bytes), the offset in its record of block checksums (8), the
//! number of bytes requested (8), the number of bytes received (4), XXH3-64 of all that and of the bytes (8), and the
//! bytes. Integers are little-endian. A crash may leave anything behind the last complete record; it is cut off.
//! Checksums are a hint, so whatever the file says cannot do harm.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stillmirror_protocol::codec::Reader;
use stillmirror_protocol::entry::Digest;
use twox_hash::XxHash3_64;

/// Block checksums on disk.
#[derive(Debug)]
pub(crate) struct SumsLog {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` once the file cannot be written or read.
    file: Option<File>,
    len: u64,
    known: HashMap<Digest, BTreeMap<u64, Known>>,
}

/// A range of a record of block checksums.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// Number of bytes requested. Fewer are there if the record ends before.
    asked: u64,
    len: u32,
    /// Where the bytes are in the file.
    at: u64,
}

impl SumsLog {
    /// Reads what an earlier pull left in the file.
    pub(super) fn open(file: File) -> io::Result<Self> {
        let mut state = State { len: 0, known: HashMap::new(), file: None };
        let end = file.metadata()?.len().min(MAX_BYTES);
        while let Some((digest, offset, known)) = read_record(&file, state.len, end)? {
            state.len = known.at + u64::from(known.len);
            state.known.entry(digest).or_default().insert(offset, known);
        }
        file.set_len(state.len)?;
        state.file = Some(file);
        Ok(Self { state: Mutex::new(state) })
    }

    /// Returns `len` bytes from `offset` of a content's record, or fewer if the record ends before. `None` if they were
    /// not received yet.
    pub(crate) fn get(&self, digest: Digest, offset: u64, len: u64) -> Option<Vec<u8>> {
        let state = self.lock();
        let known = state.known.get(&digest)?;
        let (mut at, end) = (offset, offset.checked_add(len)?);
        let mut bytes = Vec::new();
        while at < end {
            let (&start, part) = known.range(..=at).next_back()?;
            let (skip, has) = (at - start, u64::from(part.len));
            if skip >= part.asked {
                return None;
            }
            let take = has.saturating_sub(skip).min(end - at);
            let from = bytes.len();
            bytes.resize(from + usize::try_from(take).ok()?, 0);
            state.file.as_ref()?.read_exact_at(&mut bytes[from..], part.at + skip).ok()?;
            at += take;
            if at < end && has < part.asked {
                return Some(bytes);
            }
        }
        Some(bytes)
    }

    /// Adds bytes that were received in answer to a request for `asked` bytes from `offset`. If the disk refuses them,
    /// the log is given up.
    pub(crate) fn add(&self, digest: Digest, offset: u64, asked: u64, bytes: &[u8]) {
        let mut state = self.lock();
        let Ok(len) = u32::try_from(bytes.len()) else { return };
        let mut record = header(digest, offset, asked, len).to_vec();
        record.extend_from_slice(&checksum(&record, bytes).to_le_bytes());
        record.extend_from_slice(bytes);
        let at = state.len;
        if at + record.len() as u64 > MAX_BYTES {
            return;
        }
        match state.file.as_ref().map(|file| file.write_all_at(&record, at)) {
            Some(Ok(())) => {
                state.len += record.len() as u64;
                let known = Known { asked, len, at: at + HEADER as u64 };
                state.known.entry(digest).or_default().insert(offset, known);
            }
            Some(Err(_)) => state.file = None,
            None => {}
        }
    }

    /// Forgets what is known of a content, because a file that was built with it was wrong.
    pub(crate) fn forget(&self, digest: Digest) {
        self.lock().known.remove(&digest);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the record at `at`. `None` if no complete and right one is there.
fn read_record(file: &File, at: u64, end: u64) -> io::Result<Option<(Digest, u64, Known)>> {
    if end.saturating_sub(at) < HEADER as u64 {
        return Ok(None);
    }
    let mut bytes = [0; HEADER];
    file.read_exact_at(&mut bytes, at)?;
    let mut reader = Reader::new(&bytes);
    let fields =
        (reader.array("digest"), reader.u64("offset"), reader.u64("asked"), reader.u32("length"), reader.u64("sum"));
    let (Ok(digest), Ok(offset), Ok(asked), Ok(len), Ok(sum)) = fields else { return Ok(None) };
    let at = at + HEADER as u64;
    if u64::from(len) > end - at || u64::from(len) > asked || asked > MAX_BYTES {
        return Ok(None);
    }
    let mut content = vec![0; len as usize];
    file.read_exact_at(&mut content, at)?;
    let is_right = checksum(&bytes[..HEADER - 8], &content) == sum;
    Ok(is_right.then_some((Digest(digest), offset, Known { asked, len, at })))
}

fn header(digest: Digest, offset: u64, asked: u64, len: u32) -> [u8; HEADER - 8] {
    let mut bytes = [0; HEADER - 8];
    bytes[..32].copy_from_slice(&digest.0);
    bytes[32..40].copy_from_slice(&offset.to_le_bytes());
    bytes[40..48].copy_from_slice(&asked.to_le_bytes());
    bytes[48..].copy_from_slice(&len.to_le_bytes());
    bytes
}

fn checksum(header: &[u8], bytes: &[u8]) -> u64 {
    let mut hasher = XxHash3_64::with_seed(0);
    std::hash::Hasher::write(&mut hasher, header);
    std::hash::Hasher::write(&mut hasher, bytes);
    std::hash::Hasher::finish(&hasher)
}

/// Length in bytes of a record without the block checksums.
const HEADER: usize = 60;
/// Maximum length of the file in bytes. Checksums that do not fit are requested again.
const MAX_BYTES: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: Digest = Digest([1; 32]);

    fn log(bytes: &[u8]) -> (File, SumsLog) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        (file.try_clone().unwrap(), SumsLog::open(file).unwrap())
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn ranges_that_follow_each_other_are_one_and_gaps_are_not_known() {
        let (_, log) = log(b"");
        log.add(ONE, 0, 4, b"abcd");
        log.add(ONE, 4, 4, b"efgh");
        log.add(ONE, 10, 4, b"kl");
        assert_eq!(log.get(ONE, 1, 6).as_deref(), Some(&b"bcdefg"[..]));
        assert_eq!(log.get(ONE, 6, 4), None);
        assert_eq!(log.get(ONE, 10, 4).as_deref(), Some(&b"kl"[..]), "the record ends there");
        assert_eq!(log.get(ONE, 11, 9).as_deref(), Some(&b"l"[..]));
        assert_eq!(log.get(Digest([2; 32]), 0, 4), None);
        log.forget(ONE);
        assert_eq!(log.get(ONE, 0, 4), None);
    }

    #[test]
    fn no_record_is_different_from_no_answer() {
        let (_, log) = log(b"");
        log.add(ONE, 0, 100, b"");
        assert_eq!(log.get(ONE, 0, 100).as_deref(), Some(&b""[..]));
    }

    proptest! {
        #[test]
        fn after_a_crash_the_complete_records_are_known_and_nothing_else(
            lens in prop::collection::vec(0..300usize, 1..6),
            cut: prop::sample::Index,
            flip: Option<prop::sample::Index>,
        ) {
            let (file, before) = log(b"");
            let mut ends = Vec::new();
            for (number, &len) in lens.iter().enumerate() {
                before.add(ONE, number as u64 * 1000, 300, &vec![number as u8; len]);
                ends.push(file.metadata().unwrap().len() as usize);
            }
            let mut bytes = content(&file);
            bytes.truncate(cut.index(bytes.len() + 1));
            let mut good = bytes.len();
            if let (Some(flip), false) = (flip, bytes.is_empty()) {
                good = flip.index(bytes.len());
                bytes[good] ^= 1;
            }
            let (_, after) = log(&bytes);
            for (number, (&len, &end)) in lens.iter().zip(&ends).enumerate() {
                let expected = (end <= good).then(|| vec![number as u8; len]);
                prop_assert_eq!(after.get(ONE, number as u64 * 1000, 300), expected);
            }
            // It is continued behind what is right.
            after.add(ONE, 9_000_000, 3, b"new");
            prop_assert_eq!(after.get(ONE, 9_000_000, 3), Some(b"new".to_vec()));
        }

        #[test]
        fn any_bytes_can_be_opened(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            log(&bytes).1.get(ONE, 0, 10);
        }
    }
}
