//! Changes any byte of a list on disk while the list is mapped. At worst, wrong values are read. There is
//! never a panic, an endless loop, or much more work than for a good list.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;

use common::{NAME, fill_with, tree};
use stillmirror_protocol::changes::Changes;
use stillmirror_protocol::entry::{Digest, Digests, Entry, Kind};
use stillmirror_protocol::list::ListRef;
use stillmirror_protocol::rsync::flist::{Class, ListDigest, ListWriter, Numbers, SubLists};
use stillmirror_protocol::rsync::selection::{Everything, Follow, Selection, Wanted};
use stillmirror_protocol::rsync::version::Version;
use stillmirror_store::{Generation, Store};

/// The number of files in the tree.
const FILES: u32 = 800;
/// Bytes from one flip in the list to the next. It is no multiple of any column's width.
const STEP: usize = 19;

/// The test fails if an encoded list gets longer than this many bytes, which is far longer than that of the
/// tree.
const MAX_BYTES: u64 = 1 << 20;

/// Reads every row with its local facts, and looks up some paths.
fn read(generation: &Generation) {
    let list = generation.list();
    for row in 0..list.len() {
        let entry = list.row(row);
        std::hint::black_box((entry.to_entry(), list.path(row), list.is_public(row), entry.link_leader()));
        std::hint::black_box((
            generation.local().identity(row),
            entry.file_number().map(|file| generation.local().record(file)),
        ));
    }
    for path in ["pool/a", "stable", "nothing"] {
        std::hint::black_box(list.find(path.as_bytes()));
    }
}

/// Encodes the list for stock clients in all orders. Returns whether an impossible entry was noticed.
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
            assert!(writer.bytes() < MAX_BYTES, "the list does not end");
            out.clear();
        }
        is_damaged |= writer.is_damaged();
    }
    is_damaged
}

/// The fixed tree and many more files. The list must have many pages, because the last ones are copied when
/// it is mapped.
fn many_files() -> Changes {
    let mut changes = tree(1);
    let root = changes.root.as_ref().expect("a root").entry.clone();
    let digests = Digests { sha256: Digest([7; 32]), ..Digests::default() };
    let file = Entry { mode: 0o644, kind: Kind::File { size: 7, digests }, ..root };
    for number in 1..=FILES {
        changes.put(b"pool", format!("file-{number:04}").as_bytes(), file.clone(), 6 + number);
    }
    changes
}

#[test]
fn reading_a_list_that_rots_while_mapped_never_panics() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::create(&dir.path().join("store"), NAME).expect("a store");
    let lock = store.lock().expect("a lock");
    let draft = store.begin(&lock).expect("a draft");
    fill_with(&draft, None, &many_files()).expect("a generation's files");
    draft.publish().expect("a generation");
    let generation = store.current().expect("a store").expect("a generation");
    let path = generation.dir().join("list");
    let good = fs::read(&path).expect("the list");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the list is writable");
    let file = File::options().write(true).open(&path).expect("the list");
    assert!(!write(generation.list()), "a good list has no impossible entries");
    let mut noticed = 0;
    for (at, &byte) in good.iter().enumerate().step_by(STEP) {
        let bits = [0x01, 0x80, 0xff][at % 3];
        file.write_all_at(&[byte ^ bits], at as u64).expect("a flip");
        read(&generation);
        noticed += u32::from(write(generation.list()));
        file.write_all_at(&[byte], at as u64).expect("flipped back");
    }
    assert_eq!(fs::read(&path).expect("the list"), good);
    assert!(noticed > 0, "impossible entries are noticed");
    assert!(!write(generation.list()), "the restored list is good again");
}
