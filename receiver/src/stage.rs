//! The staging directory: files under construction, on the local tree's own file system.
//!
//! A content is built as `<sha256>.part`, written in order, and becomes `<sha256>` once its digest is
//! right. Whatever a killed pull leaves here is used by the next one: the longest beginning of a content is
//! read again and continued.

mod building;
mod sparse;

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
use crate::selection::STAGE;

pub(crate) use building::{Building, Built, KeepPolicy, Kept, Task};

/// The staging directory.
#[derive(Debug)]
pub(crate) struct Stage {
    dir: OwnedFd,
    path: PathBuf,
}

/// Mode, owner and time of a file to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metadata {
    pub(crate) mode: u16,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) mtime: Time,
}

impl Stage {
    /// Makes or opens the staging directory. The tree is locked: it is this pull's alone.
    pub(crate) fn open(tree: &Tree) -> Result<Self, PullError> {
        let path = tree.shown(STAGE);
        match rustix::fs::mkdirat(tree.root(), STAGE, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).at("create", path),
        }
        let dir = tree.dir(STAGE).at("open", &path)?;
        Ok(Self { dir, path })
    }

    /// Whether there is one: a pull that ends takes it away.
    pub(crate) fn is_left(tree: &Tree) -> Result<bool, PullError> {
        Ok(tree.stat(STAGE).at("stat", tree.shown(STAGE))?.is_some())
    }

    /// Keeps the beginnings of wanted contents that a former pull left, and clears everything else away.
    /// Gives their lengths. Names in `done` are this pull's own.
    pub(crate) fn survey(
        &self,
        wanted: &HashMap<Digest, u64>,
        done: &HashSet<&[u8]>,
    ) -> Result<HashMap<Digest, u64>, PullError> {
        let by_name: HashMap<Vec<u8>, (Digest, u64)> =
            wanted.iter().map(|(digest, size)| (final_name(*digest), (*digest, *size))).collect();
        let mut names: Vec<Vec<u8>> =
            local::names(self.dir.as_fd()).at("read", &self.path)?.into_iter().map(|(name, _)| name).collect();
        names.retain(|name| !done.contains(&name[..]));
        // Finished contents first: they take the names of their parts, which then are to be left alone.
        names.sort_by_key(|name| name.ends_with(PART));
        let mut parts = HashMap::new();
        for name in names {
            let stem = name.strip_suffix(PART).unwrap_or(&name);
            let known = by_name.get(stem);
            if known.is_some_and(|(digest, _)| parts.contains_key(digest)) {
                continue;
            }
            let stat = local::stat(self.dir.as_fd(), &name).at("stat", self.shown(&name))?;
            // A file with further names is a local one's, linked here to be renamed: easily done again.
            let usable = |size: u64| stat.kind == local_file() && stat.names == 1 && stat.size <= size;
            match known.filter(|(_, size)| usable(*size)) {
                Some(&(digest, _)) => {
                    if stem == name {
                        // Whole, or so it says; a power failure may know better, so it is read again. It has
                        // its final mode, which need not let its owner do so.
                        rustix::fs::chmodat(self.fd(), &name[..], Mode::RUSR | Mode::WUSR, AtFlags::empty())
                            .at("set the mode of", self.shown(&name))?;
                        local::rename(self.fd(), &name, self.fd(), &part_name(digest))
                            .at("rename", self.shown(&name))?;
                    }
                    parts.insert(digest, stat.size);
                }
                None => drop(local::remove_all(self.fd(), &name, b"", &|_, _| false).at("remove", self.shown(&name))?),
            }
        }
        Ok(parts)
    }

    /// Removes the directory and whatever is left in it.
    pub(crate) fn remove(self, tree: &Tree) -> Result<(), PullError> {
        local::remove_all(tree.root(), STAGE, b"", &|_, _| false).at("remove", &self.path).map(drop)
    }

    /// The directory's descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The path of a name in it, for messages.
    pub(crate) fn shown(&self, name: &[u8]) -> PathBuf {
        self.path.join(String::from_utf8_lossy(name).as_ref())
    }

    /// Whether there is a beginning of a content.
    pub(crate) fn has_part(&self, digest: Digest) -> Result<bool, PullError> {
        let name = part_name(digest);
        let stat = local::optional(local::stat(self.fd(), &name)).at("stat", self.shown(&name))?;
        Ok(stat.is_some())
    }

    /// Drops what there is of a content.
    pub(crate) fn forget(&self, digest: Digest) -> Result<(), PullError> {
        local::unlink(self.fd(), &part_name(digest)).at("remove", self.shown(&part_name(digest)))
    }

    /// Takes a local file by a hard link, if it still is what it was and has that one name only.
    pub(crate) fn link(&self, tree: &Tree, reuse: &Reuse, digest: Digest) -> io::Result<bool> {
        if !tree.stat(&reuse.path)?.is_some_and(|stat| stat.names == 1 && looks_like(&stat, reuse)) {
            return Ok(false);
        }
        let (dir, name) = stillmirror_protocol::path::split(&reuse.path);
        let dir = tree.dir(dir)?;
        let staged = final_name(digest);
        local::unlink(self.fd(), &staged)?;
        Ok(rustix::fs::linkat(&dir, name, self.fd(), &staged[..], AtFlags::empty()).is_ok())
    }

    /// Takes a local file by sharing its blocks, where the file system can.
    pub(crate) fn clone_blocks(
        &self,
        tree: &Tree,
        reuse: &Reuse,
        digest: Digest,
        metadata: &Metadata,
    ) -> io::Result<bool> {
        if !tree.stat(&reuse.path)?.is_some_and(|stat| looks_like(&stat, reuse)) {
            return Ok(false);
        }
        // Gone meanwhile, or unreadable: the content comes another way.
        let Ok(source) = tree.file(&reuse.path) else { return Ok(false) };
        let staged = final_name(digest);
        let file = self.create(&staged)?;
        if rustix::fs::ioctl_ficlone(&file, &source).is_err() {
            local::unlink(self.fd(), &staged)?;
            return Ok(false);
        }
        set_metadata(&file, metadata)?;
        Ok(true)
    }

    /// Makes a further file of a staged content, and gives its name.
    pub(crate) fn duplicate(&self, digest: Digest, copy: usize, metadata: &Metadata) -> io::Result<Vec<u8>> {
        let name = [&final_name(digest)[..], format!("-{copy}").as_bytes()].concat();
        self.copy(&local::open_file(self.fd(), &final_name(digest), OFlags::RDONLY)?, &name, metadata)?;
        Ok(name)
    }

    /// Copies a file to a new staged name.
    pub(crate) fn copy(&self, source: &File, name: &[u8], metadata: &Metadata) -> io::Result<()> {
        let file = self.create(name)?;
        if rustix::fs::ioctl_ficlone(&file, source).is_err() {
            sparse::copy(source, &file)?;
        }
        set_metadata(&file, metadata)
    }

    fn create(&self, name: &[u8]) -> io::Result<File> {
        local::open_file(self.fd(), name, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC)
    }
}

/// The name of a finished content.
pub(crate) fn final_name(digest: Digest) -> Vec<u8> {
    digest.to_string().into_bytes()
}

fn part_name(digest: Digest) -> Vec<u8> {
    [&final_name(digest)[..], PART].concat()
}

fn local_file() -> stillmirror_protocol::list::FileType {
    stillmirror_protocol::list::FileType::File
}

fn looks_like(stat: &local::Stat, reuse: &Reuse) -> bool {
    stat.kind == local_file() && stat.size == reuse.size && local::same_time(stat.mtime, reuse.mtime)
}

/// Sets mode, owner and time of an open file. The owner first: changing it takes setuid bits away.
pub(crate) fn set_metadata(file: &File, metadata: &Metadata) -> io::Result<()> {
    if let Some((user, group)) = metadata.owner {
        rustix::fs::fchown(file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(metadata.mode.into()))?;
    Ok(rustix::fs::futimens(file, &local::times(metadata.mtime))?)
}

/// The path of a part, relative to the local tree: it can serve as a basis.
pub(crate) fn part_path(digest: Digest) -> Vec<u8> {
    [STAGE, b"/", &part_name(digest)].concat()
}

const PART: &[u8] = b".part";

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A killed pull can leave both: it had finished the content once, and began it anew.
    #[test]
    fn of_a_finished_content_and_its_part_the_finished_one_is_kept() {
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
        let parts = stage.survey(&digests.map(|digest| (digest, 9)).into(), &HashSet::new()).unwrap();
        assert_eq!(parts, HashMap::from(digests.map(|digest| (digest, 9))));
        for digest in digests {
            assert_eq!(local::stat(stage.fd(), &part_name(digest)).unwrap().size, 9);
        }
    }
}
