use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use stillmirror_protocol::local::Identity;
use stillmirror_protocol::wire::ItemFailure;
use stillmirror_receiver::{Action, Check, Failure, Options, PullError};
use stillmirror_store::Store;
use tokio_util::sync::CancellationToken;

use crate::property::{build, step};
use crate::sender::Sender;
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run, run_until};

const HOUR: Duration = Duration::from_secs(3600);

/// Returns a place where nothing has the destination's name.
fn nowhere() -> Place {
    let place = Place::new();
    fs::remove_dir(place.dest()).unwrap();
    place
}

fn switching(place: &Place, sender: &Sender) -> Options {
    Options { keep_snapshots: Some(HOUR), ..place.mirror(sender) }
}

fn snapshots(place: &Place) -> PathBuf {
    place.dir.path().join("dest.snapshots")
}

fn names(place: &Place) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(snapshots(place)).unwrap().map(name).collect();
    names.sort();
    names
}

/// Returns the snapshot that the destination leads to.
fn current(place: &Place) -> PathBuf {
    let target = fs::read_link(place.dest()).unwrap();
    assert!(target.is_relative());
    place.dir.path().join(target)
}

fn inode(path: PathBuf) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// Asserts that the store's generation describes the current snapshot.
fn assert_published(place: &Place) {
    let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    assert_eq!(held.local().identity(0).inode, inode(current(place)));
    for row in (0..held.list().len()).filter(|&row| held.list().row(row).is_file()) {
        let path = String::from_utf8(held.list().path(row)).unwrap();
        let known = held.local().identity(row);
        assert_eq!((known.inode, known.ctime), (inode(place.file(&path)), Identity::NO_CTIME), "{path}");
    }
}

fn usage(options: Options) -> String {
    match run(options) {
        Err(PullError::Usage(message)) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_update_is_a_new_snapshot_and_the_earlier_ones_stay_as_they_were() {
    let old =
        Tree::default().file("same", noise(50_000, 1)).file("d/old", "old").file("d/changed", "1").mode("same", 0o600);
    let new =
        Tree::default().file("same", noise(50_000, 1)).file("e/new", "new").file("d/changed", "2").mode("same", 0o644);
    let (sender, place) = (Sender::of(&old), nowhere());
    let report = run(switching(&place, &sender)).unwrap();
    assert!(report.switched && report.published.is_some());
    let first = current(&place);
    assert_same(&first, &old);
    assert_published(&place);

    let report = run(switching(&place, &sender)).unwrap();
    assert!(report.unchanged && !report.switched && report.round_trips == 1, "{report:?}");
    assert_eq!((current(&place), names(&place).len()), (first.clone(), 1));

    sender.publish(&new);
    let report = run(switching(&place, &sender)).unwrap();
    assert!(report.switched);
    assert_eq!(report.bytes_literal, 4, "what only gets another mode is not fetched");
    assert_ne!(current(&place), first);
    assert_same(&first, &old);
    assert_same(&current(&place), &new);
    assert_published(&place);
}

#[test]
fn a_moved_file_is_shared_with_the_earlier_snapshots_unless_its_metadata_changes() {
    let big = noise(200_000, 3);
    let old = Tree::default().file("d/moved", big.clone()).file("d/closed", noise(100_000, 4)).file("keep", "k");
    let (sender, place) = (Sender::of(&old), nowhere());
    run(switching(&place, &sender)).unwrap();
    let first = current(&place);
    let new = old.clone().renamed("d", "e").mode("e/closed", 0o600);
    sender.publish(&new);
    let report = run(switching(&place, &sender)).unwrap();
    assert_eq!((report.bytes_literal, report.files_reused), (0, 2));
    assert_eq!(inode(first.join("d/moved")), inode(place.file("e/moved")));
    assert_ne!(inode(first.join("d/closed")), inode(place.file("e/closed")));
    assert_same(&first, &old);
    assert_same(&current(&place), &new);
    assert_published(&place);
}

#[test]
fn unchanged_files_and_their_hard_links_are_shared() {
    let old = Tree::default().file("a", "a").linked("b", "b", 1).linked("d/b", "b", 1).symlink("s", "a").fifo("p");
    let (sender, place) = (Sender::of(&old), nowhere());
    run(switching(&place, &sender)).unwrap();
    let first = current(&place);
    sender.publish(&old.clone().file("new", "n"));
    run(switching(&place, &sender)).unwrap();
    for name in ["a", "b", "d/b", "s", "p"] {
        assert_eq!(inode(first.join(name)), inode(place.file(name)), "{name}");
    }
    assert_same(&current(&place), &old.clone().file("new", "n"));
    // A new mode of one group gives the group a new inode.
    let changed = old.file("new", "n").mode("b", 0o600).mode("d/b", 0o600);
    sender.publish(&changed);
    run(switching(&place, &sender)).unwrap();
    assert_eq!(inode(place.file("b")), inode(place.file("d/b")));
    assert_ne!(inode(place.file("b")), inode(first.join("b")));
    assert_eq!(fs::metadata(first.join("b")).unwrap().mode() & 0o777, 0o644);
    assert_same(&current(&place), &changed);
}

#[test]
fn a_directory_becomes_the_first_snapshot_and_nothing_of_it_is_fetched() {
    let old = Tree::default().file("a", noise(90_000, 1)).file("d/b", "b");
    let (sender, place) = (Sender::of(&old), Place::new());
    run(place.mirror(&sender)).unwrap();
    let directory = inode(place.dest());
    // An unchanged directory has no reason to become a symlink.
    assert!(run(switching(&place, &sender)).unwrap().unchanged);
    assert!(!place.dest().is_symlink());
    let new = old.clone().file("c", "c");
    sender.publish(&new);
    let report = run(switching(&place, &sender)).unwrap();
    assert!(report.switched && report.bytes_literal == 1);
    assert_eq!(inode(snapshots(&place).join("first")), directory);
    assert_same(&snapshots(&place).join("first"), &old);
    assert_same(&current(&place), &new);
    assert_published(&place);
}

#[test]
fn readers_keep_the_old_snapshot_until_the_new_one_is_whole() {
    let old = Tree::default().file("a", "a1").file("b", "b1");
    let new = Tree::default().file("a", noise(60_000, 2)).file("b", "b2");
    let (sender, place) = (Sender::of(&old), nowhere());
    run(switching(&place, &sender)).unwrap();
    let (first, generation) = (current(&place), Store::open(&place.store()).unwrap().current_head().unwrap());
    for why in [ItemFailure::Vanished, ItemFailure::Stale] {
        sender.publish_failing(&new, &[("b", why)]);
        let options = Options { patience: Duration::ZERO, ..switching(&place, &sender) };
        let report = run(options).unwrap();
        assert!(!report.switched && report.published.is_none() && report.failed.len() == 1, "{report:?}");
        assert_eq!(current(&place), first);
        assert_same(&first, &old);
        let held = Store::open(&place.store()).unwrap().current_head().unwrap();
        assert_eq!(held.map(|held| held.number), generation.as_ref().map(|held| held.number));
    }
    sender.publish(&new);
    let report = run(switching(&place, &sender)).unwrap();
    assert!(report.switched && report.bytes_literal < 10, "a is not fetched again: {report:?}");
    assert_same(&current(&place), &new);
    assert_same(&first, &old);
}

#[test]
fn a_file_that_no_pull_can_bring_does_not_stop_the_updates() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a1")), nowhere());
    run(switching(&place, &sender)).unwrap();
    sender
        .publish_failing(&Tree::default().file("a", "a2").file("secret", "s"), &[("secret", ItemFailure::Unreadable)]);
    let report = run(switching(&place, &sender)).unwrap();
    assert!(report.switched && report.has_failed(Failure::Unreadable));
    assert_same(&current(&place), &Tree::default().file("a", "a2"));
    assert_published(&place);
}

#[test]
fn a_snapshot_remains_for_a_while_after_it_was_current() {
    let tree = |content: &str| Tree::default().file("a", content);
    let (sender, place) = (Sender::of(&tree("0")), nowhere());
    run(switching(&place, &sender)).unwrap();
    for content in ["1", "2", "3"] {
        sender.publish(&tree(content));
        run(switching(&place, &sender)).unwrap();
    }
    assert_eq!(names(&place).len(), 4);
    let report = run(Options { keep_snapshots: Some(Duration::ZERO), ..switching(&place, &sender) }).unwrap();
    assert!(report.unchanged);
    assert_eq!(names(&place), [current(&place).file_name().unwrap().to_str().unwrap()]);
    assert_same(&current(&place), &tree("3"));
    assert!(run(switching(&place, &sender)).unwrap().unchanged);
}

#[test]
fn wherever_a_pull_was_killed_the_next_one_completes_the_switch() {
    let old = Tree::default().file("a", "a").file("d/b", noise(70_000, 1)).linked("l", "l", 1).linked("m", "l", 1);
    let new = old.clone().file("a", "new").file("c", "c");
    type Leave = fn(&Place, &str);
    let states: [(&str, Leave, u64); 7] = [
        ("copying", |place, _| fs::create_dir_all(snapshots(place).join("copying/d")).unwrap(), 4),
        ("removing", |place, _| fs::create_dir_all(snapshots(place).join("removing/d")).unwrap(), 4),
        ("a symlink that was not renamed", |place, _| symlink("x", snapshots(place).join("switch")).unwrap(), 4),
        (
            "a part of the next snapshot",
            |place, _| {
                let next = snapshots(place).join("building");
                fs::create_dir_all(next.join("d")).unwrap();
                fs::hard_link(place.file("a"), next.join("a")).unwrap();
                fs::hard_link(place.file("d/b"), next.join("d/b")).unwrap();
                fs::write(next.join("alien"), "x").unwrap();
            },
            5,
        ),
        ("nothing", |_, _| {}, 4),
        // The rest is left by a pull that brought everything.
        (
            "published, but not renamed",
            |place, first| {
                fs::rename(current(place), snapshots(place).join("building")).unwrap();
                point(place, first);
            },
            0,
        ),
        ("renamed, but not switched", point, 0),
    ];
    for (name, leave, fetched) in states {
        let (sender, place) = (Sender::of(&old), nowhere());
        run(switching(&place, &sender)).unwrap();
        let first = current(&place).file_name().unwrap().to_str().unwrap().to_owned();
        sender.publish(&new);
        if fetched == 0 {
            run(switching(&place, &sender)).unwrap();
        }
        leave(&place, &first);
        assert_same(&current(&place), &old);
        let report = run(switching(&place, &sender)).unwrap();
        assert!(report.switched && report.bytes_literal <= fetched, "{name}: {report:?}");
        assert_same(&current(&place), &new);
        assert_same(&snapshots(&place).join(&first), &old);
        assert_published(&place);
        assert_eq!(names(&place).len(), 2, "{name}: {:?}", names(&place));
        assert!(run(switching(&place, &sender)).unwrap().unchanged, "{name}");
    }
}

fn point(place: &Place, snapshot: &str) {
    fs::remove_file(place.dest()).unwrap();
    symlink(format!("dest.snapshots/{snapshot}"), place.dest()).unwrap();
}

#[test]
fn a_directory_that_was_exchanged_but_not_renamed_is_kept() {
    let old = Tree::default().file("a", "a");
    let (sender, place) = (Sender::of(&old), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish(&old.clone().file("b", "b"));
    run(switching(&place, &sender)).unwrap();
    fs::rename(snapshots(&place).join("first"), snapshots(&place).join("switch")).unwrap();
    run(switching(&place, &sender)).unwrap();
    assert_same(&snapshots(&place).join("first"), &old);
    assert_eq!(names(&place).len(), 2);
}

#[test]
fn a_cancelled_pull_leaves_the_destination_and_goes_on_the_next_time() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a")), nowhere());
    run(switching(&place, &sender)).unwrap();
    let first = current(&place);
    sender.publish(&Tree::default().file("a", "b"));
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert!(matches!(run_until(switching(&place, &sender), cancel), Err(PullError::Interrupted)));
    assert_eq!(current(&place), first);
    assert!(run(switching(&place, &sender)).unwrap().switched);
}

#[test]
fn a_dry_run_and_a_pull_of_a_part_that_is_there_make_no_snapshot() {
    let old = Tree::default().file("d/a", "a").file("e/b", "b");
    let (sender, place) = (Sender::of(&old), nowhere());
    let dry = |sender| Options { dry_run: true, ..switching(&place, sender) };
    assert_eq!(run(dry(&sender)).unwrap().planned.len(), 4);
    assert!(!snapshots(&place).exists() && !place.dest().exists());
    let part = |sender| Options { path: b"d".to_vec(), ..switching(&place, sender) };
    run(part(&sender)).unwrap();
    let first = current(&place);
    sender.publish(&old.clone().file("e/b", "changed"));
    let report = run(part(&sender)).unwrap();
    assert!(report.unchanged && !report.switched, "{report:?}");
    assert_eq!((current(&place), names(&place).len()), (first.clone(), 1));
    assert_published(&place);
    sender.publish(&old.file("d/c", "c"));
    assert_eq!(run(Options { dry_run: true, ..part(&sender) }).unwrap().planned, [(Action::Fetch, b"c".to_vec())]);
    assert_eq!((current(&place), names(&place).len()), (first, 1));
    assert!(run(part(&sender)).unwrap().switched);
}

#[test]
fn what_waits_for_its_deletion_is_in_the_next_snapshot_and_waits_no_longer_than_it_should() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a").file("gone", "g")), nowhere());
    let gently = |grace| Options { delete_grace: Some(grace), ..switching(&place, &sender) };
    run(gently(HOUR)).unwrap();
    sender.publish(&Tree::default().file("a", "b"));
    assert_eq!(run(gently(HOUR)).unwrap().deletes_waiting, 1);
    std::thread::sleep(Duration::from_millis(300));
    sender.publish(&Tree::default().file("a", "c"));
    let report = run(gently(HOUR)).unwrap();
    assert!(report.switched && report.deletes_waiting == 1 && place.file("gone").exists());
    let with_it = current(&place);
    let report = run(gently(Duration::from_millis(300))).unwrap();
    assert!(report.switched && report.files_deleted == 1, "it waited in the snapshot before, too: {report:?}");
    assert!(!place.file("gone").exists() && with_it.join("gone").exists());
}

#[test]
fn a_destination_that_cannot_be_switched_is_refused() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a")), nowhere());
    fs::create_dir(place.dir.path().join("elsewhere")).unwrap();
    symlink("elsewhere", place.dest()).unwrap();
    assert!(usage(switching(&place, &sender)).contains("is a symlink to elsewhere, which is not one of its snapshots"));
    fs::remove_file(place.dest()).unwrap();
    fs::write(place.dest(), "").unwrap();
    assert!(usage(switching(&place, &sender)).contains("is not a directory"));
    assert!(usage(Options { dest: "/".into(), ..switching(&place, &sender) }).contains("has no name"));
    fs::remove_file(place.dest()).unwrap();
    // An update in place would change all snapshots.
    run(switching(&place, &sender)).unwrap();
    assert!(usage(place.mirror(&sender)).contains("is a symlink to a snapshot: pull with --switch"));
    let slash = PathBuf::from(format!("{}/", place.dest().display()));
    assert!(usage(Options { dest: slash.clone(), ..place.mirror(&sender) }).contains("is a symlink to a snapshot"));
    assert!(run(Options { dest: slash, ..switching(&place, &sender) }).unwrap().unchanged);
}

#[test]
fn a_store_in_the_tree_is_refused_since_snapshots_would_share_it() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a")), Place::new());
    let inside = Options { store: Some(place.file("store")), ..switching(&place, &sender) };
    run(Options { keep_snapshots: None, ..inside.clone() }).unwrap();
    sender.publish(&Tree::default().file("a", "b"));
    let message = usage(inside);
    assert!(message.contains("is inside the destination: with --switch, keep stores outside of it"), "{message}");
    assert!(!place.dest().is_symlink());
}

#[test]
fn a_second_pull_into_the_same_snapshots_is_refused() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a")), nowhere());
    run(switching(&place, &sender)).unwrap();
    let dir = fs::File::open(snapshots(&place)).unwrap();
    rustix::fs::flock(&dir, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(matches!(run(switching(&place, &sender)), Err(PullError::Busy { .. })));
    let waiting = Options { wait: Some(HOUR), ..switching(&place, &sender) };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run(waiting).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        drop(dir);
        assert!(waiting.join().unwrap().unchanged);
    });
}

#[test]
fn a_missing_destination_of_which_the_store_knows_files_is_refused() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a")), nowhere());
    run(switching(&place, &sender)).unwrap();
    fs::remove_file(place.dest()).unwrap();
    fs::remove_dir_all(snapshots(&place)).unwrap();
    assert!(matches!(run(switching(&place, &sender)), Err(PullError::EmptyDestination { .. })));
    let allowed = Options { allow_empty: true, ..switching(&place, &sender) };
    assert!(run(allowed).unwrap().switched);
    assert_same(&current(&place), &Tree::default().file("a", "a"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn after_any_change_the_current_snapshot_is_the_senders_tree_and_no_earlier_one_has_changed(
        rounds in prop::collection::vec(prop::collection::vec(step(), 0..14), 1..5),
        checks in prop::collection::vec(prop::sample::select(vec![Check::Stat, Check::Hash, Check::None]), 5),
        with_store: bool,
        from_directory: bool,
    ) {
        let mut tree = Tree::default();
        let (sender, place) = (Sender::of(&tree), if from_directory { Place::new() } else { nowhere() });
        let mut earlier: Vec<(PathBuf, Tree)> = Vec::new();
        for (steps, check) in rounds.iter().zip(checks) {
            tree = steps.iter().fold(tree, build);
            sender.publish(&tree);
            let options = if with_store { switching(&place, &sender) } else {
                Options { keep_snapshots: Some(HOUR), ..place.options(&sender) }
            };
            let report = run(Options { check, ..options.clone() }).unwrap();
            prop_assert!(report.failed.is_empty());
            assert_same(&place.dest(), &tree);
            if report.switched {
                earlier.push((current(&place), tree.clone()));
            }
            for (snapshot, then) in &earlier {
                assert_same(snapshot, then);
            }
            let again = run(Options { check, ..options }).unwrap();
            prop_assert!(again.unchanged && !again.switched, "{again:?}");
        }
    }
}
