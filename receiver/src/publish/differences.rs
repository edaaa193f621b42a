//! Describes how the tree differs from the sender's list, as changes to that list: entries that were not
//! selected, that failed, or that were to be deleted but remain.

use std::collections::{BTreeSet, HashMap, HashSet};

use stillmirror_protocol::changes::Changes;
use stillmirror_protocol::entry::Entry;
use stillmirror_protocol::list::{Dir, Row};
use stillmirror_protocol::local::{Identity, RelativeDevice};
use stillmirror_protocol::path;

use super::Publisher;
use crate::error::{At as _, PullError};
use crate::local::{same_time, self_and_ancestors};
use crate::report::Failure;

/// Changes to the sender's list. The tag of each put entry is its index in `put`.
#[derive(Default)]
pub(super) struct Differences {
    pub(super) changes: Changes,
    /// The identities of the put entries on disk.
    pub(super) put: Vec<Identity>,
}

impl Differences {
    fn put(&mut self, local: &[u8], entry: Entry, identity: Identity) {
        let (dir, name) = path::split(local);
        self.changes.put(dir, name, entry, self.put.len() as u32);
        self.put.push(identity);
    }
}

impl Publisher<'_> {
    /// Returns what the tree lacks of the sender's list, and what it has in addition.
    pub(super) fn differences(&self) -> Result<Differences, PullError> {
        let mut differences = Differences::default();
        self.remove_unwanted(&mut differences.changes);
        self.put_without_setid(&mut differences);
        if self.failed.is_empty() && self.kept.is_empty() {
            return Ok(differences);
        }
        let inodes = self.rows_by_inode();
        for (&row, &why) in self.failed.iter().filter(|(row, _)| !self.is_below_failed_directory(**row)) {
            self.put_failed(&mut differences, row, why, &inodes)?;
        }
        for local in self.kept {
            self.put_kept(&mut differences, local, &inodes)?;
        }
        Ok(differences)
    }

    fn remove_unwanted(&self, changes: &mut Changes) {
        // What is below a directory that failed is removed with it.
        let list = self.selection.list;
        let failed = self.failed.keys().filter(|&&row| list.row(row).is_dir());
        let failed: HashSet<Vec<u8>> = failed.map(|&row| self.selection.path(row)).collect();
        let is_gone = |path: &[u8]| !failed.is_empty() && self_and_ancestors(path).any(|dir| failed.contains(dir));
        for place in self.selection.dirs.iter().filter(|place| !is_gone(&place.path)) {
            for (name, row) in place.dir.children() {
                let skipped = !self.options.takes(row.file_type());
                if skipped || self.selection.index(row.number()).is_none() {
                    changes.remove(&place.path, name);
                }
            }
        }
    }

    /// Puts the files that did not get their setuid or setgid bits, as they are on disk. All names of a link group have
    /// the same mode, so a group is put as a whole.
    fn put_without_setid(&self, differences: &mut Differences) {
        let list = self.selection.list;
        for &row in &self.selection.rows {
            let entry = list.row(row);
            if self.attributes.clears_setid(entry) && !self.failed.contains_key(&row) {
                let link = entry.link_leader().map(|leader| (1 << 32) + u64::from(leader));
                let local = Entry { mode: self.attributes.mode(entry), link, ..entry.to_entry() };
                differences.put(&self.selection.path(row), local, self.identity(row));
            }
        }
    }

    /// Returns whether a directory above the row failed. Without the directory, nothing below it is listed.
    fn is_below_failed_directory(&self, row: u32) -> bool {
        let (list, root) = (self.selection.list, self.selection.root.row());
        let mut at = row;
        while at != root && at != 0 {
            at = list.parent_of(at).row();
            if self.failed.contains_key(&at) {
                return true;
            }
        }
        false
    }

    /// Puts the entry that the last pull left in the place of a failed row. If there is none, the row is
    /// removed.
    fn put_failed(
        &self,
        differences: &mut Differences,
        row: u32,
        why: Failure,
        inodes: &Inodes,
    ) -> Result<(), PullError> {
        let path = self.selection.path(row);
        let (dir, name) = path::split(&path);
        differences.changes.remove(dir, name);
        let before = self.held.and_then(|held| held.list().find(&path));
        let is_dir = self.selection.list.row(row).is_dir();
        if let Some(held) = before.filter(|held| why == Failure::InTheWay && held.is_dir() && !is_dir) {
            // Its contents are not listed any more, but the next pull must know that the directory exists.
            differences.put(&path, held.to_entry(), self.identity(row));
            return Ok(());
        }
        match self.held_unchanged(&path) {
            Some(held) if !is_dir && !held.is_dir() => self.put_current(differences, &path, held, inodes).map(drop),
            _ => Ok(()),
        }
    }

    /// Returns the entry that the last pull left at a path, if the disk agrees.
    fn held_unchanged(&self, local: &[u8]) -> Option<Row<'_>> {
        let held = self.held?.list().find(local)?;
        let index = self.selection.index(self.selection.find(local)?.number())?;
        let fact = self.facts.rows[index]?;
        let same = fact.kind == held.file_type() && fact.size == held.size() && same_time(fact.mtime, held.mtime());
        same.then_some(held)
    }

    /// Puts a held name and everything below it in addition to the sender's.
    fn put_kept(&self, differences: &mut Differences, local: &[u8], inodes: &Inodes) -> Result<(), PullError> {
        let Some(held) = self.held.map(stillmirror_store::Generation::list) else { return Ok(()) };
        let Some(row) = held.find(local) else { return Ok(()) };
        let mut rows = vec![(local.to_vec(), row)];
        while let Some((local, row)) = rows.pop() {
            if let (true, Some(number)) = (self.put_current(differences, &local, row, inodes)?, row.dir_number()) {
                // What the sender has there is not in the tree, if the directory is left out of a slice.
                let senders = self.selection.list.find(&path::join(&self.selection.root.path(), &local));
                let senders = senders.and_then(|row| row.dir_number()).map(|number| self.selection.list.dir(number));
                for (name, _) in senders.into_iter().flat_map(Dir::children) {
                    differences.changes.remove(&local, name);
                }
                rows.extend(held.dir(number).children().map(|(name, row)| (path::join(&local, name), row)));
            }
        }
        Ok(())
    }

    /// Puts a held name with its current state on disk. Returns false if nothing of its type has the name.
    fn put_current(
        &self,
        differences: &mut Differences,
        local: &[u8],
        held: Row<'_>,
        inodes: &Inodes,
    ) -> Result<bool, PullError> {
        let stat = self.tree.stat(local).at("stat", self.tree.shown(local))?;
        let Some(stat) = stat.filter(|stat| stat.kind == held.file_type()) else { return Ok(false) };
        let mut entry = held.to_entry();
        let rows = inodes.get(&self.tree.identity(&stat).inode_key());
        if let Some(rows) = rows.filter(|rows| self.selection.list.row(rows[0]).has_content_of(held)) {
            // The sender's list has another name for this content: both are one inode, with the mode and time
            // of the sender's name. The next pull must know, because a change to one name changes the ctime
            // of the other.
            let link = Some((1 << 32) + u64::from(rows[0]));
            for &row in rows {
                let member = Entry { link, ..self.selection.list.row(row).to_entry() };
                differences.put(&self.selection.path(row), member, self.identity(row));
            }
            let now = self.selection.list.row(rows[0]).to_entry();
            entry = Entry { link, kind: entry.kind, ..now };
        } else if held.is_file() && !(stat.size == held.size() && same_time(stat.mtime, held.mtime())) {
            // Someone else changed the file, so it must not be served.
            differences.put(local, entry, Identity::UNKNOWN);
            return Ok(true);
        }
        differences.put(local, entry, self.tree.identity(&stat));
        Ok(true)
    }

    /// Returns the rows whose inodes may have other names that remain.
    fn rows_by_inode(&self) -> Inodes {
        let facts = self.selection.rows.iter().zip(&self.facts.rows);
        let shared = facts.filter(|(_, fact)| fact.is_some_and(|fact| fact.has_other_names)).map(|(&row, _)| row);
        let rows: BTreeSet<u32> = shared.chain(self.committed.identities.keys().copied()).collect();
        let mut inodes = Inodes::new();
        for row in rows {
            if !self.selection.list.row(row).is_dir() && !self.failed.contains_key(&row) {
                inodes.entry(self.identity(row).inode_key()).or_default().push(row);
            }
        }
        inodes
    }
}

/// Rows of the sender's list, by device and inode.
type Inodes = HashMap<(RelativeDevice, u64), Vec<u32>>;
