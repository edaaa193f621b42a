use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use stillmirror_receiver::{Check, Options, PullError};

use crate::sender::{Behaviour, Sender};
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

/// Runs `work` as a user for whom permissions matter, even if root runs the tests.
fn without_root(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                let nobody = rustix::process::Uid::from_raw(65534);
                // This affects only this thread and those that it starts.
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            work();
        });
    });
}

#[test]
fn read_only_directories_and_files_are_updated() {
    let tree = |text: &str| {
        let tree = Tree::default().file("ro/file", text).file("ro/deep/er", "x").file("gone/deep/file", "x");
        let tree = tree.file("becomes/deep/file", "x").file("quiet/file", "x").mode("quiet/file", 0o444);
        let modes = ["", "ro", "ro/deep", "gone", "gone/deep", "becomes", "becomes/deep", "quiet"];
        modes.into_iter().fold(tree, |tree, dir| tree.mode(dir, 0o555))
    };
    without_root(|| {
        let (sender, place) = (Sender::of(&tree("old")), Place::new());
        run(place.mirror(&sender)).unwrap();
        assert_same(&place.dest(), &tree("old"));
        let next = tree("new").without("gone").without("becomes").file("becomes", "a file").mode("quiet/file", 0o400);
        sender.publish(&next);
        run(place.mirror(&sender)).unwrap();
        assert_same(&place.dest(), &next);
        assert!(run(place.mirror(&sender)).unwrap().unchanged);
        // Make the directory of this test removable.
        sender.publish(&["", "ro", "ro/deep", "quiet"].into_iter().fold(next, |tree, dir| tree.mode(dir, 0o755)));
        run(place.mirror(&sender)).unwrap();
    });
}

#[test]
fn unreadable_directories_are_updated() {
    let dirs = ["blind", "blind/deep", "blind/gone", "gone", "gone/deep"];
    let tree = |text: &str, mode: u16| {
        let tree = Tree::default().file("blind/a", text).file("blind/b", "b").file("blind/deep/c", text);
        let tree = tree.file("blind/gone/d", "d").file("gone/deep/e", "e");
        dirs.into_iter().fold(tree, |tree, dir| tree.mode(dir, mode))
    };
    let kept = |tree: Tree| tree.without("gone").without("blind/gone").without("blind/b");
    without_root(|| {
        for check in [Check::Stat, Check::Hash, Check::None] {
            let (sender, place) = (Sender::of(&tree("old", 0o311)), Place::new());
            run(place.mirror(&sender)).unwrap();
            assert!(run(Options { check, ..place.mirror(&sender) }).unwrap().unchanged);
            sender.publish(&kept(tree("new", 0o311)));
            run(Options { check, ..place.mirror(&sender) }).unwrap();
            for dir in ["blind", "blind/deep"] {
                assert_eq!(fs::metadata(place.file(dir)).unwrap().permissions().mode() & 0o7777, 0o311);
                fs::set_permissions(place.file(dir), Permissions::from_mode(0o755)).unwrap();
            }
            assert_same(&place.dest(), &kept(tree("new", 0o755)));
        }
    });
}

#[test]
fn an_interrupted_pull_of_read_only_files_is_continued() {
    let mut tree = Tree::default();
    for number in 0..40 {
        let path = format!("{number}");
        tree = tree.file(&path, noise(100_000, number)).mode(&path, if number % 2 == 0 { 0o444 } else { 0 });
    }
    without_root(|| {
        let (sender, place) = (Sender::of(&tree), Place::new());
        sender.behave(Behaviour { cut: Some(3_000_000), ..Behaviour::default() });
        assert!(matches!(run(place.mirror(&sender)), Err(PullError::Socket { .. })));
        sender.behave(Behaviour::default());
        let report = run(place.mirror(&sender)).unwrap();
        assert!(report.bytes_literal < 2_500_000, "{report:?}");
        assert_eq!(report.files_updated, 40);
    });
}
