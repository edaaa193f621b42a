//! Files of a store that somebody wrote into: kept lists, packs, the table of packs. Refused, or read through without
//! harm; and what has a check of its own is never taken for what it is not.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::rsync::flist::{Class, ListWriter, RowTable as _};
use stillmirror_protocol::rsync::selection::{Everything, Selection, Wanted};
use stillmirror_protocol::rsync::version::Version;
use stillmirror_store::Store;
use stillmirror_store::list_cache::{Key, Limits, ListCache, Shelf};
use twox_hash::XxHash3_128;

/// What the store's own tests are made of.
#[path = "../../store/tests/common/mod.rs"]
mod common;

/// A small store, and the right content of its files.
struct Right {
    dir: PathBuf,
    kept_path: PathBuf,
    kept: Vec<u8>,
    pack: Vec<u8>,
    uses: Vec<u8>,
    /// What is kept of each file: block checksums, content.
    records: Vec<Option<(Vec<u8>, Vec<u8>)>>,
}

static RIGHT: LazyLock<Right> = LazyLock::new(Right::make);

fuzz_target!(|input: (u8, bool, u16, Vec<(u16, u8)>)| {
    let (what, checked, cut, edits) = input;
    let edit = |right: &[u8]| {
        let mut bytes = right.to_vec();
        edits.iter().for_each(|&(at, byte)| bytes[usize::from(at) % right.len()] = byte);
        bytes.truncate(bytes.len().saturating_sub(usize::from(cut % 64)));
        bytes
    };
    match what % 3 {
        0 => kept_list(edit(&RIGHT.kept), checked),
        1 => generation(&RIGHT.pack_path(), &edit(&RIGHT.pack), &RIGHT.pack),
        _ => {
            let mut bytes = edit(&RIGHT.uses);
            if let (true, Some((fields, checksum))) = (checked, bytes.split_last_chunk_mut::<16>()) {
                *checksum = XxHash3_128::oneshot(fields).to_le_bytes();
            }
            generation(&RIGHT.uses_path(), &bytes, &RIGHT.uses);
        }
    }
});

fn kept_list(mut bytes: Vec<u8>, checked: bool) {
    if let (true, Some((header, body))) = (checked, bytes.split_at_mut_checked(112)) {
        header[80..96].copy_from_slice(&XxHash3_128::oneshot(body).to_le_bytes());
    }
    replace(&RIGHT.kept_path, &bytes);
    let Ok(Some(list)) = RIGHT.shelf().open(&key()) else { return };
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

fn generation(path: &Path, bytes: &[u8], right: &[u8]) {
    replace(path, bytes);
    if let Ok(Some(generation)) = Store::open(&RIGHT.dir).and_then(|store| store.current()) {
        for (file, right) in (0..).zip(&RIGHT.records) {
            let _ = (generation.sums(file), generation.content(file, common::CONTENT.len() as u64));
            if let Ok(record) = generation.record(file) {
                assert_eq!(record.map(|record| (record.sums.to_vec(), record.content.to_vec())), *right);
            }
        }
        let _ = (generation.missing_packs().count(), generation.packs_to_compact());
    }
    replace(path, right);
}

/// Another file under that name: what is mapped is never written.
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

impl Right {
    fn make() -> Self {
        let store = common::store(&own_dir(), 1);
        let generation = store.current().expect("a store").expect("a generation");
        let record = |file| {
            let record = generation.record(file).expect("a right record");
            record.map(|record| (record.sums.to_vec(), record.content.to_vec()))
        };
        let mut right = Self {
            dir: store.dir().to_owned(),
            kept_path: PathBuf::new(),
            kept: Vec::new(),
            pack: Vec::new(),
            uses: Vec::new(),
            records: (0..generation.list().files()).map(record).collect(),
        };
        let list = generation.list();
        let wanted = Wanted { paths: vec![Vec::new()], recurse: true, ..Wanted::default() };
        let selection = Selection::resolve(list, wanted, &Everything).0;
        let writer = ListWriter::new(list, class(), selection, &Everything);
        drop(right.shelf().build(&key(), list, writer, &Everything).expect("it is built"));
        let mut kept = fs::read_dir(right.dir.join("lists")).expect("it is built");
        right.kept_path = kept.next().expect("a file").expect("a name").path();
        right.kept = fs::read(&right.kept_path).expect("it is built");
        right.pack = fs::read(right.pack_path()).expect("a pack");
        right.uses = fs::read(right.uses_path()).expect("a table of packs");
        right
    }

    fn shelf(&self) -> Shelf {
        ListCache::new(Limits { files: 9, bytes: 1 << 20 }).shelf(self.dir.join("lists"))
    }

    fn pack_path(&self) -> PathBuf {
        self.dir.join("sums/1.pack")
    }

    fn uses_path(&self) -> PathBuf {
        self.dir.join("generations/1/packs")
    }
}

/// A directory of this process. A fuzzer ends without a last word, so each removes what those before it left.
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
