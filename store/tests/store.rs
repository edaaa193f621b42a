//! A store in normal operation, its handling of rot in an open generation, and its errors for invalid requests.

mod common;

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use common::{NAME, content, fill, publish, record, store};
use stillmirror_protocol::entry::Time;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::limits;
use stillmirror_protocol::local::{self, LocalTable};
use stillmirror_store::{Retained, Retention, Store, StoreError};

#[test]
fn a_published_generation_can_be_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 2);
    let generation = store.current().unwrap().unwrap();
    assert_eq!((generation.number(), generation.head().generation), (2, 2));
    assert_eq!(generation.list().find(b"README").unwrap().size(), 2);
    assert_eq!(generation.sums(0), Some(&record(2)[..]));
    assert_eq!(generation.local().identity(3).inode, 3);
    assert_eq!(zstd::decode_all(generation.list_zst()).unwrap(), generation.list_bytes());
    assert!(generation.digest_is_right());
    assert!(generation.delta().is_some());
    let head = store.current_head().unwrap().unwrap();
    assert_eq!((head.number, &head.head, head.origin), (2, generation.head(), None));
    assert_eq!(store.current_number().unwrap(), Some(2));
    assert_eq!(store.generations().unwrap(), [1, 2]);
}

#[test]
fn content_is_located_by_file_and_size_and_read_from_the_pack() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    let generation = store.current().unwrap().unwrap();
    let record = generation.record(0).unwrap().unwrap();
    assert_eq!((record.sums, record.content), (&common::record(1)[..], common::CONTENT));
    let (pack, place) = generation.content(0, common::CONTENT.len() as u64).unwrap();
    let file = generation.pack(pack).unwrap().open().unwrap();
    let mut bytes = vec![0; common::CONTENT.len() + 8];
    file.read_exact_at(&mut bytes, place.start).unwrap();
    assert_eq!((&bytes[..common::CONTENT.len()], place.end - place.start), (common::CONTENT, bytes.len() as u64));
    assert!(generation.is_content(0, &bytes) && !generation.is_content(1, &bytes));
    assert_eq!(generation.content(0, 1), None, "a content of another size is not found");
    assert_eq!(generation.pack_uses()[0].live, 3 * (record.sums.len() + record.content.len() + 2 * 8) as u64);

    let path = store.dir().join("sums/1.pack");
    fs::copy(&path, dir.path().join("copy")).unwrap();
    fs::rename(dir.path().join("copy"), &path).unwrap();
    assert!(generation.pack(pack).unwrap().open().is_err(), "another file with the same name is refused");
    fs::write(&path, &fs::read(&path).unwrap()[..place.end as usize - 1]).unwrap();
    let cut = store.current().unwrap().unwrap();
    assert_eq!(cut.content(0, common::CONTENT.len() as u64), None, "truncated");
    assert_eq!(cut.record(0).unwrap_err().path, path);
}

#[test]
fn local_facts_with_device_numbers_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    let path = store.dir().join("generations/1/local");
    let new = store.current().unwrap().unwrap();
    let mut older = fs::read(&path).unwrap();
    older[8] = local::ABSOLUTE_DEVICES as u8;
    fs::write(&path, older).unwrap();
    let old = store.current().unwrap().unwrap();
    for row in 0..new.list().len() {
        assert_eq!(old.local().identity(row), new.local().identity(row));
        assert_eq!((old.local().links(row), new.local().links(row)), (None, Some(1)));
    }
}

#[test]
fn a_record_of_another_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    let first = store.current().unwrap().unwrap();
    let (list, facts) = (first.list(), first.local());
    let mut swapped = LocalTable::default();
    for row in 0..list.len() {
        let other = list.row(row).file_number().map(|file| list.files() - 1 - file);
        swapped.push(facts.identity(row), facts.links(row), other.and_then(|other| facts.record(other)));
    }
    let lock = store.lock().unwrap();
    let draft = store.begin(&lock).unwrap();
    draft.link_list(&first).unwrap();
    draft.write_local(&swapped.encode(first.head().list_digest)).unwrap();
    draft.write_head(first.head_bytes()).unwrap();
    draft.publish().unwrap();
    let second = store.current().unwrap().unwrap();
    assert!(first.record(0).is_ok() && first.record(2).is_ok());
    let error = second.record(0).unwrap_err();
    assert_eq!((error.path, error.offset), (store.dir().join("sums/1.pack"), facts.record(2).unwrap().offset));
    assert!(second.check_sums(2, 0..1).is_err());
    assert!(second.record(1).is_ok(), "files of equal content share a record");
}

#[test]
fn a_rotten_compressed_list_is_not_linked_into_the_next_generation() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    let path = store.dir().join("generations/1/list.zst");
    let mut bytes = fs::read(&path).unwrap();
    bytes[30] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let first = store.current().unwrap().unwrap();
    assert!(!first.list_zst_is_right());
    let lock = store.lock().unwrap();
    let draft = store.begin(&lock).unwrap();
    draft.link_list(&first).unwrap();
    draft.write_local(&fs::read(first.dir().join("local")).unwrap()).unwrap();
    draft.write_head(first.head_bytes()).unwrap();
    draft.publish().unwrap();
    let second = store.current().unwrap().unwrap();
    assert!(second.list_zst_is_right());
    assert_eq!(zstd::decode_all(second.list_zst()).unwrap(), first.list_bytes());
}

#[test]
fn the_column_offsets_of_an_open_list_do_not_rot() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    let generation = store.current().unwrap().unwrap();
    let before = content(&generation);
    for name in ["list", "local"] {
        let file = fs::File::options().write(true).open(generation.dir().join(name)).unwrap();
        // The file ends with the offsets and lengths of the columns.
        file.write_all_at(&[0xff; 100], file.metadata().unwrap().len() - 100).unwrap();
    }
    assert_eq!(content(&generation), before);
    assert_eq!(generation.list_sparsely().find(b"pool/a").unwrap().size(), 77);
    assert!(generation.local().record(0).is_some());
    assert!(store.current().is_err(), "the files have rotted");
}

#[test]
fn rot_after_a_successful_check_is_found_by_the_next_one() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 2);
    let generation = store.current().unwrap().unwrap();
    assert!(generation.list_zst_is_right() && generation.delta().unwrap().is_right() && generation.record(0).is_ok());
    for name in ["generations/2/list.zst", "generations/2/delta", "sums/2.pack"] {
        let path = store.dir().join(name);
        let at = fs::metadata(&path).unwrap().len() - 9;
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }
    assert!(!generation.list_zst_is_right() && !generation.delta().unwrap().is_right());
    assert!((0..3).any(|file| generation.record(file).is_err()));
    let again = generation.compress_list().unwrap();
    assert_eq!(zstd::decode_all(&again[..]).unwrap(), generation.list_bytes());
}

#[test]
fn a_list_has_one_mapping_with_read_ahead_and_one_without() {
    let dir = tempfile::tempdir().unwrap();
    let generation = store(dir.path(), 1).current().unwrap().unwrap();
    assert_eq!(generation.list_sparsely().find(b"README").unwrap().size(), 1);
    assert_eq!(generation.list_sparsely().len(), generation.list().len());
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let list = fs::canonicalize(generation.dir()).unwrap().join("list");
    let advised: Vec<bool> = maps
        .split_inclusive("VmFlags:")
        .zip(maps.split("VmFlags:").skip(1))
        .filter(|(map, _)| map.lines().any(|line| line.ends_with(list.to_str().unwrap())))
        .map(|(_, flags)| flags.lines().next().unwrap().split(' ').any(|flag| flag == "rr"))
        .collect();
    assert_eq!(advised.iter().filter(|&&is_random| is_random).count(), 1, "{advised:?}");
    assert_eq!(advised.len(), 2);
}

#[test]
fn a_store_can_be_reopened_and_its_generations_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    shared(&Arc::new(store.current().unwrap().unwrap()));
    let again = Store::open(store.dir()).unwrap();
    assert_eq!(again.repository(), NAME);
    assert_eq!(again.current_number().unwrap(), Some(1));
}

#[test]
fn a_partial_generation_knows_its_origin() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    let whole = store.current().unwrap().unwrap();
    let lock = store.lock().unwrap();
    let draft = store.begin(&lock).unwrap();
    fill(&draft, Some(&whole)).unwrap();
    draft.write_origin(whole.head_bytes(), Some(b"signature"), Some(whole.list_bytes())).unwrap();
    draft.publish().unwrap();
    let part = store.current().unwrap().unwrap();
    let origin = part.origin().unwrap();
    assert_eq!((origin.head, origin.list.find(b"README").unwrap().size()), (whole.head(), 1));
    assert_eq!(store.current_head().unwrap().unwrap().origin.as_ref(), Some(whole.head()));
}

#[test]
fn a_head_that_is_signed_again_replaces_its_generation_and_shares_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 2);
    let lock = store.lock().unwrap();
    let before = store.current().unwrap().unwrap();
    let draft = store.begin(&lock).unwrap();
    draft.link_all(&before).unwrap();
    let expires = Some(Time { sec: 1_800_000_000, nsec: 0 });
    let head = Head { generation: draft.number(), expires, ..before.head().clone() };
    draft.write_head(&head.encode()).unwrap();
    draft.write_signature(b"signature").unwrap();
    draft.publish().unwrap();
    store.remove_replaced(&lock, before.number()).unwrap();
    // The current generation replaces nothing, and one that is gone is no error.
    store.remove_replaced(&lock, 3).unwrap();
    store.remove_replaced(&lock, before.number()).unwrap();
    assert_eq!(store.generations().unwrap(), [1, 3]);
    let after = store.current().unwrap().unwrap();
    assert_eq!((after.head(), after.signature()), (&head, Some(&b"signature"[..])));
    assert_eq!((after.list_bytes(), after.sums(0)), (before.list_bytes(), before.sums(0)));
    assert_eq!(after.delta().map(|delta| delta.bytes()), before.delta().map(|delta| delta.bytes()));
    let current = store.current_head().unwrap().unwrap();
    assert_eq!((current.head_bytes, current.signature.as_deref()), (head.encode(), Some(&b"signature"[..])));
}

#[test]
fn a_signature_above_its_limit_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    let path = dir.path().join("store/generations/1/head.minisig");
    for (len, fits) in [(limits::SIGNATURE, true), (limits::SIGNATURE + 1, false)] {
        fs::write(&path, vec![b'x'; len]).unwrap();
        for opened in [store.current().map(drop), store.current_head().map(drop)] {
            assert_eq!(opened.is_ok(), fits, "{len}");
            assert!(opened.is_ok() || opened.unwrap_err().to_string().contains("head.minisig"));
        }
    }
}

#[test]
fn an_unchanged_list_is_hard_linked() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    let first = store.current().unwrap().unwrap();
    let lock = store.lock().unwrap();
    let draft = store.begin(&lock).unwrap();
    draft.link_list(&first).unwrap();
    draft.write_local(&fs::read(first.dir().join("local")).unwrap()).unwrap();
    draft.write_head(first.head_bytes()).unwrap();
    draft.publish().unwrap();
    let second = store.current().unwrap().unwrap();
    use std::os::unix::fs::MetadataExt;
    let inode = |generation: &stillmirror_store::Generation| fs::metadata(generation.dir().join("list")).unwrap().ino();
    assert_eq!(inode(&first), inode(&second));
    assert_eq!(second.sums(0), first.sums(0));
}

#[test]
fn a_second_writer_is_refused_while_the_store_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    let lock = store.lock().unwrap();
    let error = store.lock().unwrap_err();
    assert!(matches!(error, StoreError::Locked { holder: Some(pid), .. } if pid == std::process::id()), "{error}");
    assert!(error.to_string().contains(store.dir().to_str().unwrap()), "{error}");
    drop(lock);
    store.lock().unwrap();
}

#[test]
fn a_store_of_another_repository_is_refused_and_left_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    let before = content(&store.current().unwrap().unwrap());
    let error = Store::create(store.dir(), "fedora").unwrap_err();
    assert!(matches!(&error, StoreError::OtherRepository { found, wanted, .. } if found == NAME && wanted == "fedora"));
    assert_eq!(content(&store.current().unwrap().unwrap()), before);
}

#[test]
fn a_directory_that_is_not_a_store_is_refused_and_left_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    assert!(matches!(Store::open(&missing).unwrap_err(), StoreError::Missing(path) if path == missing));
    assert!(!missing.exists());
    fs::write(dir.path().join("precious"), "x").unwrap();
    assert!(matches!(Store::create(dir.path(), NAME).unwrap_err(), StoreError::NotAStore(_)));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(matches!(Store::create(&missing, "../x").unwrap_err(), StoreError::Name(_)));
    assert!(!missing.exists());
}

#[test]
fn the_error_for_a_store_that_cannot_be_created_names_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let error = Store::create(&dir.path().join("file/store"), NAME).unwrap_err();
    assert!(matches!(&error, StoreError::Io { .. }) && error.to_string().contains("file/store"), "{error}");
}

#[test]
fn an_empty_store_has_no_generation() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 0);
    assert!(store.current().unwrap().is_none() && store.current_head().unwrap().is_none());
    assert!(store.generations().unwrap().is_empty());
    assert!(matches!(store.generation(1).unwrap_err(), StoreError::NoGeneration { number: 1, .. }));
}

#[test]
fn a_dropped_draft_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    let lock = store.lock().unwrap();
    let draft = store.begin(&lock).unwrap();
    fill(&draft, None).unwrap();
    drop(draft);
    assert_eq!(fs::read_dir(store.dir().join("generations")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(store.dir().join("sums")).unwrap().count(), 1);
}

#[test]
fn retention_keeps_the_newest_generations_and_removes_unused_packs() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 4);
    let lock = store.lock().unwrap();
    let kept = store.generation(1).unwrap();
    let before = content(&kept);
    let removed = store.retain(&lock, Retention { count: 2, age: None }).unwrap();
    assert_eq!((removed.generations, removed.packs), (vec![1, 2], vec![1, 2]));
    assert_eq!(store.generations().unwrap(), [3, 4]);
    // A removed generation stays readable while it is open.
    assert_eq!(content(&kept), before);
    // A second run removes nothing, and the current generation is always kept.
    assert_eq!(store.retain(&lock, Retention { count: 2, age: None }).unwrap(), Retained::default());
    assert_eq!(store.retain(&lock, Retention { count: 0, age: Some(Duration::ZERO) }).unwrap().generations, [3]);
    assert_eq!(store.current().unwrap().unwrap().sums(0), Some(&record(4)[..]));
}

#[test]
fn retention_by_age_uses_the_time_of_publication() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 3);
    let lock = store.lock().unwrap();
    let old = fs::File::open(store.dir().join("generations/1")).unwrap();
    old.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
    let keep = Retention { count: 10, age: Some(Duration::from_secs(3600)) };
    assert_eq!(store.retain(&lock, keep).unwrap().generations, [1]);
}

#[test]
fn an_older_pack_that_is_still_in_use_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1);
    let first = store.current().unwrap().unwrap();
    let lock = store.lock().unwrap();
    let draft = store.begin(&lock).unwrap();
    draft.link_list(&first).unwrap();
    draft.write_local(&fs::read(first.dir().join("local")).unwrap()).unwrap();
    draft.write_head(first.head_bytes()).unwrap();
    draft.publish().unwrap();
    let removed = store.retain(&lock, Retention { count: 1, age: None }).unwrap();
    assert_eq!((removed.generations, removed.packs), (vec![1], Vec::<u32>::new()));
    assert_eq!(store.current().unwrap().unwrap().sums(0), Some(&record(1)[..]));
}

#[test]
fn numbering_continues_after_current_was_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 3);
    fs::remove_file(store.dir().join("current")).unwrap();
    assert!(store.current().unwrap().is_none());
    assert_eq!(publish(&store).unwrap(), 4);
    assert_eq!(store.generations().unwrap(), [4]);
}

#[test]
fn dropping_a_lock_releases_it_even_while_a_child_process_starts() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), NAME).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Until it executes another program, a child process has all files of its parent open.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                Command::new("true").status().unwrap();
            }
        });
        let refused = (0..1000).find_map(|_| store.lock().err());
        over.store(true, Ordering::Relaxed);
        assert!(refused.is_none(), "{refused:?}");
    });
}
