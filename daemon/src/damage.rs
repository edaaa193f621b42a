//! What turns out to be damaged while a generation is served. Of its store it is counted, and logged once for each kind;
//! of its tree it is logged once for each file.

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
    /// Block checksums.
    Sums,
    /// The compressed list.
    List,
    /// A delta that leads to the list.
    Delta,
}

/// How often damage was met in each part of one generation.
#[derive(Debug, Default)]
pub(crate) struct DamageLog {
    contents: AtomicU64,
    sums: AtomicU64,
    lists: AtomicU64,
    deltas: AtomicU64,
    /// Rows of files that were told, at most [`DamageLog::FILES`] of them.
    files: Mutex<HashSet<u32>>,
}

impl DamageLog {
    /// Files of which is told: with as many of them the disk is beyond doubt.
    const FILES: usize = 1024;

    /// Says, once for each file, that its content is not what was indexed, though its state is.
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
            "the content of a file is not what was indexed, though its size and times are: no client can have it; restore \
             it, or index it anew by `stillmirror index --changed-from`"
        );
    }

    /// Counts damage, and says at the first of its kind where it is and what to do.
    pub(crate) fn record(&self, part: Part, repository: &str, generation: &Generation, place: impl Display) {
        let (counter, what) = match part {
            Part::Content => (
                &self.contents,
                "the content of a file is damaged in the store: the file is read from the tree instead; `stillmirror \
                 index --verify-store` reads such files again (a store that `stillmirror pull` wrote: remove it, and pull)",
            ),
            Part::Sums => (
                &self.sums,
                "block checksums are damaged in the store: receivers fetch the whole file; `stillmirror index \
                 --verify-store` reads such files again (a store that `stillmirror pull` wrote: remove it, and pull)",
            ),
            Part::List => (
                &self.lists,
                "the compressed file list is damaged in the store: it is made again in memory; `stillmirror index \
                 --verify-store` writes a new one",
            ),
            Part::Delta => (
                &self.deltas,
                "a list delta is damaged in the store: receivers fetch the whole list, until the next \
                 generations",
            ),
        };
        if counter.fetch_add(1, Ordering::Relaxed) == 0 {
            let (number, store) = (generation.number(), generation.dir().display());
            tracing::error!(repository, generation = number, store = %store, %place, "{what}");
        }
    }

    /// Writes how often it was, where the first line does not say it.
    pub(crate) fn report(&self, generation: &Generation) {
        let [contents, sums, lists, deltas] =
            [&self.contents, &self.sums, &self.lists, &self.deltas].map(|counter| counter.load(Ordering::Relaxed));
        if contents + sums + lists + deltas > 0 {
            let (repository, generation) = (&generation.head().repository, generation.number());
            tracing::warn!(
                repository,
                generation,
                contents,
                sums,
                lists,
                deltas,
                "damage was met in the store of this generation"
            );
        }
    }
}
