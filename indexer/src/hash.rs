//! Reading files: all digests, the block checksums and what is kept of them in one pass, and never of a file in motion.

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use md5::Md5;
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use stillmirror_protocol::entry::{Digest, Digests, PASSED_BY_OTHERS, READ_BY_OTHERS};
use stillmirror_protocol::local::RecordAt;
use stillmirror_protocol::path;
use stillmirror_protocol::sums::{Scheme, SumsBuilder};
use stillmirror_store::{Draft, Generation, Record, StoreError};
use twox_hash::XxHash3_128;

use crate::expected::Expected;
use crate::options::Options;
use crate::report::Progress;
use crate::tree::{self, Facts, Tree};
use crate::walk::{Findings, Found};

/// All files to be read: each inode once, under whichever of its names is still there.
#[derive(Debug)]
pub(crate) struct Jobs<'a> {
    /// Names of one job stand together.
    names: Vec<Name<'a>>,
    jobs: Vec<Job>,
}

#[derive(Debug)]
struct Name<'a> {
    /// Its place among all found names, directory after directory.
    found: usize,
    dir: &'a [u8],
    name: &'a [u8],
    facts: &'a Facts,
    /// Whether it is read to see whether the disk still has what is expected.
    is_checked: bool,
}

#[derive(Debug)]
struct Job {
    names: Range<usize>,
    size: u64,
}

/// What reading a file gave.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Its content, as it was in one state of the file.
    Read {
        digests: Digests,
        record: RecordAt,
        /// That state, when it is another than the walk saw.
        facts: Option<Box<Facts>>,
    },
    /// It changed whenever it was read.
    Torn,
    /// It is gone, or something else has its name.
    Gone,
    /// It cannot be read.
    Unreadable(Errno),
}

/// What reading all files gave.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    outcomes: Vec<Outcome>,
    /// For each found name, its outcome's place.
    by_found: HashMap<usize, u32>,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// What reading needs.
pub(crate) struct Reading<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) options: &'a Options,
    pub(crate) draft: &'a Draft,
    pub(crate) known: Known<'a>,
    /// When the walk had seen the last of the files.
    pub(crate) walked: Instant,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) stop: &'a AtomicBool,
}

/// Why reading ended for all files.
#[derive(Debug)]
pub(crate) enum ReadingError {
    Stopped,
    Store(StoreError),
}

/// Why one file could not be read.
enum Trouble {
    File(Errno),
    All(ReadingError),
}

impl From<Errno> for Trouble {
    fn from(error: Errno) -> Self {
        Self::File(error)
    }
}

impl<'a> Jobs<'a> {
    /// The regular files among what a walk found, but for those of a content that is known without reading.
    pub(crate) fn of(findings: &'a Findings, expected: &Expected) -> Self {
        let files = findings.found().filter(|(_, _, found)| found.facts.is_file());
        let name = |(found, dir, file): (usize, &'a Vec<u8>, &'a Found)| {
            let is_checked = expected.at(found).map(|expected| expected.is_checked);
            let is_read = is_checked != Some(false);
            let is_checked = is_checked.is_some();
            is_read.then_some(Name { found, dir, name: &file.name, facts: &file.facts, is_checked })
        };
        let mut names: Vec<Name<'a>> = files.filter_map(name).collect();
        // Only linked files need their names brought together; the rest stays in the tree's order.
        let inode = |name: &Name<'_>| (name.facts.links > 1).then(|| name.facts.inode());
        names.sort_by_key(inode);
        let mut jobs = Vec::new();
        let mut start = 0;
        for run in names.chunk_by(|a, b| inode(a).is_some() && inode(a) == inode(b)) {
            jobs.push(Job { names: start..start + run.len(), size: run[0].facts.size });
            start += run.len();
        }
        // The largest first, so that no core is left alone with one at the end.
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
            let mut worker =
                Worker { reading: self, buffer, content, passed_by_all: None, files: 0, bytes: 0, told: (0, 0) };
            let mut outcomes = Vec::new();
            while let Some(job) = jobs.jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                outcomes.push((job, worker.read(&jobs.names[job.names.clone()])?));
                worker.files += 1;
                worker.tell(TELL_FILES);
            }
            worker.tell(1);
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
    /// What reading gave for the name at that place among all found ones; none when it was no job.
    pub(crate) fn of(&self, found: usize) -> Option<&Outcome> {
        self.by_found.get(&found).map(|&place| &self.outcomes[place as usize])
    }
}

struct Worker<'a> {
    reading: &'a Reading<'a>,
    buffer: Vec<u8>,
    /// Of the file in hand, when that is to be kept.
    content: Vec<u8>,
    /// Whether everybody may go to the directory that was asked for last.
    passed_by_all: Option<(&'a [u8], bool)>,
    files: u64,
    bytes: u64,
    /// Files and bytes that the listener knows of.
    told: (u64, u64),
}

impl<'a> Worker<'a> {
    fn read(&mut self, names: &[Name<'a>]) -> Result<Outcome, ReadingError> {
        let mut outcome = Outcome::Gone;
        for name in names {
            outcome = self.read_name(name, names.len() > 1)?;
            if !matches!(outcome, Outcome::Gone) {
                break;
            }
        }
        Ok(outcome)
    }

    fn read_name(&mut self, name: &Name<'a>, linked: bool) -> Result<Outcome, ReadingError> {
        let path = path::join(name.dir, name.name);
        for _ in 0..TRIES {
            match self.read_once(&path, name, linked) {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => {}
                Err(Trouble::File(error)) if tree::is_gone(error) || error == Errno::NXIO => return Ok(Outcome::Gone),
                Err(Trouble::File(error)) => return Ok(Outcome::Unreadable(error)),
                Err(Trouble::All(error)) => return Err(error),
            }
        }
        Ok(Outcome::Torn)
    }

    /// Reads a file through; none when it was in motion. The state before must be the state after, so that
    /// what was read is one state's content.
    fn read_once(&mut self, path: &[u8], name: &Name<'a>, linked: bool) -> Result<Option<Outcome>, Trouble> {
        let file = self.reading.tree.open_file(path)?;
        let Some(before) = self.settled(&file, name.facts)? else { return Ok(None) };
        // Another inode under one of several names: what was asked for may still be under another.
        if !before.is_file() || (linked && before.inode() != name.facts.inode()) {
            return Ok(Some(Outcome::Gone));
        }
        if name.is_checked {
            // What lies in memory says nothing of the disk.
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
        let mut sums = self.sums_builder(path, before.size);
        let keeps = before.size <= self.reading.options.kept_content()
            && before.mode & READ_BY_OTHERS != 0
            && self.is_passed_by_all(name.dir);
        let Some(digests) = self.read_through(&file, before.size, keeps, sums.as_mut())? else { return Ok(None) };
        if !self.reading.tree.facts_of(&file)?.same_content(&before) {
            return Ok(None);
        }
        let record = self.reading.known.put(digests.sha256, self.reading.draft, sums, &self.content)?;
        let facts = (before != *name.facts).then(|| Box::new(before));
        Ok(Some(Outcome::Read { digests, record, facts }))
    }

    /// The facts of an open file once no later write can leave them as they are; none when they keep changing.
    ///
    /// What is written within one tick of the clock that stamps the file keeps its `ctime`. That clock may be
    /// another host's, and any clock may have been set: what counts is how long these facts have been seen.
    fn settled(&self, file: &File, walked: &Facts) -> Result<Option<Facts>, Errno> {
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

    /// Whether everybody may go to a directory: what lies in another one is nobody's to find in the store.
    fn is_passed_by_all(&mut self, dir: &'a [u8]) -> bool {
        if let Some((_, known)) = self.passed_by_all.filter(|(known, _)| *known == dir) {
            return known;
        }
        let ends = (0..=dir.len()).filter(|&end| end == 0 || end == dir.len() || dir[end] == b'/');
        let is_open = |end: usize| match self.reading.tree.look(&dir[..end]) {
            Ok(Some(facts)) => facts.mode & PASSED_BY_OTHERS != 0,
            Ok(None) | Err(_) => false,
        };
        let passed = ends.into_iter().all(is_open);
        self.passed_by_all = Some((dir, passed));
        passed
    }

    /// Digests of the first `size` bytes, with the bytes themselves if it `keeps` them; none when there are fewer.
    fn read_through(
        &mut self,
        file: &File,
        size: u64,
        keeps: bool,
        mut sums: Option<&mut SumsBuilder>,
    ) -> Result<Option<Digests>, Trouble> {
        let options = self.reading.options;
        let mut sha256 = Sha256::new();
        let mut xxh128 = options.xxh128.then(XxHash3_128::new);
        let mut md5 = options.md5.then(Md5::new);
        if size > BUFFER as u64 {
            // Advice: its failure costs nothing but speed.
            let _ = fadvise(file, 0, None, Advice::Sequential);
        }
        self.content.clear();
        let (mut done, mut cached) = (0, 0);
        while done < size {
            if self.reading.stop.load(Ordering::Relaxed) {
                return Err(Trouble::All(ReadingError::Stopped));
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
            self.tell(TELL_FILES);
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

    /// Tells the listener, now and then.
    fn tell(&mut self, files: u64) {
        let (new_files, new_bytes) = (self.files - self.told.0, self.bytes - self.told.1);
        if new_files >= files || new_bytes >= TELL_BYTES {
            self.reading.progress.hashed(new_files, new_bytes);
            self.told = (self.files, self.bytes);
        }
    }
}

/// Records by the content that they are of, so that equal files share one.
pub(crate) struct Known<'a> {
    old: Option<&'a Generation>,
    /// Rows of the old list that have a record, by the digest's first bytes. Made at the first use.
    old_rows: OnceLock<HashMap<[u8; 8], u32>>,
    new: Mutex<HashMap<Digest, RecordAt>>,
}

impl<'a> Known<'a> {
    pub(crate) fn of(old: Option<&'a Generation>) -> Self {
        Self { old, old_rows: OnceLock::new(), new: Mutex::default() }
    }

    /// Where the record of a file with that digest lies; it is written unless there is one that has as much.
    fn put(
        &self,
        digest: Digest,
        draft: &Draft,
        sums: Option<SumsBuilder>,
        content: &[u8],
    ) -> Result<RecordAt, Trouble> {
        if sums.is_none() && content.is_empty() {
            return Ok(RecordAt::default());
        }
        let does = |at: &RecordAt| (sums.is_none() || at.sums > 0) && (content.is_empty() || at.content > 0);
        if let Some(at) = self.in_old(digest).filter(does) {
            return Ok(at);
        }
        // Held until the record is written: another thread may have just read the same content.
        let mut new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = new.get(&digest).filter(|at| does(at)) {
            return Ok(*at);
        }
        let sums = sums.map_or_else(Vec::new, SumsBuilder::finish);
        let written = draft.append(digest, Record { sums: &sums, content });
        let at = written.map_err(|error| Trouble::All(ReadingError::Store(error)))?;
        new.insert(digest, at);
        Ok(at)
    }

    fn in_old(&self, digest: Digest) -> Option<RecordAt> {
        let generation = self.old?;
        let (list, local) = (generation.list(), generation.local());
        let record = |row: u32| local.record(list.row(row).file_number()?);
        let rows = self.old_rows.get_or_init(|| {
            let with_record = (0..list.len()).filter(|&row| record(row).is_some());
            with_record.map(|row| (first_bytes(list.row(row).sha256()), row)).collect()
        });
        let row = *rows.get(&first_bytes(digest))?;
        let is_right = |_: &RecordAt| {
            let file = list.row(row).file_number().filter(|_| list.row(row).sha256() == digest);
            file.is_some_and(|file| generation.record(file).is_ok())
        };
        record(row).filter(is_right)
    }
}

fn first_bytes(digest: Digest) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = digest.0;
    [a, b, c, d, e, f, g, h]
}

/// Bytes of one read: large enough that system calls do not count, small enough to stay in a core's cache
/// while all digests pass over it.
const BUFFER: usize = 256 << 10;
/// From this size on a file is read first, and dropped from the page cache afterwards.
const LARGE: u64 = 16 << 20;
/// How much of a large file stays in the page cache while it is read.
const DROP_STEP: u64 = 16 << 20;
/// How often a file in motion is read.
const TRIES: u32 = 3;
/// Longer than a tick of any kernel's clock (10 ms at 100 Hz).
const SETTLE: Duration = Duration::from_millis(20);
const TELL_FILES: u64 = 64;
const TELL_BYTES: u64 = 4 << 20;
