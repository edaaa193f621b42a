//! Sorts records of any number in bounded memory: what does not fit is written to temporary files.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Seek, Write};
use std::path::Path;

/// Memory for records before they are written to a file, in bytes.
const MEMORY: usize = 24 << 20;
/// Memory that one record takes beside its bytes.
const OVERHEAD: usize = size_of::<(usize, usize)>();

/// Takes records in any order. A record has no newline.
pub(super) struct Sorter<'a> {
    scratch: &'a Path,
    memory: usize,
    bytes: Vec<u8>,
    /// Where each record begins and ends in `bytes`.
    places: Vec<(usize, usize)>,
    runs: Vec<File>,
    count: u64,
}

impl<'a> Sorter<'a> {
    pub(super) fn new(scratch: &'a Path) -> Self {
        Self::with_memory(scratch, MEMORY)
    }

    fn with_memory(scratch: &'a Path, memory: usize) -> Self {
        Self { scratch, memory, bytes: Vec::new(), places: Vec::new(), runs: Vec::new(), count: 0 }
    }

    pub(super) fn push(&mut self, record: &[u8]) -> io::Result<()> {
        if self.bytes.len() + record.len() + (self.places.len() + 1) * OVERHEAD > self.memory {
            self.write_run()?;
        }
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(record);
        self.places.push((begin, self.bytes.len()));
        self.count += 1;
        Ok(())
    }

    /// Returns the number of records so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    fn write_run(&mut self) -> io::Result<()> {
        if self.places.is_empty() {
            return Ok(());
        }
        self.sort();
        let mut out = BufWriter::new(tempfile::tempfile_in(self.scratch)?);
        for &(begin, end) in &self.places {
            out.write_all(&self.bytes[begin..end])?;
            out.write_all(b"\n")?;
        }
        let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        self.runs.push(file);
        self.places.clear();
        self.bytes.clear();
        Ok(())
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.places.sort_unstable_by(|a, b| bytes[a.0..a.1].cmp(&bytes[b.0..b.1]));
    }

    /// Returns the records in order.
    pub(super) fn finish(mut self) -> io::Result<Sorted> {
        if !self.runs.is_empty() {
            self.write_run()?;
        }
        self.sort();
        let mut runs: Vec<_> = self.runs.into_iter().map(BufReader::new).collect();
        let mut heads = BinaryHeap::new();
        for (number, run) in runs.iter_mut().enumerate() {
            heads.extend(next_line(run)?.map(|record| Reverse((record, number))));
        }
        Ok(Sorted { bytes: self.bytes, places: self.places.into_iter(), runs, heads })
    }
}

/// Records in order. They are in memory, or in files.
pub(super) struct Sorted {
    bytes: Vec<u8>,
    places: std::vec::IntoIter<(usize, usize)>,
    runs: Vec<BufReader<File>>,
    /// The next record of each run.
    heads: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
}

impl Sorted {
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some((begin, end)) = self.places.next() {
            return Ok(Some(self.bytes[begin..end].to_vec()));
        }
        let Some(Reverse((record, number))) = self.heads.pop() else { return Ok(None) };
        if let Some(following) = self.runs.get_mut(number).map(next_line).transpose()?.flatten() {
            self.heads.push(Reverse((following, number)));
        }
        Ok(Some(record))
    }
}

fn next_line(run: &mut BufReader<File>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    run.read_until(b'\n', &mut line)?;
    Ok(line.pop().map(|_| line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(records: &[String], memory: usize) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::with_memory(dir.path(), memory);
        records.iter().for_each(|record| sorter.push(record.as_bytes()).unwrap());
        assert_eq!(sorter.count(), records.len() as u64);
        let mut sorted = sorter.finish().unwrap();
        let next = || sorted.next().unwrap().map(|record| String::from_utf8(record).unwrap());
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn records_are_sorted_in_memory_and_in_files() {
        let records: Vec<_> = (0..1000_u32).map(|n| format!("{}", n.wrapping_mul(2_654_435_761) % 997)).collect();
        let mut expected = records.clone();
        expected.sort();
        for memory in [1 << 20, 4000, 100] {
            assert_eq!(sorted(&records, memory), expected, "{memory}");
        }
        assert_eq!(sorted(&[], 10), Vec::<String>::new());
    }
}
