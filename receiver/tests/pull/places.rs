use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use stillmirror_receiver::{Check, Failed, Failure, MaxDelete, Options, PullError};
use stillmirror_store::Store;

use crate::property::{build, path, step};
use crate::sender::{Behaviour, REPOSITORY, Sender};
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

const CHECKS: [Check; 3] = [Check::Stat, Check::Hash, Check::None];

/// Returns what is in a directory: paths, and the contents of files.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
            found.insert(path.clone(), kind.is_file().then(|| fs::read(&path).unwrap()));
            dirs.extend(kind.is_dir().then_some(path));
        }
    }
    found
}

fn sample() -> Tree {
    Tree::default().file("a", "a").file("pool/b", noise(30_000, 1))
}

#[track_caller]
fn assert_refused(options: Options, word: &str) {
    let before = fs::read_dir(options.dest.parent().unwrap()).unwrap().count();
    let error = run(options.clone()).unwrap_err();
    let PullError::Usage(message) = &error else { panic!("{error}") };
    assert!(message.contains(word), "{message}");
    assert_eq!(fs::read_dir(options.dest.parent().unwrap()).unwrap().count(), before);
}

#[test]
fn a_destination_that_is_a_store_or_in_one_is_refused() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    let at = |name: &str| place.dir.path().join(name);
    let other = at("other");
    Store::create(&other, "another").unwrap();
    Store::create(&at("own"), REPOSITORY).unwrap();
    fs::create_dir(other.join("generations/new")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    symlink("other/generations", at("alias")).unwrap();
    symlink("empty", at("alias-of-empty")).unwrap();
    let before = [snapshot(&other), snapshot(&at("own"))];
    let pull = |dest: PathBuf, store: Option<PathBuf>| Options { dest, store, ..place.options(&sender) };
    for store in [None, Some(at("store"))] {
        assert_refused(pull(other.clone(), store.clone()), "is the store");
        assert_refused(pull(other.join("generations"), store.clone()), "is inside the store");
        assert_refused(pull(other.join("generations/new"), store.clone()), "is inside the store");
        assert_refused(pull(other.join("missing"), store.clone()), "is inside the store");
        assert_refused(pull(at("alias"), store.clone()), "is inside the store");
    }
    assert_refused(pull(at("own"), Some(at("own"))), "is the store");
    assert_refused(pull(at("own/sums"), Some(at("own"))), "is inside the store");
    // Stores that do not exist yet.
    assert_refused(pull(at("empty"), Some(at("empty"))), "is the store");
    assert_refused(pull(at("empty"), Some(at("alias-of-empty"))), "is the store");
    assert_refused(pull(at("new"), Some(at("new"))), "is the store");
    assert_refused(pull(at("empty/dest"), Some(at("empty"))), "is inside the store");
    assert_eq!(before, [snapshot(&other), snapshot(&at("own"))]);
    assert!(!at("store").exists() && !at("new").exists());
    assert_eq!(fs::read_dir(at("empty")).unwrap().count(), 0);
}

#[test]
fn a_store_in_the_staging_directory_is_refused() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    let mut options = Options { store: Some(place.file(".stillmirror-stage")), ..place.options(&sender) };
    assert_refused(options.clone(), "staging");
    fs::create_dir_all(place.file(".stillmirror-stage/store")).unwrap();
    assert_refused(options.clone(), "staging");
    symlink(place.file(".stillmirror-stage/store"), place.dir.path().join("alias")).unwrap();
    options.store = Some(place.dir.path().join("alias"));
    assert_refused(options, "staging");
}

#[test]
fn stores_below_the_destination_are_never_deleted() {
    for check in CHECKS {
        for grace in [None, Some(Duration::from_millis(1))] {
            let (sender, place) = (Sender::of(&sample()), Place::new());
            let own = place.file("var/lib/own");
            fs::create_dir_all(own.parent().unwrap()).unwrap();
            fs::create_dir_all(place.file("pool/deep")).unwrap();
            for (name, repository) in [("other", "another"), ("pool/deep/down", "third")] {
                Store::create(&place.file(name), repository).unwrap();
            }
            let before = [snapshot(&place.file("other")), snapshot(&place.file("pool/deep/down"))];
            fs::write(place.file("var/lib/stray"), "").unwrap();
            fs::write(place.file("pool/deep/stray"), "").unwrap();
            let options = Options { store: Some(own.clone()), check, delete_grace: grace, ..place.options(&sender) };
            run(options.clone()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            run(options.clone()).unwrap();
            assert!(!place.file("var/lib/stray").exists() && !place.file("pool/deep/stray").exists());
            // A directory that is to be deleted has a store in it.
            let next = Tree::default().file("a", "new");
            sender.publish(&next);
            run(options.clone()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            run(options.clone()).unwrap();
            assert_eq!(before, [snapshot(&place.file("other")), snapshot(&place.file("pool/deep/down"))]);
            assert!(!place.file("pool/b").exists());
            let held = Store::open(&own).unwrap().current().unwrap().unwrap();
            assert_eq!(held.list_bytes(), &sender.current().encoded[..]);
            let report = run(Options { max_delete: MaxDelete::Names(0), ..options }).unwrap();
            assert!(report.unchanged && report.deletes_waiting == 0, "{report:?}");
        }
    }
}

#[test]
fn a_bind_mount_of_a_store_is_protected_like_the_store() {
    use rustix::mount::{UnmountFlags, mount_bind, unmount};
    let (sender, place) = (Sender::of(&sample()), Place::new());
    let store = place.dir.path().join("other");
    Store::create(&store, "another").unwrap();
    fs::create_dir_all(place.file("gone/seen")).unwrap();
    let before = snapshot(&store);
    if mount_bind(&store, place.file("gone/seen")).is_err() {
        return; // Only root can.
    }
    let result = run(place.mirror(&sender));
    let inside = run(Options { dest: place.file("gone/seen/generations"), ..place.options(&sender) });
    unmount(place.file("gone/seen"), UnmountFlags::DETACH).unwrap();
    assert!(result.unwrap().failed.is_empty());
    assert!(matches!(inside, Err(PullError::Usage(_))));
    assert_eq!(snapshot(&store), before);
    // The own store's directory, at another place.
    fs::create_dir(place.dir.path().join("alias")).unwrap();
    mount_bind(place.store().join("generations"), place.dir.path().join("alias")).unwrap();
    let result = run(Options { dest: place.dir.path().join("alias"), ..place.mirror(&sender) });
    unmount(place.dir.path().join("alias"), UnmountFlags::DETACH).unwrap();
    assert!(matches!(&result, Err(PullError::Usage(message)) if message.contains("inside the store")), "{result:?}");
}

#[test]
fn what_would_need_the_place_of_a_store_is_not_made() {
    // The list has a directory, a file, or a symlink in its place, or above it.
    let trees = [
        ("s", Tree::default().file("s/generations/x", "x").file("s/repository", "r").file("t", "t")),
        ("s", Tree::default().file("s", "a file").file("t", "t")),
        ("s", Tree::default().symlink("s", "t").file("t", "t")),
        ("s", Tree::default().file("s/deep/er/x", "x").linked("s/y", "y", 1).linked("z", "y", 1).file("t", "t")),
        ("up", Tree::default().file("up", "a file").file("t", "t")),
    ];
    for (top, tree) in trees {
        for first in [true, false] {
            for check in CHECKS {
                let (sender, place) = (Sender::of(&Tree::default().file("t", "old")), Place::new());
                let store = place.file(if top == "s" { "s" } else { "up/deep/s" });
                fs::create_dir_all(store.parent().unwrap()).unwrap();
                Store::create(&store, "another").unwrap();
                let before = snapshot(&store);
                if !first {
                    run(place.mirror(&sender)).unwrap();
                }
                sender.publish(&tree);
                for _ in 0..2 {
                    let report = run(Options { check, ..place.mirror(&sender) }).unwrap();
                    let failed = Failed { path: top.into(), why: Failure::InTheWay };
                    assert_eq!(report.failed, [failed], "{check:?} {first} {tree:?}");
                    assert_eq!(snapshot(&store), before);
                    assert_eq!(fs::read(place.file("t")).unwrap(), b"t");
                }
                let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
                assert!(held.list().find(b"t").is_some() && held.list().find(b"s/deep").is_none());
                // Once the store is gone, the tree is completed.
                fs::remove_dir_all(&store).unwrap();
                run(Options { check: Check::Stat, ..place.mirror(&sender) }).unwrap();
                assert_same(&place.dest(), &tree);
            }
        }
    }
}

#[test]
fn a_pulled_directory_that_looks_like_a_store_is_updated_and_deleted() {
    let tree = |text: &str| Tree::default().file("s/repository", "stillmirror store 1\nx\n").file("s/text", text);
    for check in CHECKS {
        let (sender, place) = (Sender::of(&tree("old")), Place::new());
        run(place.mirror(&sender)).unwrap();
        sender.publish(&tree("new"));
        assert!(run(Options { check, ..place.mirror(&sender) }).unwrap().failed.is_empty());
        assert_same(&place.dest(), &tree("new"));
        sender.publish(&Tree::default());
        run(Options { check, ..place.mirror(&sender) }).unwrap();
        assert_same(&place.dest(), &Tree::default());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_list_wants_a_store_stays_as_it_is(
        rounds in prop::collection::vec(prop::collection::vec(step(), 0..14), 1..4),
        checks in prop::collection::vec(prop::sample::select(CHECKS.to_vec()), 4),
        at in path(),
        moment in 0..4usize,
        grace: bool,
    ) {
        let mut tree = Tree::default();
        let (sender, place) = (Sender::of(&tree), Place::new());
        let store = place.file(&at);
        let mut before = None;
        for (round, (steps, check)) in rounds.iter().zip(checks).enumerate() {
            // Somebody makes a store where there is room for one, perhaps in a directory that was pulled.
            let is_free = !store.exists() || (store.is_dir() && fs::read_dir(&store).unwrap().count() == 0);
            let is_real = store.ancestors().take_while(|dir| *dir != place.dest()).all(|dir| !dir.is_symlink());
            let is_free = is_free && is_real;
            if round >= moment && before.is_none() && is_free && fs::create_dir_all(store.parent().unwrap()).is_ok() {
                Store::create(&store, "another").unwrap();
                before = Some(snapshot(&store));
            }
            tree = steps.iter().fold(tree, build);
            sender.publish(&tree);
            let delete_grace = grace.then_some(Duration::from_millis(1));
            let options = Options { check, delete_grace, ..place.mirror(&sender) };
            for _ in 0..2 {
                let report = run(options.clone()).unwrap();
                prop_assert!(before.is_some() || report.failed.is_empty());
                // Files that refer to what a store keeps out wait for it.
                let expected = [Failure::InTheWay, Failure::Held];
                let unexpected = report.failed.iter().find(|failed| !expected.contains(&failed.why));
                prop_assert!(unexpected.is_none(), "{unexpected:?}");
                if let Some(before) = &before {
                    prop_assert_eq!(&snapshot(&store), before);
                }
            }
        }
        if before.is_some() {
            fs::remove_dir_all(&store).unwrap();
        }
        let last = Options { allow_empty: true, ..place.mirror(&sender) };
        prop_assert!(run(last).unwrap().failed.is_empty());
        assert_same(&place.dest(), &tree);
    }
}

#[test]
fn an_empty_destination_of_a_store_that_knows_files_is_refused() {
    for check in CHECKS {
        let (sender, place) = (Sender::of(&sample()), Place::new());
        let options = Options { check, ..place.mirror(&sender) };
        run(options.clone()).unwrap();
        let unmounted = place.dir.path().join("unmounted");
        for state in ["empty", "lost+found", "missing"] {
            fs::rename(place.dest(), &unmounted).unwrap();
            if state != "missing" {
                fs::create_dir(place.dest()).unwrap();
            }
            if state == "lost+found" {
                fs::create_dir(place.file("lost+found")).unwrap();
            }
            let error = run(options.clone()).unwrap_err();
            let expected = matches!(error, PullError::EmptyDestination { generation: 1, files: 2, .. });
            assert!(expected && error.to_string().contains("--allow-empty"), "{state}: {error}");
            assert!(!place.file("a").exists() && !place.file(".stillmirror-stage").exists());
            let _ = fs::remove_dir_all(place.dest());
            fs::rename(&unmounted, place.dest()).unwrap();
        }
        assert!(run(options.clone()).unwrap().unchanged, "mounted again");
        fs::remove_dir_all(place.dest()).unwrap();
        fs::create_dir(place.dest()).unwrap();
        run(Options { allow_empty: true, ..options.clone() }).unwrap();
        assert_same(&place.dest(), &sample());
        assert!(run(options).unwrap().unchanged);
    }
}

#[test]
fn an_interrupted_first_pull_and_an_empty_repository_need_no_permission() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    sender.behave(Behaviour { cut: Some(20_000), ..Behaviour::default() });
    run(place.mirror(&sender)).unwrap_err();
    fs::remove_dir_all(place.dest()).unwrap();
    fs::create_dir(place.dest()).unwrap();
    sender.behave(Behaviour::default());
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &sample());
    sender.publish(&Tree::default().dir("d"));
    run(place.mirror(&sender)).unwrap();
    fs::remove_dir(place.file("d")).unwrap();
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &Tree::default().dir("d"));
}
