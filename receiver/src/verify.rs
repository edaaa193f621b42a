//! Compares every file of a tree with the digests of the generation in a store.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use stillmirror_protocol::filter::Filter;
use stillmirror_protocol::list::{self, FileType, Row};
use stillmirror_protocol::path;
use stillmirror_store::{Generation, Store};
use tokio_util::sync::CancellationToken;

use crate::error::{At as _, PullError};
use crate::facts;
use crate::local::{self, Tree};
use crate::report::{Phase, Progress};
use crate::selection::{Selection, WantedDir};

/// The result of a verification.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VerifyReport {
    /// The number of the generation that the tree was compared with.
    pub generation: u64,
    /// Number of regular files read.
    pub files: u64,
    /// Number of bytes read.
    pub bytes: u64,
    /// The problems, sorted by path.
    pub problems: Vec<(Vec<u8>, Problem)>,
    /// Wall time, in seconds.
    pub seconds: f64,
}

/// A problem with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Problem {
    /// The name does not exist.
    Missing,
    /// The entry has another type.
    Type,
    /// The content (or target, or device number) differs.
    Content,
    /// The name is not the hard link that it should be.
    Link,
    /// The file cannot be read.
    Unreadable,
    /// What the store keeps of the file is damaged.
    Stored,
}

/// Compares `dest` with the current generation of the store: types, contents and link groups. Also checks the
/// contents that the store keeps. Blocks until it is done.
pub fn verify(
    dest: &Path,
    store: &Path,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<VerifyReport, PullError> {
    let started = Instant::now();
    let generation = Store::open(store)?.current()?.ok_or_else(|| {
        PullError::usage(format!("{} has no generation yet: run `stillmirror index` or `pull` first", store.display()))
    })?;
    let tree = Tree::open(dest).at("open", dest)?;
    let filter = Filter::default();
    let selection = Selection::new(generation.list(), b"", &filter)?;
    let counts = generation.head().counts;
    progress.phase(Phase::Verify, counts.files, counts.bytes);
    let verifier = Verifier { tree: &tree, generation: &generation, selection: &selection, progress, cancel };
    let found: Vec<Found> =
        selection.dirs.par_iter().map(|place| verifier.verify_dir(place)).collect::<Result<_, _>>()?;
    let mut report = VerifyReport { generation: generation.head().generation, ..VerifyReport::default() };
    let mut inodes = HashMap::new();
    for found in found {
        report.files += found.files;
        report.bytes += found.bytes;
        report.problems.extend(found.problems);
        inodes.extend(found.inodes);
    }
    for (row, leader) in selection.list.links() {
        if let (Some(own), Some(first)) = (inodes.get(&row), inodes.get(&leader))
            && own != first
        {
            report.problems.push((selection.path(row), Problem::Link));
        }
    }
    report.problems.sort_by(|a, b| a.0.cmp(&b.0));
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

struct Verifier<'a> {
    tree: &'a Tree,
    generation: &'a Generation,
    selection: &'a Selection<'a>,
    progress: &'a dyn Progress,
    cancel: &'a CancellationToken,
}

#[derive(Default)]
struct Found {
    files: u64,
    bytes: u64,
    problems: Vec<(Vec<u8>, Problem)>,
    /// Row of each name in a link group, with its device and inode.
    inodes: Vec<(u32, (u64, u64))>,
}

impl Verifier<'_> {
    fn verify_dir(&self, place: &WantedDir<'_>) -> Result<Found, PullError> {
        let shown = || self.tree.shown(&place.path);
        let dir = local::optional(self.tree.dir(&place.path)).at("open", shown())?;
        let rows: Vec<_> =
            place.dir.children().filter(|(_, row)| self.selection.index(row.number()).is_some()).collect();
        let verify = |(name, row): (&[u8], Row<'_>)| {
            if self.cancel.is_cancelled() {
                return Err(PullError::Interrupted);
            }
            let mut found = Found::default();
            let problem = match &dir {
                Some(dir) => self.verify_row(dir.as_fd(), name, row, &mut found),
                None => Some(Problem::Missing),
            };
            self.progress.advance(found.files, found.bytes);
            let problems = problem.into_iter().chain(self.verify_stored(row));
            found.problems.extend(problems.map(|problem| (path::join(&place.path, name), problem)));
            Ok(found)
        };
        let merge = |mut all: Found, one: Found| {
            all.files += one.files;
            all.bytes += one.bytes;
            all.problems.extend(one.problems);
            all.inodes.extend(one.inodes);
            Ok(all)
        };
        rows.into_par_iter().map(verify).try_reduce(Found::default, merge)
    }

    /// Checks what the store keeps of a file, because the daemon serves that instead of the file.
    fn verify_stored(&self, row: Row<'_>) -> Option<Problem> {
        let content = match self.generation.record(row.file_number()?) {
            Ok(record) => record?.content,
            Err(_) => return Some(Problem::Stored),
        };
        (!content.is_empty() && list::digest(content) != row.sha256()).then_some(Problem::Stored)
    }

    fn verify_row(
        &self,
        dir: std::os::fd::BorrowedFd<'_>,
        name: &[u8],
        row: Row<'_>,
        found: &mut Found,
    ) -> Option<Problem> {
        let stat = match local::optional(local::stat(dir, name)) {
            Ok(Some(stat)) => stat,
            Ok(None) => return Some(Problem::Missing),
            Err(_) => return Some(Problem::Unreadable),
        };
        if stat.kind != row.file_type() {
            return Some(Problem::Type);
        }
        if row.link_leader().is_some() {
            found.inodes.push((row.number(), (stat.on_device, stat.inode)));
        }
        let right = match stat.kind {
            FileType::File => {
                found.files = 1;
                found.bytes = stat.size;
                let read = || -> io::Result<bool> {
                    let file = local::open_file(dir, name, rustix::fs::OFlags::RDONLY)?;
                    Ok(facts::hash(file, self.cancel)? == row.sha256())
                };
                if stat.size == row.size() { read() } else { Ok(false) }
            }
            FileType::Symlink => local::target(dir, name).map(|target| row.target() == Some(&target[..])),
            FileType::CharDevice | FileType::BlockDevice => Ok(row.device() == Some(stat.device)),
            FileType::Directory | FileType::Fifo | FileType::Socket => Ok(true),
        };
        match right {
            Ok(true) => None,
            Ok(false) => Some(Problem::Content),
            Err(_) => Some(Problem::Unreadable),
        }
    }
}
