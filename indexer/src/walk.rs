//! Finds the differences between the tree and the previous generation.
//!
//! [`Walk::whole_tree`] lists all directories. [`Walk::named_paths`] only looks at the paths that were given to
//! [`Walk::with_named`]. Both return [`Findings`].

mod below;
mod findings;
mod named;

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use rustix::io::Errno;
use stillmirror_protocol::entry::Time;
use stillmirror_protocol::list::{FileType, ListRef, Row};
use stillmirror_protocol::local::{LocalRef, Pooled};
use stillmirror_protocol::path;
use stillmirror_store::POOL_IN_TREE;

use crate::options::{Options, STAGING, Specials, Unreadable};
use crate::owners::Owners;
use crate::report::Progress;
use crate::scrub::Rereads;
use crate::tree::{self, Facts, Tree};

use below::Pending;
use findings::DirFindings;

pub(crate) use findings::{Findings, Found, Lost};

/// The previous generation, with which the tree is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Old<'a> {
    pub(crate) list: ListRef<'a>,
    pub(crate) local: LocalRef<'a>,
    /// When the generation was created. Inodes that were born later are not in it.
    pub(crate) created: Time,
    /// Files that are read although they are unchanged.
    pub(crate) rereads: &'a Rereads,
}

/// What the disk says about one name.
#[derive(Clone, Copy)]
struct Look<'a> {
    name: &'a [u8],
    facts: &'a Facts,
    /// Whether the caller has named this very path as changed.
    is_named: bool,
}

/// The context of a walk.
pub(crate) struct Walk<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) options: &'a Options,
    /// Paths that are left out, whatever the filter says.
    pub(crate) excluded: Vec<Vec<u8>>,
    pub(crate) old: Option<Old<'a>>,
    /// The paths that the caller has named as changed. A named file is read even if its times are unchanged,
    /// because the caller may know better.
    pub(crate) named: HashSet<Vec<u8>>,
    /// The user and group IDs of the owners in the old list, by the owner's number. `None` if their names
    /// have changed.
    pub(crate) old_owners: Vec<Option<(u32, u32)>>,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) stop: &'a AtomicBool,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(
        tree: &'a Tree,
        options: &'a Options,
        below_root: Vec<Vec<u8>>,
        old: Option<Old<'a>>,
        owners: &Owners,
        progress: &'a dyn Progress,
        stop: &'a AtomicBool,
    ) -> Self {
        let own = [STAGING, POOL_IN_TREE].map(|name| name.as_bytes().to_vec());
        let excluded = own.into_iter().chain(below_root).collect();
        let old_owners = old.map_or_else(Vec::new, |old| owners.of_list(old.list));
        Self { tree, options, excluded, old, named: HashSet::new(), old_owners, progress, stop }
    }

    /// Sets the paths that the caller has named as changed.
    pub(crate) fn with_named(self, paths: &[Vec<u8>]) -> Self {
        Self { named: paths.iter().cloned().collect(), ..self }
    }

    /// Walks the whole tree. Fails if the root cannot be read.
    pub(crate) fn whole_tree(&self) -> Result<Findings, Errno> {
        let mut findings = Findings::default();
        self.consider_root(&mut findings)?;
        let old = self.old.map(|_| 0);
        findings.absorb(self.below(vec![Pending { path: Vec::new(), old }]));
        findings.root_listed()
    }

    fn consider_root(&self, findings: &mut Findings) -> Result<(), Errno> {
        let facts = self.tree.look(b"")?.ok_or(Errno::NOENT)?;
        match self.old.filter(|old| self.same_facts(old.list.row(0), &facts)) {
            // The daemon recognizes a generation's tree by the root's inode.
            Some(old) if old.local.last_seen(0).inode_key() != facts.identity.inode_key() => {
                findings.local_only.push((0, facts));
            }
            Some(_) => {}
            None => {
                let old = self.old.map(|_| 0);
                findings.root = Some(Found { name: Vec::new(), facts, old, is_to_be_read: false, target: Vec::new() });
            }
        }
        Ok(())
    }

    /// Records that a name could not be examined, because it is gone or cannot be read.
    fn failed(
        &self,
        findings: &mut Findings,
        differs: &mut DirFindings,
        dir: &[u8],
        name: &[u8],
        row: Option<Row<'_>>,
        error: Errno,
    ) {
        let gone = tree::is_gone(error);
        if !gone {
            findings.problem(path::join(dir, name), error);
        }
        if row.is_some() && (gone || self.options.unreadable == Unreadable::LeaveOut) {
            differs.removed.push(name.to_vec());
        }
    }

    /// Returns whether the caller has named this very path as changed, and not only a directory above it.
    fn is_named(&self, path: &[u8]) -> bool {
        self.named.contains(path)
    }

    /// Returns whether a path belongs to the repository.
    fn wants(&self, path: &[u8], name: &[u8], facts: &Facts) -> bool {
        let special = facts.file_type().is_none_or(FileType::is_special);
        let excluded = |excluded: &Vec<u8>| excluded.ends_with(name) && excluded == path;
        let skipped = special && self.options.specials == Specials::Skip;
        !skipped && !self.excluded.iter().any(excluded) && self.options.filter.keeps(path, facts.is_dir())
    }

    /// Compares a name with the row that had it. Fails only if a symlink's target cannot be read.
    fn consider(
        &self,
        findings: &mut Findings,
        differs: &mut DirFindings,
        Look { name, facts, is_named }: Look<'_>,
        row: Option<Row<'_>>,
        target: impl FnOnce() -> Result<Vec<u8>, Errno>,
    ) -> Result<(), Errno> {
        let kind = facts.file_type();
        let is_reread = |row: Row<'_>| self.old.is_some_and(|old| old.rereads.includes(row, old.local));
        let is_to_be_read = facts.is_file() && (is_named || row.is_some_and(is_reread));
        let mut read = Vec::new();
        if let (Some(row), Some(old)) = (row.filter(|row| self.same_facts(*row, facts)), self.old) {
            let same_inode = old.local.last_seen(row.number()) == facts.identity && !is_to_be_read;
            if !same_inode && kind == Some(FileType::Symlink) {
                read = target()?;
            }
            let local_only = !same_inode && !facts.is_file() && row.target().is_none_or(|target| target == read);
            if local_only {
                findings.local_only.push((row.number(), *facts));
            }
            if same_inode || local_only {
                // The facts are those of the index, so the pool still has the link that it had then.
                let in_pool = u32::from(old.local.pooled(row.number()) == Pooled::Link);
                if !facts.is_dir() && (facts.links > 1 + in_pool || row.link_leader().is_some()) {
                    findings.linked.push((row.number(), *facts));
                }
                return Ok(());
            }
        } else if kind == Some(FileType::Symlink) {
            read = target()?;
        }
        let (name, old) = (name.to_vec(), row.map(|row| row.number()));
        let found = Found { name, facts: *facts, old, is_to_be_read, target: read };
        differs.found.push(found);
        Ok(())
    }

    /// Returns whether a row agrees with what `stat` tells about an entry.
    fn same_facts(&self, row: Row<'_>, facts: &Facts) -> bool {
        row.mode() == facts.mode
            && row.mtime() == facts.mtime
            && self.old_owners[row.owner_number() as usize] == Some((facts.uid, facts.gid))
            && (!facts.is_file() || row.size() == facts.size)
            && row.device().is_none_or(|device| device == facts.device)
    }
}
