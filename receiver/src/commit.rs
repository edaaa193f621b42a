//! Moves staged files into place. This is short, and each name changes by a rename, in this order:
//!
//! 1. Everything staged is flushed to the disk (`syncfs`), so that no name ever refers to an incomplete file.
//! 2. Directories are created, with permissions that allow the next steps.
//! 3. Files are renamed into place, then their hard links are made, then symlinks and specials and their hard
//!    links. Files that refer to other files come after those: see [`rank::Rank`].
//! 4. Names that the sender does not have are deleted.
//! 5. Directories get their modes, owners and times, the deepest first.
//!
//! At any time, a reader sees either a whole old file or a whole new one. The next pull completes a killed
//! commit. After the commit, remove the staging directory, then call [`finish_root`].

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

/// Everything needed to commit.
pub(crate) struct Committer<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) stage: &'a Stage,
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) facts: &'a Facts,
    pub(crate) owners: &'a OwnerMap,
    /// Whether anything may be deleted, including to make way for something else.
    pub(crate) may_delete: bool,
    pub(crate) sync: bool,
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
    /// The directory used last, with its local path.
    open: Option<(Vec<u8>, OwnedFd)>,
    /// Numbers of the directories whose entries, and so their times, changed.
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
            if self.context.old_type_of(row).is_some() && !self.make_way(row, &path)? {
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
        let linked_elsewhere = self.links_to_remaining_files(plan);
        for StagedFile { row, mut name, linked } in files {
            let path = self.begin(row)?;
            if linked && linked_elsewhere.contains(&row) {
                name = self.replace_link_by_copy(row, &name)?;
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

    /// Returns the rows whose staged files may be hard links to local files that remain, because the files
    /// that were to replace those could not be brought.
    fn links_to_remaining_files(&self, plan: &Plan) -> HashSet<u32> {
        if self.failed.is_empty() {
            return HashSet::new();
        }
        let links = plan.links.iter().filter(|(_, leader)| self.failed.contains_key(leader)).map(|&(row, _)| row);
        let remaining: HashSet<u32> = self.failed.keys().copied().chain(links).collect();
        let find = |path: &[u8]| self.context.selection.find(path).map(|row| row.number());
        let shares = |reuse: &Reuse| reuse.disappears && find(&reuse.path).is_some_and(|row| remaining.contains(&row));
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
                // The inode has its maximum number of names, or the file system has no hard links.
                Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => {
                    self.copy_instead(row, &path, &leader_path)?;
                    continue;
                }
                linked => linked.at("link", self.shown(&leader_path))?,
            }
            if self.place(row, &path, &name)? {
                // rename(2) does nothing if both names refer to the same inode, so the staged name may
                // remain.
                local::unlink(self.context.stage.fd(), &name).at("remove", self.context.stage.shown(&name))?;
                self.changed.insert(leader);
                self.report.files_linked += 1;
            }
        }
        Ok(())
    }

    /// Gives a name that cannot become a hard link an inode of its own.
    fn copy_instead(&mut self, row: u32, path: &[u8], leader: &[u8]) -> Result<(), PullError> {
        self.report.links_copied += 1;
        let fact = self.context.selection.index(row).and_then(|index| self.context.facts.rows[index]);
        if fact.is_some_and(|fact| fact.content_matches && fact.metadata_matches) {
            return Ok(());
        }
        tracing::warn!(path = %self.shown(path).display(), "cannot make another hard link; copying the file");
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

    /// Creates a symlink or a special.
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

    /// Sets the metadata of directories, the deepest first, and collects the identities that the store needs.
    fn finish(mut self) -> Result<Committed, PullError> {
        self.open = None;
        // The root is set after the staging directory is removed: see `finish_root`.
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
        let shared =
            selection.rows.iter().zip(&facts.rows).filter(|(_, fact)| fact.is_some_and(|fact| fact.has_other_names));
        self.changed.extend(shared.map(|(&row, _)| row));
        // An old file that remains may be linked to another name now.
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

    /// Returns the type of what was at a row's path before the commit.
    fn old_type_of(&self, row: u32) -> Option<FileType> {
        self.facts.rows[self.selection.index(row)?].map(|fact| fact.kind)
    }
}
