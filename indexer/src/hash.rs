//! Reads files once for all digests, the block checksums and the kept content, and never accepts a file that
//! changes while it is read.
//!
//! [`Jobs::of`] selects the files, and [`Reading::run`] reads them on all threads.

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use md5::Md5;
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use stillmirror_protocol::entry::{Digest, Digests};
use stillmirror_protocol::local::RecordAt;
use stillmirror_protocol::path;
use stillmirror_protocol::sums::{Scheme, SumsBuilder};
use stillmirror_store::{Draft, StoreError, has_packed};
use twox_hash::XxHash3_128;

use crate::access::Access;
use crate::expected::Expected;
use crate::known_records::KnownRecords;
use crate::options::Options;
use crate::pooling::{Content, Kept, Pooling};
use crate::report::Progress;
use crate::tree::{self, Facts, Tree};
use crate::walk::{Findings, Found};

/// All files to be read. Each inode is read once, by the first of its names that still exists.
#[derive(Debug)]
pub(crate) struct Jobs<'a> {
    /// The names, with those of one job in a row.
    names: Vec<Name<'a>>,
    jobs: Vec<Job>,
}

#[derive(Debug)]
struct Name<'a> {
    /// The name's index among all found names, directory after directory.
    found: usize,
    dir: &'a [u8],
    name: &'a [u8],
    facts: &'a Facts,
    /// The row that had this name.
    old: Option<u32>,
    /// Whether the file is read to check that the disk still has the expected content.
    is_checked: bool,
}

#[derive(Debug)]
struct Job {
    names: Range<usize>,
    size: u64,
}

/// The outcome of reading one file.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The content was read completely in one state of the file.
    Read {
        digests: Digests,
        record: RecordAt,
        /// The facts of that state. `None` if they are those that the walk saw.
        facts: Option<Box<Facts>>,
        /// How the pool keeps the content. `None` if it was not put there.
        kept: Option<Kept>,
    },
    /// The file changed during every attempt to read it.
    Torn,
    /// The file is gone, or something else has its name.
    Gone,
    /// The file cannot be read.
    Unreadable(Errno),
}

/// The outcomes of reading all files.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    outcomes: Vec<Outcome>,
    /// The index of the outcome of each found name that was read.
    by_found: HashMap<usize, u32>,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// The context of reading.
pub(crate) struct Reading<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) options: &'a Options,
    pub(crate) draft: &'a Draft,
    pub(crate) known: KnownRecords<'a>,
    /// Where the contents are kept, if they are.
    pub(crate) pooling: Option<&'a Pooling>,
    /// When the walk ended, and so had seen all files.
    pub(crate) walked: Instant,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) stop: &'a AtomicBool,
}

/// An error that ends the reading of all files.
#[derive(Debug)]
pub(crate) enum ReadingError {
    Stopped,
    Store(StoreError),
}

/// An error from reading one file.
enum FileError {
    /// Only this file cannot be read.
    Io(Errno),
    /// Reading ends for all files.
    All(ReadingError),
}

impl From<Errno> for FileError {
    fn from(error: Errno) -> Self {
        Self::Io(error)
    }
}

impl<'a> Jobs<'a> {
    /// Selects the regular files among the findings of a walk, except those whose content is known without
    /// reading.
    pub(crate) fn of(findings: &'a Findings, expected: &Expected) -> Self {
        let files = findings.found().filter(|(_, _, found)| found.facts.is_file());
        let name = |(found, dir, file): (usize, &'a Vec<u8>, &'a Found)| {
            let is_checked = expected.at(found).map(|expected| expected.is_checked);
            let is_read = is_checked != Some(false);
            let is_checked = is_checked.is_some();
            let old = file.old;
            is_read.then_some(Name { found, dir, name: &file.name, facts: &file.facts, old, is_checked })
        };
        let mut names: Vec<Name<'a>> = files.filter_map(name).collect();
        // Only the names of linked files must be brought together. The sort is stable, so the rest stays in
        // the tree's order.
        let inode = |name: &Name<'_>| (name.facts.links > 1).then(|| name.facts.inode());
        names.sort_by_key(inode);
        let mut jobs = Vec::new();
        let mut start = 0;
        for run in names.chunk_by(|a, b| inode(a).is_some() && inode(a) == inode(b)) {
            jobs.push(Job { names: start..start + run.len(), size: run[0].facts.size });
            start += run.len();
        }
        // The largest come first, so that no core is left alone with one at the end.
        jobs.sort_by_key(|job| std::cmp::Reverse(if job.size >= LARGE { job.size } else { 0 }));
        Self { names, jobs }
    }
}

impl Reading<'_> {
    /// Reads all files, on all threads.
    pub(crate) fn run(&self, jobs: &Jobs<'_>) -> Result<Outcomes, ReadingError> {
        self.progress.to_hash(jobs.jobs.len() as u64, jobs.jobs.iter().map(|job| job.size).sum());
        let next = AtomicUsize::new(0);
        let work = || {
            let (buffer, content) = (vec![0; BUFFER], Vec::new());
            let mut worker = Worker {
                reading: self,
                buffer,
                content,
                access: Access::new(self.tree),
                files: 0,
                bytes: 0,
                reported: (0, 0),
            };
            let mut outcomes = Vec::new();
            while let Some(job) = jobs.jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                outcomes.push((job, worker.read(&jobs.names[job.names.clone()])?));
                worker.files += 1;
                worker.report(REPORT_FILES);
            }
            worker.report(1);
            Ok((outcomes, worker.files, worker.bytes))
        };
        let threads = self.options.thread_count().min(jobs.jobs.len());
        let results: Vec<_> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut results = vec![work()];
            results
                .extend(others.into_iter().map(|other| other.join().unwrap_or_else(|p| std::panic::resume_unwind(p))));
            results
        });
        let mut all = Outcomes::default();
        for result in results {
            let (outcomes, files, bytes) = result?;
            (all.files, all.bytes) = (all.files + files, all.bytes + bytes);
            for (job, outcome) in outcomes {
                let place = all.outcomes.len() as u32;
                all.by_found.extend(jobs.names[job.names.clone()].iter().map(|name| (name.found, place)));
                all.outcomes.push(outcome);
            }
        }
        Ok(all)
    }
}

impl Outcomes {
    /// Returns the outcome for the found name with this index. `None` if it was not to be read.
    pub(crate) fn of(&self, found: usize) -> Option<&Outcome> {
        self.by_found.get(&found).map(|&place| &self.outcomes[place as usize])
    }
}

struct Worker<'a> {
    reading: &'a Reading<'a>,
    buffer: Vec<u8>,
    /// The content of the current file, if it is to be kept.
    content: Vec<u8>,
    access: Access<'a>,
    files: u64,
    bytes: u64,
    /// The files and bytes that were reported as progress.
    reported: (u64, u64),
}

impl<'a> Worker<'a> {
    fn read(&mut self, names: &[Name<'a>]) -> Result<Outcome, ReadingError> {
        let mut outcome = Outcome::Gone;
        for name in names {
            outcome = self.read_name(name, names)?;
            if !matches!(outcome, Outcome::Gone) {
                break;
            }
        }
        Ok(outcome)
    }

    fn read_name(&mut self, name: &Name<'a>, names: &[Name<'a>]) -> Result<Outcome, ReadingError> {
        let path = path::join(name.dir, name.name);
        for _ in 0..TRIES {
            match self.read_once(&path, name, names) {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => {}
                Err(FileError::Io(error)) if tree::is_gone(error) || error == Errno::NXIO => return Ok(Outcome::Gone),
                Err(FileError::Io(error)) => return Ok(Outcome::Unreadable(error)),
                Err(FileError::All(error)) => return Err(error),
            }
        }
        Ok(Outcome::Torn)
    }

    /// Reads a file completely. `None` if it changed meanwhile: the state after reading must be the state
    /// before, so that the content is that of one state.
    fn read_once(&mut self, path: &[u8], name: &Name<'a>, names: &[Name<'a>]) -> Result<Option<Outcome>, FileError> {
        let linked = names.len() > 1;
        let file = self.reading.tree.open_file(path)?;
        let Some(before) = self.stable_facts(&file, name.facts)? else { return Ok(None) };
        // If one of several names belongs to another inode now, the wanted inode may still have another name.
        if !before.is_file() || (linked && before.inode() != name.facts.inode()) {
            return Ok(Some(Outcome::Gone));
        }
        if name.is_checked {
            // The content in the page cache would tell nothing about the disk.
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
        let mut sums = self.sums_builder(path, before.size);
        let keeps = before.size <= self.reading.options.kept_content() && self.access.is_public(name.dir, before.mode);
        let Some(digests) = self.read_through(&file, before.size, keeps, sums.as_mut())? else { return Ok(None) };
        if !self.reading.tree.facts_of(&file)?.same_content(&before) {
            return Ok(None);
        }
        let record = self.reading.known.put(digests.sha256, self.reading.draft, sums, &self.content);
        let record = record.map_err(|error| FileError::All(ReadingError::Store(error)))?;
        let kept = match self.reading.pooling.filter(|_| !name.is_checked) {
            Some(pooling) => match self.keep(pooling, path, &file, &before, digests.sha256, record, names)? {
                Some(kept) => Some(kept),
                None => return Ok(None),
            },
            None => None,
        };
        let facts = (before != *name.facts).then(|| Box::new(before));
        Ok(Some(Outcome::Read { digests, record, facts, kept }))
    }

    /// Puts the content of a file into the pool, for all of its names. `None` if it has changed since it was read.
    #[expect(clippy::too_many_arguments, reason = "all of it is known only where the file was read")]
    fn keep(
        &mut self,
        pooling: &Pooling,
        path: &[u8],
        file: &File,
        facts: &Facts,
        digest: Digest,
        record: RecordAt,
        names: &[Name<'a>],
    ) -> Result<Option<Kept>, FileError> {
        let mut classes: Vec<bool> = Vec::with_capacity(2);
        for name in names {
            let is_public = self.access.is_public(name.dir, facts.mode);
            if !classes.contains(&is_public) && !has_packed(&record, facts.size, is_public) {
                classes.push(is_public);
            }
        }
        if classes.is_empty() {
            return Ok(Some(Kept::default()));
        }
        let old = names.iter().find_map(|name| name.old);
        let content = Content { path, facts, digest, classes: &classes, old };
        let kept = pooling.keep(self.reading.tree, file, &content, self.reading.known.generation());
        kept.map_err(|error| FileError::All(ReadingError::Store(error)))
    }

    /// Waits until any later write must change the facts of an open file, and returns them. `None` if they
    /// keep changing.
    ///
    /// A write within the same tick of the clock that stamps the file leaves its ctime unchanged. That clock
    /// may be another host's, and any clock may have been set. So the ctime is not compared with a clock:
    /// what counts is for how long the facts have stayed the same.
    fn stable_facts(&self, file: &File, walked: &Facts) -> Result<Option<Facts>, Errno> {
        let (mut seen, mut identity) = (self.reading.walked, walked.identity);
        for _ in 0..TRIES {
            let facts = self.reading.tree.facts_of(file)?;
            if facts.identity != identity {
                (seen, identity) = (Instant::now(), facts.identity);
            }
            let wait = SETTLE.saturating_sub(seen.elapsed());
            if wait.is_zero() {
                return Ok(Some(facts));
            }
            std::thread::sleep(wait);
        }
        Ok(None)
    }

    fn sums_builder(&self, path: &[u8], size: u64) -> Option<SumsBuilder> {
        let options = self.reading.options;
        let scheme = Scheme::for_size(size, &options.sums);
        let made = !scheme.is_empty() && options.sums_for.keeps_below_root(path, false);
        made.then(|| SumsBuilder::new(scheme, size))
    }

    /// Computes the digests of the first `size` bytes, and stores the bytes in `self.content` if `keeps` is
    /// set. `None` if the file is shorter.
    fn read_through(
        &mut self,
        file: &File,
        size: u64,
        keeps: bool,
        mut sums: Option<&mut SumsBuilder>,
    ) -> Result<Option<Digests>, FileError> {
        let options = self.reading.options;
        let mut sha256 = Sha256::new();
        let mut xxh128 = options.xxh128.then(XxHash3_128::new);
        let mut md5 = options.md5.then(Md5::new);
        if size > BUFFER as u64 {
            // This is only advice: a failure costs nothing but speed.
            let _ = fadvise(file, 0, None, Advice::Sequential);
        }
        self.content.clear();
        let (mut done, mut cached) = (0, 0);
        while done < size {
            if self.reading.stop.load(Ordering::Relaxed) {
                return Err(FileError::All(ReadingError::Stopped));
            }
            let wanted = (size - done).min(BUFFER as u64) as usize;
            let read = match rustix::io::read(file, &mut self.buffer[..wanted]) {
                Ok(0) => return Ok(None),
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let bytes = &self.buffer[..read];
            sha256.update(bytes);
            xxh128.iter_mut().for_each(|hash| hash.write(bytes));
            md5.iter_mut().for_each(|hash| hash.update(bytes));
            sums.iter_mut().for_each(|sums| sums.update(bytes));
            if keeps {
                self.content.extend_from_slice(bytes);
            }
            done += read as u64;
            self.bytes += read as u64;
            self.report(REPORT_FILES);
            if options.drop_cache && size >= LARGE && (done - cached >= DROP_STEP || done == size) {
                let _ = fadvise(file, cached, NonZeroU64::new(done - cached), Advice::DontNeed);
                cached = done;
            }
        }
        Ok(Some(Digests {
            sha256: Digest(sha256.finalize().into()),
            xxh128: xxh128.map_or([0; 16], |hash| hash.finish_128().to_le_bytes()),
            md5: md5.map_or([0; 16], |hash| hash.finalize().into()),
        }))
    }

    /// Reports progress if there are at least `files` new files, or enough new bytes.
    fn report(&mut self, files: u64) {
        let (new_files, new_bytes) = (self.files - self.reported.0, self.bytes - self.reported.1);
        if new_files >= files || new_bytes >= REPORT_BYTES {
            self.reading.progress.hashed(new_files, new_bytes);
            self.reported = (self.files, self.bytes);
        }
    }
}

/// Bytes per read. This is large enough that the cost of system calls does not matter, and small enough for
/// the buffer to stay in a core's cache while all digests are computed.
const BUFFER: usize = 256 << 10;
/// Files of this size (in bytes) or more are read first, and dropped from the page cache afterwards.
const LARGE: u64 = 16 << 20;
/// How many bytes of a large file stay in the page cache while it is read.
const DROP_STEP: u64 = 16 << 20;
/// How often reading a file is tried while it keeps changing.
const TRIES: u32 = 3;
/// How long the facts of a file must stay the same. It is longer than a tick of any kernel's clock (10 ms at
/// 100 Hz).
const SETTLE: Duration = Duration::from_millis(20);
/// Progress is reported after this many files or bytes.
const REPORT_FILES: u64 = 64;
const REPORT_BYTES: u64 = 4 << 20;
