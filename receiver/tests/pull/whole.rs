use std::fs;
use std::os::unix::fs::symlink;

use stillmirror_protocol::wire::{ItemFailure, Request};
use stillmirror_receiver::{Action, Check, Failed, Failure, MaxDelete, Options, PullError};

use tokio_util::sync::CancellationToken;

use crate::sender::{Behaviour, Sender};
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run, run_until, staging_directory_is_removed};

fn sample() -> Tree {
    Tree::default()
        .file("README", "hello")
        .file("empty", "")
        .file("pool/a/a_1.0.deb", noise(300_000, 1))
        .file("pool/b/b_1.0.deb", noise(2_500_000, 2))
        .linked("links/one", noise(70_000, 3), 1)
        .linked("links/two", noise(70_000, 3), 1)
        .linked("z/three", noise(70_000, 3), 1)
        .symlink("current", "pool/a")
        .symlink("dangling", "../../outside")
        .dir("empty-dir")
        .fifo("queue")
        .mode("pool/a", 0o2750)
        .mode("README", 0o4755)
}

#[test]
fn a_first_pull_makes_the_tree_that_the_list_describes() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    let report = run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &sample());
    assert_eq!((report.files_updated, report.files_linked), (5, 2));
    assert_eq!(report.bytes_literal, 5 + 300_000 + 2_500_000 + 70_000, "a link group is transferred once");
    assert!(staging_directory_is_removed(&place.dest()));
}

#[test]
fn large_files_arrive_side_by_side() {
    let tree = Tree::default().file("a", noise(20_000_000, 1)).file("b", noise(30_000_000, 2)).file("c", "small");
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(Options { threads: 2, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &tree);
    let rows = |request: &Request| match request {
        Request::Data { items, .. } => items.iter().map(|item| item.row).collect(),
        _ => Vec::new(),
    };
    let requested: Vec<_> = sender.requests().iter().map(rows).filter(|rows| !rows.is_empty()).collect();
    assert_ne!(requested[0], requested[1], "each of two builders has a file of its own: {requested:?}");
    assert_eq!(requested[0], requested[2], "{requested:?}");
}

#[test]
fn a_pull_needs_no_store() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(place.options(&sender)).unwrap();
    assert_same(&place.dest(), &sample());
    assert!(run(place.options(&sender)).unwrap().unchanged);
}

#[test]
fn additions_changes_removals_and_renames_arrive() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(place.mirror(&sender)).unwrap();
    let next = sample()
        .file("README", "hello again")
        .file("new/deep/down", "x")
        .without("links/one")
        .without("empty-dir")
        .renamed("pool/b", "pool/c")
        .symlink("current", "pool/c")
        .mode("pool/a/a_1.0.deb", 0o600);
    sender.publish(&next);
    let report = run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &next);
    assert_eq!(report.bytes_literal, "hello again".len() as u64 + 1, "the renamed file is not fetched");
    // links/one, empty-dir, pool/b and the name in it.
    assert_eq!(report.files_deleted, 4);
}

#[test]
fn without_delete_names_that_the_sender_lacks_remain() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    fs::write(place.file("mine"), "own").unwrap();
    run(Options { delete: false, ..place.options(&sender) }).unwrap();
    assert_eq!(fs::read(place.file("mine")).unwrap(), b"own");
}

#[test]
fn too_many_deletions_delete_nothing_but_the_rest_is_done() {
    let before = sample();
    let (sender, place) = (Sender::of(&before), Place::new());
    run(place.mirror(&sender)).unwrap();
    let next = before.clone().without("pool").without("links").file("README", "broken upstream");
    sender.publish(&next);
    let error = run(Options { max_delete: MaxDelete::Names(3), ..place.mirror(&sender) }).unwrap_err();
    let PullError::DeleteLimit { wanted, report, .. } = error else { panic!("{error}") };
    // pool, a, b and a file in each; links and two names in it.
    assert_eq!((wanted, report.files_deleted), (8, 0));
    assert!(place.file("pool/a/a_1.0.deb").exists());
    assert_eq!(fs::read(place.file("README")).unwrap(), b"broken upstream");
    // The store still lists them, so a pull that trusts it deletes them once that is allowed.
    run(Options { check: Check::None, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &next);
}

#[test]
fn a_filter_excludes_names_and_protects_them_from_deletion() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    fs::create_dir_all(place.file("local")).unwrap();
    fs::write(place.file("local/notes"), "mine").unwrap();
    let mut options = place.mirror(&sender);
    options.filter.exclude(b"/pool/b").unwrap();
    options.filter.exclude(b"/local/").unwrap();
    run(options.clone()).unwrap();
    assert!(!place.file("pool/b").exists() && place.file("local/notes").exists());
    let report = run(options.clone()).unwrap();
    assert!(report.unchanged && report.published.is_none());
    options.check = Check::None;
    assert!(run(options).unwrap().unchanged);
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &sample());
}

#[test]
fn a_name_that_the_filter_protects_remains_if_a_file_replaces_its_directory() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    let mut options = place.mirror(&sender);
    options.filter.exclude(b"*.keep").unwrap();
    run(options.clone()).unwrap();
    fs::write(place.file("pool/a/mine.keep"), "own").unwrap();
    sender.publish(&sample().without("pool").file("pool", "a file now").file("README", "new"));
    for check in [Check::Stat, Check::None, Check::Stat] {
        let report = run(Options { check, ..options.clone() }).unwrap();
        assert_eq!(report.failed, [Failed { path: b"pool".to_vec(), why: Failure::InTheWay }]);
        assert_eq!(fs::read(place.file("pool/a/mine.keep")).unwrap(), b"own");
        assert_eq!(fs::read(place.file("README")).unwrap(), b"new");
        assert!(!place.file("pool/b").exists());
    }
    fs::remove_file(place.file("pool/a/mine.keep")).unwrap();
    run(options).unwrap();
    assert_eq!(fs::read(place.file("pool")).unwrap(), b"a file now");
}

#[test]
fn a_directory_in_the_way_is_reported_every_time_and_stops_nothing_else() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(place.mirror(&sender)).unwrap();
    let next = sample().without("pool").file("pool", "a file now");
    sender.publish(&next);
    let kept = Options { delete: false, ..place.mirror(&sender) };
    for (check, readme) in [(Check::Stat, "1"), (Check::None, "2"), (Check::None, "3")] {
        sender.publish(&next.clone().file("README", readme));
        let report = run(Options { check, ..kept.clone() }).unwrap();
        assert_eq!(report.failed, [Failed { path: b"pool".to_vec(), why: Failure::InTheWay }]);
        assert_eq!(fs::read(place.file("README")).unwrap(), readme.as_bytes());
        assert!(place.file("pool/a/a_1.0.deb").exists());
    }
    // A deletion that the last pull was not allowed to make counts again.
    let limited = Options { check: Check::None, max_delete: MaxDelete::Names(3), ..place.mirror(&sender) };
    assert!(matches!(run(limited), Err(PullError::DeleteLimit { wanted: 5, .. })));
    run(Options { check: Check::None, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &next.file("README", "3"));
}

#[test]
fn a_directory_or_a_single_file_can_be_pulled() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(Options { path: b"pool".to_vec(), ..place.options(&sender) }).unwrap();
    assert_eq!(fs::read(place.file("a/a_1.0.deb")).unwrap(), noise(300_000, 1));
    run(Options { path: b"links/two".to_vec(), ..place.options(&sender) }).unwrap();
    assert_eq!(fs::read(place.file("two")).unwrap(), noise(70_000, 3));
    assert!(place.file("a/a_1.0.deb").exists(), "a pull of a single file deletes nothing");
    let error = run(Options { path: b"nowhere".to_vec(), ..place.options(&sender) }).unwrap_err();
    assert!(matches!(&error, PullError::Usage(text) if text.contains("nowhere")), "{error}");
}

#[test]
fn a_local_symlink_is_replaced_and_never_followed() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    let outside = place.dir.path().join("outside");
    fs::create_dir_all(outside.join("a")).unwrap();
    fs::write(outside.join("a/precious"), "keep").unwrap();
    symlink(&outside, place.file("pool")).unwrap();
    symlink(outside.join("a/precious"), place.file("README")).unwrap();
    run(place.options(&sender)).unwrap();
    assert_same(&place.dest(), &sample());
    assert_eq!(fs::read(outside.join("a/precious")).unwrap(), b"keep");
    assert_eq!(fs::read_dir(outside.join("a")).unwrap().count(), 1);
}

#[test]
fn an_entry_can_change_from_any_type_to_any_other() {
    let kinds: [fn(Tree) -> Tree; 4] = [
        |tree| tree.file("x", "a file"),
        |tree| tree.dir("x").file("x/inside", "deep"),
        |tree| tree.symlink("x", "elsewhere"),
        |tree| tree.fifo("x"),
    ];
    for from in kinds {
        for to in kinds {
            let (sender, place) = (Sender::of(&from(Tree::default())), Place::new());
            run(place.mirror(&sender)).unwrap();
            sender.publish(&to(Tree::default()));
            run(place.mirror(&sender)).unwrap();
            assert_same(&place.dest(), &to(Tree::default()));
        }
    }
}

#[test]
fn a_non_empty_directory_is_replaced_only_if_deletions_are_allowed() {
    let (sender, place) = (Sender::of(&Tree::default().file("x", "new")), Place::new());
    fs::create_dir(place.file("x")).unwrap();
    fs::write(place.file("x/mine"), "own").unwrap();
    let report = run(Options { delete: false, ..place.mirror(&sender) }).unwrap();
    assert_eq!(report.failed, [Failed { path: b"x".to_vec(), why: Failure::InTheWay }]);
    assert_eq!(fs::read(place.file("x/mine")).unwrap(), b"own");
    run(place.mirror(&sender)).unwrap();
    assert_eq!(fs::read(place.file("x")).unwrap(), b"new");
}

#[test]
fn a_link_group_is_linked_to_a_later_name_that_is_right() {
    let tree = Tree::default().linked("a", noise(50_000, 9), 1).linked("b", noise(50_000, 9), 1);
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.mirror(&sender)).unwrap();
    fs::remove_file(place.file("a")).unwrap();
    let report = run(place.mirror(&sender)).unwrap();
    assert_eq!((report.bytes_literal, report.files_linked), (0, 1));
    assert_same(&place.dest(), &tree);
}

#[test]
fn names_of_one_symlink_or_fifo_are_linked_and_separated_again() {
    let names =
        |tree: Tree, name: &str| tree.symlink(&format!("{name}/symlink"), "target").fifo(&format!("{name}/fifo"));
    let grouped = |tree: Tree, name: &str| {
        names(tree, name).in_group(&format!("{name}/symlink"), 1).in_group(&format!("{name}/fifo"), 2)
    };
    let linked = grouped(grouped(Tree::default(), "a"), "b");
    let (sender, place) = (Sender::of(&linked), Place::new());
    let report = run(place.mirror(&sender)).unwrap();
    assert_eq!((report.others_made, report.files_linked), (2, 2));
    assert_same(&place.dest(), &linked);
    // The others are linked to a name that is right already.
    fs::remove_dir_all(place.file("a")).unwrap();
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &linked);

    let mut separate = names(linked, "b");
    separate.0.get_mut(&b"b/symlink"[..]).unwrap().mtime.sec += 1;
    separate.0.get_mut(&b"b/fifo"[..]).unwrap().mtime.sec += 1;
    sender.publish(&separate);
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &separate);
    assert!(run(place.mirror(&sender)).unwrap().unchanged);
}

#[test]
fn names_that_are_no_longer_linked_become_separate_files() {
    let tree = Tree::default().linked("a", "same", 1).linked("b", "same", 1).file("c", "same");
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.mirror(&sender)).unwrap();
    let next = tree.file("b", "another").linked("c", "same", 2).linked("d", "same", 2);
    sender.publish(&next);
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &next);
}

#[test]
fn a_file_that_the_sender_cannot_deliver_is_reported_and_the_old_one_remains() {
    let old = Tree::default().file("a", noise(40_000, 1)).file("b", "old b").file("c", "old c").file("d", "d");
    let (sender, place) = (Sender::of(&old), Place::new());
    run(place.mirror(&sender)).unwrap();
    let new = Tree::default().file("a", noise(40_000, 2)).file("b", "new b").file("c", "new c").file("e", "new e");
    let failing = [("a", ItemFailure::Stale), ("b", ItemFailure::Vanished), ("e", ItemFailure::Unreadable)];
    sender.publish_failing(&new, &failing);
    let report = run(place.mirror(&sender)).unwrap();
    let failed = |path: &str, why| Failed { path: path.into(), why };
    assert_eq!(
        report.failed,
        [failed("a", Failure::Stale), failed("b", Failure::Vanished), failed("e", Failure::Unreadable)]
    );
    let now = old.clone().file("c", "new c");
    let root = new.0[&b""[..]].clone();
    let mut now = now;
    now.0.insert(Vec::new(), root);
    assert_same(&place.dest(), &now);
    // The store lists what the tree has. The next pull brings the rest, and deletes.
    sender.publish(&new);
    let report = run(Options { check: Check::None, ..place.mirror(&sender) }).unwrap();
    assert!(report.failed.is_empty());
    assert_same(&place.dest(), &new);
}

#[test]
fn a_file_that_was_not_replaced_is_unchanged_even_if_its_content_is_reused_elsewhere() {
    let old = Tree::default().file("log", noise(40_000, 1)).file("log.1", noise(40_000, 2));
    let (sender, place) = (Sender::of(&old), Place::new());
    run(place.mirror(&sender)).unwrap();
    let rotated = old.clone().renamed("log", "log.1").mode("log.1", 0o600);
    let mut next = rotated.clone().file("log", noise(40_000, 3));
    next.0.get_mut(&b"log.1"[..]).unwrap().mtime.sec += 7;
    sender.publish_failing(&next, &[("log", ItemFailure::Stale)]);
    let report = run(place.mirror(&sender)).unwrap();
    assert_eq!((report.failed.len(), report.bytes_literal), (1, 20_000), "{report:?}");
    let mut now = next.clone();
    now.0.insert(b"log".to_vec(), old.0[&b"log"[..]].clone());
    assert_same(&place.dest(), &now);
}

#[test]
fn a_dry_run_reports_the_plan_and_writes_nothing() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    let report = run(Options { dry_run: true, ..place.mirror(&sender) }).unwrap();
    assert_eq!(fs::read_dir(place.dest()).unwrap().count(), 0);
    assert!(!place.store().exists());
    assert_eq!(report.planned_bytes, 5 + 300_000 + 2_500_000 + 70_000);
    assert!(report.planned.contains(&(Action::Symlink, b"current".to_vec())));
    assert!(report.planned.contains(&(Action::MakeDirectory, b"pool/a".to_vec())));
    run(place.mirror(&sender)).unwrap();
    sender.publish(&sample().without("README"));
    let report = run(Options { dry_run: true, ..place.mirror(&sender) }).unwrap();
    assert_eq!(report.planned, [(Action::Delete, b"README".to_vec())]);
    assert_same(&place.dest(), &sample());
}

#[test]
fn checking_by_digest_repairs_what_size_and_time_do_not_show() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    run(place.mirror(&sender)).unwrap();
    let damaged = place.file("pool/a/a_1.0.deb");
    let time = fs::metadata(&damaged).unwrap().modified().unwrap();
    let mut content = noise(300_000, 1);
    content[77] ^= 1;
    fs::write(&damaged, content).unwrap();
    fs::File::options().write(true).open(&damaged).unwrap().set_modified(time).unwrap();
    assert!(run(place.mirror(&sender)).unwrap().unchanged, "the quick check cannot see it");
    run(Options { check: Check::Hash, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &sample());
}

#[test]
fn a_second_pull_into_the_same_tree_is_refused() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    sender.behave(Behaviour { mute: true, ..Behaviour::default() });
    let cancel = CancellationToken::new();
    let first = {
        let (options, cancel) = (place.options(&sender), cancel.clone());
        std::thread::spawn(move || run_until(options, cancel))
    };
    while sender.requests().is_empty() {
        std::thread::yield_now();
    }
    let error = run(place.options(&sender)).unwrap_err();
    assert!(matches!(error, PullError::Busy { .. }), "{error}");
    cancel.cancel();
    assert!(matches!(first.join().unwrap(), Err(PullError::Interrupted)));
}

#[test]
fn long_runs_of_zeros_take_no_disk_in_new_updated_and_copied_files() {
    use std::os::unix::fs::MetadataExt as _;
    // 64 pieces of data of 4 KiB each, 512 KiB apart.
    let mut image = vec![0; 32 << 20];
    (0..image.len()).step_by(512 << 10).for_each(|at| image[at..at + 4096].copy_from_slice(&noise(4096, at as u64)));
    let tree = Tree::default().file("image", image.clone()).file("twin", image.clone());
    let (sender, place) = (Sender::of(&tree), Place::new());
    let disk = |name: &str| fs::metadata(place.file(name)).unwrap().blocks() * 512;
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &tree);
    image[5_000_000..5_004_096].copy_from_slice(&noise(4096, 7));
    image[16 << 20..(16 << 20) + 4096].fill(0);
    let next = Tree::default().file("image", image.clone()).file("twin", image);
    for tree in [&tree, &next] {
        sender.publish(tree);
        let report = run(place.mirror(&sender)).unwrap();
        assert_same(&place.dest(), tree);
        for name in ["image", "twin"] {
            assert!(disk(name) < 1 << 20, "{name} takes {} bytes", disk(name));
        }
        assert!(report.bytes_literal < 100_000, "{} bytes", report.bytes_literal);
    }
}
