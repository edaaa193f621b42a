//! Applies changes to a list. No other code builds lists.
//!
//! The new list is built breadth first. A directory at and below which nothing changes is copied column by column;
//! a changed one is merged from its old children and the changes.

use std::collections::{BTreeMap, HashMap, VecDeque};

use thiserror::Error;

use super::{Changes, Op, Put};
use crate::entry::{Device, Digests, Entry, Kind, Owner, Time};
use crate::list::{Dir, FLAG_LINKED, FileList, FileType, ListRef, Row};
use crate::{limits, order, path};

/// A list built by [`apply`], and the source of each of its rows.
#[derive(Debug)]
pub struct Applied {
    /// The new list.
    pub list: FileList,
    /// The source of each row of the new list, in row order.
    pub sources: Vec<Source>,
}

/// The source of a row of a new list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// This row of the old list, unchanged.
    Old(u32),
    /// The [`Put`] with this tag.
    Put(u32),
}

/// Why changes cannot be applied to a list.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ApplyError {
    /// There are changes below a path that is not a directory.
    #[error("changes below '{}', which is not a directory", path::Escaped(.0))]
    NoDirectory(Vec<u8>),
    /// There is neither an old list nor a put of the root.
    #[error("no root directory")]
    NoRoot,
    /// The new list would have more entries than [`limits::ENTRIES`], or more than 4 GiB of names in one directory.
    #[error("the list grows beyond its limits")]
    TooLarge,
}

/// Builds the list that results from applying `changes` to `old`. Without `old`, the changes must put the root.
///
/// Takes time linear in the length of the list and memory for one list.
pub fn apply(old: Option<ListRef<'_>>, changes: &Changes) -> Result<Applied, ApplyError> {
    apply_at(old.map(|list| list.dir(0)), old, changes)
}

/// Like [`apply`], with a directory of `old` as the new root.
pub fn apply_below(old: ListRef<'_>, root: Dir<'_>, changes: &Changes) -> Result<Applied, ApplyError> {
    apply_at(Some(old.dir(root.number())), Some(old), changes)
}

fn apply_at<'a>(root: Option<Dir<'a>>, old: Option<ListRef<'a>>, changes: &'a Changes) -> Result<Applied, ApplyError> {
    let trie = Trie::new(changes);
    let mut builder = Builder::new(old, changes, trie.nodes.len());
    match (&changes.root, root) {
        (Some(put), _) => builder.push_put(put),
        (None, Some(dir)) => builder.push_old(dir.row()),
        (None, None) => return Err(ApplyError::NoRoot),
    }
    builder.list.name_end.push(0);
    builder.list.dir_row.push(0);
    builder.list.dir_parent.push(0);

    let mut queue = VecDeque::from([Pending { old: root, changed: Some(0) }]);
    let mut number = 0;
    while let Some(Pending { old: dir, changed }) = queue.pop_front() {
        builder.begin_dir();
        match (changed.map(|at| &trie.nodes[at]), dir) {
            (None, Some(dir)) => builder.copy_dir(number, dir, &mut queue),
            (node, dir) => builder.merge_dir(number, dir, node, &mut queue)?,
        }
        number += 1;
        if builder.list.len() as u64 > limits::ENTRIES {
            return Err(ApplyError::TooLarge);
        }
    }
    if let Some(path) = trie.unvisited(&builder.visited) {
        return Err(ApplyError::NoDirectory(path));
    }
    builder.group_links();
    Ok(Applied { list: builder.list, sources: builder.sources })
}

/// A directory of the new list whose children are not built yet.
struct Pending<'a> {
    old: Option<Dir<'a>>,
    /// Its node in the trie, if anything at or below it changes.
    changed: Option<usize>,
}

/// The changed directories and their ancestors.
struct Trie<'a> {
    nodes: Vec<Node<'a>>,
}

#[derive(Default)]
struct Node<'a> {
    path: &'a [u8],
    /// The node's index in [`Trie::nodes`].
    number: usize,
    ops: Option<&'a BTreeMap<Vec<u8>, Op>>,
    below: HashMap<&'a [u8], usize>,
}

impl<'a> Trie<'a> {
    fn new(changes: &'a Changes) -> Self {
        let mut nodes = vec![Node::default()];
        for (path, ops) in &changes.dirs {
            let mut at = 0;
            let mut end = 0;
            for name in path::components(path) {
                end += name.len() + usize::from(end > 0);
                let next = nodes.len();
                let child = *nodes[at].below.entry(name).or_insert(next);
                if child == next {
                    nodes.push(Node { path: &path[..end], number: next, ..Node::default() });
                }
                at = child;
            }
            nodes[at].ops = Some(ops);
        }
        Self { nodes }
    }

    /// Returns the path of a directory that has changes but was not built.
    fn unvisited(&self, visited: &[bool]) -> Option<Vec<u8>> {
        let node = self.nodes.iter().find(|node| node.ops.is_some() && !visited[node.number])?;
        Some(node.path.to_vec())
    }
}

/// One child of a directory that is being merged.
enum Child<'a> {
    Old(Row<'a>),
    /// A put entry, and the old directory whose children it keeps.
    Put(&'a Put, Option<Dir<'a>>),
}

struct Builder<'a> {
    list: FileList,
    sources: Vec<Source>,
    old: Option<ListRef<'a>>,
    /// The new number of each owner of the old list, once it is used.
    old_owners: Vec<Option<u32>>,
    owners: HashMap<Owner, u32>,
    carry_xxh128: bool,
    carry_md5: bool,
    /// The rows of each link group. The key is `(false, leader)` for old groups and `(true, link number)` for put ones.
    groups: HashMap<(bool, u64), Vec<u32>>,
    /// By node number: whether the directory was built.
    visited: Vec<bool>,
}

impl<'a> Builder<'a> {
    fn new(old: Option<ListRef<'a>>, changes: &Changes, nodes: usize) -> Self {
        let (xxh128, md5) = carried(old, changes);
        let entries = old.map_or(0, |list| list.len() as usize) + changes.len();
        let list = FileList::with_capacity(entries, old);
        Self {
            list,
            sources: Vec::with_capacity(entries),
            old,
            old_owners: vec![None; old.map_or(0, |list| list.owners() as usize)],
            owners: HashMap::new(),
            carry_xxh128: xxh128,
            carry_md5: md5,
            groups: HashMap::new(),
            visited: vec![false; nodes],
        }
    }

    fn begin_dir(&mut self) {
        self.list.dir_first.push(self.list.len() as u32);
        self.list.dir_names.push(self.list.names.len() as u64);
    }

    /// Copies the children of a directory if nothing changes at or below it.
    fn copy_dir(&mut self, number: u32, dir: Dir<'a>, queue: &mut VecDeque<Pending<'a>>) {
        let Some(old) = self.old else { return };
        let names = self.list.names.len();
        for row in dir.files() {
            self.list.names.extend_from_slice(dir.name_of(row));
            self.list.name_end.push((self.list.names.len() - names) as u32);
            self.push_old(row);
        }
        for row in dir.subdirs() {
            self.list.names.extend_from_slice(dir.name_of(row));
            self.list.name_end.push((self.list.names.len() - names) as u32);
            self.list.dir_row.push(self.list.len() as u32);
            self.list.dir_parent.push(number);
            self.push_old(row);
            let below = old.row(row).dir_number().map(|number| old.dir(number));
            queue.push_back(Pending { old: below, changed: None });
        }
        self.list.dir_files.push(dir.files().len() as u32);
        self.list.dir_dirs.push(dir.subdirs().len() as u32);
    }

    /// Builds the children of a directory from its old children and the changes.
    fn merge_dir(
        &mut self,
        number: u32,
        dir: Option<Dir<'a>>,
        node: Option<&Node<'a>>,
        queue: &mut VecDeque<Pending<'a>>,
    ) -> Result<(), ApplyError> {
        static NOTHING: BTreeMap<Vec<u8>, Op> = BTreeMap::new();
        let ops = node.and_then(|node| node.ops).unwrap_or(&NOTHING);
        if let Some(node) = node {
            self.visited[node.number] = true;
        }
        let mut children: Vec<(&[u8], bool, Child<'_>)> = Vec::new();
        for (name, row) in dir.into_iter().flat_map(Dir::children) {
            if !ops.contains_key(name) {
                children.push((name, row.is_dir(), Child::Old(row)));
            }
        }
        for (name, op) in ops {
            let Op::Put(put) = op else { continue };
            let kept = dir.and_then(|dir| dir.child(name)?.dir_number());
            let kept = kept.filter(|_| put.entry.kind.is_dir()).and_then(|number| Some(self.old?.dir(number)));
            children.push((name, put.entry.kind.is_dir(), Child::Put(put, kept)));
        }
        children.sort_by(|(a, a_dir, _), (b, b_dir, _)| order::siblings(a, *a_dir, b, *b_dir));

        let names = self.list.names.len();
        let mut dirs = 0;
        for (name, is_dir, child) in &children {
            self.list.names.extend_from_slice(name);
            self.list.name_end.push(u32::try_from(self.list.names.len() - names).map_err(|_| ApplyError::TooLarge)?);
            if *is_dir {
                dirs += 1;
                self.list.dir_row.push(self.list.len() as u32);
                self.list.dir_parent.push(number);
                let below = match child {
                    Child::Old(row) => row.dir_number().and_then(|number| Some(self.old?.dir(number))),
                    Child::Put(_, kept) => *kept,
                };
                let changed = node.and_then(|node| node.below.get(name).copied());
                queue.push_back(Pending { old: below, changed });
            }
            match child {
                Child::Old(row) => self.push_old(row.number()),
                Child::Put(put, _) => self.push_put(put),
            }
        }
        self.list.dir_files.push(children.len() as u32 - dirs);
        self.list.dir_dirs.push(dirs);
        Ok(())
    }

    fn push_old(&mut self, row: u32) {
        let Some(old) = self.old else { return };
        let entry = old.row(row);
        let owner = entry.owner_number();
        let owner = match self.old_owners[owner as usize] {
            Some(number) => number,
            None => {
                let number = self.owner_number(&old.owner(owner));
                self.old_owners[owner as usize] = Some(number);
                number
            }
        };
        if let Some(leader) = entry.link_leader() {
            self.groups.entry((false, u64::from(leader))).or_default().push(self.list.len() as u32);
        }
        self.sources.push(Source::Old(row));
        let aux = match entry.file_type() {
            FileType::File => self.push_digests(&entry.digests().unwrap_or_default()),
            FileType::Directory => self.list.dir_row.len() as u32 - u32::from(!self.list.dir_row.is_empty()),
            FileType::Symlink => self.push_target(entry.target().unwrap_or_default()),
            FileType::CharDevice | FileType::BlockDevice => self.push_device(entry.device().unwrap_or_default()),
            FileType::Fifo | FileType::Socket => 0,
        };
        self.push_row(entry.mode(), entry.mtime(), owner, entry.size(), aux);
    }

    fn push_put(&mut self, put: &Put) {
        let Entry { mode, mtime, owner, link, kind } = &put.entry;
        let owner = self.owner_number(owner);
        if let Some(link) = link.filter(|_| !kind.is_dir()) {
            self.groups.entry((true, link)).or_default().push(self.list.len() as u32);
        }
        let mut bytes = 0;
        let aux = match kind {
            Kind::File { size, digests } => {
                bytes = *size;
                self.push_digests(digests)
            }
            Kind::Directory => self.list.dir_row.len() as u32 - u32::from(!self.list.dir_row.is_empty()),
            Kind::Symlink { target } => self.push_target(target),
            Kind::CharDevice(device) | Kind::BlockDevice(device) => self.push_device(*device),
            Kind::Fifo | Kind::Socket => 0,
        };
        self.sources.push(Source::Put(put.tag));
        self.push_row(kind.type_bits() | mode, *mtime, owner, bytes, aux);
    }

    fn push_row(&mut self, mode: u16, mtime: Time, owner: u32, size: u64, aux: u32) {
        let list = &mut self.list;
        list.mode.push(mode);
        list.flags.push(0);
        list.owner.push(owner);
        list.size.push(size);
        list.mtime_sec.push(mtime.sec);
        list.mtime_nsec.push(mtime.nsec);
        list.aux.push(aux);
    }

    fn push_digests(&mut self, digests: &Digests) -> u32 {
        self.list.sha256.push(digests.sha256.0);
        if self.carry_xxh128 {
            self.list.xxh128.push(digests.xxh128);
        }
        if self.carry_md5 {
            self.list.md5.push(digests.md5);
        }
        self.list.sha256.len() as u32 - 1
    }

    fn push_target(&mut self, target: &[u8]) -> u32 {
        self.list.targets.extend_from_slice(target);
        self.list.target_end.push(self.list.targets.len() as u64);
        self.list.target_end.len() as u32 - 1
    }

    fn push_device(&mut self, device: Device) -> u32 {
        self.list.major.push(device.major);
        self.list.minor.push(device.minor);
        self.list.major.len() as u32 - 1
    }

    fn owner_number(&mut self, owner: &Owner) -> u32 {
        if let Some(&number) = self.owners.get(owner) {
            return number;
        }
        let list = &mut self.list;
        let number = list.uid.len() as u32;
        list.uid.push(owner.uid);
        list.gid.push(owner.gid);
        for name in [&owner.user, &owner.group] {
            list.owner_names.extend_from_slice(name);
            list.owner_name_end.push(list.owner_names.len() as u32);
        }
        self.owners.insert(owner.clone(), number);
        number
    }

    /// Writes the link table. A group of which only one name is left is dropped.
    fn group_links(&mut self) {
        let mut links = Vec::new();
        for rows in self.groups.values().filter(|rows| rows.len() > 1) {
            let leader = rows.iter().copied().min().unwrap_or_default();
            links.extend(rows.iter().map(|&row| (row, leader)));
        }
        links.sort_unstable();
        for (row, leader) in links {
            self.list.flags[row as usize] |= FLAG_LINKED;
            self.list.link_row.push(row);
            self.list.link_leader.push(leader);
        }
    }
}

/// Returns whether the new list carries XXH128 and MD5 digests. It carries a digest if every put file has it, and the
/// old list has it too, if there is an old list with files.
fn carried(old: Option<ListRef<'_>>, changes: &Changes) -> (bool, bool) {
    let mut put_files = changes.dirs.values().flat_map(BTreeMap::values).filter_map(|op| match op {
        Op::Put(Put { entry: Entry { kind: Kind::File { digests, .. }, .. }, .. }) => Some(digests),
        _ => None,
    });
    let old = old.filter(|list| list.files() > 0).map(|list| (list.has_xxh128(), list.has_md5()));
    let first = old.or_else(|| put_files.next().map(|digests| (digests.xxh128 != [0; 16], digests.md5 != [0; 16])));
    let (mut xxh128, mut md5) = first.unwrap_or_default();
    for digests in put_files {
        xxh128 &= digests.xxh128 != [0; 16];
        md5 &= digests.md5 != [0; 16];
    }
    (xxh128, md5)
}
