//! Knows which contents have records, so that equal files share one.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::local::RecordAt;
use stillmirror_protocol::sums::SumsBuilder;
use stillmirror_store::{Draft, Generation, Record, StoreError};

/// The records in the store by content, so that equal files share one.
pub(crate) struct KnownRecords<'a> {
    old: Option<&'a Generation>,
    /// The rows of the old list that have a record, by the first bytes of the digest. Filled at the first use.
    old_rows: OnceLock<HashMap<[u8; 8], u32>>,
    new: Mutex<HashMap<Digest, RecordAt>>,
}

impl<'a> KnownRecords<'a> {
    pub(crate) fn of(old: Option<&'a Generation>) -> Self {
        Self { old, old_rows: OnceLock::new(), new: Mutex::default() }
    }

    /// The old generation.
    pub(crate) fn generation(&self) -> Option<&'a Generation> {
        self.old
    }

    /// Returns the location of a record for the file with this digest. Appends one to the draft's pack,
    /// unless there is a record that has block checksums and content where these are given.
    pub(crate) fn put(
        &self,
        digest: Digest,
        draft: &Draft,
        sums: Option<SumsBuilder>,
        content: &[u8],
    ) -> Result<RecordAt, StoreError> {
        if sums.is_none() && content.is_empty() {
            return Ok(RecordAt::default());
        }
        let suffices = |at: &RecordAt| (sums.is_none() || at.sums > 0) && (content.is_empty() || at.content > 0);
        if let Some(at) = self.in_old(digest).filter(suffices) {
            return Ok(at);
        }
        // The lock is held until the record is written, because another thread may have just read the same
        // content.
        let mut new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = new.get(&digest).filter(|at| suffices(at)) {
            return Ok(*at);
        }
        let sums = sums.map_or_else(Vec::new, SumsBuilder::finish);
        let at = draft.append(digest, Record { sums: &sums, content })?;
        new.insert(digest, at);
        Ok(at)
    }

    /// Returns the location of an undamaged record in the old generation.
    fn in_old(&self, digest: Digest) -> Option<RecordAt> {
        let generation = self.old?;
        let (list, local) = (generation.list(), generation.local());
        let record = |row: u32| local.record(list.row(row).file_number()?);
        let rows = self.old_rows.get_or_init(|| {
            let with_record = (0..list.len()).filter(|&row| record(row).is_some());
            with_record.map(|row| (first_bytes(list.row(row).sha256()), row)).collect()
        });
        let row = *rows.get(&first_bytes(digest))?;
        let is_right = |_: &RecordAt| {
            let file = list.row(row).file_number().filter(|_| list.row(row).sha256() == digest);
            file.is_some_and(|file| generation.record(file).is_ok())
        };
        record(row).filter(is_right)
    }
}

fn first_bytes(digest: Digest) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = digest.0;
    [a, b, c, d, e, f, g, h]
}
