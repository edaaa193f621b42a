//! Finds parts of new files in local ones. The block checksums come from the sender; the search runs here.
//!
//! Many files are searched together, so that one round trip serves all of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use stillmirror_protocol::codec::{DecodeError, Reader};
use stillmirror_protocol::delta::{Assembly, Basis, Search, Step, SumsRange};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::sums::{Layout, Level, MAX_LEVELS, Scheme, SumsError, SumsPolicy};
use stillmirror_protocol::wire::{Item, Reply, Request};

use crate::error::PullError;
use crate::roots::{FileAt, Roots};
use crate::source::{Event, Source};
use crate::stage::SumsLog;

/// Files of fewer bytes are fetched whole, because their checksums and round trips would cost as much.
pub(crate) const MIN_DELTA: u64 = 16 << 10;

/// A new file, and local files that may have parts of it.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// The file's row in the sender's list.
    pub(crate) row: u32,
    pub(crate) sha256: Digest,
    pub(crate) size: u64,
    pub(crate) bases: Vec<FileAt>,
}

/// Everything needed to search.
pub(crate) struct Matcher<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) handle: u32,
    pub(crate) roots: Roots<'a>,
    /// Threads that search.
    pub(crate) pool: &'a rayon::ThreadPool,
    /// What is received, and what an earlier pull received.
    pub(crate) log: &'a SumsLog,
    /// Counts the bytes of block checksums received.
    pub(crate) checksums: &'a AtomicU64,
}

impl Matcher<'_> {
    /// Searches the bases of all candidates at once. Returns how to build each file; `None` if it must be
    /// fetched whole.
    pub(crate) fn search(&self, candidates: &[Candidate]) -> Result<Vec<Option<Assembly>>, PullError> {
        let mut searches: Vec<Option<FileSearch>> = candidates.iter().map(|one| self.new_search(one)).collect();
        self.begin(candidates, &mut searches)?;
        loop {
            let mut wanted = Vec::new();
            for (at, search) in searches.iter().enumerate() {
                let Some(search) = search else { continue };
                wanted.extend(search.ranges.iter().filter_map(|range| {
                    let bytes = search.layout.as_ref()?.items(range.level.into(), range.first, range.count)?;
                    let item = Item { row: candidates[at].row, offset: bytes.start, len: bytes.end - bytes.start };
                    Some((at, *range, (candidates[at].sha256, item)))
                }));
            }
            if wanted.is_empty() {
                break;
            }
            let items: Vec<(Digest, Item)> = wanted.iter().map(|(_, _, item)| *item).collect();
            for ((at, range, _), bytes) in wanted.into_iter().zip(self.fetch(&items)?) {
                if let Some(search) = &mut searches[at] {
                    search.ranges.retain(|other| *other != range);
                    search.supply(range, &bytes);
                }
            }
            self.advance(&mut searches);
        }
        Ok(searches.into_iter().map(|search| search?.assembly.filter(|found| found.matched_bytes() > 0)).collect())
    }

    fn new_search(&self, candidate: &Candidate) -> Option<FileSearch> {
        // A missing basis is kept as an empty one, so that the indices of the others stay valid.
        let len = |at: &FileAt| self.roots.stat(at).ok().flatten().map_or(0, |stat| stat.size);
        let bases: Vec<(FileAt, u64)> = candidate.bases.iter().map(|at| (at.clone(), len(at))).collect();
        let worth = bases.iter().any(|&(_, len)| len > 0 && len >= candidate.size / MIN_SHARE);
        (candidate.size >= MIN_DELTA && worth).then(|| FileSearch { bases, ..FileSearch::default() })
    }

    /// Fetches the header of every record and, for files of the default policy, their coarsest checksums with
    /// it.
    fn begin(&self, candidates: &[Candidate], searches: &mut [Option<FileSearch>]) -> Result<(), PullError> {
        let open: Vec<usize> = (0..searches.len()).filter(|&at| searches[at].is_some()).collect();
        let items: Vec<(Digest, Item)> =
            open.iter().map(|&at| (candidates[at].sha256, first_item(&candidates[at]))).collect();
        for (at, record) in open.into_iter().zip(self.fetch(&items)?) {
            let begun = match layout(&record, candidates[at].size) {
                Ok(Some(layout)) => searches[at].as_mut().map(|search| search.begin(layout, &record)),
                Ok(None) => None,
                Err(error) => {
                    // Checksums are only a hint, and the sender's disk may be damaged. Fetch the whole file.
                    tracing::warn!(row = candidates[at].row, %error, "invalid block checksums; fetching it whole");
                    None
                }
            };
            if begun.is_none() {
                searches[at] = None;
            }
        }
        self.advance(searches);
        Ok(())
    }

    /// Continues every search that has the ranges it asked for.
    fn advance(&self, searches: &mut [Option<FileSearch>]) {
        let ready = |search: &&mut FileSearch| search.ranges.is_empty();
        self.pool.install(|| searches.par_iter_mut().flatten().filter(ready).for_each(|one| one.advance(&self.roots)));
    }

    /// Fetches ranges of records of contents, with up to [`REQUESTS`] requests in flight. What the log has is not
    /// requested.
    fn fetch(&self, items: &[(Digest, Item)]) -> Result<Vec<Vec<u8>>, PullError> {
        let known = |(digest, item): &(Digest, Item)| self.log.get(*digest, item.offset, item.len);
        let known: Vec<Option<Vec<u8>>> = items.iter().map(known).collect();
        let missing = items.iter().zip(&known).enumerate().filter(|(_, (_, known))| known.is_none());
        let missing: Vec<(usize, Item)> = missing.map(|(at, ((_, item), _))| (at, *item)).collect();
        let mut fetched: Vec<Vec<u8>> = known.into_iter().map(Option::unwrap_or_default).collect();
        let mut requests = batches(&missing).into_iter();
        let mut in_flight = std::collections::VecDeque::new();
        // If the connection breaks, what arrived before is still kept.
        let mut broken = None;
        loop {
            while in_flight.len() < REQUESTS && broken.is_none() {
                let Some(batch) = requests.next() else { break };
                let items = batch.iter().map(|(_, item)| *item).collect();
                match self.source.ask(Request::Sums { handle: self.handle, items }) {
                    Ok(answer) => in_flight.push_back((answer, batch)),
                    Err(PullError::Interrupted) => return Err(PullError::Interrupted),
                    Err(error) => broken = Some(error),
                }
            }
            let Some((mut answer, batch)) = in_flight.pop_front() else { return broken.map_or(Ok(fetched), Err) };
            // Each part is kept as soon as it is complete: a kill before the end of the answer loses only the last one.
            let mut parts = batch.into_iter();
            let mut bytes = Vec::new();
            loop {
                match answer.wait()? {
                    Event::Bytes(more) => bytes.extend_from_slice(&more),
                    Event::Reply(Reply::End) => break,
                    Event::Reply(_) => {
                        return Err(PullError::protocol("an unexpected reply to a request for checksums"));
                    }
                }
                let mut at = 0;
                while let Some(received) = part_at(&bytes[at..]) {
                    let Some((number, item)) = parts.next() else { break };
                    if received.len() as u64 > item.len {
                        return Err(PullError::protocol("more block checksums than requested"));
                    }
                    self.log.add(items[number].0, item.offset, item.len, received);
                    fetched[number].extend_from_slice(received);
                    self.checksums.fetch_add(received.len() as u64, Ordering::Relaxed);
                    at += PART_HEADER + received.len();
                }
                bytes.drain(..at);
            }
            if parts.next().is_some() {
                return Err(PullError::protocol("an answer ends before all requested block checksums"));
            }
            Reader::new(&bytes).finish("block checksums")?;
        }
    }
}

/// Returns the first part of an answer, if it is complete.
fn part_at(bytes: &[u8]) -> Option<&[u8]> {
    let (header, rest) = bytes.split_first_chunk::<PART_HEADER>()?;
    rest.get(..u32::from_le_bytes(*header) as usize)
}

/// Splits items, each with its index, into requests. Each is a list of parts of items.
fn batches(items: &[(usize, Item)]) -> Vec<Vec<(usize, Item)>> {
    let mut batches: Vec<Vec<(usize, Item)>> = Vec::new();
    let mut room = 0;
    for &(at, Item { row, mut offset, mut len }) in items {
        while len > 0 {
            let full = batches.last().is_none_or(|batch| batch.len() >= stillmirror_protocol::wire::items_that_fit());
            if full || room == 0 {
                batches.push(Vec::new());
                room = REQUEST_BYTES;
            }
            let part = len.min(room).min(PART_BYTES);
            if let Some(batch) = batches.last_mut() {
                batch.push((at, Item { row, offset, len: part }));
            }
            (offset, len, room) = (offset + part, len - part, room - part);
        }
    }
    batches
}

/// Returns the range of a record's header and of its coarsest level, assuming the default policy.
fn first_item(candidate: &Candidate) -> Item {
    let scheme = Scheme::for_size(candidate.size, &SumsPolicy::default());
    let guess = Layout::new(candidate.size, scheme).ok();
    let coarse = guess.and_then(|layout| layout.items(0, 0, layout.blocks(0)?));
    Item { row: candidate.row, offset: 0, len: coarse.map_or(MAX_HEADER, |items| items.end.max(MAX_HEADER)) }
}

/// Reads a record's header; [`stillmirror_protocol::sums`] describes the layout. `None` if there is no record
/// or it has no levels.
fn layout(record: &[u8], size: u64) -> Result<Option<Layout>, SumsError> {
    if record.is_empty() {
        return Ok(None);
    }
    let broken = |_: DecodeError| SumsError::Truncated;
    let mut reader = Reader::new(record);
    if reader.array("magic").map_err(broken)? != *b"BS" {
        return Err(SumsError::BadMagic);
    }
    let version = reader.u8("version").map_err(broken)?;
    if version != 1 {
        return Err(SumsError::UnknownVersion(version));
    }
    let count = usize::from(reader.u8("levels").map_err(broken)?);
    if count > MAX_LEVELS {
        return Err(SumsError::TooManyLevels(count));
    }
    let found = reader.u64("size").map_err(broken)?;
    if found != size {
        return Err(SumsError::TooLarge(found));
    }
    let level = |reader: &mut Reader<'_>| {
        Ok(Level { block_size: reader.u32("block size")?, strong_len: reader.u8("strong length")? })
    };
    let levels = (0..count).map(|_| level(&mut reader)).collect::<Result<_, _>>().map_err(broken)?;
    let layout = Layout::new(size, Scheme::new(levels)?)?;
    Ok((count > 0).then_some(layout))
}

/// The search for one file.
#[derive(Default)]
struct FileSearch {
    /// Local files, and their lengths when the search began.
    bases: Vec<(FileAt, u64)>,
    layout: Option<Layout>,
    search: Option<Search>,
    /// Ranges to fetch before the search continues.
    ranges: Vec<SumsRange>,
    assembly: Option<Assembly>,
}

impl FileSearch {
    fn begin(&mut self, layout: Layout, record: &[u8]) {
        let mut search = Search::new(layout.clone());
        let step = search.start();
        (self.layout, self.search) = (Some(layout), Some(search));
        self.take(step);
        // The items that arrived with the header need not be fetched again.
        for range in std::mem::take(&mut self.ranges) {
            let items =
                self.layout.as_ref().and_then(|layout| layout.items(range.level.into(), range.first, range.count));
            match items.and_then(|items| record.get(items.start as usize..items.end as usize)) {
                Some(bytes) => self.supply(range, bytes),
                None => self.ranges.push(range),
            }
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::NeedSums(ranges) => self.ranges = ranges,
            Step::Done(assembly) => {
                self.assembly = Some(assembly);
                self.stop();
            }
        }
    }

    fn supply(&mut self, range: SumsRange, bytes: &[u8]) {
        // The items are too short if the record is not what its header says.
        if self.search.as_mut().is_some_and(|search| search.supply(range, bytes).is_err()) {
            self.stop();
        }
    }

    fn advance(&mut self, roots: &Roots<'_>) {
        let Some(search) = &mut self.search else { return };
        // Bases are open only while they are read: a batch has more bases than a process may have open files.
        let bases: Vec<LocalBasis> = self.bases.iter().map(|(at, len)| LocalBasis::open(roots, at, *len)).collect();
        let bases: Vec<&dyn Basis> = bases.iter().map(|basis| basis as &dyn Basis).collect();
        match search.advance(&bases) {
            Ok(step) => self.take(step),
            Err(error) => {
                tracing::warn!(%error, "searching local files failed; fetching the whole file");
                self.stop();
            }
        }
    }

    fn stop(&mut self) {
        self.search = None;
        self.ranges.clear();
        self.bases.clear();
    }
}

/// A local file whose length is fixed for the search. It may be missing.
struct LocalBasis {
    file: Option<File>,
    len: u64,
}

impl LocalBasis {
    fn open(roots: &Roots<'_>, at: &FileAt, len: u64) -> Self {
        Self { file: if len > 0 { roots.file(at).ok() } else { None }, len }
    }
}

impl Basis for LocalBasis {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.as_ref().ok_or(io::ErrorKind::UnexpectedEof)?.read_exact_at(buffer, offset)
    }
}

/// A basis is ignored if its length is less than this fraction (1/64) of the new file's.
const MIN_SHARE: u64 = 64;
/// Length in bytes of the longest record header.
const MAX_HEADER: u64 = 12 + 5 * MAX_LEVELS as u64;
/// Maximum number of bytes of block checksums in one request.
const REQUEST_BYTES: u64 = 2 << 20;
/// Maximum number of bytes of block checksums in one part of a request.
const PART_BYTES: u64 = 64 << 10;
/// Length in bytes of the length before each part of an answer.
const PART_HEADER: usize = 4;
/// Maximum number of requests that one matcher has in flight.
const REQUESTS: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_range_is_requested_in_adjacent_parts() {
        let items =
            [(0, Item { row: 1, offset: 10, len: REQUEST_BYTES + 5 }), (1, Item { row: 2, offset: 0, len: 100 })];
        let batches = batches(&items);
        assert_eq!(batches.len(), 2);
        let parts: Vec<_> = batches.iter().flatten().copied().collect();
        assert!(parts.iter().all(|(_, part)| part.len <= PART_BYTES));
        let mut end = 10;
        for (_, part) in parts.iter().filter(|(number, _)| *number == 0) {
            assert_eq!((part.row, part.offset), (1, end));
            end += part.len;
        }
        assert_eq!(end, 10 + REQUEST_BYTES + 5);
        assert_eq!(parts.last(), Some(&(1, Item { row: 2, offset: 0, len: 100 })));
    }

    #[test]
    fn a_part_of_an_answer_is_read_once_it_is_complete() {
        assert_eq!(part_at(&[3, 0, 0, 0, 7, 8, 9, 1]), Some(&[7, 8, 9][..]));
        assert_eq!(part_at(&[3, 0, 0, 0, 7, 8]), None);
        assert_eq!(part_at(&[0, 0, 0, 0]), Some(&[][..]));
        assert_eq!(part_at(&[3, 0, 0]), None);
    }

    #[test]
    fn an_invalid_header_is_refused_and_a_valid_one_is_read() {
        let record = |levels: u8, size: u64, block: u32| {
            let mut record = [&b"BS\x01"[..], &[levels], &size.to_le_bytes()].concat();
            (0..levels).for_each(|_| record.extend_from_slice(&[&block.to_le_bytes()[..], &[2]].concat()));
            record
        };
        assert!(matches!(layout(&[], 9), Ok(None)));
        assert!(matches!(layout(&record(0, 9, 0), 9), Ok(None)));
        assert!(matches!(layout(&record(1, 1 << 20, 1024), 1 << 20), Ok(Some(_))));
        assert!(layout(&record(1, 1 << 20, 1024), 5).is_err(), "of another file");
        assert!(layout(&record(1, 1 << 20, 0), 1 << 20).is_err(), "empty blocks");
        assert!(layout(&record(200, 1 << 20, 1024), 1 << 20).is_err(), "too many levels");
        assert!(layout(&record(1, 1 << 20, 1024)[..14], 1 << 20).is_err(), "truncated");
    }
}
