//! Any byte of a list changes on the disk while it is mapped: what is read then is wrong at worst, and never a panic, a
//! loop without an end, or more work than the list is worth.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use common::store;
use stillmirror_protocol::list::ListRef;
use stillmirror_protocol::rsync::flist::{Class, ListDigest, ListWriter, Numbers, SubLists};
use stillmirror_protocol::rsync::selection::{Everything, Follow, Selection, Wanted};
use stillmirror_protocol::rsync::version::Version;

/// Bytes of a list to be given up at: far beyond any that the tree of these tests has.
const TOO_MUCH: u64 = 1 << 20;

/// Reads all that there is to read.
fn read(list: ListRef<'_>) {
    for row in 0..list.len() {
        let entry = list.row(row);
        std::hint::black_box((entry.to_entry(), list.path(row), list.is_public(row), entry.link_leader()));
    }
    for path in ["pool/a", "stable", "nothing"] {
        std::hint::black_box(list.find(path.as_bytes()));
    }
}

/// Writes it for stock clients, in every order, and says whether an impossible entry was noticed.
fn write(list: ListRef<'_>) -> bool {
    let mut is_damaged = false;
    let sub_lists = Arc::new(SubLists::of(list));
    for (version, incremental, all) in
        [(27, false, false), (29, false, true), (31, false, false), (31, true, false), (31, false, true)]
    {
        let follow = Follow { all, ..Follow::default() };
        let wanted = Wanted { paths: vec![Vec::new()], recurse: true, follow, ..Wanted::default() };
        let (selection, _) = Selection::resolve(list, wanted, &Everything);
        let class = Class {
            incremental,
            links: true,
            hard_links: true,
            owner: true,
            group: true,
            devices: true,
            checksum: Some(ListDigest::Md5),
            ..Class::plain(Version::new(version).expect("a version"))
        };
        if incremental {
            let numbers = Numbers::computed(list, &selection, &sub_lists);
            (0..2 * list.len() + 8).for_each(|ndx| _ = std::hint::black_box(numbers.row(list, ndx)));
        }
        let mut writer = ListWriter::new(list, class, selection, &Everything);
        let (mut out, mut rows) = (Vec::new(), Vec::new());
        while !writer.write(list, &Everything, &mut out, &mut rows, 1 << 16).done {
            assert!(writer.bytes() < TOO_MUCH, "a list without an end");
            out.clear();
        }
        is_damaged |= writer.is_damaged();
    }
    is_damaged
}

#[test]
fn a_list_that_rots_while_it_is_mapped_is_read_without_a_panic() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path(), 1);
    let generation = store.current().expect("a store").expect("a generation");
    let path = generation.dir().join("list");
    let good = fs::read(&path).expect("the list");
    let file = File::options().write(true).open(&path).or_else(|_| {
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        File::options().write(true).open(&path)
    });
    let file = file.expect("a list that can be written");
    assert!(!write(generation.list()), "a good list has no impossible entry");
    let mut noticed = 0;
    for (at, &byte) in good.iter().enumerate() {
        for bits in [0x01, 0x80, 0xff] {
            file.write_all_at(&[byte ^ bits], at as u64).expect("a flip");
            read(generation.list());
            noticed += u32::from(write(generation.list()));
        }
        file.write_all_at(&[byte], at as u64).expect("as it was");
    }
    assert_eq!(fs::read(&path).expect("the list"), good);
    assert!(noticed > 0, "impossible entries are noticed");
    assert!(!write(generation.list()), "what is good again is taken again");
}
