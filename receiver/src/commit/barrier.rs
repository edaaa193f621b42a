//! Tells which files must keep their old state because files that they refer to failed.

use std::collections::BTreeSet;

use crate::rank::{Rank, scope};

/// The paths that failed, by rank.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    failed: [BTreeSet<Vec<u8>>; Rank::COUNT],
}

impl Barrier {
    /// Notes that the file or directory at `path` did not get its new state.
    pub(super) fn failed(&mut self, rank: Rank, path: &[u8]) {
        self.failed[rank as usize].insert(path.to_vec());
    }

    /// Returns whether a file of that rank has to wait: something of a lower rank failed in its scope.
    pub(super) fn holds(&self, rank: Rank, path: &[u8]) -> bool {
        let scope = scope(path);
        self.failed[..rank as usize].iter().any(|failed| is_any_below(failed, scope))
    }
}

/// Returns whether a path lies in the directory `dir`, or is it. The root is empty.
fn is_any_below(paths: &BTreeSet<Vec<u8>>, dir: &[u8]) -> bool {
    if dir.is_empty() {
        return !paths.is_empty();
    }
    let below = [dir, b"/"].concat();
    paths.contains(dir) || paths.range(below.clone()..).next().is_some_and(|path| path.starts_with(&below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_waits_for_everything_in_its_repository_and_for_nothing_in_others() {
        let mut barrier = Barrier::default();
        let held = |barrier: &Barrier, path: &str| barrier.holds(crate::rank::rank(path.as_bytes()), path.as_bytes());
        let heads = ["debian/dists/stable/InRelease", "fedora/40/repodata/repomd.xml", "SHA256SUMS"];
        assert_eq!(heads.map(|head| held(&barrier, head)), [false; 3]);
        barrier.failed(Rank::Payload, b"debian/pool/a.deb");
        assert_eq!(heads.map(|head| held(&barrier, head)), [true, false, true], "the last one may name anything");
        assert!(held(&barrier, "debian/dists/stable/main/Packages.xz"));
        assert!(!held(&barrier, "debian/pool/b.deb") && !held(&barrier, "debian-security/dists/x/InRelease"));
    }

    #[test]
    fn an_index_does_not_wait_for_another_index_but_its_head_does() {
        let mut barrier = Barrier::default();
        barrier.failed(Rank::Index, b"d/dists/stable/main/Packages.gz");
        assert!(!barrier.holds(Rank::Index, b"d/dists/stable/main/Packages.xz"));
        assert!(barrier.holds(Rank::Head, b"d/dists/stable/Release"));
    }

    #[test]
    fn a_failed_directory_holds_what_refers_into_it() {
        let mut barrier = Barrier::default();
        barrier.failed(Rank::Payload, b"r");
        assert!(barrier.holds(Rank::Head, b"r/repodata/repomd.xml"));
        assert!(!barrier.holds(Rank::Head, b"r2/repodata/repomd.xml"));
    }
}
