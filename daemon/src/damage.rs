//! Damage that is found while a generation is served. Damage in the store is counted, and logged once for
//! each part of the store. Damage in the tree is logged once for each file.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use stillmirror_protocol::path;
use stillmirror_store::Generation;

/// The parts of a store that are checked before they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The content of a small file.
    Content,
    BlockChecksums,
    /// The compressed list.
    List,
    /// A list delta.
    Delta,
}

/// How often damage was found in each part of one generation.
#[derive(Debug, Default)]
pub(crate) struct DamageLog {
    contents: AtomicU64,
    sums: AtomicU64,
    lists: AtomicU64,
    deltas: AtomicU64,
    /// Rows of the files that were logged: at most [`DamageLog::FILES`] of them.
    files: Mutex<HashSet<u32>>,
}

impl DamageLog {
    /// Maximum number of files that are logged. With this many damaged files, the disk is the problem.
    const FILES: usize = 1024;

    /// Logs, once for each file, that its content differs from the index although its size and times do not.
    pub(crate) fn record_file(&self, repository: &str, generation: &Generation, row: u32) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.len() >= Self::FILES || !files.insert(row) {
            return;
        }
        let (number, path) = (generation.number(), path::Escaped(&generation.list().path(row)).to_string());
        tracing::error!(
            repository,
            generation = number,
            path,
            "the content of a file differs from the index, although its size and times do not: it cannot be served; \
             restore it, or index it again with `stillmirror index --changed-from`"
        );
    }

    /// Counts damage in the store. Logs the first case in each part: where it is and what to do.
    pub(crate) fn record(&self, part: Part, repository: &str, generation: &Generation, place: impl Display) {
        let (counter, what) = match part {
            Part::Content => (
                &self.contents,
                "the content of a file is damaged in the store: the file is read from the tree instead; `stillmirror \
                 index --verify-store` reads such files again (for a store written by `stillmirror pull`: remove it, \
                 and pull again)",
            ),
            Part::BlockChecksums => (
                &self.sums,
                "block checksums are damaged in the store: receivers fetch the whole file; `stillmirror index \
                 --verify-store` reads such files again (for a store written by `stillmirror pull`: remove it, and \
                 pull again)",
            ),
            Part::List => (
                &self.lists,
                "the compressed file list is damaged in the store: it is compressed again in memory; `stillmirror \
                 index --verify-store` writes a new one",
            ),
            Part::Delta => (
                &self.deltas,
                "a list delta is damaged in the store: receivers fetch the whole list, until the store has newer \
                 generations",
            ),
        };
        if counter.fetch_add(1, Ordering::Relaxed) == 0 {
            let (number, store) = (generation.number(), generation.dir().display());
            tracing::error!(repository, generation = number, store = %store, %place, "{what}");
        }
    }

    /// Returns how often damage was found in each part of the store.
    pub(crate) fn in_store(&self) -> [(&'static str, u64); 4] {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("contents", load(&self.contents)),
            ("block_checksums", load(&self.sums)),
            ("list", load(&self.lists)),
            ("delta", load(&self.deltas)),
        ]
    }

    /// Returns the number of files in the tree that were found to be rotten.
    pub(crate) fn rotten_files(&self) -> usize {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Logs how often damage was found in the store, if it was.
    pub(crate) fn report(&self, generation: &Generation) {
        let [contents, sums, lists, deltas] = self.in_store().map(|(_, count)| count);
        if contents + sums + lists + deltas > 0 {
            let (repository, generation) = (&generation.head().repository, generation.number());
            tracing::warn!(
                repository,
                generation,
                contents,
                sums,
                lists,
                deltas,
                "damage was found in the store of this generation"
            );
        }
    }
}
