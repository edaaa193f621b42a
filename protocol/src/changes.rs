//! The difference between two lists, and how to turn one list into another.
//!
//! The indexer, the list delta on the wire and the receiver all describe change as [`Changes`]. [`diff`] finds the
//! changes between two lists, and [`apply`] makes the new list from the old one and the changes. [`apply`] is the
//! only code that builds a list, so a list rebuilt from its predecessor and a delta is byte for byte the one that
//! the origin wrote.

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

/// A set of changes, grouped by directory. Paths are relative to the root, which is the empty path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The root directory's own entry, if it changed.
    pub root: Option<Put>,
    /// For each directory with changed children: the changes by name.
    pub dirs: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Op>>,
}

/// A change to one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The name is removed, with everything below it.
    Remove,
    /// The name becomes this entry. If it was a directory and still is, it keeps its children; any other entry of
    /// that name is replaced.
    Put(Put),
}

/// A new or changed entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The entry. If a link group changes, all of its members are put, with the same `link` number.
    pub entry: Entry,
    /// A number chosen by the caller and returned in [`Applied::sources`]. It is not encoded.
    pub tag: u32,
}

impl Changes {
    /// Returns whether there are no changes.
    pub fn is_empty(&self) -> bool {
        self.root.is_none() && self.dirs.is_empty()
    }

    /// The number of names put or removed.
    pub fn len(&self) -> usize {
        usize::from(self.root.is_some()) + self.dirs.values().map(BTreeMap::len).sum::<usize>()
    }

    /// Records that `dir/name` becomes `entry`.
    pub fn put(&mut self, dir: &[u8], name: &[u8], entry: Entry, tag: u32) {
        self.set(dir, name, Op::Put(Put { entry, tag }));
    }

    /// Records that `dir/name` is removed.
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

/// Returns the changes that turn `old` into `new`: `apply(old, diff(old, new))` is `new`.
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

/// One name found when two directories are compared.
#[derive(Debug)]
pub enum Pair<'a, 'b> {
    /// The name is in the old directory only.
    Old(&'a [u8], Row<'a>),
    /// The name is in the new directory only.
    New(&'b [u8], Row<'b>),
    /// The name is in both directories, possibly with different types.
    Both(&'b [u8], Row<'a>, Row<'b>),
}

/// Compares two directories name by name. A name that changed between directory and non-directory is returned once,
/// as [`Pair::Both`].
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
            // A name whose type changed has another position in the new directory's order, and is reported there.
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

/// Returns whether two rows are equal in every column except the link group.
pub fn same_entry(a: Row<'_>, b: Row<'_>) -> bool {
    a.mode() == b.mode()
        && a.mtime() == b.mtime()
        && a.has_content_of(b)
        && a.digests() == b.digests()
        && a.owner() == b.owner()
}

/// The rows of the new list that must be put because their link group changed. A group that is only what remains of
/// an old one needs no put.
struct Regrouped(std::collections::HashSet<u32>);

impl Regrouped {
    fn contains(&self, row: Row<'_>) -> bool {
        self.0.contains(&row.number())
    }

    fn find(old: ListRef<'_>, new: ListRef<'_>) -> Self {
        // For every name that is in a group in either list: its old leader and its new leader, if any.
        let mut names: HashMap<Vec<u8>, (Option<u32>, Option<u32>)> = HashMap::new();
        for (row, leader) in old.links() {
            let path = old.path(row);
            // Only a name whose entry is unchanged carries its old group into the new list.
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
        // `apply` reproduces a group by itself if all its names come from one old group, and if everything that
        // remains of that group is in it. A group of which a single name remains is dissolved either way.
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

/// Returns the largest link number in a set of changes, so that a caller can number further groups. `None` if no
/// entry has one.
pub fn largest_link(changes: &Changes) -> Option<u64> {
    let puts = changes.dirs.values().flat_map(BTreeMap::values);
    puts.filter_map(|op| match op {
        Op::Put(put) => put.entry.link,
        Op::Remove => None,
    })
    .max()
}
