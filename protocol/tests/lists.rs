//! Lists and changes: for any tree and any change, both ends build the same bytes.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rkyv::util::AlignedVec;
use stillmirror_protocol::changes::{Changes, Op, apply, apply_below, diff};
use stillmirror_protocol::entry::{Device, Digest, Digests, Entry, Kind, Owner, Time};
use stillmirror_protocol::list::{self, FileType, ListError, ListRef};
use stillmirror_protocol::order;

use common::{Tree, grow, whole};

fn owner() -> impl Strategy<Value = Owner> {
    (0..3u32, 0..2u32).prop_map(|(uid, gid)| Owner {
        uid,
        gid,
        user: format!("user{uid}").into_bytes(),
        group: if gid == 0 { b"root".to_vec() } else { Vec::new() },
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        6 => (0..1u64 << 40, any::<u8>()).prop_map(|(size, byte)| file(size, byte)),
        4 => Just(Kind::Directory),
        1 => prop::collection::vec(1..=255u8, 1..9).prop_map(|target| Kind::Symlink { target }),
        1 => (any::<u32>(), any::<u32>()).prop_map(|(major, minor)| Kind::CharDevice(Device { major, minor })),
        1 => Just(Kind::Fifo),
    ]
}

fn file(size: u64, byte: u8) -> Kind {
    Kind::File { size, digests: Digests { sha256: Digest([byte; 32]), ..Digests::default() } }
}

/// Generates a kind with its link group. The group determines the kind, because members of a group agree in content.
fn linked() -> impl Strategy<Value = (Kind, Option<u64>)> {
    let member = |group: u64| match group {
        1 => Kind::Symlink { target: b"target".to_vec() },
        2 => Kind::BlockDevice(Device { major: 8, minor: 1 }),
        3 => Kind::Socket,
        _ => file(group * 1000, group as u8),
    };
    prop_oneof![
        4 => kind().prop_map(|kind| (kind, None)),
        1 => (1..7u64).prop_map(move |group| (member(group), Some(group))),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (0..0o10_000u16, any::<i64>(), 0..1_000_000_000u32, owner(), linked())
        .prop_map(|(mode, sec, nsec, owner, (kind, link))| Entry { mode, mtime: Time { sec, nsec }, owner, link, kind })
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(vec!["a", "b", "a.d", "a-b", "a0", "c"]).prop_map(|name| name.as_bytes().to_vec()),
        prop::collection::vec(prop::sample::select(vec![b'\n', b' ', b'-', b'.', 0xff, b'/' + 1]), 3..4),
    ]
}

fn tree() -> impl Strategy<Value = Tree> {
    let path = prop::collection::vec(name(), 1..5).prop_map(|names| names.join(&b'/'));
    prop::collection::vec((path, entry()), 0..40)
        .prop_map(|entries| grow(directory(0o755), entries, || directory(0o700)))
}

fn directory(mode: u16) -> Entry {
    Entry { mode, mtime: Time::default(), owner: Owner::default(), link: None, kind: Kind::Directory }
}

fn encoded(tree: &Tree) -> AlignedVec {
    apply(None, &whole(tree, 7)).expect("a tree applies to nothing").list.encode()
}

fn open(bytes: &[u8]) -> ListRef<'_> {
    list::open(bytes).expect("a built list is valid")
}

/// Reads a list back as a tree. Link groups are numbered by leader.
fn read(list: ListRef<'_>) -> Tree {
    (0..list.len()).map(|row| (list.path(row), list.row(row).to_entry())).collect()
}

/// Returns the tree as a list represents it: link groups of one name are dissolved, others numbered by their first row.
fn canonical(tree: &Tree, list: ListRef<'_>) -> Tree {
    let mut groups: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for (path, entry) in tree {
        if let Some(group) = entry.link {
            groups.entry(group).or_default().push(list.find(path).expect("it is listed").number());
        }
    }
    let mut tree = tree.clone();
    for entry in tree.values_mut() {
        let rows = entry.link.map(|group| &groups[&group]).filter(|rows| rows.len() > 1);
        entry.link = rows.and_then(|rows| rows.iter().min()).map(|&leader| u64::from(leader));
    }
    tree
}

proptest! {
    #[test]
    fn a_list_represents_its_tree(tree in tree()) {
        let bytes = encoded(&tree);
        let list = open(&bytes);
        prop_assert_eq!(read(list), canonical(&tree, list));
    }

    #[test]
    fn rows_are_breadth_first_and_siblings_in_order(tree in tree()) {
        let bytes = encoded(&tree);
        let list = open(&bytes);
        let mut next = 1;
        for dir in list.dirs() {
            prop_assert_eq!(dir.rows().start, next);
            next = dir.rows().end;
            let children: Vec<_> = dir.children().collect();
            for pair in children.windows(2) {
                let ((a, x), (b, y)) = (pair[0], pair[1]);
                prop_assert!(order::siblings(a, x.is_dir(), b, y.is_dir()).is_lt());
            }
        }
        prop_assert_eq!(next, list.len());
    }

    #[test]
    fn the_old_list_and_the_delta_make_the_same_bytes_as_the_new_list(old in tree(), new in tree()) {
        let (old, new) = (encoded(&old), encoded(&new));
        let changes = diff(open(&old), open(&new));
        let delta = changes.encode(list::digest(&old), list::digest(&new));
        let (from, to, changes) = Changes::decode(&delta).expect("it was just encoded");
        prop_assert_eq!((from, to), (list::digest(&old), list::digest(&new)));
        let rebuilt = apply(Some(open(&old)), &changes).expect("it fits").list.encode();
        prop_assert_eq!(list::digest(&rebuilt), list::digest(&new));
    }

    #[test]
    fn lists_of_the_same_tree_do_not_differ(tree in tree()) {
        let bytes = encoded(&tree);
        prop_assert!(diff(open(&bytes), open(&bytes)).is_empty());
    }

    #[test]
    fn a_subdirectory_can_be_the_root_of_a_new_list(tree in tree()) {
        let bytes = encoded(&tree);
        let list = open(&bytes);
        for dir in list.dirs() {
            let below = apply_below(list, dir, &Changes::default()).expect("nothing changes").list.encode();
            let below = open(&below);
            let path = dir.path();
            let inside: BTreeSet<Vec<u8>> = tree
                .keys()
                .filter_map(|name| if path.is_empty() { Some(&name[..]) } else { name.strip_prefix(&[&path[..], b"/"].concat()[..]) })
                .filter(|name| !name.is_empty())
                .map(<[u8]>::to_vec)
                .collect();
            let listed: BTreeSet<Vec<u8>> = (1..below.len()).map(|row| below.path(row)).collect();
            prop_assert_eq!(listed, inside);
        }
    }

    #[test]
    fn any_flipped_byte_is_detected(tree in tree(), at: prop::sample::Index, flip in 1..=255u8) {
        let mut bytes = encoded(&tree);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(list::open(&bytes).is_err());
    }

    #[test]
    fn a_damaged_body_with_a_valid_checksum_never_panics(
        tree in tree(),
        at: prop::sample::Index,
        flip in 1..=255u8,
    ) {
        let mut bytes = encoded(&tree);
        let body = &mut bytes[list::HEADER_BYTES..];
        let at = at.index(body.len());
        body[at] ^= flip;
        if let Ok(list) = list::open_body(body) {
            let _ = read(list);
            let _ = diff(list, list);
        }
    }

    #[test]
    fn any_bytes_are_decoded_as_a_delta_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Changes::decode(&bytes);
    }

    #[test]
    fn any_changes_are_applied_or_refused(tree in tree(), changes in tree(), removed in prop::collection::vec(name(), 0..4)) {
        let bytes = encoded(&tree);
        let mut changes = whole(&changes, 7);
        for name in removed {
            changes.remove(b"", &name);
        }
        if let Ok(applied) = apply(Some(open(&bytes)), &changes) {
            prop_assert_eq!(applied.sources.len(), applied.list.len());
            let bytes = applied.list.encode();
            // The only invalid list that changes can describe is one whose link group has members of different content.
            if let Err(error) = list::open(&bytes) {
                prop_assert!(matches!(error, ListError::Offence(list::Offence::Link(_))), "{}", error);
            }
        }
    }
}

#[test]
fn a_file_that_becomes_a_directory_loses_nothing_else() {
    let file = Entry { kind: file(1, 1), ..directory(0o644) };
    let before = Tree::from([(vec![], directory(0o755)), (b"x".to_vec(), file.clone()), (b"y".to_vec(), file.clone())]);
    let bytes = encoded(&before);
    let mut changes = Changes::default();
    changes.put(b"", b"x", directory(0o755), 0);
    changes.put(b"x", b"inner", file, 0);
    let after = apply(Some(open(&bytes)), &changes).expect("it fits").list.encode();
    let after = open(&after);
    assert_eq!(after.find(b"x").map(|row| row.file_type()), Some(FileType::Directory));
    assert!(after.find(b"x/inner").is_some_and(|row| row.is_file()));
    assert!(after.find(b"y").is_some_and(|row| row.is_file()));
}

#[test]
fn changes_below_a_missing_directory_are_refused() {
    let bytes = encoded(&Tree::from([(vec![], directory(0o755))]));
    // A deep path has more directories above it than there are directories with changes.
    for missing in [&b"nowhere"[..], b"a/b", b"a/b/c", b"a/b/c/d/e/f/g/h"] {
        let mut changes = Changes::default();
        changes.dirs.insert(missing.to_vec(), BTreeMap::from([(b"x".to_vec(), Op::Remove)]));
        assert!(apply(Some(open(&bytes)), &changes).is_err(), "{}", String::from_utf8_lossy(missing));
    }
}

#[test]
fn a_list_of_another_format_version_is_distinguished_from_damage() {
    let mut bytes = encoded(&Tree::from([(vec![], directory(0o755))]));
    bytes[8] = 9;
    assert_eq!(list::open(&bytes).err(), Some(ListError::Version { found: 9 }));
}
