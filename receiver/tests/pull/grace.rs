use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use proptest::prelude::*;
use stillmirror_protocol::wire::ItemFailure;
use stillmirror_receiver::{Action, Check, MaxDelete, Options, PullError, Report};
use stillmirror_store::Store;

use crate::property::{build, step};
use crate::sender::Sender;
use crate::tree::{Node, Tree, assert_same, noise};
use crate::{Place, run};

const CHECKS: [Check; 3] = [Check::Stat, Check::Hash, Check::None];
const HOUR: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(150);

fn gently(place: &Place, sender: &Sender, grace: Duration, check: Check) -> Options {
    Options { delete_grace: Some(grace), check, ..place.mirror(sender) }
}

fn wait_for(grace: Duration) {
    std::thread::sleep(grace + Duration::from_millis(20));
}

/// Asserts that the store's generation has the sender's list, and that its local facts are those of the files on disk.
fn assert_published_as_sent(place: &Place, sender: &Sender) {
    let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
    assert!(held.list_bytes() == &sender.current().encoded[..]);
    assert_eq!(held.head().list_digest, sender.current().head.list_digest);
    assert!(held.origin().is_none());
    for row in (0..held.list().len()).filter(|&row| held.list().row(row).is_file()) {
        let path = String::from_utf8(held.list().path(row)).unwrap();
        let (stat, known) = (fs::symlink_metadata(place.file(&path)).unwrap(), held.local().identity(row));
        let ctime = (known.ctime.sec, i64::from(known.ctime.nsec));
        assert_eq!((known.inode, ctime), (stat.ino(), (stat.ctime(), stat.ctime_nsec())), "{path}");
    }
}

fn counts(report: &Report) -> (u64, u64, u64) {
    (report.files_deleted, report.deletes_held, report.deletes_waiting)
}

#[test]
fn a_name_that_the_list_no_longer_has_waits_and_is_deleted_by_a_pull_that_finds_nothing_new() {
    let old = Tree::default().file("a", "a").file("gone", "gone").file("dir/deep/one", "1").file("dir/two", "2");
    let new = Tree::default().file("a", "new a");
    for check in CHECKS {
        let (sender, place) = (Sender::of(&old), Place::new());
        run(place.mirror(&sender)).unwrap();
        sender.publish(&new);
        let report = run(gently(&place, &sender, HOUR, check)).unwrap();
        assert_eq!(counts(&report), (0, 0, 2), "gone and dir");
        assert_published_as_sent(&place, &sender);
        let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
        assert_eq!(held.head_bytes(), sender.current().head.encode());
        for again in CHECKS {
            let report = run(gently(&place, &sender, HOUR, again)).unwrap();
            assert!(report.unchanged && report.published.is_none(), "{again:?}: {report:?}");
            assert_eq!(counts(&report), (0, 0, 2));
        }
        assert_eq!(fs::read(place.file("gone")).unwrap(), b"gone");
        assert_eq!(fs::read(place.file("dir/deep/one")).unwrap(), b"1");
        // Now they have waited for long enough.
        wait_for(SHORT);
        let report = run(gently(&place, &sender, SHORT, check)).unwrap();
        assert_eq!(counts(&report), (5, 0, 0));
        assert!(!report.unchanged && report.published.is_none(), "{report:?}");
        assert_same(&place.dest(), &new);
        assert_published_as_sent(&place, &sender);
        assert!(!place.store().join("grace").exists());
        let report = run(gently(&place, &sender, SHORT, Check::None)).unwrap();
        assert!(report.unchanged && report.round_trips == 1);
    }
}

#[test]
fn each_name_waits_since_the_list_lost_it() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a").file("b", "b").file("c", "c")), Place::new());
    run(place.mirror(&sender)).unwrap();
    let grace = Duration::from_millis(600);
    sender.publish(&Tree::default().file("b", "b").file("c", "c"));
    run(gently(&place, &sender, grace, Check::None)).unwrap();
    wait_for(grace / 2);
    sender.publish(&Tree::default().file("c", "c"));
    run(gently(&place, &sender, grace, Check::None)).unwrap();
    assert!(place.file("a").exists() && place.file("b").exists());
    wait_for(grace / 2);
    let report = run(gently(&place, &sender, grace, Check::None)).unwrap();
    assert_eq!(counts(&report), (1, 0, 1));
    assert!(!place.file("a").exists() && place.file("b").exists());
    wait_for(grace / 2);
    run(gently(&place, &sender, grace, Check::None)).unwrap();
    assert_same(&place.dest(), &Tree::default().file("c", "c"));
}

#[test]
fn without_a_grace_everything_is_deleted_at_once_and_without_delete_nothing() {
    let old = Tree::default().file("a", "a").file("b", "b").file("d/c", "c");
    for check in CHECKS {
        for grace in [None, Some(Duration::ZERO)] {
            let (sender, place) = (Sender::of(&old), Place::new());
            run(place.mirror(&sender)).unwrap();
            sender.publish(&Tree::default().file("a", "a"));
            run(gently(&place, &sender, HOUR, check)).unwrap();
            let keeping = Options { delete: false, check, ..place.mirror(&sender) };
            assert_eq!(counts(&run(keeping).unwrap()), (0, 0, 2));
            let report = run(Options { check, delete_grace: grace, ..place.mirror(&sender) }).unwrap();
            assert_eq!(counts(&report), (3, 0, 0), "b, d and d/c");
            assert_same(&place.dest(), &Tree::default().file("a", "a"));
        }
    }
}

#[test]
fn what_is_wanted_again_is_not_fetched_and_waits_anew_the_next_time() {
    let big = |seed| noise(50_000, seed);
    let old = Tree::default().file("a", "a").file("b", big(1)).file("d/c", big(2)).file("d/e/f", big(3));
    let none = Tree::default().file("a", "a");
    // One name returns as it was, and of the directory a part.
    let some = none.clone().file("b", big(1)).file("d/c", big(2)).dir("d/e");
    for check in CHECKS {
        let (sender, place) = (Sender::of(&old), Place::new());
        run(place.mirror(&sender)).unwrap();
        sender.publish(&none);
        assert_eq!(run(gently(&place, &sender, HOUR, check)).unwrap().deletes_waiting, 2);
        wait_for(SHORT);
        sender.publish(&some);
        // They would be due by now.
        let report = run(gently(&place, &sender, SHORT, check)).unwrap();
        assert_eq!((report.bytes_literal, report.files_updated), (0, 0), "{report:?}");
        assert_eq!(counts(&report), (0, 0, 1), "d/e/f");
        assert_eq!(fs::read(place.file("d/e/f")).unwrap(), big(3));
        assert_published_as_sent(&place, &sender);
        sender.publish(&none);
        let report = run(gently(&place, &sender, HOUR, check)).unwrap();
        assert_eq!(counts(&report), (0, 0, 3));
        assert_eq!(fs::read(place.file("b")).unwrap(), big(1));
        run(Options { check, ..place.mirror(&sender) }).unwrap();
        assert_same(&place.dest(), &none);
    }
}

#[test]
fn what_somebody_else_deletes_leaves_the_journal() {
    let old = Tree::default().file("a", "a").file("b", "b").file("d/c", "c");
    for check in CHECKS {
        let (sender, place) = (Sender::of(&old), Place::new());
        run(place.mirror(&sender)).unwrap();
        sender.publish(&Tree::default().file("a", "a"));
        run(gently(&place, &sender, HOUR, check)).unwrap();
        fs::remove_file(place.file("b")).unwrap();
        sender.publish(&Tree::default().file("a", "a!"));
        assert_eq!(run(gently(&place, &sender, HOUR, check)).unwrap().deletes_waiting, 1);
        fs::remove_dir_all(place.file("d")).unwrap();
        wait_for(SHORT);
        assert_eq!(counts(&run(gently(&place, &sender, SHORT, check)).unwrap()), (0, 0, 0));
        assert!(!place.store().join("grace").exists());
    }
}

#[test]
fn the_limit_counts_what_is_deleted_in_this_run() {
    let old = Tree::default().file("a", "a").file("b", "b").file("c", "c").file("d", "d");
    for check in CHECKS {
        let (sender, place) = (Sender::of(&old), Place::new());
        run(place.mirror(&sender)).unwrap();
        let limited = |grace| Options { max_delete: MaxDelete::Names(1), ..gently(&place, &sender, grace, check) };
        sender.publish(&Tree::default().file("a", "a"));
        assert_eq!(counts(&run(limited(HOUR)).unwrap()), (0, 0, 3));
        wait_for(SHORT);
        let Err(PullError::DeleteLimit { wanted: 3, report, .. }) = run(limited(SHORT)) else { panic!() };
        assert_eq!(counts(&report), (0, 3, 0));
        assert!(place.file("b").exists());
        assert_published_as_sent(&place, &sender);
        assert_eq!(run(gently(&place, &sender, SHORT, check)).unwrap().files_deleted, 3);
    }
}

#[test]
fn a_file_that_is_not_brought_holds_back_what_is_due() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a").file("b", "b")), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish(&Tree::default().file("b", "b"));
    run(gently(&place, &sender, SHORT, Check::None)).unwrap();
    wait_for(SHORT);
    let next = Tree::default().file("c", "c");
    sender.publish_failing(&next, &[("c", ItemFailure::Stale)]);
    let report = run(gently(&place, &sender, SHORT, Check::None)).unwrap();
    assert_eq!(counts(&report), (0, 1, 1), "a is held back, b waits");
    assert!(place.file("a").exists() && place.file("b").exists());
    sender.publish(&next);
    wait_for(SHORT);
    run(gently(&place, &sender, SHORT, Check::None)).unwrap();
    assert_same(&place.dest(), &next);
}

#[test]
fn a_waiting_file_serves_as_a_source_and_stays() {
    let old = Tree::default().file("foo_1.tar", noise(200_000, 1)).file("other", noise(90_000, 2));
    for check in CHECKS {
        let (sender, place) = (Sender::of(&old), Place::new());
        run(place.mirror(&sender)).unwrap();
        // Renamed in the generation that loses the name.
        sender.publish(&old.clone().renamed("other", "moved"));
        let report = run(gently(&place, &sender, HOUR, check)).unwrap();
        assert_eq!((report.bytes_literal, report.deletes_waiting), (0, 1));
        let inode = |name: &str| fs::metadata(place.file(name)).unwrap().ino();
        assert_ne!(inode("other"), inode("moved"));
        // The basis of a file in a later generation.
        sender.publish(&Tree::default().file("a", "a"));
        run(gently(&place, &sender, HOUR, check)).unwrap();
        let mut content = noise(200_000, 1);
        content[100_000] ^= 1;
        sender.publish(&Tree::default().file("foo_2.tar", content).file("back", noise(90_000, 2)));
        let report = run(gently(&place, &sender, HOUR, check)).unwrap();
        assert!(report.bytes_literal < 100_000, "{report:?}");
        assert_eq!(fs::read(place.file("foo_1.tar")).unwrap(), noise(200_000, 1));
        assert_published_as_sent(&place, &sender);
    }
}

#[test]
fn deleting_one_of_several_names_of_a_file_updates_what_the_store_knows_of_the_others() {
    let linked = |tree: Tree, names: &[&str]| names.iter().fold(tree, |tree, name| tree.linked(name, "same", 1));
    let old = linked(Tree::default(), &["a", "b", "d/c"]);
    for check in CHECKS {
        let (sender, place) = (Sender::of(&old), Place::new());
        run(place.mirror(&sender)).unwrap();
        sender.publish(&Tree::default().file("a", "same"));
        run(gently(&place, &sender, HOUR, check)).unwrap();
        assert_published_as_sent(&place, &sender);
        wait_for(SHORT);
        let report = run(gently(&place, &sender, SHORT, check)).unwrap();
        assert_eq!((report.files_deleted, report.published), (3, Some(3)));
        assert_published_as_sent(&place, &sender);
        assert_same(&place.dest(), &Tree::default().file("a", "same"));
    }
}

#[test]
fn a_damaged_journal_deletes_nothing_early_and_loses_nothing() {
    let old = Tree::default().file("a", "a").file("b", "b").file("d/c", "c");
    for check in CHECKS {
        let (sender, place) = (Sender::of(&old), Place::new());
        run(place.mirror(&sender)).unwrap();
        let new = Tree::default().file("a", "a");
        sender.publish(&new);
        run(gently(&place, &sender, SHORT, check)).unwrap();
        let journal = place.store().join("grace");
        let mut bytes = fs::read(&journal).unwrap();
        let at = bytes.len() - 2;
        bytes[at] ^= 1;
        fs::write(&journal, bytes).unwrap();
        wait_for(SHORT);
        assert_eq!(counts(&run(gently(&place, &sender, SHORT, check)).unwrap()), (0, 0, 2));
        wait_for(SHORT);
        assert_eq!(counts(&run(gently(&place, &sender, SHORT, check)).unwrap()), (3, 0, 0));
        assert_same(&place.dest(), &new);
    }
}

#[test]
fn the_journal_of_another_tree_deletes_nothing_early() {
    let old = Tree::default().file("a", "a").file("b", "b");
    let (sender, place) = (Sender::of(&old), Place::new());
    run(place.mirror(&sender)).unwrap();
    let new = Tree::default().file("a", "a");
    sender.publish(&new);
    run(gently(&place, &sender, SHORT, Check::None)).unwrap();
    let dest = place.dir.path().join("elsewhere");
    fs::create_dir(&dest).unwrap();
    fs::write(dest.join("b"), "another b").unwrap();
    wait_for(SHORT);
    let other = Options { dest: dest.clone(), ..gently(&place, &sender, SHORT, Check::None) };
    assert_eq!(counts(&run(other.clone()).unwrap()), (0, 0, 1));
    assert_eq!(fs::read(dest.join("b")).unwrap(), b"another b");
    wait_for(SHORT);
    run(other).unwrap();
    assert_same(&dest, &new);
}

#[test]
fn what_the_filter_leaves_out_goes_on_waiting() {
    let old = Tree::default().file("a", "a").file("b.iso", "b");
    let (sender, place) = (Sender::of(&old), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish(&Tree::default().file("a", "a"));
    run(gently(&place, &sender, HOUR, Check::None)).unwrap();
    let mut filtered = place.mirror(&sender);
    filtered.filter.exclude(b"*.iso").unwrap();
    assert_eq!(run(filtered).unwrap().files_deleted, 0);
    assert!(place.file("b.iso").exists());
    assert_eq!(run(Options { check: Check::None, ..place.mirror(&sender) }).unwrap().files_deleted, 1);
}

#[test]
fn a_dry_run_shows_what_is_due_and_writes_nothing() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a").file("b", "b")), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish(&Tree::default().file("a", "a"));
    let dry = |grace| Options { dry_run: true, ..gently(&place, &sender, grace, Check::None) };
    let report = run(dry(HOUR)).unwrap();
    assert_eq!((report.deletes_waiting, report.planned.len()), (1, 0), "{report:?}");
    assert!(!place.store().join("grace").exists());
    run(gently(&place, &sender, HOUR, Check::None)).unwrap();
    wait_for(SHORT);
    let report = run(dry(SHORT)).unwrap();
    assert_eq!(report.planned, [(Action::Delete, b"b".to_vec())]);
    assert!(place.file("b").exists());
}

#[test]
fn a_grace_needs_a_store() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a")), Place::new());
    let error = run(Options { delete_grace: Some(HOUR), ..place.options(&sender) }).unwrap_err();
    assert!(matches!(&error, PullError::Usage(message) if message.contains("store")), "{error}");
    assert_eq!(fs::read_dir(place.dest()).unwrap().count(), 0);
}

/// Returns whether nothing in a tree has a path or takes the place of a directory above it.
fn has_room_for(tree: &Tree, path: &[u8]) -> bool {
    let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
    let is_dir = |dir: &[u8]| tree.0.get(dir).is_none_or(|at| at.node == Node::Dir);
    !tree.0.contains_key(path) && ends.into_iter().all(|end| is_dir(&path[..end]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_changes_nothing_is_lost_before_its_time_and_nothing_remains_after_it(
        rounds in prop::collection::vec(prop::collection::vec(step(), 0..14), 1..5),
        checks in prop::collection::vec(prop::sample::select(CHECKS.to_vec()), 5),
        gentle in prop::collection::vec(prop::bool::weighted(0.8), 5),
        last in prop::sample::select(CHECKS.to_vec()),
    ) {
        let mut tree = Tree::default();
        let (sender, place) = (Sender::of(&tree), Place::new());
        for ((steps, check), gentle) in rounds.iter().zip(checks).zip(gentle) {
            tree = steps.iter().fold(tree, build);
            sender.publish(&tree);
            let before = Tree::read(&place.dest());
            let options = Options { delete_grace: gentle.then_some(HOUR), check, ..place.mirror(&sender) };
            let report = run(options.clone()).unwrap();
            prop_assert!(report.failed.is_empty());
            if gentle {
                let mut expected = tree.clone();
                for (path, at) in &before.0 {
                    // What waits may have another mode or time if it is the inode of a name that changed.
                    if has_room_for(&tree, path) {
                        let name = String::from_utf8_lossy(path);
                        let now = fs::symlink_metadata(place.file(&name));
                        prop_assert!(now.is_ok(), "'{}' is gone", name);
                        if let Node::File(content) = &at.node {
                            prop_assert_eq!(&fs::read(place.file(&name)).unwrap(), content);
                        }
                        expected.0.insert(path.clone(), at.clone());
                    }
                }
                let found = Tree::read(&place.dest());
                prop_assert!(found.0.keys().eq(expected.0.keys()), "{:?}\n{:?}", found.0.keys(), expected.0.keys());
                for (path, at) in &tree.canonical().0 {
                    let there = &found.0[path];
                    prop_assert!(there.node == at.node, "{}", String::from_utf8_lossy(path));
                    prop_assert_eq!((there.mode, there.mtime), (at.mode, at.mtime), "{}", String::from_utf8_lossy(path));
                }
            } else {
                assert_same(&place.dest(), &tree);
            }
            assert_published_as_sent(&place, &sender);
            let again = run(options).unwrap();
            prop_assert!(again.unchanged, "{again:?}");
            prop_assert_eq!(again.bytes_literal, 0);
        }
        run(Options { check: last, ..place.mirror(&sender) }).unwrap();
        assert_same(&place.dest(), &tree);
        assert_published_as_sent(&place, &sender);
        prop_assert!(!place.store().join("grace").exists());
    }
}
