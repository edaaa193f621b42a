//! Giving staged files their names: short, in order, each step by a rename.
//!
//! 1. Everything staged is flushed to the disk (`syncfs`), so that no name ever stands for less than a file.
//! 2. Directories are made, with permissions that let the next steps work.
//! 3. Files are renamed into place, then hard links, symlinks and specials. What points to others comes
//!    after what it points to: see [`Rank`].
//! 4. What the sender does not have is deleted.
//! 5. Directories get their modes, owners and times, the deepest first.
//!
//! A reader sees an old file or a new one, whole, at any time; a killed commit is finished by the next pull.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType as RawType, Gid, Mode, OFlags, Uid, makedev};
use rustix::io::Errno;
use stillmirror_protocol::entry::Time;
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

/// When a file gets its name. What lists or vouches for other files comes after them, so that a reader who
/// fetches it finds what it names:
///
/// - *payload*: everything not named below;
/// - *index*: below a `dists/`, `repodata/`, `by-hash/` or `indices/` directory, and `Packages*`, `Sources*`,
///   `Contents-*`, `*.db`, `*.db.*`, `*.files`, `*.files.*`, `APKINDEX.*`, `index.*`, `ls-lR*`;
/// - *head*: what names or signs the indices: `Release`, `InRelease`, `Release.gpg`, `repomd.xml*`,
///   `SHA256SUMS*`, `SHA512SUMS*`, `*CHECKSUM*`, `TIMESTAMP`, `lastupdate`, `lastsync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Payload,
    Index,
    Head,
}

/// The rank of a path.
pub(crate) fn rank(file: &[u8]) -> Rank {
    let (dir, name) = path::split(file);
    let begins = |beginnings: &[&[u8]]| beginnings.iter().any(|beginning| name.starts_with(beginning));
    let contains = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    let heads: &[&[u8]] = &[b"repomd.xml", b"SHA256SUMS", b"SHA512SUMS"];
    let is_head =
        [&b"Release"[..], b"InRelease", b"Release.gpg", b"TIMESTAMP", b"lastupdate", b"lastsync"].contains(&name);
    if is_head || begins(heads) || contains(b"CHECKSUM") {
        return Rank::Head;
    }
    let directories: &[&[u8]] = &[b"dists", b"repodata", b"by-hash", b"indices"];
    let indices: &[&[u8]] = &[b"Packages", b"Sources", b"Contents-", b"APKINDEX.", b"index.", b"ls-lR"];
    let suffixed = |suffix: &[u8]| name.ends_with(suffix) || contains(&[suffix, b"."].concat());
    if path::components(dir).any(|dir| directories.contains(&dir))
        || begins(indices)
        || suffixed(b".db")
        || suffixed(b".files")
    {
        return Rank::Index;
    }
    Rank::Payload
}

/// What is needed to commit.
pub(crate) struct Committer<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) stage: &'a Stage,
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) facts: &'a Facts,
    pub(crate) owners: &'a OwnerMap,
    /// Whether a directory full of files may make way for something else.
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
        let mut run = Run {
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
        run.link(plan)?;
        run.make_others(plan)?;
        run.set_metadata(plan)?;
        run.delete(plan)?;
        run.finish()
    }
}

struct Run<'a> {
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

impl<'a> Run<'a> {
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
        let owner = self.context.owners.of(entry);
        let metadata = Metadata { mode: entry.permissions(), owner, mtime: entry.mtime() };
        let copy = stage.duplicate(entry.sha256(), usize::MAX, &metadata).at("copy", stage.shown(staged))?;
        local::unlink(stage.fd(), staged).at("remove", stage.shown(staged))?;
        Ok(copy)
    }

    fn link(&mut self, plan: &Plan) -> Result<(), PullError> {
        for &(row, leader) in &plan.links {
            let path = self.begin(row)?;
            if let Some(&why) = self.failed.get(&leader) {
                self.failed.insert(row, why);
                continue;
            }
            let leader_path = self.context.selection.path(leader);
            let (dir, leader_name) = path::split(&leader_path);
            let dir = self.context.tree.dir(dir).at("open", self.shown(&leader_path))?;
            let name = self.temporary();
            rustix::fs::linkat(&dir, leader_name, self.context.stage.fd(), &name[..], AtFlags::empty())
                .at("link", self.shown(&leader_path))?;
            if self.place(row, &path, &name)? {
                // rename(2) of one name of an inode over another one does nothing.
                local::unlink(self.context.stage.fd(), &name).at("remove", self.context.stage.shown(&name))?;
                self.changed.insert(leader);
                self.report.files_linked += 1;
            }
        }
        Ok(())
    }

    fn make_others(&mut self, plan: &Plan) -> Result<(), PullError> {
        for &row in &plan.others {
            let path = self.begin(row)?;
            let name = self.temporary();
            match self.make_other(row, &name) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.failed.insert(row, Failure::Refused);
                    continue;
                }
                Err(error) => return Err(error).at("create", self.shown(&path)),
            }
            if self.place(row, &path, &name)? {
                self.set_metadata_of(row, &path)?;
                self.report.others_made += 1;
            }
        }
        Ok(())
    }

    fn make_other(&self, row: u32, name: &[u8]) -> io::Result<()> {
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
        let mut committed = Committed { failed: self.failed, ..Committed::default() };
        for row in self.changed {
            self.context.check()?;
            let path = self.context.selection.path(row);
            if let Some(stat) = self.context.tree.stat(&path).at("stat", self.context.tree.shown(&path))? {
                committed.identities.insert(row, stat.identity);
            }
        }
        Ok(committed)
    }

    /// Renames a staged name into place. False: something is in the way that may not be deleted.
    fn place(&mut self, row: u32, path: &[u8], staged: &[u8]) -> Result<bool, PullError> {
        if self.context.facts_of(row) == Some(FileType::Directory) && !self.make_way(row, path)? {
            local::unlink(self.context.stage.fd(), staged).at("remove", self.context.stage.shown(staged))?;
            return Ok(false);
        }
        let (_, name) = path::split(path);
        let stage = self.context.stage.fd();
        match local::rename(stage, staged, self.parent(path)?, name) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                // Nobody knew of it, so nobody counted what is in it: only an empty one goes.
                if let Err(error) = local::rmdir(self.parent(path)?, name) {
                    if error.kind() != io::ErrorKind::DirectoryNotEmpty {
                        return Err(error).at("make way for", self.shown(path));
                    }
                    local::unlink(stage, staged).at("remove", self.context.stage.shown(staged))?;
                    self.failed.insert(row, Failure::InTheWay);
                    return Ok(false);
                }
                local::rename(stage, staged, self.parent(path)?, name)
            }
            renamed => renamed,
        }
        .at("rename to", self.shown(path))?;
        self.touch_parent(row);
        self.changed.insert(row);
        Ok(true)
    }

    /// Takes away what has a name that becomes another type of thing. A directory full of files goes only
    /// where deletions are allowed.
    fn make_way(&mut self, row: u32, path: &[u8]) -> Result<bool, PullError> {
        let (_, name) = path::split(path);
        let parent = self.parent(path)?;
        let gone = match local::rmdir(parent, name) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                if !self.context.may_delete {
                    self.failed.insert(row, Failure::InTheWay);
                    return Ok(false);
                }
                if self.context.selection.protects() {
                    return self.make_way_around_protected(row, path);
                }
                // To move a directory is to write to it.
                if let Ok(doomed) = self.context.tree.dir(path) {
                    local::make_writable(doomed.as_fd());
                }
                // Out of sight in one step, then away.
                let (doomed, stage) = (self.temporary(), self.context.stage.fd());
                local::rename_new(self.parent(path)?, name, stage, &doomed)
                    .and_then(|()| local::remove_all(stage, &doomed, b"", &|_, _| false))
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => local::unlink(parent, name).map(|()| 1),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            result => result.map(|()| 1),
        };
        self.report.files_deleted += gone.at("make way for", self.shown(path))?;
        Ok(true)
    }

    /// Deletes what may be deleted in a directory that has another's name. What the filter protects stays,
    /// and then the directory does.
    fn make_way_around_protected(&mut self, row: u32, path: &[u8]) -> Result<bool, PullError> {
        let (_, name) = path::split(path);
        let selection = self.context.selection;
        let keep = |below: &[u8], is_dir: bool| !selection.owns(&path::join(path, below), is_dir);
        let shown = self.shown(path);
        let parent = self.parent(path)?;
        let removed = local::remove_all(parent, name, b"", &keep).at("make way for", &shown)?;
        let gone = local::optional(local::stat(parent, name)).at("stat", &shown)?.is_none();
        self.report.files_deleted += removed;
        if !gone {
            self.failed.insert(row, Failure::InTheWay);
        }
        Ok(gone)
    }

    /// Sets mode, owner and time by name; nothing is followed.
    fn set_metadata_of(&mut self, row: u32, path: &[u8]) -> Result<(), PullError> {
        let (dir, name) = path::split(path);
        let name = if path.is_empty() { b"." } else { name };
        let (entry, owner) = (self.entry(row), self.context.owners.of(self.entry(row)));
        let shown = self.shown(path);
        if path.is_empty() {
            return set_metadata_at(self.context.tree.root(), name, entry, owner).at("set the mode of", shown);
        }
        let parent = self.parent_dir(dir)?;
        set_metadata_at(parent, name, entry, owner).at("set the mode of", shown)
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

/// Sets owner, mode and time of a name in a directory. The owner first: changing it takes setuid bits away.
fn set_metadata_at(dir: BorrowedFd<'_>, name: &[u8], entry: Row<'_>, owner: Option<(u32, u32)>) -> io::Result<()> {
    if let Some((user, group)) = owner {
        rustix::fs::chownat(
            dir,
            name,
            Some(Uid::from_raw(user)),
            Some(Gid::from_raw(group)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    let mtime: Time = entry.mtime();
    if entry.file_type() != FileType::Symlink {
        // There is no chmodat(2) that follows nothing before Linux 6.6; by the descriptor it cannot go astray.
        let file = rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let by_descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        rustix::fs::chmod(by_descriptor, Mode::from_raw_mode(entry.permissions().into()))?;
    }
    Ok(rustix::fs::utimensat(dir, name, &local::times(mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_points_to_others_comes_after_them() {
        for (path, expected) in [
            ("pool/main/a/apt_2.0_amd64.deb", Rank::Payload),
            ("iso/debian-12.iso", Rank::Payload),
            ("dists/stable/main/binary-amd64/Packages.xz", Rank::Index),
            ("dists/stable/main/by-hash/SHA256/abc", Rank::Index),
            ("dists/stable/Release", Rank::Head),
            ("dists/stable/InRelease", Rank::Head),
            ("fedora/40/repodata/abc-primary.xml.zst", Rank::Index),
            ("fedora/40/repodata/repomd.xml", Rank::Head),
            ("fedora/40/repodata/repomd.xml.asc", Rank::Head),
            ("core/os/x86_64/core.db", Rank::Index),
            ("core/os/x86_64/core.db.tar.gz", Rank::Index),
            ("core/os/x86_64/linux-6.1.pkg.tar.zst", Rank::Payload),
            ("alpine/v3.20/main/x86_64/APKINDEX.tar.gz", Rank::Index),
            ("iso/SHA256SUMS", Rank::Head),
            ("iso/Fedora-40-CHECKSUM", Rank::Head),
            ("lastsync", Rank::Head),
        ] {
            assert_eq!(rank(path.as_bytes()), expected, "{path}");
        }
    }
}
