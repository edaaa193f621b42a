//! Selects files to read again although nothing indicates that they changed.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::list::Row;
use stillmirror_protocol::local::LocalRef;
use stillmirror_store::{Store, StoreError};

use crate::options::Share;

/// The files that are read again in one run.
#[derive(Debug, Default)]
pub(crate) struct Rereads {
    /// The numbers of the files whose record in the store is damaged.
    damaged: HashSet<u32>,
    scrub: Option<Turn>,
}

impl Rereads {
    pub(crate) fn new(damaged: HashSet<u32>, scrub: Option<Turn>) -> Self {
        Self { damaged, scrub }
    }

    /// Returns whether the file at a row of the previous generation is read again: because its record must be
    /// written, because it is its turn to be scrubbed, or because it was rotten and may have been repaired.
    pub(crate) fn includes(&self, row: Row<'_>, local: LocalRef<'_>) -> bool {
        let Some(file) = row.file_number() else { return false };
        let is_its_turn = |turn: &Turn| turn.includes(row.sha256());
        self.damaged.contains(&file) || self.scrub.as_ref().is_some_and(is_its_turn) || local.is_rotten(row.number())
    }
}

/// The files that are scrubbed in one run, as a range of digests.
///
/// A run reads the files whose digest, by its first 8 bytes as a number, lies in the range. The next run
/// continues at the end of the range. So each file gets its turn as often as any other, even if files are
/// moved, added and removed between two runs, and only the start of the next range must be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    from: u64,
    /// The size of the range, up to 2⁶⁴.
    width: u128,
}

impl Turn {
    /// Reads where the next turn of a store begins. Begins at 0 if that is missing or invalid, because a turn
    /// may begin anywhere.
    pub(crate) fn next(store: &Store, share: Share) -> Self {
        let text = fs::read_to_string(path(store)).unwrap_or_default();
        let from = text.strip_prefix(PREFIX).and_then(|hex| u64::from_str_radix(hex.trim_end(), 16).ok());
        Self { from: from.unwrap_or(0), width: share.of(1 << 64) }
    }

    fn includes(&self, digest: Digest) -> bool {
        let [a, b, c, d, e, f, g, h, ..] = digest.0;
        let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        u128::from(number.wrapping_sub(self.from)) < self.width
    }

    /// Stores where the next turn begins.
    pub(crate) fn end(&self, store: &Store) -> Result<(), StoreError> {
        let (path, draft) = (path(store), store.dir().join("scrub.tmp"));
        let next = self.from.wrapping_add(self.width as u64);
        let written = fs::write(&draft, format!("{PREFIX}{next:016x}\n"));
        written.and_then(|()| fs::rename(&draft, &path)).map_err(|source| StoreError::Io {
            action: "write",
            path,
            source,
        })
    }
}

fn path(store: &Store) -> PathBuf {
    store.dir().join("scrub")
}

const PREFIX: &str = "stillmirror scrub 1 ";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(number: u64) -> Digest {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Digest(bytes)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn each_file_has_one_turn_per_round(
            of in 1..20u32,
            from: u64,
            numbers in prop::collection::vec(any::<u64>(), 1..50),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::create(&dir.path().join("store"), "a").unwrap();
            let share = Share::new(1, of).unwrap();
            Turn { from, width: 0 }.end(&store).unwrap();
            let mut turns = vec![0; numbers.len()];
            for _ in 0..of {
                let turn = Turn::next(&store, share);
                numbers.iter().zip(&mut turns).for_each(|(&number, turns)| *turns += u32::from(turn.includes(digest(number))));
                turn.end(&store).unwrap();
            }
            // Ranges are rounded up, so the last one overlaps the first by less than one number for each range.
            prop_assert!(turns.iter().all(|&turns| turns == 1 || turns == 2), "{turns:?}");
            prop_assert!(turns.iter().filter(|&&turns| turns == 2).count() <= 1, "{turns:?}");
        }
    }

    #[test]
    fn a_turn_begins_at_zero_if_none_is_stored_or_the_stored_one_is_invalid() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&dir.path().join("store"), "a").unwrap();
        assert_eq!(Turn::next(&store, Share::ALL), Turn { from: 0, width: 1 << 64 });
        for text in
            ["", "stillmirror scrub 1 x\n", "stillmirror scrub 2 1\n", "stillmirror scrub 1 11111111111111111\n"]
        {
            fs::write(path(&store), text).unwrap();
            assert_eq!(Turn::next(&store, Share::ALL).from, 0, "{text:?}");
        }
        let all = Turn::next(&store, Share::ALL);
        assert!(all.includes(digest(u64::MAX)) && all.includes(digest(0)));
    }
}
