//! What to do: a pure function of what is wanted, what is there, and what the last pull knew.

use std::collections::{BTreeMap, HashMap, HashSet};

use stillmirror_protocol::entry::{Digest, Time};
use stillmirror_protocol::list::{FileType, ListRef};
use stillmirror_protocol::local::RelativeDevice;
use stillmirror_protocol::path;

use crate::facts::{Extra, Fact, Facts};
use crate::report::Action;
use crate::selection::Selection;

/// What a plan is made from.
pub(crate) struct Inputs<'a> {
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) facts: &'a Facts,
    /// The list that the last pull left, which knows the digests of local files.
    pub(crate) held: Option<ListRef<'a>>,
    /// Whether what the list does not have goes.
    pub(crate) delete: bool,
    /// Whether devices, fifos and sockets are made.
    pub(crate) specials: bool,
    /// Whether a digest that the last pull knew may be believed unread.
    pub(crate) believe: bool,
}

/// Everything that makes the local tree what the list says. Rows are the list's.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Directories to make, parents first.
    pub(crate) directories: Vec<u32>,
    /// Contents to bring.
    pub(crate) fetches: Vec<Fetch>,
    /// Hard links to make: the name and the name it becomes a link of.
    pub(crate) links: Vec<(u32, u32)>,
    /// Symlinks and specials to make.
    pub(crate) others: Vec<u32>,
    /// Entries of which only mode, owner or time are wrong.
    pub(crate) metadata: Vec<u32>,
    /// Names to delete.
    pub(crate) deletes: Vec<Vec<u8>>,
}

/// One content to bring.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fetch {
    /// The first row that wants it.
    pub(crate) row: u32,
    /// Further rows that want the same content, and are files of their own.
    pub(crate) copies: Vec<u32>,
    /// Local files that have the content.
    pub(crate) reuse: Vec<Reuse>,
    /// Local files that may have parts of it, the likeliest first.
    pub(crate) bases: Vec<Vec<u8>>,
}

/// A local file that has a wanted content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reuse {
    pub(crate) path: Vec<u8>,
    /// What it must still look like.
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    /// Its name goes, or becomes another file: it can be renamed.
    pub(crate) goes: bool,
    /// Its content is known; else it is a guess from size and time, and must be read.
    pub(crate) sure: bool,
}

impl Plan {
    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The plan as a list of actions with local paths, for people.
    pub(crate) fn actions(&self, selection: &Selection<'_>) -> Vec<(Action, Vec<u8>)> {
        let of = |action: Action, row: u32| (action, selection.path(row));
        let mut actions: Vec<_> = self.directories.iter().map(|&row| of(Action::MakeDirectory, row)).collect();
        for fetch in &self.fetches {
            let action = if fetch.reuse.is_empty() { Action::Fetch } else { Action::Reuse };
            actions.push(of(action, fetch.row));
            actions.extend(fetch.copies.iter().map(|&row| of(Action::Reuse, row)));
        }
        actions.extend(self.links.iter().map(|&(row, _)| of(Action::Link, row)));
        actions.extend(self.others.iter().map(|&row| {
            let is_symlink = selection.list.row(row).file_type() == FileType::Symlink;
            of(if is_symlink { Action::Symlink } else { Action::Special }, row)
        }));
        actions.extend(self.metadata.iter().map(|&row| of(Action::Metadata, row)));
        actions.extend(self.deletes.iter().map(|path| (Action::Delete, path.clone())));
        actions
    }

    /// Bytes of the contents that no local file is known to have.
    pub(crate) fn bytes_to_fetch(&self, list: ListRef<'_>) -> u64 {
        let missing = self.fetches.iter().filter(|fetch| fetch.reuse.is_empty());
        missing.map(|fetch| list.row(fetch.row).size()).fold(0, u64::saturating_add)
    }
}

/// Makes the plan.
pub(crate) fn plan(inputs: &Inputs<'_>) -> Plan {
    let mut plan = Plan::default();
    let list = inputs.selection.list;
    if inputs.facts.root.is_some_and(|root| !root.metadata) {
        plan.metadata.push(inputs.selection.root.row());
    }
    let mut wanted = Vec::new();
    let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let apart = apart(inputs);
    for (&row, fact) in inputs.selection.rows.iter().zip(&inputs.facts.rows) {
        let entry = list.row(row);
        let right = fact.is_some_and(|fact| fact.content) && !apart.contains(&row);
        match entry.file_type() {
            FileType::Directory if right => {}
            FileType::Directory => plan.directories.push(row),
            kind if kind.is_special() && !inputs.specials => continue,
            kind => match entry.link_leader() {
                Some(leader) => groups.entry(leader).or_default().push(row),
                None if right => {}
                None if kind == FileType::File => wanted.push(row),
                None => plan.others.push(row),
            },
        }
        if right && fact.is_some_and(|fact| !fact.metadata) {
            plan.metadata.push(row);
        }
    }
    for members in groups.into_values() {
        let Some(row) = join_group(inputs, &members, &apart, &mut plan.links) else { continue };
        if list.row(row).is_file() { wanted.push(row) } else { plan.others.push(row) }
    }
    wanted.sort_unstable();
    plan.others.sort_unstable();
    if inputs.delete {
        plan.deletes = inputs.facts.extra.iter().map(|extra| extra.path.clone()).collect();
    }
    plan.fetches = fetches(inputs, &wanted, &plan.links);
    plan
}

/// Names of one inode that the list has with different modes, owners or times: all but those of one look
/// need inodes of their own, whatever their content. (What differs in nothing may share an inode, as rsync
/// has it: the operator may have linked it to save space.)
fn apart(inputs: &Inputs<'_>) -> HashSet<u32> {
    let list = inputs.selection.list;
    let looks = |row: u32| (list.row(row).mode(), list.row(row).mtime(), list.row(row).owner_number());
    let shared = inputs.selection.rows.iter().zip(&inputs.facts.rows).filter_map(|(&row, fact)| {
        let fact = fact.filter(|fact| fact.shared && fact.content && fact.kind != FileType::Directory)?;
        Some((row, fact))
    });
    let mut owners: HashMap<(RelativeDevice, u64), (u32, bool)> = HashMap::new();
    for (row, fact) in shared.clone() {
        let owner = owners.entry(fact.identity.inode_key()).or_insert((row, fact.metadata));
        if fact.metadata && !owner.1 {
            // It keeps the inode which has all that is wanted of it.
            *owner = (row, true);
        }
    }
    let parted = shared.filter(|(row, fact)| {
        let owner = owners.get(&fact.identity.inode_key());
        owner.is_some_and(|&(owner, _)| looks(owner) != looks(*row))
    });
    parted.map(|(row, _)| row).collect()
}

/// Makes one inode of a link group's names: of the first that is right, else of the first, which is then
/// to be made.
fn join_group(inputs: &Inputs<'_>, members: &[u32], apart: &HashSet<u32>, links: &mut Vec<(u32, u32)>) -> Option<u32> {
    let right = |row: u32, fact: &Fact| fact.content && !apart.contains(&row);
    let fact = |row: u32| inputs.facts.rows[inputs.selection.index(row)?].filter(|fact| right(row, fact));
    let right = members.iter().copied().find(|&row| fact(row).is_some());
    let leader = right.or_else(|| members.first().copied())?;
    let inode = |row: u32| fact(row).map(|fact| fact.identity.inode_key());
    let other = |row: &u32| *row != leader && (right.is_none() || inode(*row) != inode(leader));
    links.extend(members.iter().filter(|row| other(row)).map(|&row| (row, leader)));
    right.is_none().then_some(leader)
}

/// Groups wanted rows by content, and finds local files that have it, or parts of it.
fn fetches(inputs: &Inputs<'_>, wanted: &[u32], links: &[(u32, u32)]) -> Vec<Fetch> {
    let list = inputs.selection.list;
    let mut fetches: Vec<Fetch> = Vec::new();
    let mut by_digest: HashMap<Digest, usize> = HashMap::new();
    for &row in wanted {
        let next = fetches.len();
        let at = *by_digest.entry(list.row(row).sha256()).or_insert(next);
        if at == next {
            fetches.push(Fetch { row, ..Fetch::default() });
        } else {
            fetches[at].copies.push(row);
        }
    }
    if fetches.is_empty() {
        return fetches;
    }
    let replaced: HashSet<u32> = wanted.iter().copied().chain(links.iter().map(|&(row, _)| row)).collect();
    find_reuse(inputs, &replaced, &by_digest, &mut fetches);
    let siblings = Siblings::new(inputs);
    for fetch in &mut fetches {
        let own = inputs.selection.path(fetch.row);
        let fact = inputs.selection.index(fetch.row).and_then(|index| inputs.facts.rows[index]);
        let similar = siblings.most_like(&own);
        if fact.is_some_and(|fact| fact.kind == FileType::File && fact.size > 0) {
            fetch.bases.push(own);
        }
        fetch.bases.extend(similar);
    }
    fetches
}

/// Finds local files whose content is wanted: by the digests of the last pull, by what is right already
/// under other names, and by size and time among the names that the list does not have.
fn find_reuse(inputs: &Inputs<'_>, replaced: &HashSet<u32>, by_digest: &HashMap<Digest, usize>, fetches: &mut [Fetch]) {
    let list = inputs.selection.list;
    let mut add = |at: usize, reuse: Reuse| {
        let known = &mut fetches[at].reuse;
        if known.len() < MAX_REUSE && !known.iter().any(|other| other.path == reuse.path) {
            known.push(reuse);
        }
    };
    if let Some(held) = inputs.held.filter(|_| inputs.believe) {
        let extra: HashSet<&[u8]> = inputs.facts.extra.iter().map(|extra| extra.path.as_slice()).collect();
        for row in (0..held.len()).map(|row| held.row(row)).filter(stillmirror_protocol::list::Row::is_file) {
            let Some(&at) = by_digest.get(&row.sha256()) else { continue };
            let path = held.path(row.number());
            let goes = match inputs.selection.find(&path) {
                Some(now) => replaced.contains(&now.number()),
                None => inputs.delete && has_ancestor_in(&path, &extra) && inputs.selection.owns_deep(&path),
            };
            add(at, Reuse { path, size: row.size(), mtime: row.mtime(), goes, sure: true });
        }
    }
    for (&row, fact) in inputs.selection.rows.iter().zip(&inputs.facts.rows) {
        let Some(fact) = fact.filter(|fact| fact.content && fact.kind == FileType::File) else { continue };
        if let Some(&at) = by_digest.get(&list.row(row).sha256()) {
            let path = inputs.selection.path(row);
            add(at, Reuse { path, size: fact.size, mtime: fact.mtime, goes: replaced.contains(&row), sure: true });
        }
    }
    let mut by_look: HashMap<(u64, Time), usize> = HashMap::new();
    for (&digest, &at) in by_digest {
        let row = list.row(fetches[at].row);
        debug_assert_eq!(row.sha256(), digest);
        if row.size() > 0 && fetches[at].reuse.is_empty() {
            by_look.insert((row.size(), row.mtime()), at);
        }
    }
    for Extra { path, file, .. } in &inputs.facts.extra {
        let Some((size, mtime)) = *file else { continue };
        if let Some(&at) = by_look.get(&(size, mtime)) {
            let known = &mut fetches[at].reuse;
            if known.len() < MAX_REUSE && !known.iter().any(|other| other.path == *path) {
                known.push(Reuse { path: path.clone(), size, mtime, goes: inputs.delete, sure: false });
            }
        }
    }
}

fn has_ancestor_in(path: &[u8], names: &HashSet<&[u8]>) -> bool {
    let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
    names.contains(path) || ends.into_iter().any(|end| names.contains(&path[..end]))
}

/// Local files by directory and by what stays of a name from one version to the next: its beginning up
/// to the first digit, and its suffix.
struct Siblings {
    names: HashMap<Vec<u8>, Vec<Vec<u8>>>,
}

impl Siblings {
    fn new(inputs: &Inputs<'_>) -> Self {
        let mut names: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
        let mut add = |path: Vec<u8>, size: u64| {
            if let Some(key) = family(&path).filter(|_| size >= MIN_SIMILAR) {
                let family = names.entry(key).or_default();
                if family.len() < MAX_FAMILY {
                    family.push(path);
                }
            }
        };
        // What is about to go is the likeliest former version, and so comes first.
        for Extra { path, file, .. } in &inputs.facts.extra {
            if let Some((size, _)) = file {
                add(path.clone(), *size);
            }
        }
        for (&row, fact) in inputs.selection.rows.iter().zip(&inputs.facts.rows) {
            if let Some(fact) = fact.filter(|fact| fact.kind == FileType::File && fact.size >= MIN_SIMILAR) {
                add(inputs.selection.path(row), fact.size);
            }
        }
        Self { names }
    }

    /// The local file in the same directory whose name shares the longest beginning and end.
    fn most_like(&self, path: &[u8]) -> Option<Vec<u8>> {
        let family = self.names.get(&family(path)?)?;
        let others = family.iter().filter(|other| other.as_slice() != path);
        // `max_by_key` takes the last of equals, and the first is the likeliest.
        others.rev().max_by_key(|other| shared(path, other)).cloned()
    }
}

fn family(file: &[u8]) -> Option<Vec<u8>> {
    let (_, name) = path::split(file);
    let stem = name.iter().position(u8::is_ascii_digit)?;
    let suffix = name.iter().rposition(|&byte| byte == b'.').filter(|&dot| dot > stem).unwrap_or(name.len());
    let beginning = &file[..file.len() - name.len() + stem];
    (stem >= MIN_STEM).then(|| [beginning, b"/", &name[suffix..]].concat())
}

fn shared(a: &[u8], b: &[u8]) -> usize {
    let beginning = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    beginning + end
}

/// Local files remembered for one content: one may have changed meanwhile.
const MAX_REUSE: usize = 4;
/// Names of one family: a directory of ten thousand builds of one package is searched no further.
const MAX_FAMILY: usize = 64;
/// Letters before the first digit that two names must share to be called similar.
const MIN_STEM: usize = 3;
/// Bytes below which a similar file is not worth looking at.
const MIN_SIMILAR: u64 = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_a_file_are_of_one_family() {
        let family = |path: &str| family(path.as_bytes());
        assert_eq!(family("pool/foo_1.2-1.deb"), family("pool/foo_1.2-2.deb"));
        assert_eq!(family("pool/foo_1.2-1.deb"), family("pool/foo_10.deb"));
        assert_ne!(family("pool/foo_1.deb"), family("other/foo_1.deb"));
        assert_ne!(family("pool/foo_1.deb"), family("pool/foo_1.dsc"));
        assert_eq!(family("by-hash/0123abcd"), None, "a hash is no version");
        assert_eq!(family("pool/README"), None);
    }

    #[test]
    fn of_a_family_the_closest_name_is_the_basis() {
        let siblings = Siblings {
            names: HashMap::from([(
                family(b"p/linux-6.1.3.tar").unwrap(),
                ["p/linux-5.10.tar", "p/linux-6.1.2.tar", "p/linux-6.0.tar"].map(std::convert::Into::into).to_vec(),
            )]),
        };
        assert_eq!(siblings.most_like(b"p/linux-6.1.3.tar"), Some(b"p/linux-6.1.2.tar".to_vec()));
        assert_eq!(siblings.most_like(b"p/README"), None);
    }
}
