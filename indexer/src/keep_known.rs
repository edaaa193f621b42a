//! Puts contents into the pool that were known before their files were read, or that had to be compared with what was
//! known. All others are put there as soon as they are read.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::local::{Pooled, RecordAt};
use stillmirror_protocol::path;
use stillmirror_store::{StoreError, has_packed};

use crate::access::Access;
use crate::expected::{Expectation, Expected};
use crate::hash::{Outcome, Outcomes};
use crate::pooling::{Content, Kept, Pooling, side_by_side};
use crate::settle::LocalFacts;
use crate::tree::{self, Facts, Tree};
use crate::walk::{Findings, Found, Old};

/// How the pool keeps found files, by the file's index among all found names. `None` for a file that has changed since.
pub(crate) type KeptFiles = HashMap<usize, Option<Kept>>;

/// A found file whose content is known.
struct Known<'a> {
    found: usize,
    path: Vec<u8>,
    facts: &'a Facts,
    digest: Digest,
    record: RecordAt,
    old: Option<u32>,
}

/// What is known of all files.
pub(crate) struct KnownFiles<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) findings: &'a Findings,
    pub(crate) outcomes: &'a Outcomes,
    pub(crate) expected: &'a Expected,
    pub(crate) old: Option<Old<'a>>,
}

impl KnownFiles<'_> {
    /// Puts the contents into the pool.
    pub(crate) fn keep(
        &self,
        pooling: &Pooling,
        before: Option<&stillmirror_store::Generation>,
        threads: usize,
        stop: &AtomicBool,
    ) -> Result<KeptFiles, StoreError> {
        let files = self.findings.found().filter(|(_, _, found)| found.facts.is_file());
        let known: Vec<Known<'_>> = files.filter_map(|(at, dir, found)| self.known(at, dir, found)).collect();
        let keep = |access: &mut Access<'_>, known: &Known<'_>| {
            let Known { found, path, facts, digest, record, old } = known;
            let is_public = access.is_public(path::split(path).0, facts.mode);
            if has_packed(record, facts.size, is_public) {
                return Ok((*found, Some(Kept::default())));
            }
            let file = match self.tree.open_file(path) {
                Ok(file) => file,
                Err(error) if tree::is_gone(error) => return Ok((*found, None)),
                // It cannot be read any more, but the index still knows what it contains.
                Err(_) => return Ok((*found, Some(Kept { pooled: Pooled::No, after: None }))),
            };
            let content = Content { path, facts, digest: *digest, classes: &[is_public], old: *old };
            Ok((*found, pooling.keep(self.tree, &file, &content, before)?))
        };
        Ok(side_by_side(self.tree, &known, threads, stop, keep)?.into_iter().collect())
    }

    fn known<'a>(&'a self, at: usize, dir: &[u8], found: &'a Found) -> Option<Known<'a>> {
        let expected = self.expected.at(at);
        let (facts, digest, record) = match self.outcomes.of(at) {
            None => {
                let (old, Expectation { row, .. }) = (self.old?, expected?);
                (&found.facts, old.list.row(row).sha256(), LocalFacts::of_row(old, row).record.unwrap_or_default())
            }
            Some(Outcome::Read { digests, record, facts, kept: None }) => {
                let is_certain = facts.is_none() && expected.is_some_and(|expected| expected.is_certain);
                let right = expected.zip(self.old).map(|(expected, old)| old.list.row(expected.row).sha256());
                if is_certain && right.is_some_and(|right| right != digests.sha256) {
                    // It has rotted.
                    return None;
                }
                (facts.as_deref().unwrap_or(&found.facts), digests.sha256, *record)
            }
            Some(_) => return None,
        };
        Some(Known { found: at, path: path::join(dir, &found.name), facts, digest, record, old: found.old })
    }
}
