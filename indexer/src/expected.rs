//! Determines which of the found files have a content that is already indexed, so that they need not be read.
//! If such a file is read all the same, this is the content that it is expected to have.
//!
//! A found file has the content of a row if it has the row's inode, size and times. Its name does not matter.
//! If only its ctime is later, something has happened to the inode, and the file system does not record what.
//! It is considered harmless if there is a trace of a harmless operation: another mode or owner, another
//! number of links, or another name. Without such a trace, the file is read.
//!
//! The inode number of a removed file is given to a new file, and trees are full of files of equal size and
//! time. So the inode must have existed when the row was written: its birth time must not be later than the
//! ctime in the row.

use std::collections::{HashMap, HashSet};

use stillmirror_protocol::entry::READ_BY_OTHERS;
use stillmirror_protocol::list::Row;
use stillmirror_protocol::local::RelativeDevice;
use stillmirror_protocol::path;

use crate::options::{CtimeRule, Options};
use crate::tree::{Facts, Tree};
use crate::walk::{Findings, Found, Old};

/// An inode, as rows identify it.
type InodeKey = (RelativeDevice, u64);

/// The expected contents of found files, by the file's index among all found names.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    rows: HashMap<usize, Expectation>,
}

/// The content that a found file is expected to have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expectation {
    /// The row of the old list that has this content.
    pub(crate) row: u32,
    /// Whether the file is read nevertheless.
    pub(crate) is_checked: bool,
    /// Whether a different content can only be rot, because nothing has written to the file since the row was
    /// written.
    pub(crate) is_certain: bool,
}

impl Expected {
    /// Determines the expected contents of all found files.
    pub(crate) fn of(findings: &Findings, old: Old<'_>, tree: &Tree, options: &Options) -> Self {
        let traces = Traces::of(findings, old);
        let elsewhere = rows_of(&inodes_elsewhere(findings, old, &traces), old);
        let judge = Judge { old, options, traces };
        let files = findings.found().filter(|(_, _, found)| found.facts.is_file());
        let row_of = |found: &Found| {
            let own = found.old.filter(|&row| judge.has_content_of(row, &found.facts, true));
            let key = found.facts.identity.inode_key();
            let others = || elsewhere.get(&key).into_iter().flatten().copied();
            own.or_else(|| others().find(|&row| judge.has_content_of(row, &found.facts, false)))
        };
        let must_be_read = |row: u32, dir: &[u8], found: &Found| {
            judge.has_other_permissions(old.list.row(row), &found.facts)
                && (judge.may_be_kept_now(row, &found.facts) || tree.open_file(&path::join(dir, &found.name)).is_err())
        };
        let rows = files.filter_map(|(at, dir, found)| {
            let row = row_of(found)?;
            let is_reread = found.is_to_be_read || old.rereads.includes(old.list.row(row), old.local);
            let is_checked = is_reread || must_be_read(row, dir, found);
            let is_certain = old.local.last_seen(row) == found.facts.identity || old.local.is_rotten(row);
            Some((at, Expectation { row, is_checked, is_certain }))
        });
        Self { rows: rows.collect() }
    }

    /// Returns what the found file with this index is expected to contain. `None` if that is unknown.
    pub(crate) fn at(&self, found: usize) -> Option<Expectation> {
        self.rows.get(&found).copied()
    }
}

/// Inodes that have gained or lost names.
struct Traces {
    /// Inodes with a name that is new, or that belonged to another inode.
    appeared: HashSet<InodeKey>,
    /// Inodes that have lost one of several names.
    vanished: HashSet<InodeKey>,
}

impl Traces {
    fn of(findings: &Findings, old: Old<'_>) -> Self {
        let files = findings.found().map(|(_, _, found)| found).filter(|found| found.facts.is_file());
        let appeared = files.filter_map(|found| {
            let key = found.facts.identity.inode_key();
            let is_known = found.old.is_some_and(|row| old.local.last_seen(row).inode_key() == key);
            (!is_known).then_some(key)
        });
        let appeared = appeared.collect();
        let names = findings.dirs.iter().flat_map(|(dir, differs)| differs.removed.iter().map(move |name| (dir, name)));
        let removed = names.filter_map(|(dir, name)| old.list.find(dir)?.dir_number().map(|dir| (dir, name)));
        let rows = removed.filter_map(|(dir, name)| old.list.dir(dir).child(name));
        let linked = rows.filter(|row| row.is_file() && row.link_leader().is_some());
        let vanished = linked.map(|row| old.local.last_seen(row.number()).inode_key()).collect();
        Self { appeared, vanished }
    }
}

/// Returns the inodes that may be in the old list under other names. Inodes that were born after the old list
/// was created are not among them.
fn inodes_elsewhere(findings: &Findings, old: Old<'_>, traces: &Traces) -> HashSet<InodeKey> {
    let files = findings.found().map(|(_, _, found)| found.facts).filter(Facts::is_file);
    let older = files.filter(|facts| facts.born.is_none_or(|born| born <= old.created));
    let keys = older.map(|facts| facts.identity.inode_key());
    keys.filter(|key| traces.appeared.contains(key)).collect()
}

/// Returns the rows of the old list that are regular files with one of these inodes. Reads the whole list,
/// unless `inodes` is empty.
fn rows_of(inodes: &HashSet<InodeKey>, old: Old<'_>) -> HashMap<InodeKey, Vec<u32>> {
    let mut rows: HashMap<InodeKey, Vec<u32>> = HashMap::new();
    let all = if inodes.is_empty() { 0..0 } else { 0..old.list.len() };
    for row in all {
        let key = old.local.last_seen(row).inode_key();
        if inodes.contains(&key) && old.list.row(row).is_file() {
            rows.entry(key).or_default().push(row);
        }
    }
    rows
}

struct Judge<'a> {
    old: Old<'a>,
    options: &'a Options,
    traces: Traces,
}

impl Judge<'_> {
    /// Returns whether a file has the content of a row. `is_own` tells whether the file has the row's name.
    fn has_content_of(&self, row: u32, facts: &Facts, is_own: bool) -> bool {
        let (was, row) = (self.old.local.last_seen(row), self.old.list.row(row));
        let is_like = row.is_file() && row.size() == facts.size && row.mtime() == facts.mtime;
        if !is_like || was.inode_key() != facts.identity.inode_key() {
            return false;
        }
        if was == facts.identity {
            return true;
        }
        // A row only says that a file was on another device, not on which one. It may be a different device
        // now, with the same inode number.
        let is_old_inode = was.device == RelativeDevice::Roots && facts.born.is_some_and(|born| born <= was.ctime);
        if self.old.local.is_rotten(row.number()) {
            // A later ctime does not mean that the file was repaired. A new mtime would mean that its content
            // is intended.
            return is_own || is_old_inode;
        }
        let is_later = facts.identity.ctime > was.ctime;
        match self.options.ctime {
            CtimeRule::Strict => false,
            CtimeRule::Explained => is_old_inode && is_later && self.is_explained(row, facts),
            CtimeRule::Ignored => is_own || is_old_inode,
        }
    }

    /// Returns whether the file's mode or owner differs from the row's. The indexer may no longer be allowed
    /// to read it.
    fn has_other_permissions(&self, row: Row<'_>, facts: &Facts) -> bool {
        let owner = row.owner();
        row.mode() != facts.mode || (owner.uid, owner.gid) != (facts.uid, facts.gid)
    }

    /// Returns whether the content of a small file is kept from now on, because everybody may read it now.
    fn may_be_kept_now(&self, row: u32, facts: &Facts) -> bool {
        let was = self.old.list.row(row);
        let is_open_now = was.mode() & READ_BY_OTHERS == 0 && facts.mode & READ_BY_OTHERS != 0;
        let record = was.file_number().and_then(|file| self.old.local.record(file)).unwrap_or_default();
        is_open_now && record.content == 0 && facts.size <= self.options.kept_content()
    }

    /// Returns whether there is a trace of an operation that sets an inode's ctime without changing its
    /// content.
    fn is_explained(&self, row: Row<'_>, facts: &Facts) -> bool {
        let key = facts.identity.inode_key();
        self.has_other_permissions(row, facts)
            || self.old.local.links(row.number()).is_some_and(|links| links != facts.links)
            || self.traces.appeared.contains(&key)
            || self.traces.vanished.contains(&key)
    }
}
