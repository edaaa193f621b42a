use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::time::Duration;

use stillmirror_protocol::wire::ItemFailure;
use stillmirror_receiver::{Check, Failed, Failure, Options, PullError};
use stillmirror_store::Store;

use crate::sender::Sender;
use crate::tree::{Tree, assert_same};
use crate::{Place, run};

const CHECKS: [Check; 3] = [Check::Stat, Check::Hash, Check::None];
const TRACE: &str = "project/trace/mirror.example.org";

fn traced(place: &Place, sender: &Sender, check: Check) -> Options {
    Options { trace: Some("mirror.example.org".parse().unwrap()), check, ..place.mirror(sender) }
}

/// Removes the traces, so that the rest can be compared.
fn take_traces(place: &Place, with_dirs: bool) -> (String, String) {
    let json = format!("{TRACE}.json");
    let read = |name: &str| fs::read_to_string(place.file(name)).unwrap();
    let texts = (read(TRACE), read(&json));
    let dirs = ["", "project/trace"].map(|dir| fs::File::open(place.file(dir)).unwrap());
    let times = dirs.each_ref().map(|dir| dir.metadata().unwrap().modified().unwrap());
    for name in [TRACE, &json] {
        assert_eq!(fs::metadata(place.file(name)).unwrap().permissions().mode() & 0o777, 0o644);
        fs::remove_file(place.file(name)).unwrap();
    }
    if with_dirs {
        fs::remove_dir_all(place.file("project")).unwrap();
    }
    dirs.iter().zip(times).for_each(|(dir, time)| dir.set_modified(time).unwrap());
    texts
}

#[test]
fn traces_are_written_in_the_form_of_debian_and_as_json() {
    let tree = Tree::default().file("a", "a");
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(traced(&place, &sender, Check::Stat)).unwrap();
    let (text, json) = take_traces(&place, true);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains(" UTC 2") && lines[0].len() == "Fri Nov  6 18:56:53 UTC 2026".len(), "{text}");
    for (line, begin) in
        lines[1..].iter().zip(["Date: ", "Date-Started: ", "Creator: stillmirror ", "Running on host: "])
    {
        assert!(line.starts_with(begin) && line.len() > begin.len(), "{text}");
    }
    assert!(lines[1].ends_with(" +0000") && lines[5] == "Upstream-mirror: 127.0.0.1", "{text}");
    for part in ["\"host\":\"mirror.example.org\"", "\"generation\":1", "\"created\":\"2023-11-14T22:13:20Z\""] {
        assert!(json.contains(part), "{json}");
    }
    assert!(json.contains(&sender.current().head.list_digest.to_string()), "{json}");
}

#[test]
fn traces_are_renewed_by_a_pull_that_finds_nothing_new_and_change_nothing_else() {
    let with_dir = Tree::default().file("a", "a").file("project/trace/master", "m");
    for tree in [Tree::default().file("a", "a"), with_dir] {
        for check in CHECKS {
            for delete_grace in [None, Some(Duration::from_millis(1))] {
                let (sender, place) = (Sender::of(&tree), Place::new());
                let options = Options { delete_grace, ..traced(&place, &sender, check) };
                run(options.clone()).unwrap();
                let inode = || fs::metadata(place.file(TRACE)).unwrap().ino();
                for _ in 0..2 {
                    let before = fs::File::open(place.file(TRACE)).unwrap().metadata().unwrap().ino();
                    let held = fs::File::open(place.file(TRACE)).unwrap();
                    let report = run(options.clone()).unwrap();
                    assert!(report.unchanged && report.published.is_none(), "{check:?} {report:?}");
                    assert_eq!((report.files_deleted, report.deletes_waiting), (0, 0));
                    assert_ne!(inode(), before);
                    drop(held);
                }
                // A change comes, and the traces are not in the generation.
                let next = tree.clone().file("b", "b");
                sender.publish(&next);
                run(options.clone()).unwrap();
                let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
                assert_eq!(held.list_bytes(), &sender.current().encoded[..]);
                let has_dir = held.list().find(b"project").is_some();
                take_traces(&place, !has_dir);
                // The times of the directories are those of the list.
                assert_same(&place.dest(), &next);
            }
        }
    }
}

#[test]
fn a_directory_that_the_list_lost_keeps_only_the_traces() {
    for check in CHECKS {
        let (sender, place) =
            (Sender::of(&Tree::default().file("a", "a").file("project/trace/master", "m")), Place::new());
        run(traced(&place, &sender, check)).unwrap();
        sender.publish(&Tree::default().file("a", "a"));
        run(traced(&place, &sender, check)).unwrap();
        assert!(!place.file("project/trace/master").exists() && place.file(TRACE).exists());
        assert!(run(traced(&place, &sender, check)).unwrap().unchanged);
        // Without the option, they are names like others.
        run(Options { trace: None, check: Check::Stat, ..place.mirror(&sender) }).unwrap();
        assert_same(&place.dest(), &Tree::default().file("a", "a"));
    }
}

#[test]
fn a_pull_that_is_not_complete_leaves_the_old_trace() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a")), Place::new());
    run(traced(&place, &sender, Check::Stat)).unwrap();
    let before = fs::read(place.file(TRACE)).unwrap();
    let inode = || fs::metadata(place.file(TRACE)).unwrap().ino();
    let old = inode();
    sender.publish_failing(&Tree::default().file("a", "a").file("b", "b"), &[("b", ItemFailure::Vanished)]);
    let options = Options { patience: Duration::ZERO, ..traced(&place, &sender, Check::Stat) };
    assert_eq!(run(options).unwrap().failed.len(), 1);
    assert_eq!((fs::read(place.file(TRACE)).unwrap(), inode()), (before, old));
}

#[test]
fn a_trace_directory_that_is_a_symlink_is_not_followed() {
    for link in ["project", "project/trace"] {
        for check in CHECKS {
            let (sender, place) = (Sender::of(&Tree::default().file("a", "a")), Place::new());
            let outside = place.dir.path().join("outside");
            fs::create_dir_all(outside.join("trace")).unwrap();
            fs::create_dir_all(place.file(link).parent().unwrap()).unwrap();
            symlink(&outside, place.file(link)).unwrap();
            let options = Options { delete: false, ..traced(&place, &sender, check) };
            for _ in 0..2 {
                let report = run(options.clone()).unwrap();
                assert_eq!(report.failed, [Failed { path: TRACE.into(), why: Failure::Stuck }], "{link}");
            }
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
            assert_eq!(fs::read_dir(outside.join("trace")).unwrap().count(), 0);
        }
    }
    // In the place of a file, it is replaced.
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a")), Place::new());
    fs::create_dir_all(place.file("project/trace")).unwrap();
    fs::write(place.dir.path().join("victim"), "v").unwrap();
    for name in ["mirror.example.org", ".mirror.example.org.new"] {
        symlink(place.dir.path().join("victim"), place.file("project/trace").join(name)).unwrap();
    }
    run(Options { delete: false, ..traced(&place, &sender, Check::Stat) }).unwrap();
    assert!(fs::symlink_metadata(place.file(TRACE)).unwrap().is_file());
    assert_eq!(fs::read(place.dir.path().join("victim")).unwrap(), b"v");
}

#[test]
fn a_name_that_the_repository_has_itself_is_refused() {
    for tree in [
        Tree::default().file(TRACE, "theirs"),
        Tree::default().file("project", "a file"),
        Tree::default().symlink("project/trace", "elsewhere"),
    ] {
        for check in CHECKS {
            let (sender, place) = (Sender::of(&tree), Place::new());
            run(Options { check, ..place.mirror(&sender) }).unwrap();
            if tree.contents().contains_key(TRACE.as_bytes()) {
                let error = run(traced(&place, &sender, check)).unwrap_err();
                assert!(matches!(&error, PullError::Usage(text) if text.contains(TRACE)), "{error}");
            }
            sender.publish(&tree.clone().file("b", "b"));
            let error = run(traced(&place, &sender, check)).unwrap_err();
            assert!(matches!(&error, PullError::Usage(text) if text.contains("has project")), "{error}");
            assert!(!place.file("b").exists());
        }
    }
}

#[test]
fn a_directory_that_its_owner_may_not_write_gets_its_mode_back() {
    let tree = Tree::default().file("a", "a").file("project/trace/master", "m").mode("project/trace", 0o555);
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(traced(&place, &sender, Check::Stat)).unwrap();
    assert!(run(traced(&place, &sender, Check::Stat)).unwrap().unchanged);
    take_traces(&place, false);
    assert_same(&place.dest(), &tree);
}

#[test]
fn a_snapshot_has_the_trace_of_its_own_pull() {
    for check in CHECKS {
        let (sender, place) = (Sender::of(&Tree::default().file("a", "a")), Place::new());
        fs::remove_dir(place.dest()).unwrap();
        let keep_snapshots = Some(Duration::from_secs(3600));
        let options = Options { keep_snapshots, ..traced(&place, &sender, check) };
        run(options.clone()).unwrap();
        let first = fs::read(place.file(TRACE)).unwrap();
        let old = fs::canonicalize(place.dest()).unwrap();
        sender.publish(&Tree::default().file("a", "a").file("b", "b"));
        assert!(run(options.clone()).unwrap().switched);
        assert!(place.file("b").exists() && place.file(TRACE).exists());
        assert_eq!(fs::read(old.join(TRACE)).unwrap(), first, "readers of the old snapshot");
        assert!(run(options).unwrap().unchanged);
        assert_ne!(fs::canonicalize(place.dest()).unwrap(), old);
    }
}
