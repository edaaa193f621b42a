//! What of the last generation's store is damaged, and has to be written again.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use stillmirror_store::Generation;

/// Files that one thread takes at a time.
const STEP: u32 = 1024;

/// Damage in a store.
#[derive(Debug, Default)]
pub(crate) struct Damaged {
    /// Files, by number, whose record cannot be had as it was written.
    pub(crate) files: HashSet<u32>,
    /// Whether the compressed list is damaged.
    pub(crate) list: bool,
}

impl Damaged {
    /// Reads all that the store keeps of a generation's files. What is left when `stop` becomes true counts as right.
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
