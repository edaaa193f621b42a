//! The steps around a rename: making way for a name before it, and setting metadata after it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use stillmirror_protocol::list::{FileType, Row};
use stillmirror_protocol::path;

use super::CommitRun;
use crate::error::{At as _, PullError};
use crate::local;
use crate::report::Failure;

impl CommitRun<'_> {
    /// Renames a staged name into place. Returns false if something is in the way that must not be deleted.
    pub(super) fn place(&mut self, row: u32, path: &[u8], staged: &[u8]) -> Result<bool, PullError> {
        if self.context.old_type_of(row) == Some(FileType::Directory) && !self.make_way(row, path)? {
            local::unlink(self.context.stage.fd(), staged).at("remove", self.context.stage.shown(staged))?;
            return Ok(false);
        }
        let (_, name) = path::split(path);
        let stage = self.context.stage.fd();
        match local::rename(stage, staged, self.parent(path)?, name) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                // The plan did not know this directory, so its contents were not counted as deletions. It is
                // removed only if it is empty.
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

    /// Removes an entry whose name becomes another type of entry. A non-empty directory is removed only if
    /// deletions are allowed. Returns false if the entry remains.
    pub(super) fn make_way(&mut self, row: u32, path: &[u8]) -> Result<bool, PullError> {
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
                // Moving a directory writes to it.
                if let Ok(doomed) = self.context.tree.dir(path) {
                    local::make_writable(doomed.as_fd());
                }
                // Move it out of sight in one step, then remove it.
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

    /// Deletes what may be deleted in a directory that is in the way. If the filter protects anything in it,
    /// the directory remains. Returns whether it is gone.
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

    /// Sets mode, owner and time by name. Does not follow symlinks.
    pub(super) fn set_metadata_of(&mut self, row: u32, path: &[u8]) -> Result<(), PullError> {
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
}

/// Sets owner, mode and time of a name in a directory, in this order: changing the owner clears the setuid
/// bits.
pub(super) fn set_metadata_at(
    dir: BorrowedFd<'_>,
    name: &[u8],
    entry: Row<'_>,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    if let Some((user, group)) = owner {
        rustix::fs::chownat(
            dir,
            name,
            Some(Uid::from_raw(user)),
            Some(Gid::from_raw(group)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    if entry.file_type() != FileType::Symlink {
        // Before Linux 6.6, chmodat(2) always follows symlinks. Going through a descriptor is safe.
        let file = rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        local::set_mode(file.as_fd(), entry.permissions())?;
    }
    Ok(rustix::fs::utimensat(dir, name, &local::times(entry.mtime()), AtFlags::SYMLINK_NOFOLLOW)?)
}
