//! The steps around a rename: making way for a name before it, and setting metadata after it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use stillmirror_protocol::list::{FileType, Row};
use stillmirror_protocol::path;

use super::CommitRun;
use crate::attributes::Attributes;
use crate::error::{At as _, PullError};
use crate::local;
use crate::report::Failure;
use crate::stage;

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
                    self.fail(row, Failure::InTheWay);
                    return Ok(false);
                }
                local::rename(stage, staged, self.parent(path)?, name)
            }
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                self.place_across(row, path, staged)?;
                Ok(())
            }
            renamed => renamed,
        }
        .at("rename to", self.shown(path))?;
        self.touch_parent(row);
        self.changed.insert(row);
        Ok(true)
    }

    /// Puts a staged name in a directory on another file system: it is made again next to its place under a temporary name,
    /// and renamed from there.
    fn place_across(&mut self, row: u32, path: &[u8], staged: &[u8]) -> Result<(), PullError> {
        let (stage, sync) = (self.context.stage, self.context.sync);
        let (shown, metadata, temporary) = (self.shown(path), self.metadata(row), self.temporary_in_tree());
        let is_file = self.entry(row).is_file();
        if !is_file {
            let parent = self.parent(path)?.try_clone_to_owned().at("open", &shown)?;
            self.make_in(parent.as_fd(), row, &temporary).at("create", &shown)?;
        } else {
            let source = local::open_file(stage.fd(), staged, OFlags::RDONLY).at("read", stage.shown(staged))?;
            let copied = stage::copy_into(self.parent(path)?, &source, &temporary, &metadata);
            let copied = copied.and_then(|copy| if sync { copy.sync_all() } else { Ok(()) });
            if let Err(error) = copied {
                // Best effort: the next pull with `--delete` removes it.
                let _ = local::unlink(self.parent(path)?, &temporary);
                return Err(error).at("copy to", &shown);
            }
        }
        self.rename_in_tree(path, &temporary)?;
        local::unlink(stage.fd(), staged).at("remove", stage.shown(staged))
    }

    /// Makes a hard link to a file that is in place, in a directory on another file system than the staging directory's.
    /// Returns false if the two are on different file systems, too.
    pub(super) fn link_across(&mut self, path: &[u8], leader: &[u8]) -> Result<bool, PullError> {
        let (dir, leader_name) = path::split(leader);
        let dir = self.context.tree.dir(dir).at("open", self.shown(leader))?;
        let temporary = self.temporary_in_tree();
        if rustix::fs::linkat(&dir, leader_name, self.parent(path)?, &temporary[..], AtFlags::empty()).is_err() {
            return Ok(false);
        }
        self.rename_in_tree(path, &temporary)?;
        // The rename does nothing if both names refer to the same inode.
        local::unlink(self.parent(path)?, &temporary).at("remove", self.shown(path))?;
        Ok(true)
    }

    fn rename_in_tree(&mut self, path: &[u8], temporary: &[u8]) -> Result<(), PullError> {
        let (_, name) = path::split(path);
        let shown = self.shown(path);
        let parent = self.parent(path)?;
        if let Err(error) = local::rename(parent, temporary, parent, name) {
            let _ = local::unlink(parent, temporary);
            return Err(error).at("rename to", shown);
        }
        Ok(())
    }

    /// A hidden name, as rsync's temporary names are. A crash may leave it behind.
    fn temporary_in_tree(&mut self) -> Vec<u8> {
        [b".stillmirror-", &self.temporary()[..]].concat()
    }

    /// Removes an entry whose name becomes another type of entry. A non-empty directory is removed only if
    /// deletions are allowed. Returns false if the entry remains.
    pub(super) fn make_way(&mut self, row: u32, path: &[u8]) -> Result<bool, PullError> {
        let (_, name) = path::split(path);
        let parent = self.parent(path)?;
        let gone = match local::rmdir(parent, name) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                if !self.context.may_delete {
                    self.fail(row, Failure::InTheWay);
                    return Ok(false);
                }
                if self.context.selection.protects() || self.context.stores.are_below(path)? {
                    return self.make_way_around_protected(row, path);
                }
                // Moving a directory writes to it.
                if let Ok(doomed) = self.context.tree.dir(path) {
                    local::make_writable(doomed.as_fd());
                }
                // Move it out of sight in one step, then remove it.
                let (doomed, stage) = (self.temporary(), self.context.stage.fd());
                match local::rename_new(self.parent(path)?, name, stage, &doomed) {
                    Ok(()) => local::remove_all(stage, &doomed, b"", &|_, _| false),
                    Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                        local::remove_all(self.parent(path)?, name, b"", &|_, _| false)
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => local::unlink(parent, name).map(|()| 1),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            result => result.map(|()| 1),
        };
        self.report.files_deleted += gone.at("make way for", self.shown(path))?;
        Ok(true)
    }

    /// Deletes what may be deleted in a directory that is in the way. If the filter protects anything in it, or a
    /// store is in it, the directory remains. Returns whether it is gone.
    fn make_way_around_protected(&mut self, row: u32, path: &[u8]) -> Result<bool, PullError> {
        let (_, name) = path::split(path);
        if self.context.stores.is_at(path) {
            self.fail(row, Failure::InTheWay);
            return Ok(false);
        }
        let context = self.context;
        let keep = |below: &[u8], is_dir: bool| context.keeps(&path::join(path, below), is_dir);
        let shown = self.shown(path);
        let parent = self.parent(path)?;
        let removed = local::remove_all(parent, name, b"", &keep).at("make way for", &shown)?;
        let gone = local::optional(local::stat(parent, name)).at("stat", &shown)?.is_none();
        self.report.files_deleted += removed;
        if !gone {
            self.fail(row, Failure::InTheWay);
        }
        Ok(gone)
    }

    /// Sets mode, owner and time by name. Does not follow symlinks.
    pub(super) fn set_metadata_of(&mut self, row: u32, path: &[u8]) -> Result<(), PullError> {
        let (dir, name) = path::split(path);
        let name = if path.is_empty() { b"." } else { name };
        let (entry, attributes) = (self.entry(row), self.context.attributes);
        let shown = self.shown(path);
        if path.is_empty() {
            return set_metadata_at(self.context.tree.root(), name, entry, attributes).at("set the mode of", shown);
        }
        let parent = self.parent_dir(dir)?;
        set_metadata_at(parent, name, entry, attributes).at("set the mode of", shown)
    }
}

/// Sets owner, mode and time of a name in a directory, in this order: changing the owner clears the setuid
/// bits.
pub(super) fn set_metadata_at(
    dir: BorrowedFd<'_>,
    name: &[u8],
    entry: Row<'_>,
    attributes: &Attributes,
) -> io::Result<()> {
    if let Some((user, group)) = attributes.owner(entry) {
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
        local::set_mode(file.as_fd(), attributes.mode(entry))?;
    }
    Ok(rustix::fs::utimensat(dir, name, &local::times(entry.mtime()), AtFlags::SYMLINK_NOFOLLOW)?)
}
