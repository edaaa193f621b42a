//! Chooses the files whose contents are compared.

use std::collections::BinaryHeap;

use twox_hash::XxHash3_64;

use super::record::{Record, unescape};

/// A file of the sample.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Chosen {
    /// As bytes, not as the client prints it.
    pub(super) path: Vec<u8>,
    pub(super) size: u64,
}

/// Chooses files by a seed: half of them at random, half of them with a chance in proportion to their size. The choice
/// depends on the seed, the names and the sizes, and not on the order of the list.
#[derive(Debug)]
pub(super) struct Sampler {
    seed: u64,
    count: usize,
    /// The files with the lowest keys.
    even: Lowest,
    by_size: Lowest,
}

/// The files with the lowest keys.
#[derive(Debug, Default)]
struct Lowest(BinaryHeap<(u64, Chosen)>);

impl Lowest {
    fn offer(&mut self, key: u64, path: &[u8], size: u64, count: usize) {
        if self.0.len() >= count {
            match self.0.peek() {
                Some((highest, _)) if key < *highest => drop(self.0.pop()),
                _ => return,
            }
        }
        self.0.push((key, Chosen { path: unescape(path), size }));
    }
}

impl Sampler {
    pub(super) fn new(seed: u64, count: usize) -> Self {
        Self { seed, count, even: Lowest::default(), by_size: Lowest::default() }
    }

    /// Forgets what was offered.
    pub(super) fn clear(&mut self) {
        (self.even, self.by_size) = (Lowest::default(), Lowest::default());
    }

    /// Offers an entry. Only regular files are chosen.
    pub(super) fn offer(&mut self, record: Record<'_>) {
        let Some(size) = record.file_size() else { return };
        let path = record.path();
        let key = XxHash3_64::oneshot_with_seed(self.seed, path);
        self.even.offer(key, path, size, self.count.div_ceil(2));
        // With u even in (0, 1], the lowest values of -ln(u) / size are a sample weighted by size.
        let other = XxHash3_64::oneshot_with_seed(!self.seed, path);
        let even = (other as f64 + 1.0) / (u64::MAX as f64 + 2.0);
        let key = -even.ln() / size.max(1) as f64;
        // Floats that are not negative sort like their bits.
        self.by_size.offer(key.max(0.0).to_bits(), path, size, self.count / 2);
    }

    /// Returns the chosen files, sorted by path, as long as they fit into `budget` bytes, and the number of those that do
    /// not.
    pub(super) fn chosen(self, budget: u64) -> (Vec<Chosen>, usize) {
        let (even, by_size) = (self.even.0.into_sorted_vec(), self.by_size.0.into_sorted_vec());
        let (mut chosen, mut left_out, mut left) = (Vec::new(), 0, budget);
        let longest = even.len().max(by_size.len());
        for file in (0..longest).flat_map(|at| [by_size.get(at), even.get(at)]).flatten().map(|(_, file)| file) {
            if chosen.contains(file) {
                continue;
            }
            match left.checked_sub(file.size) {
                Some(rest) => {
                    left = rest;
                    chosen.push(file.clone());
                }
                None => left_out += 1,
            }
        }
        chosen.sort();
        (chosen, left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Format;
    use super::*;

    /// Returns the sizes of a sample of 1,000 files, of which every hundredth is large.
    fn sample(seed: u64, count: usize, budget: u64, reversed: bool) -> (Vec<u64>, usize) {
        let mut sampler = Sampler::new(seed, count);
        let mut names: Vec<_> = (0..1000).collect();
        if reversed {
            names.reverse();
        }
        for name in names {
            let size = if name % 100 == 0 { 1_000_000 } else { 10 };
            let mut record = Vec::new();
            let line = format!(">f+++++++++|rw-r--r--|0|0|{size}|T|{name}//");
            assert!(Format::Items.read(line.as_bytes(), &mut record));
            sampler.offer(Record(&record));
        }
        let (chosen, left_out) = sampler.chosen(budget);
        (chosen.iter().map(|file| file.size).collect(), left_out)
    }

    #[test]
    fn a_seed_gives_the_same_sample_in_any_order() {
        assert_eq!(sample(7, 20, u64::MAX, false), sample(7, 20, u64::MAX, true));
        assert_ne!(sample(7, 20, u64::MAX, false), sample(8, 20, u64::MAX, false));
    }

    #[test]
    fn half_of_the_sample_is_chosen_by_size_and_half_evenly() {
        let (sizes, _) = sample(1, 16, u64::MAX, false);
        let large = sizes.iter().filter(|size| **size > 10).count();
        assert!(large >= 7 && sizes.len() - large >= 6, "{sizes:?}");
    }

    #[test]
    fn the_sample_keeps_to_its_budget() {
        let (sizes, left_out) = sample(1, 16, 2_000_100, false);
        assert!(sizes.iter().sum::<u64>() <= 2_000_100 && left_out > 0, "{sizes:?}");
        assert_eq!(sample(1, 0, u64::MAX, false).0, Vec::<u64>::new());
    }
}
