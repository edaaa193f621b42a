//! Plans a pull. A plan is a pure function of the wanted list, the state of the local tree, and the list that the last
//! pull left.

mod reuse;
mod similar;

use std::collections::{BTreeMap, HashMap, HashSet};

use stillmirror_protocol::entry::Time;
use stillmirror_protocol::list::{FileType, ListRef};
use stillmirror_protocol::local::RelativeDevice;

use crate::facts::{Fact, Facts};
use crate::report::{Action, Options};
use crate::roots::FileAt;
use crate::selection::Selection;

use reuse::{ByDigest, add_bases_by_size, add_elsewhere, add_reuse};
use similar::Similar;

/// The inputs of a plan.
pub(crate) struct Inputs<'a> {
    pub(crate) selection: &'a Selection<'a>,
    pub(crate) facts: &'a Facts,
    /// The list that the last pull left. It has the digests of local files.
    pub(crate) held: Option<ListRef<'a>>,
    /// Whether names that the list does not have are deleted.
    pub(crate) delete: bool,
    pub(crate) options: &'a Options,
    /// Whether the inodes of local files have names in other trees, too.
    pub(crate) shares_inodes: bool,
    /// Rows that are left as they are, because a store is in their place.
    pub(crate) blocked: &'a HashSet<u32>,
    /// Whether the digests of the last pull are trusted without reading the files.
    pub(crate) trust_held: bool,
}

/// All the steps that bring the local tree to the state of the list. Rows are rows of that list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Directories to make, parents first.
    pub(crate) directories: Vec<u32>,
    /// Contents to bring.
    pub(crate) fetches: Vec<Fetch>,
    /// Hard links to make: each name, and the name that it becomes a link to.
    pub(crate) links: Vec<(u32, u32)>,
    /// Symlinks and specials to make.
    pub(crate) others: Vec<u32>,
    /// Entries of which only mode, owner or time is wrong.
    pub(crate) metadata: Vec<u32>,
    /// Names to delete.
    pub(crate) deletes: Vec<Vec<u8>>,
}

/// One content to bring.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Fetch {
    /// The first row that wants it.
    pub(crate) row: u32,
    /// Further rows that want the same content, and are files of their own.
    pub(crate) copies: Vec<u32>,
    /// Further names of `row`'s file.
    pub(crate) links: Vec<u32>,
    /// The row that the sender is asked for, if it is not `row`. Of an older list, if that is the sender's.
    pub(crate) asked: Option<u32>,
    /// Local files that have the content.
    pub(crate) reuse: Vec<Reuse>,
    /// Local files that may have parts of it, the likeliest first.
    pub(crate) bases: Vec<FileAt>,
}

/// A local file that has, or probably has, a wanted content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reuse {
    pub(crate) at: FileAt,
    /// Size and time that the file must still have when it is used.
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    /// Whether this name is deleted or replaced, so that the file can be moved.
    pub(crate) disappears: bool,
    /// Whether the content is known. Otherwise it is a guess from size and time, and must be read.
    pub(crate) is_certain: bool,
}

impl Fetch {
    /// Returns all rows that have the content.
    pub(crate) fn rows(&self) -> impl Iterator<Item = u32> {
        [self.row].into_iter().chain(self.links.iter().copied()).chain(self.copies.iter().copied())
    }

    /// Returns the row that the sender is asked for.
    pub(crate) fn asked_row(&self) -> u32 {
        self.asked.unwrap_or(self.row)
    }

    /// Returns the same fetch by the next name, without the local files that did not help. `None` if all were asked for.
    pub(crate) fn by_next_name(&self) -> Option<Self> {
        let next = self.rows().skip_while(|&row| row != self.asked_row()).nth(1);
        next.map(|row| self.asking(row))
    }

    /// Returns the same fetch by another row, without the local files that did not help.
    pub(crate) fn asking(&self, row: u32) -> Self {
        Self { asked: Some(row), reuse: Vec::new(), ..self.clone() }
    }
}

impl Plan {
    /// Returns whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether all that it does is to delete.
    pub(crate) fn only_deletes(&self) -> bool {
        !self.deletes.is_empty() && self.rows().next().is_none()
    }

    /// Returns the rows that it makes or changes.
    pub(crate) fn rows(&self) -> impl Iterator<Item = u32> {
        let fetches =
            self.fetches.iter().flat_map(|fetch| std::iter::once(fetch.row).chain(fetch.copies.iter().copied()));
        let links = self.links.iter().map(|&(row, _)| row);
        let others = self.directories.iter().chain(&self.others).chain(&self.metadata).copied();
        fetches.chain(links).chain(others)
    }

    /// Returns the plan as a list of actions with local paths, for users to read.
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

    /// Returns the total size in bytes of the contents that no local file is known to have.
    pub(crate) fn bytes_to_fetch(&self, list: ListRef<'_>) -> u64 {
        let missing = self.fetches.iter().filter(|fetch| fetch.reuse.is_empty());
        missing.map(|fetch| list.row(fetch.row).size()).fold(0, u64::saturating_add)
    }
}

/// Creates the plan.
pub(crate) fn plan(inputs: &Inputs<'_>) -> Plan {
    let mut plan = Plan::default();
    let list = inputs.selection.list;
    if inputs.facts.root.is_some_and(|root| !root.metadata_matches) {
        plan.metadata.push(inputs.selection.root.row());
    }
    let mut wanted = Vec::new();
    let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let own_inode = rows_that_need_own_inode(inputs);
    let selected = inputs.selection.rows.iter().zip(&inputs.facts.rows);
    for (&row, fact) in selected.filter(|(row, _)| !inputs.blocked.contains(row)) {
        let entry = list.row(row);
        let right = fact.is_some_and(|fact| fact.content_matches) && !own_inode.contains(&row);
        match entry.file_type() {
            FileType::Directory if right => {}
            FileType::Directory => plan.directories.push(row),
            kind if !inputs.options.takes(kind) => continue,
            kind => match entry.link_leader() {
                Some(leader) => groups.entry(leader).or_default().push(row),
                None if right => {}
                None if kind == FileType::File => wanted.push(row),
                None => plan.others.push(row),
            },
        }
        if right && fact.is_some_and(|fact| !fact.metadata_matches) {
            plan.metadata.push(row);
        }
    }
    for members in groups.into_values() {
        let Some(row) = join_group(inputs, &members, &own_inode, &mut plan.links) else { continue };
        if list.row(row).is_file() { wanted.push(row) } else { plan.others.push(row) }
    }
    wanted.sort_unstable();
    plan.others.sort_unstable();
    if inputs.delete {
        let doomed = inputs.facts.extra.iter().filter(|extra| extra.fate.is_doomed());
        plan.deletes = doomed.map(|extra| extra.path.clone()).collect();
    }
    plan.fetches = fetches(inputs, &wanted, &plan.links);
    plan
}

/// Returns the rows that need an inode of their own, whatever their content. They share an inode with other
/// names, but the list gives them a different mode, owner or time. (Names that do not differ may share an
/// inode, as with rsync: the operator may have linked them to save space.) The other names may lie in other snapshots.
fn rows_that_need_own_inode(inputs: &Inputs<'_>) -> HashSet<u32> {
    let list = inputs.selection.list;
    let looks = |row: u32| (list.row(row).mode(), list.row(row).mtime(), list.row(row).owner_number());
    let shared = inputs.selection.rows.iter().zip(&inputs.facts.rows).filter_map(|(&row, fact)| {
        let fact =
            fact.filter(|fact| fact.has_other_names && fact.content_matches && fact.kind != FileType::Directory)?;
        Some((row, fact))
    });
    let mut owners: HashMap<(RelativeDevice, u64), (u32, bool)> = HashMap::new();
    for (row, fact) in shared.clone() {
        let owner = owners.entry(fact.identity.inode_key()).or_insert((row, fact.metadata_matches));
        if fact.metadata_matches && !owner.1 {
            // The inode stays with a row whose metadata is right already.
            *owner = (row, true);
        }
    }
    let separate = shared.filter(|(row, fact)| {
        let owner = owners.get(&fact.identity.inode_key());
        let is_elsewhere = inputs.shares_inodes && !fact.metadata_matches;
        is_elsewhere || owner.is_some_and(|&(owner, _)| looks(owner) != looks(*row))
    });
    separate.map(|(row, _)| row).collect()
}

/// Joins the names of a link group: plans links to the first member that is right, or to the first member if
/// none is. Returns that first member, which then has to be made; `None` if nothing has to be made.
fn join_group(
    inputs: &Inputs<'_>,
    members: &[u32],
    own_inode: &HashSet<u32>,
    links: &mut Vec<(u32, u32)>,
) -> Option<u32> {
    let right = |row: u32, fact: &Fact| fact.content_matches && !own_inode.contains(&row);
    let fact = |row: u32| inputs.facts.rows[inputs.selection.index(row)?].filter(|fact| right(row, fact));
    let right = members.iter().copied().find(|&row| fact(row).is_some());
    let leader = right.or_else(|| members.first().copied())?;
    let inode = |row: u32| fact(row).map(|fact| fact.identity.inode_key());
    let other = |row: &u32| *row != leader && (right.is_none() || inode(*row) != inode(leader));
    links.extend(members.iter().filter(|row| other(row)).map(|&row| (row, leader)));
    right.is_none().then_some(leader)
}

/// Groups wanted rows by content, and finds local files that have the content or parts of it.
fn fetches(inputs: &Inputs<'_>, wanted: &[u32], links: &[(u32, u32)]) -> Vec<Fetch> {
    let list = inputs.selection.list;
    let mut fetches: Vec<Fetch> = Vec::new();
    let mut by_digest = ByDigest::new();
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
    for &(row, leader) in links {
        let at = by_digest.get(&list.row(leader).sha256()).copied().filter(|&at| fetches[at].row == leader);
        if let Some(at) = at {
            fetches[at].links.push(row);
        }
    }
    let replaced: HashSet<u32> = wanted.iter().copied().chain(links.iter().map(|&(row, _)| row)).collect();
    add_reuse(inputs, &replaced, &by_digest, &mut fetches);
    let paths: Vec<Vec<u8>> = fetches.iter().map(|fetch| inputs.selection.path(fetch.row)).collect();
    let similar = Similar::new(inputs, &paths);
    for (fetch, own) in fetches.iter_mut().zip(paths) {
        let fact = inputs.selection.index(fetch.row).and_then(|index| inputs.facts.rows[index]);
        let others = similar.to(&own);
        if fact.is_some_and(|fact| fact.kind == FileType::File && fact.size > 0) {
            fetch.bases.push(FileAt::dest(own));
        }
        fetch.bases.extend(others.into_iter().map(FileAt::dest));
    }
    add_elsewhere(inputs, &mut fetches);
    add_bases_by_size(inputs, &mut fetches);
    fetches
}
