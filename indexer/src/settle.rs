//! Turns the findings of a walk and the outcomes of reading into changes of the list.

use std::collections::{HashMap, HashSet};

use stillmirror_protocol::changes::{Changes, Op, Put};
use stillmirror_protocol::entry::{Digests, Entry, Kind, PERMISSIONS};
use stillmirror_protocol::list::{FileType, Row};
use stillmirror_protocol::local::{Identity, Pooled, RecordAt};
use stillmirror_protocol::path;

use crate::expected::Expected;
use crate::groups::{Member, Stays, regroup};
use crate::hash::{Outcome, Outcomes};
use crate::options::{Options, Unreadable};
use crate::owners::Owners;
use crate::pooling::Kept;
use crate::report::Problem;
use crate::tree::Facts;
use crate::walk::{Findings, Found, Lost, Old};

/// The differences between the previous generation and the next one.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// The changes of the list. Each put's tag is an index in `put_facts`.
    pub(crate) changes: Changes,
    /// The local facts of the puts.
    pub(crate) put_facts: Vec<LocalFacts>,
    /// The local facts of rows that stay in the list as they are, if the facts have changed.
    pub(crate) row_facts: HashMap<u32, LocalFacts>,
    pub(crate) added: u64,
    pub(crate) changed: u64,
    pub(crate) torn: Vec<Vec<u8>>,
    /// Files whose content differs from the list although nothing has written to them.
    pub(crate) rotten: Vec<Vec<u8>>,
    pub(crate) unreadable: Vec<Problem>,
}

/// What only this host knows about one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalFacts {
    pub(crate) identity: Identity,
    /// The number of the inode's names. `None` if it is unknown.
    pub(crate) links: Option<u32>,
    /// The location of a regular file's record, with pack 0 if there is no record. `None` for other entries.
    pub(crate) record: Option<RecordAt>,
    /// Whether the file's content was found to differ from the list.
    pub(crate) is_rotten: bool,
    /// How the pool keeps the file's content.
    pub(crate) pooled: Pooled,
}

impl LocalFacts {
    /// Creates local facts from what the disk says. `record` is `Some` exactly for regular files.
    pub(crate) fn of(facts: &Facts, record: Option<RecordAt>) -> Self {
        Self { identity: facts.identity, links: Some(facts.links), record, is_rotten: false, pooled: Pooled::Copy }
    }

    /// Returns the local facts of a row in the previous generation.
    pub(crate) fn of_row(old: Old<'_>, row: u32) -> Self {
        let Old { list, local, .. } = old;
        let record = list.row(row).file_number().map(|file| local.record(file).unwrap_or_default());
        let (is_rotten, pooled) = (local.is_rotten(row), local.pooled(row));
        Self { identity: local.last_seen(row), links: local.links(row), record, is_rotten, pooled }
    }
}

/// What is known of the contents of files.
pub(crate) struct Contents<'a> {
    pub(crate) outcomes: &'a Outcomes,
    pub(crate) expected: &'a Expected,
    /// How the pool keeps found files that were not put there when they were read. `None` for files that have changed.
    pub(crate) kept: &'a HashMap<usize, Option<Kept>>,
    /// How the pool keeps files at rows of the previous generation. Files that are found again are also in `kept`.
    pub(crate) filled: &'a HashMap<u32, Kept>,
}

/// Turns findings into changes.
pub(crate) fn settle(
    findings: Findings,
    contents: &Contents<'_>,
    old: Option<Old<'_>>,
    owners: &Owners,
    options: &Options,
) -> Settled {
    let mut settling = Settling {
        old,
        owners,
        options,
        settled: Settled { unreadable: findings.unreadable, ..Settled::default() },
        members: Vec::new(),
        rotten_inodes: HashSet::new(),
    };
    if let Some(root) = findings.root {
        let entry = settling.entry(&root.facts, Kind::Directory);
        let tag = settling.tag(LocalFacts::of(&root.facts, None));
        settling.settled.changes.root = Some(Put { entry, tag });
    }
    settling.add_filled(contents.filled);
    let mut at = 0;
    for (dir, differs) in findings.dirs {
        for found in differs.found {
            settling.add_found(&dir, found, contents, at);
            at += 1;
        }
        for name in differs.removed {
            settling.remove(&dir, &name);
        }
    }
    for (row, facts) in &findings.local_only {
        settling.settled.row_facts.insert(*row, LocalFacts::of(facts, None));
    }
    settling.add_linked(&findings.linked);
    settling.regroup();
    findings.lost.iter().for_each(|lost| settling.drop_lost(lost));
    settling.count();
    settling.settled
}

impl Settled {
    /// Returns whether the previous generation is still right.
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.row_facts.is_empty()
    }
}

struct Settling<'a> {
    old: Option<Old<'a>>,
    owners: &'a Owners,
    options: &'a Options,
    settled: Settled,
    /// Names whose link groups may have changed, and where they are.
    members: Vec<(Member, MemberAt)>,
    /// Device and inode of rotten files with several names.
    rotten_inodes: HashSet<(u64, u64)>,
}

/// Where a member of a link group is.
enum MemberAt {
    /// Among the puts, by directory and name.
    Put(Vec<u8>, Vec<u8>),
    /// In the old list, by row.
    Row(u32),
}

impl Settling<'_> {
    /// Adds unchanged rows whose contents were put into the pool. What is found there later replaces this.
    fn add_filled(&mut self, filled: &HashMap<u32, Kept>) {
        let Some(old) = self.old else { return };
        for (&row, Kept { pooled, after }) in filled {
            let was = LocalFacts::of_row(old, row);
            let mut is = LocalFacts { pooled: *pooled, ..was };
            if let Some(after) = after {
                (is.identity, is.links) = (after.identity, Some(after.links));
            }
            if is != was {
                self.settled.row_facts.insert(row, is);
            }
        }
    }

    fn add_found(&mut self, dir: &[u8], found: Found, contents: &Contents<'_>, at: usize) {
        let Found { name, facts, old, target, .. } = found;
        let (outcome, expected) = (contents.outcomes.of(at), contents.expected.at(at));
        let kind = match facts.file_type() {
            Some(FileType::Directory) => Kind::Directory,
            Some(FileType::Symlink) => Kind::Symlink { target },
            Some(FileType::CharDevice) => Kind::CharDevice(facts.device),
            Some(FileType::BlockDevice) => Kind::BlockDevice(facts.device),
            Some(FileType::Fifo) => Kind::Fifo,
            Some(FileType::Socket) => Kind::Socket,
            Some(FileType::File) => {
                let kept = match (contents.kept.get(&at), outcome) {
                    (Some(None), _) => return self.settled.torn.push(path::join(dir, &name)),
                    (Some(Some(kept)), _) | (None, Some(Outcome::Read { kept: Some(kept), .. })) => Some(kept),
                    (None, _) => None,
                };
                return match (outcome, expected) {
                    (None, Some(expected)) => self.add_expected(dir, name, &facts, old, expected.row, kept),
                    (Some(Outcome::Read { digests, facts: None, .. }), Some(expected))
                        if expected.is_certain && self.has_other_content(expected.row, digests) =>
                    {
                        self.add_rotten(dir, name, &facts, old, expected.row);
                    }
                    (outcome, _) => self.add_outcome(dir, name, &facts, old, outcome, kept),
                };
            }
            None => return,
        };
        let local = LocalFacts::of(&facts, None);
        self.put(dir, name, &facts, kind, local);
    }

    /// Adds a file by the outcome of reading it.
    fn add_outcome(
        &mut self,
        dir: &[u8],
        name: Vec<u8>,
        facts: &Facts,
        old: Option<u32>,
        outcome: Option<&Outcome>,
        kept: Option<&Kept>,
    ) {
        let leave_out = self.options.unreadable == Unreadable::LeaveOut;
        match outcome {
            Some(Outcome::Read { digests, record, facts: newer, .. }) => {
                let after = kept.and_then(|kept| kept.after.as_deref());
                let facts = after.or(newer.as_deref()).unwrap_or(facts);
                let pooled = kept.map_or(Pooled::Copy, |kept| kept.pooled);
                let local = LocalFacts { pooled, ..LocalFacts::of(facts, Some(*record)) };
                self.add_file(dir, name, facts, old, digests, local);
            }
            Some(Outcome::Unreadable(error)) => {
                let path = path::join(dir, &name);
                self.settled.unreadable.push(Problem { path, error: (*error).into() });
                if old.is_some() && leave_out {
                    self.remove(dir, &name);
                }
            }
            Some(Outcome::Gone) if old.is_some() => self.remove(dir, &name),
            Some(Outcome::Gone) => {}
            Some(Outcome::Torn) | None => self.settled.torn.push(path::join(dir, &name)),
        }
    }

    /// Returns whether `digests` differ from a row's.
    fn has_other_content(&self, row: u32, digests: &Digests) -> bool {
        self.old.is_some_and(|old| old.list.row(row).sha256() != digests.sha256)
    }

    /// Adds a file that has rotted. The list keeps the content that it should have.
    fn add_rotten(&mut self, dir: &[u8], name: Vec<u8>, facts: &Facts, old: Option<u32>, row: u32) {
        self.settled.rotten.push(path::join(dir, &name));
        if facts.links > 1 {
            self.rotten_inodes.insert(facts.inode());
        }
        self.add_content_of(row, dir, name, old, facts, |local| LocalFacts { is_rotten: true, ..local });
    }

    /// Adds a file that has the content of `row`.
    fn add_expected(
        &mut self,
        dir: &[u8],
        name: Vec<u8>,
        facts: &Facts,
        old: Option<u32>,
        row: u32,
        kept: Option<&Kept>,
    ) {
        let facts = kept.and_then(|kept| kept.after.as_deref()).unwrap_or(facts);
        self.add_content_of(row, dir, name, old, facts, |local| match kept {
            Some(kept) => LocalFacts { pooled: kept.pooled, ..local },
            None => local,
        });
    }

    /// Adds a file with the content of `row`, which it has, or should have if it is rotten.
    fn add_content_of(
        &mut self,
        row: u32,
        dir: &[u8],
        name: Vec<u8>,
        old: Option<u32>,
        facts: &Facts,
        local: impl Fn(LocalFacts) -> LocalFacts,
    ) {
        let Some(last) = self.old else { return };
        let LocalFacts { record, pooled, .. } = LocalFacts::of_row(last, row);
        if let Kind::File { digests, .. } = last.list.row(row).to_entry().kind {
            let local = local(LocalFacts { pooled, ..LocalFacts::of(facts, record) });
            self.add_file(dir, name, facts, old, &digests, local);
        }
    }

    /// Adds a file with these digests: its local facts if its row stays as it is, a put otherwise.
    fn add_file(
        &mut self,
        dir: &[u8],
        name: Vec<u8>,
        facts: &Facts,
        old: Option<u32>,
        digests: &Digests,
        local: LocalFacts,
    ) {
        let kind = Kind::File { size: facts.size, digests: *digests };
        let row = old.and_then(|row| Some(self.old?.list.row(row)));
        match row.filter(|row| is_entry(*row, &self.entry(facts, kind.clone()))) {
            Some(row) => {
                if self.old.is_none_or(|old| LocalFacts::of_row(old, row.number()) != local) {
                    self.settled.row_facts.insert(row.number(), local);
                }
                if facts.links > 1 || row.link_leader().is_some() {
                    self.add_staying_row(row, facts);
                }
            }
            None => self.put(dir, name, facts, kind, local),
        }
    }

    /// Adds unchanged rows that have or had several names.
    fn add_linked(&mut self, linked: &[(u32, Facts)]) {
        let Some(old @ Old { list, .. }) = self.old else { return };
        for (row, facts) in linked {
            if self.rotten_inodes.contains(&facts.inode()) {
                self.settled.rotten.push(list.path(*row));
                self.settled.row_facts.insert(*row, LocalFacts { is_rotten: true, ..LocalFacts::of_row(old, *row) });
            }
            self.add_staying_row(list.row(*row), facts);
        }
    }

    /// Adds a member for a row that stays as it is, unless its link group changes.
    fn add_staying_row(&mut self, row: Row<'_>, facts: &Facts) {
        let (device, inode) = facts.inode();
        let stays = Some(Stays { old_leader: row.link_leader() });
        self.members.push((Member { key: (device, inode, row.to_entry().kind), stays }, MemberAt::Row(row.number())));
    }

    /// Puts every name whose link group is not simply the rest of its old one.
    fn regroup(&mut self) {
        let places = std::mem::take(&mut self.members);
        let members: Vec<&Member> = places.iter().map(|(member, _)| member).collect();
        let all_seen = self.settled.unreadable.is_empty() && self.settled.torn.is_empty();
        for (at, link) in regroup(&members, all_seen) {
            match &places[at].1 {
                MemberAt::Put(dir, name) => {
                    let op = self.settled.changes.dirs.get_mut(dir).and_then(|ops| ops.get_mut(name));
                    if let Some(Op::Put(put)) = op {
                        put.entry.link = link;
                    }
                }
                MemberAt::Row(row) => self.put_row(*row, link),
            }
        }
    }

    /// Puts a row unchanged, but in another link group.
    fn put_row(&mut self, row: u32, link: Option<u64>) {
        let Some(old @ Old { list, .. }) = self.old else { return };
        let entry = Entry { link, ..list.row(row).to_entry() };
        let facts = self.settled.row_facts.remove(&row).unwrap_or_else(|| LocalFacts::of_row(old, row));
        let tag = self.tag(facts);
        let dir = list.parent_of(row);
        self.settled.changes.put(&dir.path(), dir.name_of(row), entry, tag);
    }

    /// Handles a directory that could not be listed. If its old entry is a directory that stays, a put of it
    /// stays too. Otherwise drops the put, and removes the old entry unless it stays.
    fn drop_lost(&mut self, lost: &Lost) {
        let (dir, name) = path::split(&lost.path);
        let was = self.old.and_then(|old| old.list.find(&lost.path));
        if lost.keeps_old && was.is_some_and(|row| row.is_dir()) {
            return;
        }
        let changes = &mut self.settled.changes;
        if let Some(ops) = changes.dirs.get_mut(dir) {
            ops.remove(name);
            if ops.is_empty() {
                changes.dirs.remove(dir);
            }
        }
        if was.is_some() && !lost.keeps_old {
            changes.remove(dir, name);
        }
    }

    fn put(&mut self, dir: &[u8], name: Vec<u8>, facts: &Facts, kind: Kind, local: LocalFacts) {
        let tag = self.tag(local);
        let entry = self.entry(facts, kind);
        let linked = (facts.links > 1 && !facts.is_dir()).then(|| entry.kind.clone());
        self.settled.changes.put(dir, &name, entry, tag);
        if let Some(kind) = linked {
            let (device, inode) = facts.inode();
            let member = Member { key: (device, inode, kind), stays: None };
            self.members.push((member, MemberAt::Put(dir.to_vec(), name)));
        }
    }

    /// Removes a name, unless it is put with another type.
    fn remove(&mut self, dir: &[u8], name: &[u8]) {
        let is_put = self.settled.changes.dirs.get(dir).is_some_and(|ops| ops.contains_key(name));
        if !is_put {
            self.settled.changes.remove(dir, name);
        }
    }

    fn entry(&self, facts: &Facts, kind: Kind) -> Entry {
        let owner = self.owners.get(facts.uid, facts.gid);
        Entry { mode: facts.mode & PERMISSIONS, mtime: facts.mtime, owner, link: None, kind }
    }

    fn tag(&mut self, facts: LocalFacts) -> u32 {
        self.settled.put_facts.push(facts);
        self.settled.put_facts.len() as u32 - 1
    }

    fn count(&mut self) {
        for (path, ops) in &self.settled.changes.dirs {
            let dir = self.old.and_then(|old| Some(old.list.dir(old.list.find(path)?.dir_number()?)));
            for (name, op) in ops {
                let Op::Put(Put { entry, .. }) = op else { continue };
                match dir.and_then(|dir| dir.child(name)) {
                    None => self.settled.added += 1,
                    Some(row) => self.settled.changed += u64::from(!is_same_directory(row, entry)),
                }
            }
        }
    }
}

/// Returns whether both are a directory, and differ at most in their time.
fn is_same_directory(row: Row<'_>, entry: &Entry) -> bool {
    row.is_dir() && entry.kind.is_dir() && row.permissions() == entry.mode && row.owner() == entry.owner
}

/// Returns whether a row and an entry are equal except for their link groups.
fn is_entry(row: Row<'_>, entry: &Entry) -> bool {
    Entry { link: None, ..row.to_entry() } == *entry
}
