//! Giving staged files their names: short, in order, each step by a rename.
//!
//! 1. Everything staged is flushed to the disk (`syncfs`), so that no name ever stands for less than a file.
//! 2. Directories are made, with permissions that let the next steps work.
//! 3. Files are renamed into place, then their hard links, then symlinks and specials, and theirs. What
//!    points to others comes after what it points to: see [`rank::Rank`].
//! 4. What the sender does not have is deleted.
//! 5. Directories get their modes, owners and times, the deepest first.
//!
//! A reader sees an old file or a new one, whole, at any time; a killed commit is finished by the next pull.

mod place;
mod rank;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType as RawType, Mode, makedev};
use rustix::io::Errno;
use stillmirror_protocol::list::{FileType, Row};
use stillmirror_protocol::local::Identity;
use stillmirror_protocol::path;
use tokio_util::sync::CancellationToken;

use crate::error::{At as _, PullError};
use crate::facts::Facts;
use crate::fetch::{Staged, StagedFile};
use crate::local::{self, Tree};
use crate::owners::OwnerMap;
use crate::plan::{Plan, Reuse};
use crate::report::{Failure, Progress, Report};
use crate::selection::Selection;
use crate::stage::{Metadata, Stage};

use place::set_metadata_at;
use rank::rank;

/// What is needed to commit.
pub(crate) struct Committer<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) stage: &'a Stage,
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) facts: &'a Facts,
    pub(crate) owners: &'a OwnerMap,
    /// Whether anything may be deleted, be it to make way for something else.
    pub(crate) may_delete: bool,
    pub(crate) sync: bool,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a CancellationToken,
}

/// What a commit leaves behind for the store.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    /// Identities of all rows that changed, after the last change.
    pub(crate) identities: HashMap<u32, Identity>,
    /// Rows that could not be made.
    pub(crate) failed: HashMap<u32, Failure>,
}

impl Committer<'_> {
    /// Carries out a plan whose contents are staged, and counts into the report.
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
            failed: staged.failed,
            temporary: 0,
        };
        run.make_directories(plan)?;
        run.place_files(plan, staged.files)?;
        let (files, others) = plan.links.iter().partition(|(row, _)| self.selection.list.row(*row).is_file());
        run.link(files)?;
        run.make_others(plan)?;
        run.link(others)?;
        run.set_metadata(plan)?;
        run.delete(plan)?;
        run.finish()
    }
}

struct CommitRun<'a> {
    context: &'a Committer<'a>,
    report: &'a mut Report,
    /// The directory last worked in.
    open: Option<(Vec<u8>, OwnedFd)>,
    /// Directories (by number) that something changed in, and so their times.
    touched: BTreeSet<u32>,
    /// Rows whose inode changed.
    changed: BTreeSet<u32>,
    failed: HashMap<u32, Failure>,
    temporary: u32,
}

impl<'a> CommitRun<'a> {
    fn make_directories(&mut self, plan: &Plan) -> Result<(), PullError> {
        for &row in &plan.directories {
            let path = self.begin(row)?;
            if self.context.facts_of(row).is_some() && !self.make_way(row, &path)? {
                continue;
            }
            let (_, name) = path::split(&path);
            let mode = Mode::from_raw_mode(u32::from(self.entry(row).permissions()) | 0o700);
            match rustix::fs::mkdirat(self.parent(&path)?, name, mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).at("create", self.shown(&path)),
            }
            self.touch_parent(row);
            self.touched.extend(self.entry(row).dir_number());
            self.report.directories_made += 1;
        }
        Ok(())
    }

    fn place_files(&mut self, plan: &Plan, mut files: Vec<StagedFile>) -> Result<(), PullError> {
        files.sort_by_cached_key(|file| (rank(&self.context.selection.path(file.row)), file.row));
        let shared = self.shared_with_what_stays(plan);
        for StagedFile { row, mut name, linked } in files {
            let path = self.begin(row)?;
            if linked && shared.contains(&row) {
                name = self.copy_of(row, &name)?;
            }
            if !self.place(row, &path, &name)? {
                self.report.files_updated = self.report.files_updated.saturating_sub(1);
                continue;
            }
            if linked {
                self.set_metadata_of(row, &path)?;
            }
            self.context.progress.advance(1, 0);
        }
        Ok(())
    }

    /// Rows whose staged files may be further names of local files that stay, since what was to take their
    /// names did not come.
    fn shared_with_what_stays(&self, plan: &Plan) -> HashSet<u32> {
        if self.failed.is_empty() {
            return HashSet::new();
        }
        let links = plan.links.iter().filter(|(_, leader)| self.failed.contains_key(leader)).map(|&(row, _)| row);
        let stays: HashSet<u32> = self.failed.keys().copied().chain(links).collect();
        let find = |path: &[u8]| self.context.selection.find(path).map(|row| row.number());
        let shares = |reuse: &Reuse| reuse.goes && find(&reuse.path).is_some_and(|row| stays.contains(&row));
        plan.fetches.iter().filter(|fetch| fetch.reuse.iter().any(shares)).map(|fetch| fetch.row).collect()
    }

    /// A file of its own instead of a staged name of a local one, which keeps its mode and time.
    fn copy_of(&mut self, row: u32, staged: &[u8]) -> Result<Vec<u8>, PullError> {
        let (stage, entry) = (self.context.stage, self.entry(row));
        let copy = stage.duplicate(entry.sha256(), usize::MAX, &self.metadata(row)).at("copy", stage.shown(staged))?;
        local::unlink(stage.fd(), staged).at("remove", stage.shown(staged))?;
        Ok(copy)
    }

    fn link(&mut self, links: Vec<(u32, u32)>) -> Result<(), PullError> {
        for (row, leader) in links {
            let path = self.begin(row)?;
            if let Some(&why) = self.failed.get(&leader) {
                self.failed.insert(row, why);
                continue;
            }
            let leader_path = self.context.selection.path(leader);
            let (dir, leader_name) = path::split(&leader_path);
            let dir = self.context.tree.dir(dir).at("open", self.shown(&leader_path))?;
            let name = self.temporary();
            match rustix::fs::linkat(&dir, leader_name, self.context.stage.fd(), &name[..], AtFlags::empty()) {
                // The inode has all the names that it can have, or the file system knows no further names.
                Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => {
                    self.copy_instead(row, &path, &leader_path)?;
                    continue;
                }
                linked => linked.at("link", self.shown(&leader_path))?,
            }
            if self.place(row, &path, &name)? {
                // rename(2) of one name of an inode over another one does nothing.
                local::unlink(self.context.stage.fd(), &name).at("remove", self.context.stage.shown(&name))?;
                self.changed.insert(leader);
                self.report.files_linked += 1;
            }
        }
        Ok(())
    }

    /// Makes a name that cannot be a further link an inode of its own.
    fn copy_instead(&mut self, row: u32, path: &[u8], leader: &[u8]) -> Result<(), PullError> {
        self.report.links_copied += 1;
        let fact = self.context.selection.index(row).and_then(|index| self.context.facts.rows[index]);
        if fact.is_some_and(|fact| fact.content && fact.metadata) {
            return Ok(());
        }
        tracing::warn!(path = %self.shown(path).display(), "no further hard link can be made: copied");
        if !self.entry(row).is_file() {
            return self.make(row, path);
        }
        let source = self.context.tree.file(leader).at("read", self.shown(leader))?;
        let name = self.temporary();
        self.context.stage.copy(&source, &name, &self.metadata(row)).at("copy to", self.shown(path))?;
        self.place(row, path, &name).map(drop)
    }

    fn metadata(&self, row: u32) -> Metadata {
        let entry = self.entry(row);
        Metadata { mode: entry.permissions(), owner: self.context.owners.of(entry), mtime: entry.mtime() }
    }

    fn make_others(&mut self, plan: &Plan) -> Result<(), PullError> {
        for &row in &plan.others {
            let path = self.begin(row)?;
            self.make(row, &path)?;
        }
        Ok(())
    }

    /// Makes a symlink or a special.
    fn make(&mut self, row: u32, path: &[u8]) -> Result<(), PullError> {
        let name = self.temporary();
        match self.make_staged(row, &name) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.failed.insert(row, Failure::Refused);
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

    fn make_staged(&self, row: u32, name: &[u8]) -> io::Result<()> {
        let (entry, stage) = (self.entry(row), self.context.stage.fd());
        let kind = match entry.file_type() {
            FileType::Symlink => {
                return Ok(rustix::fs::symlinkat(entry.target().unwrap_or_default(), stage, name)?);
            }
            FileType::CharDevice => RawType::CharacterDevice,
            FileType::BlockDevice => RawType::BlockDevice,
            FileType::Socket => RawType::Socket,
            _ => RawType::Fifo,
        };
        let device = entry.device().unwrap_or_default();
        Ok(rustix::fs::mknodat(stage, name, kind, Mode::RUSR | Mode::WUSR, makedev(device.major, device.minor))?)
    }

    fn set_metadata(&mut self, plan: &Plan) -> Result<(), PullError> {
        for &row in &plan.metadata {
            self.report.metadata_changed += 1;
            match self.entry(row).dir_number() {
                Some(number) => drop(self.touched.insert(number)),
                None => {
                    let path = self.begin(row)?;
                    self.set_metadata_of(row, &path)?;
                    self.changed.insert(row);
                }
            }
        }
        Ok(())
    }

    fn delete(&mut self, plan: &Plan) -> Result<(), PullError> {
        if !self.context.may_delete {
            return Ok(());
        }
        for path in &plan.deletes {
            self.check()?;
            let keep = |below: &[u8], is_dir: bool| !self.context.selection.owns(&path::join(path, below), is_dir);
            let (dir, name) = path::split(path);
            let Some(parent) = local::optional(self.context.tree.dir(dir)).at("open", self.shown(dir))? else {
                continue;
            };
            local::make_writable(parent.as_fd());
            let removed = local::remove_all(parent.as_fd(), name, b"", &keep).at("delete", self.shown(path))?;
            self.report.files_deleted += removed;
            self.touched.extend(self.number_of(dir));
        }
        Ok(())
    }

    /// Directories last, the deepest first; then what the store is to know.
    fn finish(mut self) -> Result<Committed, PullError> {
        self.open = None;
        // The root comes once the staging directory is gone: see `finish_root`.
        self.touched.remove(&self.context.selection.root.number());
        for number in std::mem::take(&mut self.touched).into_iter().rev() {
            let row = self.context.selection.list.dir(number).row();
            if !self.failed.contains_key(&row) {
                let path = self.context.selection.path(row);
                self.set_metadata_of(row, &path)?;
                self.changed.insert(row);
            }
        }
        let Committer { selection, facts, .. } = self.context;
        let shared = selection.rows.iter().zip(&facts.rows).filter(|(_, fact)| fact.is_some_and(|fact| fact.shared));
        self.changed.extend(shared.map(|(&row, _)| row));
        // Old files that stay may have lent their content to another name.
        self.changed.extend(self.failed.keys());
        let mut committed = Committed { failed: self.failed, ..Committed::default() };
        for row in self.changed {
            self.context.check()?;
            let path = self.context.selection.path(row);
            if let Some(stat) = self.context.tree.stat(&path).at("stat", self.context.tree.shown(&path))? {
                committed.identities.insert(row, self.context.tree.identity(&stat));
            }
        }
        Ok(committed)
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

    /// The number of the directory at a local path.
    fn number_of(&self, dir: &[u8]) -> Option<u32> {
        let selection = self.context.selection;
        if dir.is_empty() { Some(selection.root.number()) } else { selection.find(dir)?.dir_number() }
    }

    fn touch_parent(&mut self, row: u32) {
        self.touched.insert(self.context.selection.list.parent_of(row).number());
    }

    /// The directory that holds `path`, opened; the one last asked for stays open.
    fn parent(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, PullError> {
        self.parent_dir(path::split(path).0)
    }

    fn parent_dir(&mut self, dir: &[u8]) -> Result<BorrowedFd<'_>, PullError> {
        if self.open.as_ref().is_none_or(|(path, _)| path != dir) {
            let opened = self.context.tree.dir(dir).at("open", self.shown(dir))?;
            if local::make_writable(opened.as_fd()) {
                // Its mode is set right in the end.
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

/// Sets the mode and time of the tree's root. Always: the staging directory, which is gone by now, has
/// moved its time.
pub(crate) fn finish_root(tree: &Tree, selection: &Selection<'_>, owners: &OwnerMap) -> Result<(), PullError> {
    if !selection.sets_root() {
        return Ok(());
    }
    let row = selection.list.row(selection.root.row());
    set_metadata_at(tree.root(), b".", row, owners.of(row)).at("set the mode of", tree.shown(b""))
}

impl Committer<'_> {
    fn check(&self) -> Result<(), PullError> {
        if self.cancel.is_cancelled() { Err(PullError::Interrupted) } else { Ok(()) }
    }

    /// What was at the path of a row.
    fn facts_of(&self, row: u32) -> Option<FileType> {
        self.facts.rows[self.selection.index(row)?].map(|fact| fact.kind)
    }
}
