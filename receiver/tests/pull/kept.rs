use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use stillmirror_protocol::changes::{Changes, Put, apply};
use stillmirror_protocol::entry::{Digest, Digests, Entry, Kind, Owner, Time};
use stillmirror_protocol::limits;
use stillmirror_protocol::local::RelativeDevice;
use stillmirror_protocol::wire::ItemFailure;
use stillmirror_receiver::{Check, Failed, Failure, MinFree, Options, PullError};
use stillmirror_store::Store;

use crate::sender::Sender;
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

fn failed(path: &str, why: Failure) -> Failed {
    Failed { path: path.into(), why }
}

/// Asserts that the store's generation describes each local file as it is now. Otherwise a file could not be
/// served.
fn assert_generation_describes_the_disk(place: &Place) {
    let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    let list = held.list();
    for row in (0..list.len()).map(|row| list.row(row)).filter(stillmirror_protocol::list::Row::is_file) {
        let path = String::from_utf8(list.path(row.number())).unwrap();
        let stat = fs::symlink_metadata(place.file(&path)).unwrap();
        let known = held.local().identity(row.number());
        assert_eq!(
            (known.device, known.inode, known.ctime.sec, i64::from(known.ctime.nsec)),
            (RelativeDevice::Roots, stat.ino(), stat.ctime(), stat.ctime_nsec()),
            "identity of '{path}'"
        );
        assert_eq!(
            (u32::from(row.permissions()), row.mtime().sec, i64::from(row.mtime().nsec), row.size()),
            (stat.mode() & 0o7777, stat.mtime(), stat.mtime_nsec(), stat.size()),
            "'{path}'"
        );
        let names = list.links().filter(|&(_, leader)| Some(leader) == row.link_leader()).count();
        assert_eq!(names.max(1) as u64, stat.nlink(), "names of '{path}'");
    }
    let on_disk = Tree::read(&place.dest()).contents().len();
    assert_eq!((0..list.len()).filter(|&row| list.row(row).is_file()).count(), on_disk);
}

#[test]
fn deletions_wait_until_everything_has_been_brought() {
    let old = Tree::default().file("old-name", noise(40_000, 1)).file("was", noise(50_000, 2)).file("gone/deep/a", "a");
    let old = old.linked("pair/one", "pair", 1).linked("pair/two", "pair", 1);
    let new = Tree::default().file("new-name", noise(40_000, 3)).file("pair/two", "pair");
    let mut new = new.file("is", noise(50_000, 2)).mode("is", 0o600);
    new.0.get_mut(&b"is"[..]).unwrap().mtime.sec += 7;
    for check in [Check::Stat, Check::None] {
        let (sender, place) = (Sender::of(&old), Place::new());
        run(place.mirror(&sender)).unwrap();
        sender.publish_failing(&new, &[("new-name", ItemFailure::Stale)]);
        let report = run(Options { check, ..place.mirror(&sender) }).unwrap();
        assert_eq!(report.failed, [failed("new-name", Failure::Stale)]);
        // old-name, was, pair/one; gone and the two names in it.
        assert_eq!((report.files_deleted, report.deletes_held), (0, 6));
        for (path, content) in old.contents() {
            assert_eq!(fs::read(place.file(std::str::from_utf8(&path).unwrap())).unwrap(), content);
        }
        assert_eq!(fs::read(place.file("is")).unwrap(), noise(50_000, 2));
        assert_generation_describes_the_disk(&place);
        // The sender has not changed, so still nothing is deleted.
        let report = run(Options { check, ..place.mirror(&sender) }).unwrap();
        assert_eq!((report.files_deleted, report.deletes_held), (0, 6));
        assert_generation_describes_the_disk(&place);
        sender.publish(&new);
        let report = run(Options { check, ..place.mirror(&sender) }).unwrap();
        assert_eq!((report.files_deleted, report.deletes_held), (6, 0));
        assert_same(&place.dest(), &new);
        assert_generation_describes_the_disk(&place);
    }
}

#[test]
fn a_directory_is_not_replaced_before_everything_has_been_brought() {
    let old = Tree::default().file("x/inside", "deep");
    let (sender, place) = (Sender::of(&old), Place::new());
    run(place.mirror(&sender)).unwrap();
    let new = Tree::default().file("x", "a file").file("y", "y");
    sender.publish_failing(&new, &[("y", ItemFailure::Unreadable)]);
    let report = run(place.mirror(&sender)).unwrap();
    assert_eq!(report.failed, [failed("x", Failure::InTheWay), failed("y", Failure::Unreadable)]);
    assert_eq!(fs::read(place.file("x/inside")).unwrap(), b"deep");
    sender.publish(&new);
    run(Options { check: Check::None, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &new);
}

#[test]
fn deletions_above_the_limit_are_reported_and_the_names_remain_published() {
    let old = Tree::default().file("a", noise(40_000, 1)).file("b/c", "c").file("d", "d");
    let (sender, place) = (Sender::of(&old), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish(&Tree::default().renamed("a", "a").file("e", noise(40_000, 1)));
    let limited = Options { max_delete: stillmirror_receiver::MaxDelete::Names(1), ..place.mirror(&sender) };
    let error = run(limited).unwrap_err();
    let stillmirror_receiver::PullError::DeleteLimit { report, .. } = error else { panic!("{error}") };
    assert_eq!(report.deletes_held, 4);
    assert_generation_describes_the_disk(&place);
}

#[test]
fn an_old_file_that_remains_is_published_in_its_current_state() {
    let old = Tree::default().file("a", "old a").file("b", "b");
    let (sender, place) = (Sender::of(&old), Place::new());
    run(place.mirror(&sender)).unwrap();
    // The mode changes and changes back, so only the ctime differs from the store's.
    for mode in [0o600, 0o644] {
        fs::set_permissions(place.file("a"), fs::Permissions::from_mode(mode)).unwrap();
    }
    sender.publish_failing(&old.clone().file("a", "new a"), &[("a", ItemFailure::Stale)]);
    let report = run(place.mirror(&sender)).unwrap();
    assert_eq!(report.failed, [failed("a", Failure::Stale)]);
    assert_generation_describes_the_disk(&place);
}

#[test]
fn linked_names_that_get_different_times_or_modes_become_separate_files() {
    for (mode, seconds) in [(0o644, 7), (0o600, 0)] {
        for check in [Check::Stat, Check::None, Check::Hash] {
            let old = Tree::default().linked("a", "same", 1).linked("b", "same", 1).linked("c", "same", 1);
            let (sender, place) = (Sender::of(&old), Place::new());
            run(place.mirror(&sender)).unwrap();
            let mut new = Tree::default().linked("a", "same", 1).file("b", "same").linked("c", "same", 1);
            new = new.mode("b", mode);
            new.0.get_mut(&b"b"[..]).unwrap().mtime.sec += seconds;
            sender.publish(&new);
            let report = run(Options { check, ..place.mirror(&sender) }).unwrap();
            assert_same(&place.dest(), &new);
            assert_eq!(report.bytes_literal, 0);
            assert_generation_describes_the_disk(&place);
            assert!(run(Options { check, ..place.mirror(&sender) }).unwrap().unchanged);
        }
    }
}

#[test]
fn files_that_the_operator_linked_to_save_space_stay_linked() {
    let tree = Tree::default().file("a", "same").file("b", "same");
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.mirror(&sender)).unwrap();
    fs::remove_file(place.file("b")).unwrap();
    fs::hard_link(place.file("a"), place.file("b")).unwrap();
    run(place.mirror(&sender)).unwrap();
    assert_eq!(fs::metadata(place.file("a")).unwrap().nlink(), 2);
    assert!(run(place.mirror(&sender)).unwrap().unchanged);
}

#[test]
fn a_name_beyond_the_maximum_number_of_links_becomes_a_separate_file() {
    let one = Tree::default().linked("a", noise(30_000, 1), 1);
    let (sender, place) = (Sender::of(&one), Place::new());
    run(place.mirror(&sender)).unwrap();
    // Make as many other names as the file system allows. Some allow more than a test can make.
    let elsewhere = place.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let full = (0..70_000).any(|n| fs::hard_link(place.file("a"), elsewhere.join(n.to_string())).is_err());
    let two = one.linked("b", noise(30_000, 1), 1);
    sender.publish(&two);
    for round in 0..2 {
        let report = run(place.mirror(&sender)).unwrap();
        assert_eq!((report.bytes_literal, report.links_copied), (0, u64::from(full)), "round {round}");
        assert_eq!(fs::read(place.file("b")).unwrap(), noise(30_000, 1));
        let mtime = |name: &str| fs::metadata(place.file(name)).unwrap().modified().unwrap();
        assert_eq!(mtime("b"), mtime("a"));
    }
    fs::remove_dir_all(elsewhere).unwrap();
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &two);
}

#[test]
fn the_largest_file_sizes_are_counted_without_overflow() {
    let mut changes = Changes::default();
    let root =
        Entry { mode: 0o755, mtime: Time::default(), owner: Owner::default(), link: None, kind: Kind::Directory };
    changes.root = Some(Put { entry: root.clone(), tag: 0 });
    for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
        let digests = Digests { sha256: Digest([number as u8 + 1; 32]), ..Digests::default() };
        let kind = Kind::File { size: limits::FILE_SIZE, digests };
        changes.put(b"", name.as_bytes(), Entry { mode: 0o644, kind, ..root.clone() }, 0);
    }
    let (sender, place) = (Sender::of(&Tree::default()), Place::new());
    sender.publish_encoded(apply(None, &changes).unwrap().list.encode(), &Tree::default());
    sender.fail(&["a", "b", "c"].map(|name| (name, ItemFailure::Stale)));
    let report = run(Options { dry_run: true, ..place.mirror(&sender) }).unwrap();
    assert_eq!(report.planned_bytes, u64::MAX);
    let error = run(place.mirror(&sender)).unwrap_err();
    assert!(matches!(error, PullError::NoSpace { needed: 0x7fff_ffff_ffff_ffff, .. }), "{error}");
    let unchecked = Options { min_free: MinFree::Unchecked, ..place.mirror(&sender) };
    assert_eq!(run(unchecked).unwrap().failed.len(), 3);
}

#[test]
fn a_store_is_not_trusted_for_another_tree_even_if_that_is_not_empty() {
    let tree = Tree::default().file("a", "a").file("b/c", "c");
    let (sender, place) = (Sender::of(&tree), Place::new());
    let trusting = Options { check: Check::None, ..place.mirror(&sender) };
    run(trusting.clone()).unwrap();
    assert_eq!(run(trusting.clone()).unwrap().round_trips, 1);
    let elsewhere = place.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("a"), "another").unwrap();
    let other = Options { dest: elsewhere.clone(), ..trusting.clone() };
    assert!(!run(other.clone()).unwrap().unchanged);
    assert_same(&elsewhere, &tree);
    assert!(run(other).unwrap().unchanged);
    // Pull into the first tree again; then replace it by another tree of the same name.
    fs::write(place.file("a"), "damaged").unwrap();
    run(trusting.clone()).unwrap();
    assert_same(&place.dest(), &tree);
    fs::remove_dir_all(place.dest()).unwrap();
    fs::create_dir(place.dest()).unwrap();
    fs::write(place.file("a"), "not yet").unwrap();
    run(trusting).unwrap();
    assert_same(&place.dest(), &tree);
}
