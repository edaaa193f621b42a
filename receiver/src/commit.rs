//! Moves staged files into place. This is short, and each name changes by a rename, in this order:
//!
//! 1. Everything staged is flushed to the disk (`syncfs`), so that no name ever refers to an incomplete file.
//! 2. Directories are created, with permissions that allow the next steps.
//! 3. Files, hard links, symlinks and specials get their names, by [`crate::rank::Rank`]: what refers to other files comes
//!    after them. A file whose lower ranks are not complete keeps its old state ([`barrier::Barrier`]).
//! 4. Names that the sender does not have are deleted, if nothing failed.
//! 5. Directories get their modes, owners and times, the deepest first.
//!
//! At any time, a reader sees either a whole old file or a whole new one. A name that this host refuses to change
//! fails by itself, and the rest goes on. The next pull completes a killed commit. After the commit, remove the
//! staging directory, then call [`finish_root`].

mod barrier;
mod place;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType as RawType, Mode, OFlags, makedev};
use rustix::io::Errno;
use stillmirror_protocol::list::{FileType, Row};
use stillmirror_protocol::local::Identity;
use stillmirror_protocol::path;
use tokio_util::sync::CancellationToken;

use crate::attributes::Attributes;
use crate::error::{At as _, PullError};
use crate::facts::Facts;
use crate::fetch::{Staged, StagedFile};
use crate::local::{self, Tree};
use crate::plan::{Plan, Reuse};
use crate::rank::{Rank, rank};
use crate::report::{Failure, Progress, Report};
use crate::roots::Root;
use crate::selection::Selection;
use crate::stage::{Metadata, Stage};
use crate::stores::Stores;

use barrier::Barrier;
use place::set_metadata_at;

/// Everything needed to commit.
pub(crate) struct Committer<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) stage: &'a Stage,
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) facts: &'a Facts,
    pub(crate) attributes: &'a Attributes,
    pub(crate) stores: &'a Stores<'a>,
    /// Whether names that the sender does not have are deleted.
    pub(crate) delete: bool,
    /// Whether a directory may be deleted to make way for something else.
    pub(crate) may_delete: bool,
    pub(crate) sync: bool,
    pub(crate) pool: &'a rayon::ThreadPool,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a CancellationToken,
}

/// What the store needs to know about a commit.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    /// The identities of all changed rows, read after the last change.
    pub(crate) identities: HashMap<u32, Identity>,
    /// Rows that failed, including those whose content could not be brought.
    pub(crate) failed: HashMap<u32, Failure>,
    /// Names that this host refused to delete.
    pub(crate) undeleted: Vec<Vec<u8>>,
    /// Whether nothing was deleted because something failed.
    pub(crate) held_deletions: bool,
}

/// A name to put in place.
struct Step {
    rank: Rank,
    row: u32,
    how: How,
}

/// What gets the name.
enum How {
    /// A staged file. See [`StagedFile`].
    File { linked: bool },
    /// A hard link to the file of another row.
    Link { leader: u32 },
    /// A symlink or a special.
    Other,
}

impl Committer<'_> {
    /// Carries out a plan whose contents are staged, and counts the work in the report.
    pub(crate) fn commit(self, plan: &Plan, staged: Staged, report: &mut Report) -> Result<Committed, PullError> {
        if self.sync {
            rustix::fs::syncfs(self.stage.fd()).at("sync", self.tree.shown(b""))?;
        }
        let mut run = CommitRun {
            context: &self,
            report,
            open: None,
            touched: BTreeSet::new(),
            changed: BTreeSet::new(),
            failed: HashMap::new(),
            barrier: Barrier::default(),
            staged: HashMap::new(),
            undeleted: Vec::new(),
            held_deletions: false,
            temporary: 0,
        };
        for (&row, &why) in &staged.failed {
            run.fail_before_commit(row, why);
        }
        run.make_directories(plan)?;
        let files = run.separate_from_remaining_files(plan, staged.files)?;
        for step in run.steps(plan, files) {
            run.carry_out(step)?;
        }
        run.set_metadata(plan)?;
        run.delete(plan)?;
        run.finish()
    }
}

struct CommitRun<'a> {
    context: &'a Committer<'a>,
    report: &'a mut Report,
    /// The directory used last, with its local path.
    open: Option<(Vec<u8>, OwnedFd)>,
    /// Numbers of the directories whose entries, and so their times, changed.
    touched: BTreeSet<u32>,
    /// Rows whose inode changed.
    changed: BTreeSet<u32>,
    failed: HashMap<u32, Failure>,
    barrier: Barrier,
    /// The names in the staging directory of the files that are not in place yet, by row.
    staged: HashMap<u32, Vec<u8>>,
    undeleted: Vec<Vec<u8>>,
    held_deletions: bool,
    temporary: u32,
}

impl<'a> CommitRun<'a> {
    /// Returns the names to put in place, in order.
    fn steps(&mut self, plan: &Plan, files: Vec<StagedFile>) -> Vec<Step> {
        let rank = |row: u32| rank(&self.context.selection.path(row));
        let step = |row: u32, how: How| Step { rank: rank(row), row, how };
        let mut steps = Vec::with_capacity(files.len() + plan.others.len() + plan.links.len());
        for StagedFile { row, name, linked } in files {
            steps.push(step(row, How::File { linked }));
            self.staged.insert(row, name);
        }
        steps.extend(plan.others.iter().map(|&row| step(row, How::Other)));
        // A symlink or special is made before its links: only files can be linked while they are staged.
        steps.extend(plan.links.iter().map(|&(row, leader)| {
            let rank = if self.entry(row).is_file() { rank(row) } else { rank(row).max(rank(leader)) };
            Step { rank, row, how: How::Link { leader } }
        }));
        steps.sort_by_key(|step| {
            let after_its_leader = matches!(step.how, How::Link { .. }) && !self.entry(step.row).is_file();
            (step.rank, after_its_leader, step.row)
        });
        steps
    }

    fn carry_out(&mut self, step: Step) -> Result<(), PullError> {
        let Step { rank, row, how } = step;
        let path = self.begin(row)?;
        let is_file = matches!(how, How::File { .. });
        let before = self.failed.len();
        if self.barrier.holds(rank, &path) {
            self.fail(row, Failure::Held);
        } else {
            self.attempt(row, |run| match how {
                How::File { linked } => run.place_file(row, &path, linked),
                How::Link { leader } => run.link(row, &path, leader),
                How::Other => run.make(row, &path),
            })?;
        }
        if is_file && self.failed.len() > before {
            self.report.files_updated = self.report.files_updated.saturating_sub(1);
        } else if is_file {
            self.context.progress.advance(1, 0);
        }
        Ok(())
    }

    /// Runs one step. If this host refuses to change the name, the row fails, and the commit goes on.
    fn attempt(&mut self, row: u32, step: impl FnOnce(&mut Self) -> Result<(), PullError>) -> Result<(), PullError> {
        match step(self) {
            Err(error) if error.concerns_one_name() => {
                tracing::warn!(%error, "a name cannot be changed; the rest goes on");
                self.fail(row, Failure::Stuck);
                Ok(())
            }
            result => result,
        }
    }

    fn fail(&mut self, row: u32, why: Failure) {
        if self.failed.insert(row, why).is_none() && !self.entry(row).file_type().is_special() {
            let path = self.context.selection.path(row);
            self.barrier.failed(rank(&path), &path);
        }
    }

    /// Notes a file whose content could not be brought. If it belongs to a repository's indices, all of them keep their
    /// old state, because some are of no use without the others.
    fn fail_before_commit(&mut self, row: u32, why: Failure) {
        self.failed.insert(row, why);
        self.barrier.failed(Rank::Payload, &self.context.selection.path(row));
    }

    fn make_directories(&mut self, plan: &Plan) -> Result<(), PullError> {
        for &row in &plan.directories {
            let path = self.begin(row)?;
            self.attempt(row, |run| run.make_directory(row, &path))?;
        }
        Ok(())
    }

    fn make_directory(&mut self, row: u32, path: &[u8]) -> Result<(), PullError> {
        if self.context.old_type_of(row).is_some() && !self.make_way(row, path)? {
            return Ok(());
        }
        let (_, name) = path::split(path);
        let mode = Mode::from_raw_mode(u32::from(self.entry(row).permissions()) | 0o700);
        match rustix::fs::mkdirat(self.parent(path)?, name, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).at("create", self.shown(path)),
        }
        self.touch_parent(row);
        self.touched.extend(self.entry(row).dir_number());
        self.report.directories_made += 1;
        Ok(())
    }

    fn place_file(&mut self, row: u32, path: &[u8], linked: bool) -> Result<(), PullError> {
        let Some(name) = self.staged.remove(&row) else { return Ok(()) };
        if self.place(row, path, &name)? && linked {
            self.set_metadata_of(row, path)?;
        }
        Ok(())
    }

    /// Replaces staged hard links to local files that remain by copies, so that those keep their modes and times.
    fn separate_from_remaining_files(
        &mut self,
        plan: &Plan,
        mut files: Vec<StagedFile>,
    ) -> Result<Vec<StagedFile>, PullError> {
        let linked_elsewhere = self.links_to_remaining_files(plan);
        for file in files.iter_mut().filter(|file| file.linked && linked_elsewhere.contains(&file.row)) {
            file.name = self.replace_link_by_copy(file.row, &file.name)?;
            file.linked = false;
        }
        Ok(files)
    }

    /// Returns the rows whose staged files may be hard links to local files that remain, because the files
    /// that were to replace those could not be brought.
    fn links_to_remaining_files(&self, plan: &Plan) -> HashSet<u32> {
        if self.failed.is_empty() {
            return HashSet::new();
        }
        let links = plan.links.iter().filter(|(_, leader)| self.failed.contains_key(leader)).map(|&(row, _)| row);
        let remaining: HashSet<u32> = self.failed.keys().copied().chain(links).collect();
        let find = |path: &[u8]| self.context.selection.find(path).map(|row| row.number());
        let shares = |reuse: &Reuse| {
            reuse.disappears
                && reuse.at.root == Root::Dest
                && find(&reuse.at.path).is_some_and(|row| remaining.contains(&row))
        };
        plan.fetches.iter().filter(|fetch| fetch.reuse.iter().any(shares)).map(|fetch| fetch.row).collect()
    }

    /// Replaces a staged hard link by a copy, so that the local file keeps its mode and time. Returns the
    /// copy's name.
    fn replace_link_by_copy(&mut self, row: u32, staged: &[u8]) -> Result<Vec<u8>, PullError> {
        let (stage, entry) = (self.context.stage, self.entry(row));
        let copy = stage.duplicate(entry.sha256(), usize::MAX, &self.metadata(row)).at("copy", stage.shown(staged))?;
        local::unlink(stage.fd(), staged).at("remove", stage.shown(staged))?;
        Ok(copy)
    }

    /// Makes a hard link to the file of `leader`, which may still be staged.
    fn link(&mut self, row: u32, path: &[u8], leader: u32) -> Result<(), PullError> {
        let staged = self.staged.get(&leader).cloned();
        if let Some(&why) = self.failed.get(&leader).filter(|_| staged.is_none()) {
            self.fail(row, why);
            return Ok(());
        }
        let leader_path = self.context.selection.path(leader);
        let name = self.temporary();
        let stage = self.context.stage.fd();
        let linked = match &staged {
            Some(staged) => rustix::fs::linkat(stage, staged, stage, &name[..], AtFlags::empty()),
            None => {
                let (dir, leader_name) = path::split(&leader_path);
                let dir = self.context.tree.dir(dir).at("open", self.shown(&leader_path))?;
                rustix::fs::linkat(&dir, leader_name, stage, &name[..], AtFlags::empty())
            }
        };
        match linked {
            // The inode has its maximum number of names, the file system has no hard links, or the leader is
            // on another one.
            Err(Errno::XDEV) if self.link_across(path, &leader_path)? => {
                self.touch_parent(row);
                self.changed.extend([row, leader]);
                self.report.files_linked += 1;
                return Ok(());
            }
            Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP | Errno::XDEV) => {
                return self.copy_instead(row, path, &leader_path, staged.as_deref());
            }
            linked => linked.at("link", self.shown(&leader_path))?,
        }
        if self.place(row, path, &name)? {
            // rename(2) does nothing if both names refer to the same inode, so the staged name may remain.
            local::unlink(self.context.stage.fd(), &name).at("remove", self.context.stage.shown(&name))?;
            self.changed.insert(leader);
            self.report.files_linked += 1;
        }
        Ok(())
    }

    /// Gives a name that cannot become a hard link an inode of its own.
    fn copy_instead(&mut self, row: u32, path: &[u8], leader: &[u8], staged: Option<&[u8]>) -> Result<(), PullError> {
        self.report.links_copied += 1;
        let fact = self.context.selection.index(row).and_then(|index| self.context.facts.rows[index]);
        if fact.is_some_and(|fact| fact.content_matches && fact.metadata_matches) {
            return Ok(());
        }
        tracing::warn!(path = %self.shown(path).display(), "cannot make another hard link; copying the file");
        if !self.entry(row).is_file() {
            return self.make(row, path);
        }
        let source = match staged {
            Some(staged) => local::open_file(self.context.stage.fd(), staged, OFlags::RDONLY),
            None => self.context.tree.file(leader),
        };
        let source = source.at("read", self.shown(leader))?;
        let name = self.temporary();
        self.context.stage.copy(&source, &name, &self.metadata(row)).at("copy to", self.shown(path))?;
        self.place(row, path, &name).map(drop)
    }

    fn metadata(&self, row: u32) -> Metadata {
        let entry = self.entry(row);
        let attributes = self.context.attributes;
        Metadata { mode: attributes.mode(entry), owner: attributes.owner(entry), mtime: entry.mtime() }
    }

    /// Creates a symlink or a special.
    fn make(&mut self, row: u32, path: &[u8]) -> Result<(), PullError> {
        let name = self.temporary();
        match self.make_in(self.context.stage.fd(), row, &name) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.fail(row, Failure::Refused);
                return Ok(());
            }
            Err(error) => return Err(error).at("create", self.shown(path)),
        }
        if self.place(row, path, &name)? {
            self.set_metadata_of(row, path)?;
            self.report.others_made += 1;
        }
        Ok(())
    }

    fn make_in(&self, dir: BorrowedFd<'_>, row: u32, name: &[u8]) -> io::Result<()> {
        let entry = self.entry(row);
        let kind = match entry.file_type() {
            FileType::Symlink => {
                return Ok(rustix::fs::symlinkat(entry.target().unwrap_or_default(), dir, name)?);
            }
            FileType::CharDevice => RawType::CharacterDevice,
            FileType::BlockDevice => RawType::BlockDevice,
            FileType::Socket => RawType::Socket,
            _ => RawType::Fifo,
        };
        let device = entry.device().unwrap_or_default();
        Ok(rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, makedev(device.major, device.minor))?)
    }

    fn set_metadata(&mut self, plan: &Plan) -> Result<(), PullError> {
        for &row in &plan.metadata {
            self.report.metadata_changed += 1;
            match self.entry(row).dir_number() {
                Some(number) => drop(self.touched.insert(number)),
                None => {
                    let path = self.begin(row)?;
                    self.attempt(row, |run| run.set_metadata_of(row, &path))?;
                    self.changed.insert(row);
                }
            }
        }
        Ok(())
    }

    fn delete(&mut self, plan: &Plan) -> Result<(), PullError> {
        // A name to be deleted may be the old name of a content that could not be brought, and a file that keeps its old
        // state may refer to it.
        let blocks = |why: &Failure| *why != Failure::Refused;
        self.held_deletions = self.context.delete && self.failed.values().any(blocks);
        if !self.context.delete || self.held_deletions {
            return Ok(());
        }
        for path in &plan.deletes {
            self.check()?;
            match self.delete_name(path) {
                Err(error) if error.concerns_one_name() => {
                    tracing::warn!(%error, "a name cannot be deleted; the rest goes on");
                    self.undeleted.push(path.clone());
                }
                deleted => deleted?,
            }
        }
        Ok(())
    }

    fn delete_name(&mut self, path: &[u8]) -> Result<(), PullError> {
        let keep = |below: &[u8], is_dir: bool| self.context.keeps(&path::join(path, below), is_dir);
        let (dir, name) = path::split(path);
        let Some(parent) = local::optional(self.context.tree.dir(dir)).at("open", self.shown(dir))? else {
            return Ok(());
        };
        self.touched.extend(self.number_of(dir));
        local::make_writable(parent.as_fd());
        let removed = local::remove_all(parent.as_fd(), name, b"", &keep).at("delete", self.shown(path))?;
        self.report.files_deleted += removed;
        Ok(())
    }

    /// Sets the metadata of directories, the deepest first, and collects the identities that the store needs.
    fn finish(mut self) -> Result<Committed, PullError> {
        self.open = None;
        // The root is set after the staging directory is removed: see `finish_root`.
        self.touched.remove(&self.context.selection.root.number());
        for number in std::mem::take(&mut self.touched).into_iter().rev() {
            let row = self.context.selection.list.dir(number).row();
            if !self.failed.contains_key(&row) {
                let path = self.context.selection.path(row);
                self.attempt(row, |run| run.set_metadata_of(row, &path))?;
                self.changed.insert(row);
            }
        }
        let Committer { selection, facts, .. } = self.context;
        let has_ctime = !self.context.tree.shares_inodes();
        let shared = selection.rows.iter().zip(&facts.rows);
        let shared = shared.filter(|(_, fact)| has_ctime && fact.is_some_and(|fact| fact.has_other_names));
        self.changed.extend(shared.map(|(&row, _)| row));
        // An old file that remains may be linked to another name now.
        self.changed.extend(self.failed.keys());
        let changed: Vec<u32> = self.changed.into_iter().collect();
        Ok(Committed {
            identities: self.context.identities(&changed)?,
            failed: self.failed,
            undeleted: self.undeleted,
            held_deletions: self.held_deletions,
        })
    }

    fn begin(&self, row: u32) -> Result<Vec<u8>, PullError> {
        self.check()?;
        Ok(self.context.selection.path(row))
    }

    fn check(&self) -> Result<(), PullError> {
        self.context.check()
    }

    fn entry(&self, row: u32) -> Row<'a> {
        self.context.selection.list.row(row)
    }

    fn shown(&self, path: &[u8]) -> std::path::PathBuf {
        self.context.tree.shown(path)
    }

    fn temporary(&mut self) -> Vec<u8> {
        self.temporary += 1;
        format!("new-{}", self.temporary).into_bytes()
    }

    /// Returns the number of the directory at a local path.
    fn number_of(&self, dir: &[u8]) -> Option<u32> {
        let selection = self.context.selection;
        if dir.is_empty() { Some(selection.root.number()) } else { selection.find(dir)?.dir_number() }
    }

    fn touch_parent(&mut self, row: u32) {
        self.touched.insert(self.context.selection.list.parent_of(row).number());
    }

    /// Returns the opened directory that contains `path`. The last one stays open.
    fn parent(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, PullError> {
        self.parent_dir(path::split(path).0)
    }

    fn parent_dir(&mut self, dir: &[u8]) -> Result<BorrowedFd<'_>, PullError> {
        if self.open.as_ref().is_none_or(|(path, _)| path != dir) {
            let opened = self.context.tree.dir(dir).at("open", self.shown(dir))?;
            if local::make_writable(opened.as_fd()) {
                // `finish` sets its mode.
                self.touched.extend(self.number_of(dir));
            }
            self.open = None;
            return Ok(self.open.insert((dir.to_vec(), opened)).1.as_fd());
        }
        match &self.open {
            Some((_, opened)) => Ok(opened.as_fd()),
            None => Err(PullError::usage("no directory")),
        }
    }
}

/// Sets mode, owner and time of the tree's root. This is always necessary, because creating and removing the
/// staging directory changes the root's time.
pub(crate) fn finish_root(tree: &Tree, selection: &Selection<'_>, attributes: &Attributes) -> Result<(), PullError> {
    if !selection.sets_root() {
        return Ok(());
    }
    let row = selection.list.row(selection.root.row());
    set_metadata_at(tree.root(), b".", row, attributes).at("set the mode of", tree.shown(b""))
}

impl Committer<'_> {
    /// Returns the identities of what the tree has at these rows.
    fn identities(&self, rows: &[u32]) -> Result<HashMap<u32, Identity>, PullError> {
        let Self { tree, selection, cancel, .. } = *self;
        let identities = |rows: &[u32]| {
            let mut look = tree.look();
            let mut identity = |&row: &u32| {
                if cancel.is_cancelled() {
                    return Err(PullError::Interrupted);
                }
                let path = selection.path(row);
                let stat = look.stat(&path).or_else(|error| Err(error).at("stat", tree.shown(&path)))?;
                Ok(stat.map(|stat| (row, tree.identity(&stat))))
            };
            rows.iter().filter_map(|row| identity(row).transpose()).collect()
        };
        let found: Vec<Vec<_>> =
            self.pool.install(|| rows.par_chunks(NEIGHBOURS).map(identities).collect::<Result<_, PullError>>())?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Returns whether a local name is never deleted: the filter excludes it, or it is a store.
    fn keeps(&self, path: &[u8], is_dir: bool) -> bool {
        !self.selection.owns(path, is_dir) || (is_dir && self.stores.is_at(path))
    }

    fn check(&self) -> Result<(), PullError> {
        if self.cancel.is_cancelled() { Err(PullError::Interrupted) } else { Ok(()) }
    }

    /// Returns the type of what was at a row's path before the commit.
    fn old_type_of(&self, row: u32) -> Option<FileType> {
        self.facts.rows[self.selection.index(row)?].map(|fact| fact.kind)
    }
}

/// Number of rows that one thread looks at in turn. Most of them are in the same directory.
const NEIGHBOURS: usize = 1024;
