//! Encoded lists on disk: lists that were written can be read, and damaged or removed ones are built again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rkyv::util::AlignedVec;
use stillmirror_protocol::changes::{Changes, Put, apply};
use stillmirror_protocol::entry::{Digest, Digests, Entry, Kind, Owner, Time};
use stillmirror_protocol::list;
use stillmirror_protocol::rsync::flist::{Class, ListWriter, Numbers, RowTable};
use stillmirror_protocol::rsync::selection::{Everything, Selection, Wanted};
use stillmirror_protocol::rsync::version::Version;
use stillmirror_store::StoreError;
use stillmirror_store::list_cache::{CachedList, Key, Limits, ListCache, Shelf};

const WIDE: Limits = Limits { files: 100, bytes: 1 << 30 };

/// The encoded list of a tree with `directories` directories of ten files each.
fn tree(directories: u32) -> AlignedVec {
    let entry =
        |kind| Entry { mode: 0o755, mtime: Time { sec: 7, nsec: 1 }, owner: Owner::default(), link: None, kind };
    let root = Put { entry: entry(Kind::Directory), tag: 0 };
    let mut changes = Changes { root: Some(root), ..Changes::default() };
    for dir in 0..directories {
        let name = format!("directory-{dir}").into_bytes();
        changes.put(b"", &name, entry(Kind::Directory), 0);
        for file in 0..10u32 {
            let digests = Digests { sha256: Digest([1; 32]), ..Digests::default() };
            let kind = Kind::File { size: u64::from(file), digests };
            changes.put(&name, format!("file-{file}").as_bytes(), entry(kind), 0);
        }
    }
    apply(None, &changes).expect("the changes make a tree").list.encode()
}

fn class(incremental: bool) -> Class {
    Class { incremental, varint_flags: true, ..Class::plain(Version::NEWEST) }
}

fn key(generation: u64, class: &Class) -> Key {
    Key::new(generation, Digest([generation as u8; 32]), class, b"selection", b"")
}

fn writer(bytes: &[u8], class: Class) -> ListWriter {
    let list = list::open(bytes).expect("a built list is valid");
    let wanted = Wanted { paths: vec![Vec::new()], recurse: true, ..Wanted::default() };
    ListWriter::new(list, class, Selection::resolve(list, wanted, &Everything).0, &Everything)
}

fn build_if_it_fits(shelf: &Shelf, generation: u64, bytes: &[u8]) -> Option<Arc<CachedList>> {
    let (list, class) = (list::open(bytes).expect("a built list is valid"), class(false));
    shelf.build(&key(generation, &class), list, writer(bytes, class), &Everything).expect("no error")
}

fn build(shelf: &Shelf, generation: u64, bytes: &[u8], class: Class) -> Arc<CachedList> {
    let list = list::open(bytes).expect("a built list is valid");
    let built = shelf.build(&key(generation, &class), list, writer(bytes, class), &Everything);
    built.expect("it is built").expect("there is room")
}

fn shelf(dir: &Path, limits: Limits) -> Shelf {
    ListCache::new(limits).shelf(dir.join("lists"))
}

fn is_cached(shelf: &Shelf, generation: u64) -> bool {
    shelf.open(&key(generation, &class(false))).expect("no error").is_some()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(dir.join("lists")).expect("lists").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

#[test]
fn a_list_is_read_back_with_its_rows_and_marks() {
    let (dir, bytes) = (tempfile::tempdir().expect("a directory"), tree(2000));
    let list = list::open(&bytes).expect("a built list is valid");
    let cache = shelf(dir.path(), WIDE);
    for class in [class(false), class(true)] {
        let (mut stream, mut rows) = (Vec::new(), Vec::new());
        let mut plain = writer(&bytes, class);
        while !plain.write(list, &Everything, &mut stream, &mut rows, usize::MAX).done {}
        assert!(cache.open(&key(1, &class)).expect("no error").is_none());
        build(&cache, 1, &bytes, class);
        let cached = cache.open(&key(1, &class)).expect("no error").expect("it was built");
        assert!(cached.stream() == stream, "the stream differs");
        assert_eq!((cached.lists(), cached.entries()), (plain.lists(), plain.entries()));
        let marks: Vec<_> = cached.marks().collect();
        let last = marks.last().expect("the end is marked");
        assert_eq!((last.offset, last.lists, last.entries), (stream.len() as u64, cached.lists(), cached.entries()));
        assert!(marks.is_sorted_by(|a, b| a.offset < b.offset && a.lists <= b.lists && a.entries < b.entries));
        assert_eq!(marks.len() > 1, class.incremental);
        assert_eq!(cached.total(), plain.total());
        assert_eq!(cached.row(0).is_none(), class.incremental, "the rows of an incremental list are computed");
        if !class.incremental {
            let shared = Numbers::Shared(cached.clone());
            let table = Numbers::Table(rows);
            assert!((0..=cached.entries()).all(|ndx| shared.row(list, ndx) == table.row(list, ndx)));
            assert!(cached.row(cached.entries() - 1).is_some());
            assert!(cached.row(u32::MAX).is_none());
        }
    }
    assert_eq!(files(dir.path()).len(), 2, "no drafts are left");
}

#[test]
fn a_damaged_list_is_reported_and_removed_and_can_be_rebuilt() {
    let (dir, bytes) = (tempfile::tempdir().expect("a directory"), tree(20));
    let cache = shelf(dir.path(), WIDE);
    let class = class(false);
    let spoil: [fn(&mut Vec<u8>); 6] = [
        |bytes| bytes[0] ^= 1,
        |bytes| bytes[8] ^= 1,
        |bytes| bytes[20] ^= 1,
        |bytes| bytes[200] ^= 1,
        |bytes| bytes.truncate(300),
        |bytes| bytes[48..64].fill(0xff),
    ];
    for spoil in spoil {
        build(&cache, 1, &bytes, class);
        let path = files(dir.path()).remove(0);
        let mut content = fs::read(&path).expect("it is there");
        spoil(&mut content);
        fs::remove_file(&path).expect("it is there");
        fs::write(&path, content).expect("it is written");
        let cache = shelf(dir.path(), WIDE);
        assert!(matches!(cache.open(&key(1, &class)), Err(StoreError::Damaged { .. })));
        assert!(cache.open(&key(1, &class)).expect("no error").is_none());
    }
}

#[test]
fn rot_under_a_mapped_list_is_found_in_the_blocks_it_affects() {
    use std::os::unix::fs::FileExt;
    let (dir, bytes) = (tempfile::tempdir().expect("a directory"), tree(2000));
    let cache = shelf(dir.path(), WIDE);
    let list = build(&cache, 1, &bytes, class(false));
    let len = list.stream().len();
    let rows: Vec<_> = (0..list.entries()).map(|ndx| list.row(ndx)).collect();
    assert!(list.is_right(0..len) && list.row(list.entries()).is_none() && !list.is_damaged());
    let path = files(dir.path()).remove(0);
    let file = fs::File::options().read(true).write(true).open(&path).expect("it is there");
    let flip = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("it is long enough");
        file.write_all_at(&[byte[0] ^ 1], at).expect("it is written");
    };
    // Flip a byte in the stream, then one in the last row.
    flip(112 + 20_000);
    assert!(!list.is_right(0..len) && !list.is_right(20_000..20_001));
    assert!(list.is_right(0..10_000) && list.is_right(30_000..len));
    flip(file.metadata().expect("it is open").len() - 1);
    assert_eq!(list.row(list.entries() - 1), None);
    assert_eq!(list.row(0), rows[0]);
    assert!(list.is_damaged());
    assert!(matches!(cache.open(&key(1, &class(false))), Err(StoreError::Damaged { .. })));
}

#[test]
fn lists_are_removed_with_their_generation_but_stay_readable_while_mapped() {
    let (dir, bytes) = (tempfile::tempdir().expect("a directory"), tree(20));
    let cache = shelf(dir.path(), WIDE);
    let open = build(&cache, 1, &bytes, class(false));
    let before = open.stream().to_vec();
    build(&cache, 2, &bytes, class(false));
    let draft = dir.path().join("lists/.tmp-1-2-3.list");
    fs::write(&draft, b"left by a crash").expect("it is written");
    cache.sweep(|generation| generation == 2).expect("no error");
    assert_eq!(files(dir.path()).len(), 2, "a recent draft may be another process's");
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    fs::File::options().write(true).open(&draft).expect("it is there").set_modified(long_ago).expect("a time");
    cache.sweep(|generation| generation == 2).expect("no error");
    assert!(cache.open(&key(1, &class(false))).expect("no error").is_none());
    assert!(cache.open(&key(2, &class(false))).expect("no error").is_some());
    assert_eq!(files(dir.path()).len(), 1);
    assert!(open.stream() == before, "a mapped list stays readable");
}

#[test]
fn the_least_recently_used_list_is_evicted() {
    let (dir, bytes) = (tempfile::tempdir().expect("a directory"), tree(20));
    let cache = shelf(dir.path(), Limits { files: 2, ..WIDE });
    for generation in [1, 2] {
        build(&cache, generation, &bytes, class(false));
    }
    // Use the older one, so that the other one is the least recently used.
    assert!(is_cached(&cache, 1));
    build(&cache, 3, &bytes, class(false));
    assert_eq!([1, 2, 3].map(|generation| is_cached(&cache, generation)), [true, false, true]);
    assert_eq!(files(dir.path()).len(), 2);
}

#[test]
fn the_list_least_recently_used_by_an_earlier_process_is_evicted() {
    let (dir, bytes) = (tempfile::tempdir().expect("a directory"), tree(20));
    let before = shelf(dir.path(), WIDE);
    for generation in [1, 2, 3] {
        build(&before, generation, &bytes, class(false));
    }
    for (file, age) in files(dir.path()).into_iter().zip([100, 1000, 500]) {
        let file = fs::File::options().write(true).open(file).expect("it opens");
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("a time");
    }
    let after = shelf(dir.path(), Limits { files: 2, ..WIDE });
    after.sweep(|_| true).expect("no error");
    assert_eq!([1, 2, 3].map(|generation| is_cached(&after, generation)), [true, false, true]);
}

#[test]
fn removed_lists_count_while_they_are_mapped() {
    let (dir, bytes) = (tempfile::tempdir().expect("a directory"), tree(500));
    let one = build(&shelf(&dir.path().join("measured"), WIDE), 1, &bytes, class(false)).file_bytes();
    // Room for four finished lists, because a draft takes a quarter more than the finished file, for its rows.
    let limits = Limits { files: 100, bytes: 5 * one };
    let cache = ListCache::new(limits);
    // Two repositories share one limit.
    let shelves = ["lists", "others"].map(|name| cache.shelf(dir.path().join(name)));
    let held: Vec<_> = (0..40).map_while(|n| build_if_it_fits(&shelves[n as usize % 2], n, &bytes)).collect();
    assert_eq!(held.len(), 4);
    assert!(cache.taken() <= limits.bytes && cache.room() < one, "{} of {}", cache.taken(), limits.bytes);
    // Remove their generations and so their names. Their disk space still counts.
    let taken = cache.taken();
    shelves.iter().for_each(|shelf| shelf.sweep(|_| false).expect("no error"));
    assert!(files(dir.path()).is_empty());
    assert_eq!(cache.taken(), taken);
    assert!(build_if_it_fits(&shelves[0], 50, &bytes).is_none());
    assert!(files(dir.path()).is_empty(), "no draft is left");
    drop(held);
    assert_eq!((cache.taken(), cache.room()), (0, limits.bytes));
    // Lists that nobody uses are evicted for any number of new ones.
    for generation in 100..160 {
        assert!(build_if_it_fits(&shelves[generation as usize % 2], generation, &bytes).is_some());
        assert!(cache.taken() <= limits.bytes);
        assert!(is_cached(&shelves[generation as usize % 2], generation));
    }
}

#[test]
fn a_list_larger_than_the_limit_is_not_cached() {
    let (dir, bytes) = (tempfile::tempdir().expect("a directory"), tree(500));
    let cache = shelf(dir.path(), Limits { files: 9, bytes: 100_000 });
    assert!(build_if_it_fits(&cache, 1, &bytes).is_none());
    assert!(files(dir.path()).is_empty());
}
