//! Looks at the paths that the caller has named as changed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use stillmirror_protocol::list::Row;
use stillmirror_protocol::path;

use super::below::Pending;
use super::findings::{DirFindings, Findings};
use super::{Look, Old, Walk};

impl Walk<'_> {
    /// Looks at the named paths, at everything below those that are directories, and at other names of the
    /// same inodes and link groups. Looks at the directories above too, because their times change with the
    /// names in them.
    pub(crate) fn named_paths(&self, old: Old<'_>) -> Result<Findings, Errno> {
        let mut findings = Findings::default();
        self.consider_root(&mut findings)?;
        let mut seen = Seen::default();
        let mut paths: Vec<Vec<u8>> = self.named.iter().cloned().collect();
        while !paths.is_empty() && !self.stop.load(Ordering::Relaxed) {
            // Sorting puts parents before the paths below them.
            paths.sort_unstable();
            let pending = paths.iter().filter_map(|path| self.look_along(old, path, &mut seen, &mut findings));
            let pending: Vec<_> = pending.collect();
            findings.absorb(self.below(pending));
            paths = linked_paths(old, &findings, &seen);
        }
        findings.root_listed()
    }

    /// Looks at every directory on the way to a path, and at the path itself. Returns the first of them that
    /// must be listed with everything below it: the path itself, or a directory that is not in the old list.
    fn look_along(&self, old: Old<'_>, path: &[u8], seen: &mut Seen, findings: &mut Findings) -> Option<Pending> {
        if seen.listed.contains(&b""[..]) {
            return None;
        }
        let slashes = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
        for end in slashes.chain([path.len()]) {
            let here = &path[..end];
            if seen.listed.contains(here) {
                return None;
            }
            let is_dir = match seen.looked.get(here) {
                Some(&is_dir) => is_dir,
                None => {
                    let is_dir = here.is_empty() || self.look_at(here, old.list.find(here), findings);
                    seen.looked.insert(here.to_vec(), is_dir);
                    is_dir
                }
            };
            if !is_dir {
                // There is nothing below something that is not a directory, so the path itself counts as
                // looked at.
                seen.looked.entry(path.to_vec()).or_insert(false);
                return None;
            }
            let number = old.list.find(here).and_then(|row| row.dir_number());
            if end == path.len() || number.is_none() {
                seen.listed.insert(here.to_vec());
                return Some(Pending { path: here.to_vec(), old: number });
            }
        }
        None
    }

    /// Looks at one path. Returns whether it is a directory that belongs to the repository.
    fn look_at(&self, path: &[u8], row: Option<Row<'_>>, findings: &mut Findings) -> bool {
        let (dir, name) = path::split(path);
        let mut differs = DirFindings::default();
        let looked = match self.tree.look(path) {
            Ok(Some(facts)) if self.wants(path, name, &facts) => Ok(facts),
            Ok(_) => Err(Errno::NOENT),
            Err(error) => Err(error),
        };
        let looked = looked.and_then(|facts| {
            let look = Look { name, facts: &facts, is_named: self.is_named(path) };
            self.consider(findings, &mut differs, look, row, || self.tree.target(path))?;
            Ok(facts.is_dir())
        });
        let is_dir = looked.unwrap_or_else(|error| {
            self.failed(findings, &mut differs, dir, name, row, error);
            false
        });
        findings.add(dir, differs);
        is_dir
    }
}

/// The paths that have been looked at.
#[derive(Default)]
struct Seen {
    /// Single paths, and whether they are directories.
    looked: HashMap<Vec<u8>, bool>,
    /// Directories that were listed with everything below them.
    listed: HashSet<Vec<u8>>,
}

impl Seen {
    fn contains(&self, path: &[u8]) -> bool {
        let mut at = path;
        while !at.is_empty() {
            if self.listed.contains(at) {
                return true;
            }
            at = path::split(at).0;
        }
        self.looked.contains_key(path) || self.listed.contains(&b""[..])
    }
}

/// Returns the unseen paths of the old list that share an inode, or shared a link group, with something that
/// differs. Their own facts have changed too, although the caller need not have named them.
fn linked_paths(old: Old<'_>, findings: &Findings, seen: &Seen) -> Vec<Vec<u8>> {
    let mut inodes = HashSet::new();
    let mut leaders = HashSet::new();
    let mut gone_dirs = HashSet::new();
    let mut touch = |row: Row<'_>| {
        leaders.extend(row.link_leader());
        gone_dirs.extend(row.dir_number());
    };
    for (dir, differs) in &findings.dirs {
        for found in &differs.found {
            if found.facts.links > 1 && !found.facts.is_dir() {
                inodes.insert(found.facts.identity.inode_key());
            }
            found.old.map(|row| old.list.row(row)).filter(|_| !found.facts.is_dir()).into_iter().for_each(&mut touch);
        }
        for name in &differs.removed {
            old.list.find(&path::join(dir, name)).into_iter().for_each(&mut touch);
        }
    }
    // An entry that looks the same but has another inode may have left a group or joined one.
    for (row, facts) in findings.local_only.iter().filter(|(row, _)| !old.list.row(*row).is_dir()) {
        touch(old.list.row(*row));
        inodes.insert(facts.identity.inode_key());
    }
    if !gone_dirs.is_empty() {
        let below_gone = |row: u32| {
            let mut dir = old.list.parent_of(row);
            while dir.number() != 0 && !gone_dirs.contains(&dir.number()) {
                dir = old.list.dir(dir.parent());
            }
            dir.number() != 0
        };
        leaders.extend(old.list.links().filter(|&(row, _)| below_gone(row)).map(|(_, leader)| leader));
    }
    let mut rows: BTreeSet<u32> = BTreeSet::new();
    if !leaders.is_empty() {
        rows.extend(old.list.links().filter(|(_, leader)| leaders.contains(leader)).map(|(row, _)| row));
    }
    if !inodes.is_empty() {
        rows.extend((0..old.list.len()).filter(|&row| inodes.contains(&old.local.last_seen(row).inode_key())));
    }
    rows.into_iter().map(|row| old.list.path(row)).filter(|path| !seen.contains(path)).collect()
}
