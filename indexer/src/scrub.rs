//! Which files are read although nothing says that they changed.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::list::Row;
use stillmirror_protocol::local::LocalRef;
use stillmirror_store::{Store, StoreError};

use crate::options::Share;

/// What is read again in one run.
#[derive(Debug, Default)]
pub(crate) struct Again {
    /// Files, by number, of whose record in the store something is damaged.
    damaged: HashSet<u32>,
    scrub: Option<Turn>,
}

impl Again {
    pub(crate) fn new(damaged: HashSet<u32>, scrub: Option<Turn>) -> Self {
        Self { damaged, scrub }
    }

    /// Whether the file at a row of the last generation is read again: to write its record, because it is its turn, or
    /// to see whether it is still rotten.
    pub(crate) fn has(&self, row: Row<'_>, local: LocalRef<'_>) -> bool {
        let Some(file) = row.file_number() else { return false };
        let is_its_turn = |turn: &Turn| turn.has(row.sha256());
        self.damaged.contains(&file) || self.scrub.as_ref().is_some_and(is_its_turn) || local.is_rotten(row.number())
    }
}

/// The files whose turn it is to be read.
///
/// A run takes all whose digests begin with one of a range of numbers, and the next run goes on at the range's end:
/// so each file has its turn as often as any other, wherever it is moved and whatever comes and goes between two runs, and
/// where the next turn begins is all that is to be remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    from: u64,
    /// Numbers in the range: up to 2⁶⁴.
    width: u128,
}

impl Turn {
    /// The next turn of a store. Where it begins is not worth an error: it may begin anywhere.
    pub(crate) fn next(store: &Store, share: Share) -> Self {
        let text = fs::read_to_string(path(store)).unwrap_or_default();
        let from = text.strip_prefix(PREFIX).and_then(|hex| u64::from_str_radix(hex.trim_end(), 16).ok());
        Self { from: from.unwrap_or(0), width: share.of(1 << 64) }
    }

    fn has(&self, digest: Digest) -> bool {
        let [a, b, c, d, e, f, g, h, ..] = digest.0;
        let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        u128::from(number.wrapping_sub(self.from)) < self.width
    }

    /// Remembers that this turn is over.
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
        fn each_file_has_its_turn_once_a_round(
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
                numbers.iter().zip(&mut turns).for_each(|(&number, turns)| *turns += u32::from(turn.has(digest(number))));
                turn.end(&store).unwrap();
            }
            // Ranges are rounded up: the last one reaches into the first by less than one number for each.
            prop_assert!(turns.iter().all(|&turns| turns == 1 || turns == 2), "{turns:?}");
            prop_assert!(turns.iter().filter(|&&turns| turns == 2).count() <= 1, "{turns:?}");
        }
    }

    #[test]
    fn a_store_without_a_past_or_with_a_damaged_one_begins_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&dir.path().join("store"), "a").unwrap();
        assert_eq!(Turn::next(&store, Share::ALL), Turn { from: 0, width: 1 << 64 });
        for text in
            ["", "stillmirror scrub 1 x\n", "stillmirror scrub 2 1\n", "stillmirror scrub 1 11111111111111111\n"]
        {
            fs::write(path(&store), text).unwrap();
            assert_eq!(Turn::next(&store, Share::ALL).from, 0, "{text:?}");
        }
        assert!(Turn::next(&store, Share::ALL).has(digest(u64::MAX)) && Turn::next(&store, Share::ALL).has(digest(0)));
    }
}
