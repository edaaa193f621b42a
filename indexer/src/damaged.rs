//! Finds what is damaged in the store of the previous generation, so that it can be written again.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use stillmirror_store::Generation;

/// The number of files that a thread takes at a time.
const STEP: u32 = 1024;

/// The damage in a store.
#[derive(Debug, Default)]
pub(crate) struct Damaged {
    /// The numbers of the files whose record is missing or damaged.
    pub(crate) files: HashSet<u32>,
    /// Whether the compressed list is damaged.
    pub(crate) list: bool,
}

impl Damaged {
    /// Reads all records of a generation, and its compressed list. Records that were not read before `stop`
    /// became true count as right.
    pub(crate) fn find(generation: &Generation, threads: usize, stop: &AtomicBool) -> Self {
        let (files, next) = (generation.list().files(), AtomicU32::new(0));
        let work = || {
            let mut damaged = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let start = next.fetch_add(STEP, Ordering::Relaxed);
                if start >= files {
                    break;
                }
                let end = start.saturating_add(STEP).min(files);
                damaged.extend((start..end).filter(|&file| generation.record(file).is_err()));
            }
            damaged
        };
        let found: Vec<Vec<u32>> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let others = others.into_iter().map(|other| other.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
            std::iter::once(own).chain(others).collect()
        });
        Self { files: found.into_iter().flatten().collect(), list: !generation.list_zst_is_right() }
    }
}
