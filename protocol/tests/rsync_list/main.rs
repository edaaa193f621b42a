//! File lists for stock clients: an independent decoder reads back exactly the selected entries, in the order
//! in which clients number them.

#[path = "../common/mod.rs"]
mod common;
mod decoder;
mod links;
mod selections;
mod trees;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use stillmirror_protocol::entry::{Entry, Kind};
use stillmirror_protocol::list::{self, ListRef};
use stillmirror_protocol::path;
use stillmirror_protocol::rsync::flist::{Class, ListDigest, ListWriter, Numbers, SubLists};
use stillmirror_protocol::rsync::selection::{Hides, Missing, Selection, Wanted};
use stillmirror_protocol::rsync::version::Version;

use decoder::{Decoded, decode};
use trees::{Tree, encoded, tree};

/// Hides every entry whose last path component is one of these names.
#[derive(Debug, Clone, Default)]
struct Names(BTreeSet<Vec<u8>>);

impl Hides for Names {
    fn hides(&self, path: &[u8], name: usize, _: bool) -> bool {
        assert!(name < path.len(), "the transfer's root is never filtered");
        assert!(name == 0 || path[name - 1] == b'/');
        self.0.contains(path::split(path).1)
    }

    fn module_hides(&self, _: &[u8], _: bool) -> bool {
        false
    }

    fn nothing(&self) -> bool {
        self.0.is_empty()
    }
}

fn names() -> impl Strategy<Value = Names> {
    let name = prop::sample::select(vec!["a", "b", "a.txt", ".h"]).prop_map(|name| name.as_bytes().to_vec());
    prop_oneof![
        1 => Just(Names::default()),
        1 => prop::collection::btree_set(name, 1..3).prop_map(Names),
    ]
}

fn class() -> impl Strategy<Value = Class> {
    let digest = prop::sample::select(vec![
        None,
        None,
        Some(ListDigest::Xxh128),
        Some(ListDigest::Md5),
        Some(ListDigest::Unknown(8)),
    ]);
    (27..33u32, any::<u16>(), digest).prop_map(|(version, bits, checksum)| {
        let bit = |at: u32| bits >> at & 1 == 1;
        let since30 = |at: u32| bit(at) && version >= 30;
        Class {
            version: Version::new(version).expect("a version"),
            varint_flags: since30(0),
            incremental: since30(1),
            id0_names: since30(2),
            safe_list: since30(3),
            links: bit(4),
            hard_links: bit(5),
            owner: bit(6),
            group: bit(7),
            devices: bit(8),
            specials: bit(9),
            numeric_ids: bit(10),
            nameless: false,
            atimes: since30(11),
            acls: since30(12),
            xattrs: since30(13),
            checksum,
            ..Class::plain(Version::NEWEST)
        }
    })
}

/// Writes a list in pieces of `piece` bytes. Also returns the numbers and the offsets between its lists.
fn write(list: ListRef<'_>, class: Class, selection: Selection, hides: &Names, piece: usize) -> Sent {
    let mut writer = ListWriter::new(list, class, selection.clone(), hides);
    let (mut bytes, mut rows, mut boundaries, mut unresolved) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    loop {
        let mut out = b"before".to_vec();
        let limit = out.len() + piece;
        let written = writer.write(list, hides, &mut out, &mut rows, limit);
        boundaries.extend(written.boundary.map(|at| bytes.len() + at - 6));
        bytes.extend_from_slice(&out[6..]);
        unresolved.extend(writer.take_lost());
        if written.done {
            break;
        }
        assert!(out.len() >= limit, "a piece that is not the last is full");
    }
    assert_eq!(writer.bytes(), bytes.len() as u64);
    let numbers = match writer.is_computed() {
        true => Numbers::computed(list, &selection, &Arc::new(SubLists::of(list))),
        false => Numbers::Table(rows),
    };
    Sent { bytes, numbers, boundaries, unresolved, lists: writer.lists(), entries: writer.entries() }
}

struct Sent {
    bytes: Vec<u8>,
    numbers: Numbers,
    boundaries: Vec<usize>,
    unresolved: Vec<Missing>,
    lists: u32,
    entries: u32,
}

/// Returns the sort key of a client of this version.
fn sort_key(version: Version, name: &[u8], is_dir: bool) -> Vec<(u8, Vec<u8>)> {
    if version.number() < 29 {
        return vec![(0, name.to_vec())];
    }
    if name == b"." {
        return Vec::new();
    }
    let elements: Vec<&[u8]> = name.split(|&byte| byte == b'/').collect();
    let last = elements.len() - 1;
    let key = |(at, element): (usize, &&[u8])| {
        if at < last || is_dir { (1, [element, &b"/"[..]].concat()) } else { (0, element.to_vec()) }
    };
    elements.iter().enumerate().map(key).collect()
}

/// Returns the entries below `base` that no filter hides, by name in the list.
fn recursed(tree: &Tree, base: &[u8], hides: &Names) -> BTreeMap<Vec<u8>, Entry> {
    let mut expected = BTreeMap::from([(b".".to_vec(), tree[base].clone())]);
    let prefix = if base.is_empty() { Vec::new() } else { [base, b"/"].concat() };
    for (path, entry) in tree.iter().filter(|(path, _)| path.len() > prefix.len() && path.starts_with(&prefix)) {
        let name = &path[prefix.len()..];
        if !path::components(name).any(|element| hides.0.contains(element)) {
            expected.insert(name.to_vec(), entry.clone());
        }
    }
    expected
}

/// Compares a decoded entry with an entry of the tree.
fn check_entry(class: &Class, list: ListRef<'_>, read: &decoder::Entry, entry: &Entry) -> Result<(), TestCaseError> {
    let p = class.version.number();
    prop_assert_eq!(read.mode, u32::from(entry.kind.type_bits() | entry.mode));
    let seconds = if p >= 30 { entry.mtime.sec } else { i64::from(entry.mtime.sec as u32) };
    prop_assert_eq!(read.mtime, seconds);
    prop_assert_eq!(read.nsec, if p >= 31 { entry.mtime.nsec } else { 0 });
    if class.owner {
        prop_assert_eq!(read.uid, entry.owner.uid);
    }
    if class.group {
        prop_assert_eq!(read.gid, entry.owner.gid);
    }
    let (mut device, mut digest) = (None, None);
    match &entry.kind {
        Kind::File { size, digests } => {
            prop_assert_eq!(read.len, *size as i64);
            digest = class.checksum.map(|digest| match digest {
                ListDigest::Xxh128 if list.has_xxh128() => digests.xxh128.to_vec(),
                ListDigest::Md5 if list.has_md5() => digests.md5.to_vec(),
                ListDigest::Unknown(len) => vec![0; usize::from(len)],
                _ => vec![0; 16],
            });
        }
        Kind::Symlink { target } => {
            prop_assert_eq!(read.len, target.len() as i64);
            prop_assert_eq!(read.target.as_ref(), class.links.then_some(target));
        }
        Kind::CharDevice(found) | Kind::BlockDevice(found) if class.devices => {
            device = Some((found.major, found.minor));
        }
        Kind::Fifo | Kind::Socket if class.specials && p <= 30 => device = read.device.map(|(major, _)| (major, 0)),
        _ => {}
    }
    prop_assert_eq!(read.device, device);
    if p > 27 || digest.is_some() {
        let same_file = class.hard_links && p >= 30 && read.link.is_some();
        prop_assert!(same_file || read.digest == digest);
    }
    Ok(())
}

/// Checks the names, order, attributes, link groups, owners and numbers of a list against the expected
/// entries. `path_of` maps a name in the list to the path in the tree.
fn check(
    class: &Class,
    list: ListRef<'_>,
    sent: &Sent,
    expected: &BTreeMap<Vec<u8>, Entry>,
    path_of: impl Fn(&[u8]) -> Vec<u8>,
) -> Result<Decoded, TestCaseError> {
    let decoded = decode(*class, &sent.bytes);
    let read: BTreeMap<_, _> =
        decoded.lists.iter().flat_map(|list| &list.entries).map(|entry| (entry.name.clone(), entry)).collect();
    prop_assert_eq!(read.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    prop_assert_eq!(sent.entries as usize, expected.len());
    prop_assert_eq!(sent.lists as usize, decoded.lists.len());
    for (name, entry) in expected {
        check_entry(class, list, read[name], entry)?;
    }
    check_groups(class, &read, expected, list, &path_of)?;
    for part in &decoded.lists {
        let keys: Vec<_> = part
            .entries
            .iter()
            .map(|entry| sort_key(class.version, &entry.name, entry.mode & 0o170_000 == 0o040_000))
            .collect();
        prop_assert!(keys.is_sorted(), "entries out of order");
        for (at, entry) in part.entries.iter().enumerate() {
            let row = sent.numbers.row(list, (part.start + at as i64) as u32);
            let row = row.ok_or_else(|| TestCaseError::fail("an index without a row"))?;
            prop_assert_eq!(list.path(row), path_of(&entry.name));
        }
    }
    check_names(class, &decoded, &read, list)?;
    Ok(decoded)
}

fn check_groups(
    class: &Class,
    read: &BTreeMap<Vec<u8>, &decoder::Entry>,
    expected: &BTreeMap<Vec<u8>, Entry>,
    list: ListRef<'_>,
    path_of: &impl Fn(&[u8]) -> Vec<u8>,
) -> Result<(), TestCaseError> {
    let mut groups: BTreeMap<(i64, i64), BTreeSet<u32>> = BTreeMap::new();
    for name in expected.keys() {
        let row = list.find(&path_of(name)).expect("it is in the tree");
        let group = read[name].link;
        let everything = class.version.number() == 27 && row.is_file();
        let linked = row.link_leader().is_some() && class.version.number() > 27;
        prop_assert_eq!(group.is_some(), class.hard_links && (everything || linked));
        if let Some(group) = group {
            groups.entry(group).or_default().insert(row.link_leader().unwrap_or(row.number()));
        }
    }
    let leaders: BTreeSet<_> = groups.values().flatten().collect();
    prop_assert!(groups.values().all(|leaders| leaders.len() == 1), "two files in one group");
    prop_assert_eq!(leaders.len(), groups.len(), "one file in two groups");
    Ok(())
}

fn check_names(
    class: &Class,
    decoded: &Decoded,
    read: &BTreeMap<Vec<u8>, &decoder::Entry>,
    list: ListRef<'_>,
) -> Result<(), TestCaseError> {
    let owners: Vec<_> = (0..list.owners()).map(|owner| list.owner(owner)).collect();
    let listed = !class.incremental && !class.numeric_ids;
    let names = |on: bool, ids: BTreeSet<u32>, of: &dyn Fn(u32) -> Vec<u8>| -> BTreeMap<u32, Vec<u8>> {
        let mut names: BTreeMap<_, _> = ids.into_iter().filter(|_| on).map(|id| (id, of(id))).collect();
        names.retain(|id, name| *id != 0 && !name.is_empty());
        if class.id0_names {
            let root = of(0);
            names.insert(0, if root.is_empty() { b"root".to_vec() } else { root });
        }
        if (on || class.acls) && listed { names } else { BTreeMap::new() }
    };
    let user =
        |id| owners.iter().find(|owner| owner.uid == id && !owner.user.is_empty()).map(|owner| owner.user.clone());
    let group =
        |id| owners.iter().find(|owner| owner.gid == id && !owner.group.is_empty()).map(|owner| owner.group.clone());
    let users = names(class.owner, read.values().map(|entry| entry.uid).collect(), &|id| user(id).unwrap_or_default());
    let groups =
        names(class.group, read.values().map(|entry| entry.gid).collect(), &|id| group(id).unwrap_or_default());
    prop_assert_eq!(&decoded.users, &users);
    prop_assert_eq!(&decoded.groups, &groups);
    Ok(())
}

/// Checks that every directory except `.` has exactly one list, that lists are depth first and hold only
/// their directory's children, and that the index before a list means its directory.
fn check_directories(decoded: &Decoded, list: ListRef<'_>, sent: &Sent) -> Result<(), TestCaseError> {
    let mut table: Vec<Vec<u8>> = Vec::new();
    let mut unlisted: BTreeSet<usize> = BTreeSet::new();
    // The directories that a stock sender lists next, the first directory of the previous list on top.
    let mut pending: Vec<usize> = Vec::new();
    for part in &decoded.lists {
        let dir = part.dir.map(|dir| table[dir].clone());
        if let Some(dir) = part.dir {
            prop_assert!(unlisted.remove(&dir), "two lists of one directory");
            prop_assert_eq!(pending.pop(), Some(dir), "not depth first");
        }
        let slot = sent.numbers.row(list, (part.start - 1) as u32);
        if let Some(dir) = &dir {
            let path = slot.map(|row| list.path(row)).unwrap_or_default();
            prop_assert!(path.ends_with(dir));
        }
        let first = table.len();
        for entry in &part.entries {
            if let Some(dir) = &dir {
                prop_assert_eq!(path::split(&entry.name).0, &dir[..]);
            }
            if entry.mode & 0o170_000 == 0o040_000 {
                if entry.name != b"." {
                    unlisted.insert(table.len());
                }
                table.push(entry.name.clone());
            }
        }
        pending.extend((first..table.len()).rev().filter(|&at| table[at] != b"."));
    }
    prop_assert!(unlisted.is_empty(), "directories without a list");
    Ok(())
}

fn contents_of(dir: &[u8]) -> Wanted {
    Wanted { paths: vec![[dir, b"/"].concat()], recurse: true, implied_dirs: true, ..Wanted::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn a_client_reads_back_the_entries_below_a_directory(
        tree in tree(), class in class(), hides in names(), piece in 1..3000usize, pick: prop::sample::Index,
    ) {
        let bytes = encoded(&tree);
        let list = list::open(&bytes).expect("a built list is valid");
        let dirs: Vec<_> = tree.iter().filter(|(_, entry)| entry.kind.is_dir()).map(|(path, _)| path).collect();
        let base = pick.get(&dirs).to_vec();
        let (selection, missing) = Selection::resolve(list, contents_of(&base), &hides);
        prop_assert!(missing.is_empty());
        let sent = write(list, class, selection.clone(), &hides, piece);
        let path_of = |name: &[u8]| match (&base[..], name) {
            (base, b".") => base.to_vec(),
            (base, name) => path::join(base, name),
        };
        let decoded = check(&class, list, &sent, &recursed(&tree, &base, &hides), path_of)?;
        prop_assert_eq!(decoded.io_error, 0);
        let entries = || decoded.lists.iter().flat_map(|list| &list.entries);
        prop_assert!(entries().all(|entry| entry.top == (entry.name == b".") && !entry.no_contents));
        if class.incremental {
            check_directories(&decoded, list, &sent)?;
            prop_assert_eq!(sent.boundaries.last(), Some(&sent.bytes.len()));
        } else {
            prop_assert!(sent.boundaries.is_empty());
        }
        let whole = write(list, class, selection, &hides, usize::MAX >> 1);
        prop_assert_eq!(whole.bytes, sent.bytes);
    }

    #[test]
    fn parameters_without_effect_are_not_in_the_canonical_class(tree in tree(), class in class()) {
        let bytes = encoded(&tree);
        let list = list::open(&bytes).expect("a built list is valid");
        let hides = Names::default();
        let (selection, _) = Selection::resolve(list, contents_of(b""), &hides);
        let sent = write(list, class, selection.clone(), &hides, 1 << 20);
        let canonical = class.canonical(list);
        prop_assert_eq!(canonical.canonical(list), canonical);
        prop_assert_eq!(canonical.canonical(list).key(), canonical.key());
        prop_assert_eq!(write(list, canonical, selection, &hides, 1 << 20).bytes, sent.bytes);
    }

    #[test]
    fn no_index_outside_the_list_has_a_row(tree in tree(), class in class(), ndx: u32) {
        let bytes = encoded(&tree);
        let list = list::open(&bytes).expect("a built list is valid");
        let (selection, _) = Selection::resolve(list, contents_of(b""), &Names::default());
        let sent = write(list, class, selection, &Names::default(), 1 << 20);
        let end = sent.entries + if class.incremental { sent.lists } else { 0 };
        for ndx in [ndx, end, end + 1, end + 1000, u32::MAX] {
            prop_assert_eq!(sent.numbers.row(list, ndx).is_some(), ndx < end);
        }
    }
}

#[test]
fn a_writer_returns_after_many_hidden_entries() {
    let mut tree = Tree::new();
    tree.insert(Vec::new(), trees::plain(true));
    let hidden: BTreeSet<Vec<u8>> = (0..40_000).map(|number| format!("hidden-{number}").into_bytes()).collect();
    tree.extend(hidden.iter().chain([&b"shown".to_vec()]).map(|name| (name.clone(), trees::plain(false))));
    let bytes = encoded(&tree);
    let list = list::open(&bytes).expect("a built list is valid");
    let hides = Names(hidden);
    for (number, incremental) in [(27, false), (29, false), (31, true)] {
        let class = Class { incremental, ..Class::plain(Version::new(number).expect("a version")) };
        let (selection, _) = Selection::resolve(list, contents_of(b""), &hides);
        let mut writer = ListWriter::new(list, class, selection, &hides);
        let (mut out, mut rows, mut calls) = (Vec::new(), Vec::new(), 1);
        while !writer.write(list, &hides, &mut out, &mut rows, usize::MAX).done {
            calls += 1;
        }
        // For an incremental list, `rows` holds index 0 as well.
        assert_eq!((calls, writer.entries(), rows.len()), (3, 2, 2 + usize::from(incremental)), "{number}");
    }
}

#[test]
fn the_number_of_reported_missing_paths_is_limited() {
    let mut tree = Tree::new();
    tree.insert(Vec::new(), trees::plain(true));
    tree.extend((0..100).map(|number| (format!("dir-{number}").into_bytes(), trees::plain(true))));
    let bytes = encoded(&tree);
    let list = list::open(&bytes).expect("a built list is valid");
    let wanted = Wanted { paths: vec![b"*".to_vec(); 1000], ..Wanted::default() };
    let (selection, missing) = Selection::resolve(list, wanted, &Names::default());
    assert!(selection.is_empty());
    assert_eq!(missing.len(), 16 << 10);
}
