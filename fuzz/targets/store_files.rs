//! Modified files of a store: encoded lists, packs, the table of packs, and those about the pool. They are refused, or they can be read without
//! a panic. Data with its own check is never returned with wrong bytes.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::rsync::flist::{Class, ListWriter, RowTable as _};
use stillmirror_protocol::rsync::selection::{Everything, Selection, Wanted};
use stillmirror_protocol::rsync::version::Version;
use stillmirror_store::{PoolPlace, Store};
use stillmirror_store::list_cache::{Key, Limits, ListCache, Shelf};
use twox_hash::XxHash3_128;

// The helpers of the store's own tests.
#[path = "../../store/tests/common/mod.rs"]
mod common;

/// A small store, and the intact content of its files.
struct Intact {
    dir: PathBuf,
    /// The file of an encoded list.
    kept_path: PathBuf,
    kept: Vec<u8>,
    pack: Vec<u8>,
    /// The table of packs.
    uses: Vec<u8>,
    /// The place of the pool.
    pool: Vec<u8>,
    /// The table of dropped contents.
    dropped: Vec<u8>,
    /// The record of each file: block checksums and content.
    records: Vec<Option<(Vec<u8>, Vec<u8>)>>,
}

static INTACT: LazyLock<Intact> = LazyLock::new(Intact::make);

fuzz_target!(|input: (u8, bool, u16, Vec<(u16, u8)>)| {
    let (what, checked, cut, edits) = input;
    let edit = |intact: &[u8]| {
        let mut bytes = intact.to_vec();
        edits.iter().for_each(|&(at, byte)| bytes[usize::from(at) % intact.len()] = byte);
        bytes.truncate(bytes.len().saturating_sub(usize::from(cut % 64)));
        bytes
    };
    match what % 5 {
        0 => kept_list(edit(&INTACT.kept), checked),
        1 => generation(&INTACT.pack_path(), &edit(&INTACT.pack), &INTACT.pack),
        2 => generation(&INTACT.dir.join("generations/2/pool"), &edit(&INTACT.pool), &INTACT.pool),
        3 => {
            let mut bytes = edit(&INTACT.dropped);
            if let (true, Some((fields, checksum))) = (checked, bytes.split_last_chunk_mut::<16>()) {
                *checksum = XxHash3_128::oneshot(fields).to_le_bytes();
            }
            dropped(&bytes);
        }
        _ => {
            let mut bytes = edit(&INTACT.uses);
            if let (true, Some((fields, checksum))) = (checked, bytes.split_last_chunk_mut::<16>()) {
                *checksum = XxHash3_128::oneshot(fields).to_le_bytes();
            }
            generation(&INTACT.uses_path(), &bytes, &INTACT.uses);
        }
    }
});

fn kept_list(mut bytes: Vec<u8>, checked: bool) {
    if let (true, Some((header, body))) = (checked, bytes.split_at_mut_checked(112)) {
        header[80..96].copy_from_slice(&XxHash3_128::oneshot(body).to_le_bytes());
    }
    replace(&INTACT.kept_path, &bytes);
    let Ok(Some(list)) = INTACT.shelf().open(&key()) else { return };
    let mut before = 0;
    for mark in list.marks() {
        let end = usize::try_from(mark.offset).expect("it lies in the file");
        assert!(list.is_right(before..end));
        assert_eq!(list.stream()[before..end].len(), end - before);
        before = end;
    }
    assert_eq!(before, list.stream().len());
    let _ = (0..=list.entries().min(1000)).chain([u32::MAX]).map(|ndx| list.row(ndx)).count();
}

fn generation(path: &Path, bytes: &[u8], intact: &[u8]) {
    replace(path, bytes);
    if let Ok(Some(generation)) = Store::open(&INTACT.dir).and_then(|store| store.current()) {
        for (file, intact) in (0..).zip(&INTACT.records) {
            let _ = (generation.sums(file), generation.content(file, common::CONTENT.len() as u64));
            if let Ok(record) = generation.record(file) {
                assert_eq!(record.map(|record| (record.sums.to_vec(), record.content.to_vec())), *intact);
            }
        }
        let _ = (generation.missing_packs().count(), generation.packs_to_compact());
    }
    replace(path, intact);
}

fn dropped(bytes: &[u8]) {
    let path = INTACT.dir.join("generations/2/dropped");
    replace(&path, bytes);
    if let Ok(Some(names)) = Store::open(&INTACT.dir).expect("a store").dropped(2) {
        assert!(names.len() <= bytes.len() / 29);
    }
    replace(&path, &INTACT.dropped);
}

/// Replaces the file at `path` by a new one. The old file may be mapped, so it is not written to.
fn replace(path: &Path, bytes: &[u8]) {
    drop(fs::remove_file(path));
    fs::write(path, bytes).expect("a directory of its own");
}

fn class() -> Class {
    Class::plain(Version::NEWEST)
}

fn key() -> Key {
    Key::new(1, Digest([1; 32]), &class(), b"selection", b"")
}

impl Intact {
    fn make() -> Self {
        let store = common::store(&own_dir(), 0);
        for _ in 0..2 {
            let lock = store.lock().expect("nobody else writes");
            let before = store.current().expect("a store");
            let draft = store.begin(&lock).expect("a draft");
            common::fill(&draft, before.as_ref()).expect("a draft");
            draft.write_pool(&PoolPlace::Store, before.as_ref()).expect("a draft");
            draft.publish().expect("a generation");
        }
        let generation = store.current().expect("a store").expect("a generation");
        let record = |file| {
            let record = generation.record(file).expect("an intact record");
            record.map(|record| (record.sums.to_vec(), record.content.to_vec()))
        };
        let mut intact = Self {
            dir: store.dir().to_owned(),
            kept_path: PathBuf::new(),
            kept: Vec::new(),
            pack: Vec::new(),
            uses: Vec::new(),
            pool: Vec::new(),
            dropped: Vec::new(),
            records: (0..generation.list().files()).map(record).collect(),
        };
        let list = generation.list();
        let wanted = Wanted { paths: vec![Vec::new()], recurse: true, ..Wanted::default() };
        let selection = Selection::resolve(list, wanted, &Everything).0;
        let writer = ListWriter::new(list, class(), selection, &Everything);
        drop(intact.shelf().build(&key(), list, writer, &Everything).expect("it is built"));
        let mut kept = fs::read_dir(intact.dir.join("lists")).expect("it is built");
        intact.kept_path = kept.next().expect("a file").expect("a name").path();
        intact.kept = fs::read(&intact.kept_path).expect("it is built");
        intact.pack = fs::read(intact.pack_path()).expect("a pack");
        intact.uses = fs::read(intact.uses_path()).expect("a table of packs");
        let read = |name: &str| fs::read(intact.dir.join("generations/2").join(name)).expect("a file of the pool");
        (intact.pool, intact.dropped) = (read("pool"), read("dropped"));
        intact
    }

    fn shelf(&self) -> Shelf {
        ListCache::new(Limits { files: 9, bytes: 1 << 20 }).shelf(self.dir.join("lists"))
    }

    fn pack_path(&self) -> PathBuf {
        self.dir.join("sums/2.pack")
    }

    fn uses_path(&self) -> PathBuf {
        self.dir.join("generations/2/packs")
    }
}

/// Returns the path of a directory for this process. A fuzzer exits without cleaning up, so the directories of processes
/// that no longer run are removed here.
fn own_dir() -> PathBuf {
    const PREFIX: &str = "stillmirror-fuzz-";
    let all = std::env::temp_dir();
    for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
    all.join(format!("{PREFIX}{}", std::process::id()))
}
