//! What differs between two lists, and how one becomes the other.
//!
//! The indexer, the list delta on the wire and the receiver all speak of change in these terms, and
//! [`apply`] is the only thing that builds a list: so a list rebuilt from its predecessor and a delta
//! is byte for byte the one that the origin wrote.

mod build;
mod wire;

use std::collections::BTreeMap;
use std::collections::HashMap;

use crate::entry::Entry;
use crate::list::{Dir, ListRef, Row};
use crate::order;
use crate::path;

pub use build::{Applied, ApplyError, Source, apply, apply_below};
pub use wire::{DeltaError, EntryDecoder, EntryEncoder, check};

/// Changes by directory (path relative to the root, which is the empty path).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The root directory's own entry, when it changed.
    pub root: Option<Put>,
    /// Changes to the children of each directory that has any.
    pub dirs: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Op>>,
}

/// What happens to one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The name goes, with everything below it.
    Remove,
    /// The name is this entry from now on. A directory that was one before keeps its children; whatever
    /// else had the name goes.
    Put(Put),
}

/// A new or changed entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The entry. Link groups: the members of a changed group are all put, with one `link` number.
    pub entry: Entry,
    /// A number of the caller's own, given back by [`Applied::sources`]. It does not travel.
    pub tag: u32,
}

impl Changes {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.root.is_none() && self.dirs.is_empty()
    }

    /// Names put or removed.
    pub fn len(&self) -> usize {
        usize::from(self.root.is_some()) + self.dirs.values().map(BTreeMap::len).sum::<usize>()
    }

    /// Records that `dir/name` becomes `entry`.
    pub fn put(&mut self, dir: &[u8], name: &[u8], entry: Entry, tag: u32) {
        self.set(dir, name, Op::Put(Put { entry, tag }));
    }

    /// Records that `dir/name` goes.
    pub fn remove(&mut self, dir: &[u8], name: &[u8]) {
        self.set(dir, name, Op::Remove);
    }

    fn set(&mut self, dir: &[u8], name: &[u8], op: Op) {
        if let Some(ops) = self.dirs.get_mut(dir) {
            ops.insert(name.to_vec(), op);
        } else {
            self.dirs.insert(dir.to_vec(), BTreeMap::from([(name.to_vec(), op)]));
        }
    }
}

/// The changes that make `new` of `old`: `apply(old, diff(old, new))` is `new`.
pub fn diff(old: ListRef<'_>, new: ListRef<'_>) -> Changes {
    let mut changes = Changes::default();
    let regrouped = Regrouped::find(old, new);
    let put = |row: Row<'_>| Put { entry: row.to_entry(), tag: 0 };
    if !same_entry(old.row(0), new.row(0)) {
        changes.root = Some(put(new.row(0)));
    }
    let mut pairs = vec![(Some(old.dir(0)), new.dir(0), Vec::new())];
    while let Some((before, after, dir)) = pairs.pop() {
        for pair in merge(before, after) {
            match pair {
                Pair::Old(name, _) => changes.remove(&dir, name),
                Pair::New(name, row) => {
                    changes.put(&dir, name, row.to_entry(), 0);
                    if let Some(number) = row.dir_number() {
                        pairs.push((None, new.dir(number), path::join(&dir, name)));
                    }
                }
                Pair::Both(name, was, is) => {
                    if !same_entry(was, is) || regrouped.contains(is) {
                        changes.put(&dir, name, is.to_entry(), 0);
                    }
                    if let Some(number) = is.dir_number() {
                        pairs.push((
                            was.dir_number().map(|number| old.dir(number)),
                            new.dir(number),
                            path::join(&dir, name),
                        ));
                    }
                }
            }
        }
    }
    changes
}

/// One name of two directories that are compared.
#[derive(Debug)]
pub enum Pair<'a, 'b> {
    /// In the old directory alone.
    Old(&'a [u8], Row<'a>),
    /// In the new directory alone.
    New(&'b [u8], Row<'b>),
    /// In both, possibly as different types.
    Both(&'b [u8], Row<'a>, Row<'b>),
}

/// Walks two directories side by side. A name that was a file and is a directory, or the other way,
/// comes once, as `Both`.
pub fn merge<'a, 'b>(old: Option<Dir<'a>>, new: Dir<'b>) -> Vec<Pair<'a, 'b>> {
    let mut was = old.into_iter().flat_map(Dir::children).peekable();
    let mut is = new.children().peekable();
    let mut pairs = Vec::new();
    loop {
        let order = match (was.peek(), is.peek()) {
            (None, None) => return pairs,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((a, x)), Some((b, y))) => order::siblings(a, x.is_dir(), b, y.is_dir()),
        };
        if order.is_eq() {
            if let (Some((_, x)), Some((name, y))) = (was.next(), is.next()) {
                pairs.push(Pair::Both(name, x, y));
            }
        } else if order.is_lt() {
            let Some((name, row)) = was.next() else { continue };
            // A change of type stands elsewhere in the new directory's order, and is told there.
            if new.child(name).is_none() {
                pairs.push(Pair::Old(name, row));
            }
        } else {
            let Some((name, row)) = is.next() else { continue };
            pairs.push(match old.and_then(|old| old.child(name)) {
                Some(other) => Pair::Both(name, other, row),
                None => Pair::New(name, row),
            });
        }
    }
}

/// Whether two rows are equal in everything that a list says of them, their link groups aside.
pub fn same_entry(a: Row<'_>, b: Row<'_>) -> bool {
    a.mode() == b.mode()
        && a.mtime() == b.mtime()
        && a.has_content_of(b)
        && a.digests() == b.digests()
        && a.owner() == b.owner()
}

/// The rows of the new list whose link group is not simply the remains of an old one.
struct Regrouped(std::collections::HashSet<u32>);

impl Regrouped {
    fn contains(&self, row: Row<'_>) -> bool {
        self.0.contains(&row.number())
    }

    fn find(old: ListRef<'_>, new: ListRef<'_>) -> Self {
        // For every name in a group on either side: its old leader and its new one, if any.
        let mut names: HashMap<Vec<u8>, (Option<u32>, Option<u32>)> = HashMap::new();
        for (row, leader) in old.links() {
            let path = old.path(row);
            // Only a name that stays what it was carries its old group along.
            if new.find(&path).is_some_and(|now| same_entry(now, old.row(row))) {
                names.entry(path).or_default().0 = Some(leader);
            }
        }
        let mut carried: HashMap<u32, Vec<Option<u32>>> = HashMap::new();
        for (row, leader) in new.links() {
            names.entry(new.path(row)).or_default().1 = Some(leader);
        }
        let mut groups: HashMap<u32, Vec<Option<u32>>> = HashMap::new();
        for &(was, is) in names.values() {
            if let Some(was) = was {
                carried.entry(was).or_default().push(is);
            }
            if let Some(is) = is {
                groups.entry(is).or_default().push(was);
            }
        }
        // A group is carried when all its names come from one old group, and what remains of that group
        // is all here. A single remaining name has no group on either reading.
        let whole = |was: u32| {
            let now = &carried[&was];
            now.len() == 1 || now.iter().all(|is| *is == now[0])
        };
        let kept = |is: u32| {
            let from = &groups[&is];
            from.iter().all(|was| *was == from[0]) && from[0].is_some_and(|was| carried[&was].len() > 1 && whole(was))
        };
        let rows = names.into_iter().filter_map(|(path, (was, is))| {
            let changed = match (was, is) {
                (_, Some(is)) => !kept(is),
                (Some(was), None) => carried[&was].len() > 1,
                (None, None) => false,
            };
            changed.then(|| new.find(&path)).flatten().map(|row| row.number())
        });
        Self(rows.collect())
    }
}

/// The largest link number in a set of changes, so that a caller can number further groups.
pub fn largest_link(changes: &Changes) -> Option<u64> {
    let puts = changes.dirs.values().flat_map(BTreeMap::values);
    puts.filter_map(|op| match op {
        Op::Put(put) => put.entry.link,
        Op::Remove => None,
    })
    .max()
}
