//! Batches: reads ranges of many files with few system calls.

use std::iter::repeat_n;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use stillmirror_protocol::wire::ItemFailure;

use super::{FileState, InMemory, Pooled, Tree, Way, is_shortage, read_aligned, read_full};
use crate::direct::batch::{Read, read_all};

/// A range of the regular file at `row`, and the buffer for it. The buffer is aligned to
/// [`crate::direct::ALIGNMENT`] and as large as [`super::room`] says.
pub(crate) struct Wanted<'a> {
    pub(crate) row: u32,
    /// The indexed state of the file.
    pub(crate) indexed: FileState,
    pub(crate) offset: u64,
    pub(crate) len: usize,
    pub(crate) room: &'a mut [u8],
}

/// A file that was in its indexed state when it was opened.
struct Opened {
    path: Vec<u8>,
    indexed: FileState,
    file: OwnedFd,
    /// The number of the file's device.
    device: u64,
    /// How all ranges of the file are read. The descriptor is set up for this way.
    way: Way,
}

impl Tree {
    /// Reads ranges, and returns for each one where in its buffer it is. A range fails unless its file is in
    /// the indexed state before and after the read, or the pool has its content. Consecutive ranges of one file share a
    /// descriptor. `path` returns the path of a row, and `pooled` where its content is in the pool.
    pub(crate) fn read_batch(
        &self,
        path: impl Fn(u32) -> Vec<u8>,
        pooled: impl Fn(u32) -> Option<Pooled>,
        wanted: &mut [Wanted<'_>],
    ) -> Vec<Result<InMemory, ItemFailure>> {
        let mut outcomes = Vec::with_capacity(wanted.len());
        while outcomes.len() < wanted.len() {
            let done = outcomes.len();
            outcomes.extend(self.read_some(&path, &mut wanted[done..]));
        }
        for (wanted, outcome) in wanted.iter_mut().zip(&mut outcomes).filter(|(_, outcome)| outcome.is_err()) {
            let pooled = pooled(wanted.row);
            if let Some(read) = pooled.and_then(|pooled| self.read_pooled(&path(wanted.row), &pooled, wanted)) {
                *outcome = Ok(read);
            }
        }
        outcomes
    }

    /// Reads the ranges of the first files: of as many as there are descriptors for, and of at least one.
    fn read_some(
        &self,
        path: impl Fn(u32) -> Vec<u8>,
        wanted: &mut [Wanted<'_>],
    ) -> Vec<Result<InMemory, ItemFailure>> {
        let mut files: Vec<(usize, Result<Opened, ItemFailure>)> = Vec::with_capacity(wanted.len());
        for run in wanted.chunk_by(|one, next| one.row == next.row) {
            let path = path(run[0].row);
            let open = if files.is_empty() { Self::open_waiting } else { Self::open_beneath };
            match open(self, &path, OFlags::empty()) {
                // Without free descriptors, the files that are open so far are read first, and closed.
                Err(errno) if is_shortage(errno) && !files.is_empty() => break,
                opened => files.push((run.len(), self.set_up(path, opened, run))),
            }
        }
        let owners = files.iter().flat_map(|(ranges, opened)| repeat_n(opened, *ranges));
        let (mut outcomes, mut direct, mut reads) = (Vec::with_capacity(wanted.len()), Vec::new(), Vec::new());
        for (at, (Wanted { offset, len, room, .. }, opened)) in wanted.iter_mut().zip(owners).enumerate() {
            outcomes.push(match opened {
                Err(reason) => Err(*reason),
                Ok(opened) if *len == 0 => Ok(InMemory { range: 0..0, source: opened.way.source() }),
                Ok(opened) => match opened.way {
                    Way::Directly(alignment) => {
                        let skip = (*offset % alignment as u64) as usize;
                        let room = &mut room[..(skip + *len).next_multiple_of(alignment)];
                        reads.push(Read { file: opened.file.as_fd(), offset: *offset - skip as u64, room });
                        direct.push((at, opened, alignment));
                        Ok(InMemory { range: skip..skip + *len, source: opened.way.source() })
                    }
                    way => self.outcome(opened, read_full(&opened.file, *offset, &mut room[..*len], way), 0..*len),
                },
            });
        }
        let results = read_all(&mut reads);
        for (((at, opened, alignment), read), result) in direct.into_iter().zip(reads).zip(results) {
            if let Ok(InMemory { range, .. }) = outcomes[at].clone() {
                let result = self.complete(opened, read, result, range.end, alignment);
                outcomes[at] = self.outcome(opened, result, range);
            }
        }
        let mut rest = outcomes.as_mut_slice();
        for (ranges, opened) in &files {
            let (its, others) = rest.split_at_mut(*ranges);
            if let Ok(Opened { path, indexed, file, .. }) = opened
                && let Err(reason) = self.check(path, *indexed, file)
            {
                its.fill(Err(reason));
            }
            rest = others;
        }
        outcomes
    }

    /// Checks the file of a run of ranges, and sets up its descriptor for the way in which they are read.
    fn set_up(&self, path: Vec<u8>, opened: Result<OwnedFd, Errno>, run: &[Wanted<'_>]) -> Result<Opened, ItemFailure> {
        let indexed = run[0].indexed;
        let (file, device) = self.checked(&path, indexed, opened)?;
        let start = run.iter().map(|range| range.offset).min().unwrap_or(0);
        let end = run.iter().map(|range| range.offset + range.len as u64).max().unwrap_or(0);
        let mut way = self.way(&file, device, start, (end - start) as usize);
        // One descriptor serves the whole run. Ranges that are not cached now will not be when they are read.
        if matches!(way, Way::Directly(_)) && rustix::fs::fcntl_setfl(&file, OFlags::DIRECT).is_err() {
            self.learn(device, None);
            way = Way::ThroughCacheAndOut;
        }
        Ok(Opened { path, indexed, file, device, way })
    }

    /// Completes a direct read of `want` bytes that returned less or was refused.
    fn complete(
        &self,
        Opened { device, file, .. }: &Opened,
        read: Read<'_>,
        result: Result<usize, Errno>,
        want: usize,
        alignment: usize,
    ) -> Result<usize, Errno> {
        match result {
            Ok(filled) if filled < want => read_aligned(file, read.offset, want, read.room, alignment),
            Err(Errno::INVAL) => {
                self.learn(*device, None);
                rustix::fs::fcntl_setfl(file, OFlags::empty())?;
                read_full(file, read.offset, read.room, Way::ThroughCacheAndOut)
            }
            result => result,
        }
    }

    /// Returns where the range is in its buffer. Fails if not all of it was read.
    fn outcome(
        &self,
        opened: &Opened,
        filled: Result<usize, Errno>,
        range: Range<usize>,
    ) -> Result<InMemory, ItemFailure> {
        match filled.map_err(|errno| self.failure(&opened.path, errno))? {
            filled if filled >= range.end => Ok(InMemory { range, source: opened.way.source() }),
            // The file ends before its indexed size. If `fstat` still reports that size, its disk contradicts
            // itself.
            _ => Err(ItemFailure::Unreadable),
        }
    }
}
