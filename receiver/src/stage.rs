//! The staging directory: files under construction, on the local tree's own file system.
//!
//! A content is built as `<sha256>.part`, written in order as its bytes arrive, and renamed to `<sha256>` once its
//! digest is right. The next pull uses whatever a killed pull leaves here: it reads the longest beginning of each
//! content again, and continues it. If the digest of a whole file is wrong (after a power failure, a part may have
//! zeros where bytes were not flushed), it becomes `<sha256>.wrong`, a basis in which the block checksums find what is
//! right. `sums` are the block
//! checksums that were received.
//!
//! [`Stage::open`] comes first, then [`Stage::survey`]. After the commit, [`Stage::remove`] deletes the
//! directory; one that is left ([`Stage::is_left`]) shows that a pull did not end.

mod building;
mod sparse;
mod sums;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use stillmirror_protocol::entry::{Digest, Time};

use crate::error::{At as _, PullError};
use crate::local::{self, Tree};
use crate::plan::Reuse;
use crate::roots::{FileAt, Root, Roots};
use crate::selection::STAGE;

pub(crate) use building::{Building, Built, KeepPolicy, Kept, Task};
pub(crate) use sums::SumsLog;

/// The staging directory.
#[derive(Debug)]
pub(crate) struct Stage {
    dir: OwnedFd,
    path: PathBuf,
}

/// What an earlier pull left of wanted contents.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Leftovers {
    /// The lengths of their beginnings.
    pub(crate) parts: HashMap<Digest, u64>,
    /// Those of which there is a whole file that has errors. See [`wrong_at`].
    pub(crate) wrong: HashSet<Digest>,
}

/// Mode, owner and time of a file to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metadata {
    pub(crate) mode: u16,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) mtime: Time,
}

impl Metadata {
    fn is_of(&self, stat: &local::Stat) -> bool {
        stat.mode == self.mode
            && local::same_time(stat.mtime, self.mtime)
            && self.owner.is_none_or(|owner| owner == (stat.uid, stat.gid))
    }
}

/// A staged hard link to a local file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// The file has no other names. It still has its old mode, owner and time.
    Alone,
    /// The file is in other snapshots, too. It has the wanted mode, owner and time.
    Shared,
}

impl Stage {
    /// Creates or opens the staging directory. Needs the tree's lock, so that no other pull uses the
    /// directory.
    pub(crate) fn open(tree: &Tree) -> Result<Self, PullError> {
        let path = tree.shown(STAGE);
        match rustix::fs::mkdirat(tree.root(), STAGE, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).at("create", path),
        }
        let dir = tree.dir(STAGE).at("open", &path)?;
        Ok(Self { dir, path })
    }

    /// Returns whether there is a staging directory. A pull that ends removes it.
    pub(crate) fn is_left(tree: &Tree) -> Result<bool, PullError> {
        Ok(tree.stat(STAGE).at("stat", tree.shown(STAGE))?.is_some())
    }

    /// Opens the log of block checksums.
    pub(crate) fn sums_log(&self) -> Result<SumsLog, PullError> {
        let open = || SumsLog::open(local::open_file(self.fd(), SUMS, OFlags::RDWR | OFlags::CREATE)?);
        open().at("open", self.shown(SUMS))
    }

    /// Keeps the beginnings of wanted contents that an earlier pull left, and removes everything else except
    /// the names in `done`, which this pull staged. With `keep_others`, names that have nothing to do with these contents
    /// remain, too.
    pub(crate) fn survey(
        &self,
        wanted: &HashMap<Digest, u64>,
        done: &HashSet<&[u8]>,
        keep_others: bool,
    ) -> Result<Leftovers, PullError> {
        let mut names: Vec<Vec<u8>> =
            local::names(self.dir.as_fd()).at("read", &self.path)?.into_iter().map(|(name, _)| name).collect();
        names.retain(|name| !done.contains(&name[..]) && name != SUMS);
        if names.is_empty() {
            return Ok(Leftovers::default());
        }
        let by_name: HashMap<Vec<u8>, (Digest, u64)> =
            wanted.iter().map(|(digest, size)| (final_name(*digest), (*digest, *size))).collect();
        // Finished contents first: each takes the name of its part, and the part must then be left alone.
        names.sort_by_key(|name| name.ends_with(PART));
        let (mut parts, mut wrong) = (HashMap::new(), HashSet::new());
        for name in names {
            if let Some(&(digest, _)) = name.strip_suffix(WRONG).and_then(|stem| by_name.get(stem)) {
                wrong.insert(digest);
                continue;
            }
            let stem = name.strip_suffix(PART).unwrap_or(&name);
            let known = by_name.get(stem);
            if known.is_some_and(|(digest, _)| parts.contains_key(digest)) {
                continue;
            }
            let stat = local::stat(self.dir.as_fd(), &name).at("stat", self.shown(&name))?;
            // A file with other names is a hard link to a local file. Linking it again is easy.
            let usable = |size: u64| stat.kind == local_file() && stat.names == 1 && stat.size <= size;
            match known.filter(|(_, size)| usable(*size)) {
                Some(&(digest, _)) => {
                    if stem == name {
                        // The content claims to be complete, but it may not be after a power failure, so it
                        // is read again. It has its final mode, which may not allow its owner to do so.
                        rustix::fs::chmodat(self.fd(), &name[..], Mode::RUSR | Mode::WUSR, AtFlags::empty())
                            .at("set the mode of", self.shown(&name))?;
                        local::rename(self.fd(), &name, self.fd(), &part_name(digest))
                            .at("rename", self.shown(&name))?;
                    }
                    parts.insert(digest, stat.size);
                }
                None if keep_others && known.is_none() => {}
                None => drop(local::remove_all(self.fd(), &name, b"", &|_, _| false).at("remove", self.shown(&name))?),
            }
        }
        Ok(Leftovers { parts, wrong })
    }

    /// Removes the directory and everything in it.
    pub(crate) fn remove(self, tree: &Tree) -> Result<(), PullError> {
        local::remove_all(tree.root(), STAGE, b"", &|_, _| false).at("remove", &self.path).map(drop)
    }

    /// The directory's descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Returns the path of a name in the directory, for messages.
    pub(crate) fn shown(&self, name: &[u8]) -> PathBuf {
        self.path.join(String::from_utf8_lossy(name).as_ref())
    }

    /// Returns the path of a part, for messages.
    pub(crate) fn shown_part(&self, digest: Digest) -> PathBuf {
        self.shown(&part_name(digest))
    }

    /// Returns whether there is a part of a content.
    pub(crate) fn has_part(&self, digest: Digest) -> Result<bool, PullError> {
        let name = part_name(digest);
        let stat = local::optional(local::stat(self.fd(), &name)).at("stat", self.shown(&name))?;
        Ok(stat.is_some())
    }

    /// Removes the part of a content.
    pub(crate) fn forget(&self, digest: Digest) -> Result<(), PullError> {
        local::unlink(self.fd(), &part_name(digest)).at("remove", self.shown(&part_name(digest)))
    }

    /// Returns whether there is a file with errors of a content.
    pub(crate) fn has_wrong(&self, digest: Digest) -> bool {
        local::stat(self.fd(), &wrong_name(digest)).is_ok()
    }

    /// Removes the file with errors of a content.
    pub(crate) fn forget_wrong(&self, digest: Digest) -> Result<(), PullError> {
        local::unlink(self.fd(), &wrong_name(digest)).at("remove", self.shown(&wrong_name(digest)))
    }

    /// Stages a local file as a hard link, if it is unchanged. Returns how it is linked. `None` if it is not.
    ///
    /// A file that has other names may be linked only if those may share its inode: names in other snapshots, if the file
    /// has the wanted metadata already.
    pub(crate) fn link(
        &self,
        tree: &Tree,
        reuse: &Reuse,
        digest: Digest,
        metadata: &Metadata,
    ) -> io::Result<Option<Link>> {
        let FileAt { root: Root::Dest, path } = &reuse.at else { return Ok(None) };
        let Some(stat) = tree.stat(path)?.filter(|stat| looks_like(stat, reuse)) else { return Ok(None) };
        let link = match stat.names {
            1 => Link::Alone,
            _ if tree.shares_inodes() && metadata.is_of(&stat) => Link::Shared,
            _ => return Ok(None),
        };
        let (dir, name) = stillmirror_protocol::path::split(path);
        let dir = tree.dir(dir)?;
        let staged = final_name(digest);
        local::unlink(self.fd(), &staged)?;
        let linked = rustix::fs::linkat(&dir, name, self.fd(), &staged[..], AtFlags::empty());
        Ok(linked.is_ok().then_some(link))
    }

    /// Stages a local file by sharing its blocks, where the file system can. Returns whether it did.
    pub(crate) fn clone_blocks(
        &self,
        roots: &Roots<'_>,
        reuse: &Reuse,
        digest: Digest,
        metadata: &Metadata,
    ) -> io::Result<bool> {
        let file = self.clone_to(&final_name(digest), roots, reuse)?;
        file.map_or(Ok(false), |file| set_metadata(&file, metadata).map(|()| true))
    }

    /// Makes a part of a content by sharing the blocks of a local file, where the file system can. Returns whether it
    /// did. The content of the part is not checked.
    pub(crate) fn clone_part(&self, roots: &Roots<'_>, reuse: &Reuse, digest: Digest) -> io::Result<bool> {
        Ok(self.clone_to(&part_name(digest), roots, reuse)?.is_some())
    }

    fn clone_to(&self, name: &[u8], roots: &Roots<'_>, reuse: &Reuse) -> io::Result<Option<File>> {
        // If the file is gone, changed or unreadable, its content is brought another way.
        if !roots.stat(&reuse.at).is_ok_and(|stat| stat.is_some_and(|stat| looks_like(&stat, reuse))) {
            return Ok(None);
        }
        let Ok(source) = roots.file(&reuse.at) else { return Ok(None) };
        let file = self.create(name)?;
        if rustix::fs::ioctl_ficlone(&file, &source).is_err() {
            local::unlink(self.fd(), name)?;
            return Ok(None);
        }
        Ok(Some(file))
    }

    /// Makes a copy of a staged content, and returns its name.
    pub(crate) fn duplicate(&self, digest: Digest, copy: usize, metadata: &Metadata) -> io::Result<Vec<u8>> {
        let name = [&final_name(digest)[..], format!("-{copy}").as_bytes()].concat();
        self.copy(&local::open_file(self.fd(), &final_name(digest), OFlags::RDONLY)?, &name, metadata)?;
        Ok(name)
    }

    /// Copies a file to a new staged name.
    pub(crate) fn copy(&self, source: &File, name: &[u8], metadata: &Metadata) -> io::Result<()> {
        copy_into(self.fd(), source, name, metadata).map(drop)
    }

    fn create(&self, name: &[u8]) -> io::Result<File> {
        create(self.fd(), name)
    }
}

/// Copies a file to a name in a directory, and returns the copy.
pub(crate) fn copy_into(dir: BorrowedFd<'_>, source: &File, name: &[u8], metadata: &Metadata) -> io::Result<File> {
    let file = create(dir, name)?;
    if rustix::fs::ioctl_ficlone(&file, source).is_err() {
        sparse::copy(source, &file)?;
    }
    set_metadata(&file, metadata)?;
    Ok(file)
}

fn create(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    local::open_file(dir, name, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC)
}

/// Returns the name of a finished content.
pub(crate) fn final_name(digest: Digest) -> Vec<u8> {
    digest.to_string().into_bytes()
}

fn part_name(digest: Digest) -> Vec<u8> {
    [&final_name(digest)[..], PART].concat()
}

fn wrong_name(digest: Digest) -> Vec<u8> {
    [&final_name(digest)[..], WRONG].concat()
}

fn local_file() -> stillmirror_protocol::list::FileType {
    stillmirror_protocol::list::FileType::File
}

fn looks_like(stat: &local::Stat, reuse: &Reuse) -> bool {
    stat.kind == local_file() && stat.size == reuse.size && local::same_time(stat.mtime, reuse.mtime)
}

/// Sets owner, mode and time of an open file, in this order: changing the owner clears the setuid bits.
pub(crate) fn set_metadata(file: &File, metadata: &Metadata) -> io::Result<()> {
    let is_owner =
        |(user, group)| rustix::fs::fstat(file).is_ok_and(|stat| (stat.st_uid, stat.st_gid) == (user, group));
    // A new file mostly has the right owner, and looking is cheaper than setting.
    if let Some((user, group)) = metadata.owner.filter(|owner| !is_owner(*owner)) {
        rustix::fs::fchown(file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(metadata.mode.into()))?;
    Ok(rustix::fs::futimens(file, &local::times(metadata.mtime))?)
}

/// Returns where a part is. A part can serve as a basis.
pub(crate) fn part_at(digest: Digest) -> FileAt {
    FileAt::dest([STAGE, b"/", &part_name(digest)].concat())
}

/// Returns where the file with errors of a content is. It can serve as a basis.
pub(crate) fn wrong_at(digest: Digest) -> FileAt {
    FileAt::dest([STAGE, b"/", &wrong_name(digest)].concat())
}

const PART: &[u8] = b".part";
/// The suffix of a content that was built and has a wrong digest.
const WRONG: &[u8] = b".wrong";
/// The name of the log of block checksums.
const SUMS: &[u8] = b"sums";

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A killed pull can leave both, if it had finished the content once and then began it again.
    #[test]
    fn if_both_are_left_the_finished_content_is_kept_and_not_its_part() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let stage = Stage::open(&tree).unwrap();
        let digests = [Digest([1; 32]), Digest([2; 32])];
        for (number, digest) in digests.into_iter().enumerate() {
            let mut names = [(final_name(digest), 9), (part_name(digest), 4)];
            if number == 1 {
                names.reverse();
            }
            for (name, len) in names {
                stage.create(&name).unwrap().write_all(&vec![0; len]).unwrap();
            }
        }
        let parts = stage.survey(&digests.map(|digest| (digest, 9)).into(), &HashSet::new(), false).unwrap();
        assert_eq!(parts.parts, HashMap::from(digests.map(|digest| (digest, 9))));
        for digest in digests {
            assert_eq!(local::stat(stage.fd(), &part_name(digest)).unwrap().size, 9);
        }
    }
}
