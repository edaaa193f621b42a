//! Checks, before anything is fetched, that what a pull brings fits.
//!
//! What is counted is the least that the pull takes: every content is staged beside what it replaces, on the file system
//! of the tree's root. Contents for directories on other file systems are copied there one after the other, so what they
//! replace is subtracted there. What an interrupted pull left in the staging directory is used or removed.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, StatVfs, fstatfs, fstatvfs};
use stillmirror_protocol::limits;
use stillmirror_protocol::list::FileType;
use stillmirror_protocol::local::RelativeDevice;
use stillmirror_store::Store;

use crate::error::{At as _, PullError};
use crate::facts::{Fact, Facts};
use crate::limit::MinFree;
use crate::local::{self, Tree};
use crate::plan::{Fetch, Plan};
use crate::report::Options;
use crate::selection::{STAGE, Selection};

/// A planned pull.
pub(crate) struct Space<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) store: Option<&'a Store>,
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) facts: &'a Facts,
    pub(crate) plan: &'a Plan,
    pub(crate) options: &'a Options,
    /// Number of bytes of the list that the store gets. 0 if it has the list.
    pub(crate) list_bytes: u64,
    /// Whether the tree's directories will be copied before, to hold hard links to what remains.
    pub(crate) is_copied: bool,
}

impl Space<'_> {
    /// Fails if a file system has too little space or too few inodes.
    pub(crate) fn check(&self) -> Result<(), PullError> {
        if self.options.min_free == MinFree::Unchecked {
            return Ok(());
        }
        let mut volumes = Volumes::new(self)?;
        if self.is_copied {
            volumes.all[ROOT].inodes += self.selection.dirs.len() as i64;
        }
        for fetch in &self.plan.fetches {
            self.add_fetch(fetch, &mut volumes)?;
        }
        for &row in self.plan.directories.iter().chain(&self.plan.others) {
            let at = volumes.of(row)?;
            volumes.all[at].inodes += 1;
        }
        if let Some(store) = self.store {
            self.add_store(store, &mut volumes)?;
        }
        volumes.all.iter().try_for_each(|volume| volume.check(self.options.min_free))
    }

    fn add_fetch(&self, fetch: &Fetch, volumes: &mut Volumes<'_>) -> Result<(), PullError> {
        let size = self.selection.list.row(fetch.row).size();
        let certain = fetch.reuse.iter().filter(|reuse| reuse.is_certain);
        let (is_linked, is_here) =
            certain.fold((false, false), |(linked, _), reuse| (linked || reuse.disappears, true));
        for (copy, row) in std::iter::once(fetch.row).chain(fetch.copies.iter().copied()).enumerate() {
            // The staged file may be a hard link or share all blocks with another one.
            let is_first = copy == 0;
            let is_free = if is_first { is_linked || (is_here && volumes.share_blocks) } else { volumes.share_blocks };
            if !is_free {
                volumes.all[ROOT].add(size);
            }
            volumes.all[ROOT].inodes += i64::from(!(is_first && is_linked));
            let at = volumes.of(row)?;
            if at != ROOT {
                let before = self.fact(row);
                volumes.all[at].inodes += i64::from(before.is_none());
                volumes.all[at].add(size);
                if let Some(before) = before.filter(|fact| fact.kind == FileType::File && !fact.has_other_names) {
                    volumes.all[at].subtract(before.size);
                }
            }
        }
        Ok(())
    }

    fn fact(&self, row: u32) -> Option<Fact> {
        self.facts.rows[self.selection.index(row)?]
    }

    /// Adds the list, the local facts and the small contents that the store keeps.
    fn add_store(&self, store: &Store, volumes: &mut Volumes<'_>) -> Result<(), PullError> {
        let dir = local::Tree::open(store.dir()).at("open", store.dir())?;
        let at = volumes.find(dir.root(), || store.dir().to_owned())?;
        let largest = self.options.keep_contents.min(u64::from(limits::KEPT_CONTENT));
        let list = self.selection.list;
        let kept = self.plan.fetches.iter().filter(|fetch| fetch.reuse.is_empty() && list.is_public(fetch.row));
        let sizes = kept.map(|fetch| list.row(fetch.row).size()).filter(|&size| size <= largest);
        let kept = sizes.fold(0, u64::saturating_add);
        volumes.all[at].grow(signed(kept.saturating_add(self.list_bytes)));
        if self.list_bytes > 0 {
            volumes.all[at].grow(i64::from(list.len()) * LOCAL_FACTS);
        }
        Ok(())
    }
}

/// The file systems that a pull writes to. The first is that of the tree's root.
struct Volumes<'a> {
    space: &'a Space<'a>,
    all: Vec<Volume>,
    /// Whether the root's file system may store a copy as a reference to the original.
    share_blocks: bool,
    /// The volume of each directory looked up so far, by the directory's row.
    of_dirs: HashMap<u32, usize>,
}

struct Volume {
    device: u64,
    /// The first directory that was found on it, for messages.
    path: PathBuf,
    stat: StatVfs,
    /// The size to which the space of a file is rounded up. 1 if the file system packs small files or compresses.
    block: u64,
    bytes: i64,
    inodes: i64,
}

impl<'a> Volumes<'a> {
    fn new(space: &'a Space<'a>) -> Result<Self, PullError> {
        let mut volumes = Self { space, all: Vec::new(), share_blocks: false, of_dirs: HashMap::new() };
        let root = space.tree.root();
        volumes.find(root, || space.tree.shown(b""))?;
        let kind = fstatfs(root).at("look at the file system of", space.tree.shown(b""))?.f_type;
        volumes.share_blocks = SHARING.contains(&(kind as u64 as u32));
        volumes.subtract_staged()?;
        Ok(volumes)
    }

    /// Subtracts what the staging directory has.
    fn subtract_staged(&mut self) -> Result<(), PullError> {
        let shown = || self.space.tree.shown(STAGE);
        let Some(stage) = local::optional(self.space.tree.dir(STAGE)).at("open", shown())? else { return Ok(()) };
        for (name, _) in local::names(stage.as_fd()).at("read", shown())? {
            let stat = rustix::fs::statat(&stage, &name[..], AtFlags::SYMLINK_NOFOLLOW).map_err(std::io::Error::from);
            let Some(stat) = local::optional(stat).at("stat", shown())? else { continue };
            if stat.st_nlink == 1 {
                self.all[ROOT].grow(-stat.st_blocks.saturating_mul(512));
                self.all[ROOT].inodes -= 1;
            }
        }
        Ok(())
    }

    /// Returns the index of the volume on which a row lies.
    fn of(&mut self, row: u32) -> Result<usize, PullError> {
        let Space { tree, selection, .. } = *self.space;
        let (mut passed, mut dir) = (Vec::new(), selection.list.parent_of(row));
        let found = loop {
            if dir.number() == selection.root.number() {
                break ROOT;
            }
            if let Some(&known) = self.of_dirs.get(&dir.row()) {
                break known;
            }
            passed.push(dir.row());
            match self.space.fact(dir.row()).filter(|fact| fact.kind == FileType::Directory) {
                Some(fact) if fact.identity.device == RelativeDevice::Roots => break ROOT,
                Some(_) => match tree.dir(&selection.path(dir.row())) {
                    Ok(opened) => break self.find(opened.as_fd(), || tree.shown(&selection.path(dir.row())))?,
                    // The commit reports it.
                    Err(_) => break ROOT,
                },
                // It will be made in its parent.
                None => dir = selection.list.parent_of(dir.row()),
            }
        };
        self.of_dirs.extend(passed.into_iter().map(|dir| (dir, found)));
        Ok(found)
    }

    /// Returns the index of the volume of an opened directory.
    fn find(&mut self, dir: BorrowedFd<'_>, path: impl Fn() -> PathBuf) -> Result<usize, PullError> {
        let device = local::stat(dir, b".").at("stat", path())?.on_device;
        if let Some(at) = self.all.iter().position(|volume| volume.device == device) {
            return Ok(at);
        }
        let stat = fstatvfs(dir).at("look at the file system of", path())?;
        let kind = fstatfs(dir).at("look at the file system of", path())?.f_type;
        let packs = PACKING.contains(&(kind as u64 as u32));
        let block = if packs { 1 } else { stat.f_frsize.clamp(1, LARGEST_BLOCK) };
        self.all.push(Volume { device, path: path(), stat, block, bytes: 0, inodes: 0 });
        Ok(self.all.len() - 1)
    }
}

impl Volume {
    /// Adds bytes. The sender states the sizes, so their sum may overflow; it saturates.
    fn grow(&mut self, bytes: i64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn add(&mut self, size: u64) {
        self.grow(self.rounded(size));
    }

    fn subtract(&mut self, size: u64) {
        self.grow(-self.rounded(size));
    }

    fn rounded(&self, size: u64) -> i64 {
        signed(size.checked_next_multiple_of(self.block).unwrap_or(size))
    }

    fn check(&self, min_free: MinFree) -> Result<(), PullError> {
        let stat = &self.stat;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        // Some file systems of networks and processes do not tell.
        if self.bytes > 0 && stat.f_blocks > 0 {
            let needed = self.bytes.unsigned_abs();
            let keep = min_free.bytes(bytes(stat.f_blocks));
            // Root may use what is reserved for it, but an operator's limit is about what `df` shows.
            let reserved = rustix::process::geteuid().is_root() && keep == 0;
            let free = bytes(if reserved { stat.f_bfree } else { stat.f_bavail });
            if needed.saturating_add(keep) > free {
                return Err(PullError::NoSpace { path: self.path.clone(), needed, free, keep });
            }
        }
        if self.inodes > 0 && stat.f_files > 0 && self.inodes.unsigned_abs() > stat.f_favail {
            let needed = self.inodes.unsigned_abs();
            return Err(PullError::NoInodes { path: self.path.clone(), needed, free: stat.f_favail });
        }
        Ok(())
    }
}

fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// The index of the root's volume.
const ROOT: usize = 0;
/// Number of bytes of local facts for each row of a list, at least.
const LOCAL_FACTS: i64 = 40;
/// Blocks are not larger than this, whatever a file system says.
const LARGEST_BLOCK: u64 = 64 << 10;

const BTRFS: u32 = 0x9123_683e;
const ZFS: u32 = 0x2fc1_2fc1;
const BCACHEFS: u32 = 0xca45_1a4e;
const F2FS: u32 = 0xf2f5_2010;
const XFS: u32 = 0x5846_5342;
const OVERLAYFS: u32 = 0x794c_7630;
/// Types of file systems that may store a small file in less than a block.
const PACKING: [u32; 4] = [BTRFS, ZFS, BCACHEFS, F2FS];
/// Types of file systems that may share blocks between files.
const SHARING: [u32; 5] = [BTRFS, ZFS, BCACHEFS, XFS, OVERLAYFS];
