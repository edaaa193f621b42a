//! Looks at some files of a tree: whether they could be sent, and how they would be read.

use rustix::fs::OFlags;
use rustix::io::Errno;
use stillmirror_protocol::wire::ItemFailure;
use stillmirror_store::Generation;

use super::{Comparison, Tree};
use crate::config::DirectPolicy;

/// What was found when some files of a repository were opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// How many files were looked at.
    pub opened: usize,
    /// Those that could not be sent, by their paths, with the reasons.
    pub faults: Vec<(Vec<u8>, ItemFailure)>,
    /// How the first file is read that could be opened.
    pub reading: Option<Reading>,
}

/// How a file's content is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Through the page cache, because the operator says so.
    Cached,
    /// With direct I/O where it is not in the page cache, aligned to this many bytes.
    Direct(usize),
    /// Through the page cache, because its file system refuses direct I/O.
    Refused,
}

impl Tree {
    /// Opens the regular files at `rows` of a generation and compares their states with the index.
    pub(crate) fn sample(&self, generation: &Generation, rows: impl Iterator<Item = u32>) -> Sample {
        let mut sample = Sample::default();
        for row in rows {
            sample.opened += 1;
            let path = generation.list().path(row);
            match self.look_at(generation, row, &path) {
                Ok(reading) => sample.reading = sample.reading.or(Some(reading)),
                Err(failure) => sample.faults.push((path, failure)),
            }
        }
        sample
    }

    fn look_at(&self, generation: &Generation, row: u32, path: &[u8]) -> Result<Reading, ItemFailure> {
        let failed = |errno| self.failure(path, errno);
        let file = self.open_waiting(path, OFlags::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&file).map_err(failed)?;
        if matches!(self.compare(&stat, self.indexed(generation, row)), Comparison::Other) {
            return Err(ItemFailure::Stale);
        }
        if self.policy == DirectPolicy::Never {
            return Ok(Reading::Cached);
        }
        let Some(alignment) = self.alignment(&file, stat.st_dev) else { return Ok(Reading::Refused) };
        // Some file systems tell an alignment, and refuse all the same.
        if self.open_waiting(path, OFlags::DIRECT).err() == Some(Errno::INVAL) {
            self.learn(stat.st_dev, None);
            return Ok(Reading::Refused);
        }
        Ok(Reading::Direct(alignment))
    }
}
