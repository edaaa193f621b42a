use stillmirror_protocol::list;
use stillmirror_protocol::local::RelativeDevice;
use stillmirror_receiver::{Check, Options, Problem, PullError, Silent, verify};
use stillmirror_store::Store;
use tokio_util::sync::CancellationToken;

use crate::sender::{Sender, record};
use crate::tree::{Tree, noise};
use crate::{Place, run};

fn sample() -> Tree {
    Tree::default()
        .file("a/big", noise(400_000, 1))
        .file("a/small", "s")
        .linked("l/one", noise(20_000, 2), 1)
        .linked("l/two", noise(20_000, 2), 1)
        .symlink("s", "a")
}

#[test]
fn the_published_generation_is_the_senders_byte_for_byte() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(place.mirror(&sender)).unwrap();
    let next = sample().file("a/big", noise(400_001, 1)).without("s").file("t", "t");
    sender.publish(&next);
    let report = run(place.mirror(&sender)).unwrap();
    let store = Store::open(&place.store()).unwrap();
    let held = store.current().unwrap().unwrap();
    assert_eq!(report.published, Some(held.number()));
    assert_eq!(held.head_bytes(), sender.current().head.encode());
    assert_eq!(held.list_bytes(), &sender.current().encoded[..]);
    let (from, to, _) = stillmirror_protocol::changes::Changes::decode(held.delta().unwrap().bytes()).unwrap();
    assert_eq!((from, to), (held.head().previous, held.head().list_digest));
}

#[test]
fn block_checksums_are_published_for_all_files_although_only_new_ones_are_read() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(place.mirror(&sender)).unwrap();
    let next = sample().renamed("a/big", "renamed").file("new", noise(30_000, 7));
    sender.publish(&next);
    run(place.mirror(&sender)).unwrap();
    let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    for (path, content) in next.contents() {
        let row = held.list().find(&path).unwrap();
        let sums = held.sums(row.file_number().unwrap()).unwrap_or_default();
        assert!(sums == record(&content), "checksums of {}", String::from_utf8_lossy(&path));
    }
}

#[test]
fn small_files_are_stored_with_their_content_however_they_were_brought() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(place.mirror(&sender)).unwrap();
    // One file is copied, one is fetched, one stays.
    let next = sample().file("a/copy", "s").file("new", noise(9_000, 7));
    sender.publish(&next);
    run(place.mirror(&sender)).unwrap();
    let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    for (path, content) in next.contents() {
        let file = held.list().find(&path).unwrap().file_number().unwrap();
        let kept = held.record(file).unwrap().unwrap_or_default().content;
        let expected = if content.len() <= 16 << 10 { &content[..] } else { &[] };
        assert!(kept == expected, "content of {}", String::from_utf8_lossy(&path));
    }
}

#[test]
fn verification_finds_damaged_content_in_the_store() {
    let (sender, place) = (Sender::of(&sample().file("a/text", "some words")), Place::new());
    run(place.mirror(&sender)).unwrap();
    let pack = place.store().join("sums/1.pack");
    let mut bytes = std::fs::read(&pack).unwrap();
    let at = bytes.windows(10).position(|bytes| bytes == b"some words").unwrap();
    bytes[at] = b'S';
    std::fs::write(&pack, bytes).unwrap();
    let report = verify(&place.dest(), &place.store(), &Silent, &CancellationToken::new()).unwrap();
    assert_eq!(report.problems, [(b"a/text".to_vec(), Problem::Stored)]);
}

#[test]
fn local_facts_describe_the_disk_after_the_last_change() {
    use std::os::unix::fs::MetadataExt as _;
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(place.mirror(&sender)).unwrap();
    // Removed names change the inodes of the names that remain; renames change inodes too.
    sender.publish(&sample().without("l/one").renamed("a/big", "a/other"));
    run(place.mirror(&sender)).unwrap();
    let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    for row in 0..held.list().len() {
        let path = held.list().path(row);
        let stat = std::fs::symlink_metadata(place.file(std::str::from_utf8(&path).unwrap())).unwrap();
        let known = held.local().identity(row);
        if path.is_empty() {
            // Its time changes once more, because the staging directory is removed after the generation is
            // published.
            assert_eq!((known.device, known.inode), (RelativeDevice::Roots, stat.ino()));
            continue;
        }
        assert_eq!(
            (known.device, known.inode, known.ctime.sec, i64::from(known.ctime.nsec)),
            (RelativeDevice::Roots, stat.ino(), stat.ctime(), stat.ctime_nsec()),
            "{}",
            String::from_utf8_lossy(&path)
        );
    }
}

#[test]
fn local_facts_that_changed_on_disk_are_published_again() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(place.mirror(&sender)).unwrap();
    let file = place.file("a/small");
    // The mode changes and changes back, so only the ctime differs.
    for mode in [0o600, 0o644] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let report = run(place.mirror(&sender)).unwrap();
    assert!(report.unchanged);
    assert_eq!(report.published, Some(2));
    let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    let known = held.local().identity(held.list().find(b"a/small").unwrap().number());
    assert_eq!(i64::from(known.ctime.nsec), std::fs::metadata(&file).unwrap().ctime_nsec());
    assert_eq!(run(place.mirror(&sender)).unwrap().published, None);
}

#[test]
fn a_pull_of_a_part_lists_the_part_and_keeps_the_whole_list() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    let mut options = Options { path: b"a".to_vec(), ..place.mirror(&sender) };
    options.filter.exclude(b"small").unwrap();
    run(options.clone()).unwrap();
    let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    let paths: Vec<_> = (0..held.list().len()).map(|row| held.list().path(row)).collect();
    assert_eq!(paths, [b"".to_vec(), b"big".to_vec()]);
    let origin = held.origin().unwrap();
    assert_eq!(origin.head.list_digest, sender.current().head.list_digest);
    assert_eq!(list::open(&sender.current().encoded).unwrap().len(), origin.list.len());
    // The next list arrives as a delta to the whole list.
    sender.publish(&sample().file("a/big", noise(400_002, 1)));
    let report = run(Options { check: Check::None, ..options }).unwrap();
    assert_eq!(report.files_updated, 1);
    assert!(report.bytes_list < 500, "{report:?}");
}

#[test]
fn a_store_of_another_repository_is_refused() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    Store::create(&place.store(), "another").unwrap();
    let error = run(place.mirror(&sender)).unwrap_err();
    assert!(matches!(error, PullError::Store(_)), "{error}");
    assert_eq!(std::fs::read_dir(place.dest()).unwrap().count(), 0);
}

#[test]
fn a_store_is_not_trusted_for_another_tree() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(place.mirror(&sender)).unwrap();
    let elsewhere = place.dir.path().join("elsewhere");
    let other = Options { check: Check::None, dest: elsewhere.clone(), ..place.mirror(&sender) };
    let report = run(Options { allow_empty: true, ..other }).unwrap();
    assert!(!report.unchanged);
    crate::tree::assert_same(&elsewhere, &sample());
}

#[test]
fn a_tree_in_which_a_pull_did_not_end_is_not_trusted() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(place.mirror(&sender)).unwrap();
    // The state after a pull was killed among its renames. The sender then returns to the old generation.
    std::fs::create_dir(place.file(".stillmirror-stage")).unwrap();
    std::fs::write(place.file("a/small"), "of a generation that was never completed").unwrap();
    std::fs::remove_file(place.file("s")).unwrap();
    let trusting = Options { check: Check::None, ..place.mirror(&sender) };
    run(trusting.clone()).unwrap();
    crate::tree::assert_same(&place.dest(), &sample());
    assert_eq!(run(trusting).unwrap().round_trips, 1);
    // If the killed pull had renamed nothing, there is only the staging directory to remove.
    std::fs::create_dir(place.file(".stillmirror-stage")).unwrap();
    run(place.mirror(&sender)).unwrap();
    crate::tree::assert_same(&place.dest(), &sample());
}

#[test]
fn verification_finds_differences() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(place.mirror(&sender)).unwrap();
    let check = || verify(&place.dest(), &place.store(), &Silent, &CancellationToken::new()).unwrap();
    let report = check();
    assert!(report.problems.is_empty() && report.files == 4, "{report:?}");
    std::fs::write(place.file("a/small"), "x").unwrap();
    std::fs::remove_file(place.file("s")).unwrap();
    std::fs::remove_file(place.file("l/two")).unwrap();
    std::fs::write(place.file("l/two"), noise(20_000, 2)).unwrap();
    let problems = check().problems;
    let expected = [("a/small", Problem::Content), ("l/two", Problem::Link), ("s", Problem::Missing)];
    assert_eq!(problems, expected.map(|(path, problem)| (path.as_bytes().to_vec(), problem)));
}
