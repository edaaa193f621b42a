use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use stillmirror_protocol::wire::Request;
use stillmirror_receiver::{Check, MinFree, Options, PullError};
use stillmirror_store::Store;

use crate::sender::{Behaviour, Sender};
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

/// A small file system in memory.
struct Small(PathBuf);

impl Small {
    /// Returns `None` without the rights of root.
    fn mount(path: &Path, options: &CStr) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        mount("none", path, "tmpfs", MountFlags::empty(), Some(options)).ok()?;
        Some(Self(path.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&*self.0, UnmountFlags::DETACH);
    }
}

#[track_caller]
fn assert_nothing_was_fetched(place: &Place, sender: &Sender) {
    let data = |request: &Request| matches!(request, Request::Head { .. } | Request::List { .. });
    assert!(sender.requests().iter().all(data));
    assert!(!place.file(".stillmirror-stage").exists());
}

#[test]
fn a_pull_that_does_not_fit_is_refused_before_anything_is_fetched() {
    let old = Tree::default().file("a", noise(500_000, 1));
    let (sender, place) = (Sender::of(&old), Place::new());
    let Some(_small) = Small::mount(&place.dest(), c"size=1200k") else { return };
    run(place.mirror(&sender)).unwrap();
    sender.requests();
    // Beside the old file, there is no room.
    sender.publish(&Tree::default().file("a", noise(900_000, 2)));
    for check in [Check::Stat, Check::None] {
        let error = run(Options { check, ..place.mirror(&sender) }).unwrap_err();
        let expected = matches!(&error, PullError::NoSpace { path, needed, free, keep: 0 }
            if *path == place.dest() && *needed >= 900_000 && *free < 900_000);
        assert!(expected && error.to_string().contains("0.9 MB: nothing was changed"), "{error}");
        assert_nothing_was_fetched(&place, &sender);
    }
    assert_same(&place.dest(), &old);
    // Without the check, the disk itself says it.
    let error = run(Options { min_free: MinFree::Unchecked, ..place.mirror(&sender) }).unwrap_err();
    assert!(matches!(&error, PullError::File { reason, .. } if reason.raw_os_error() == Some(28)), "{error}");
    assert_eq!(fs::read(place.file("a")).unwrap(), noise(500_000, 1));
}

#[test]
fn what_an_interrupted_pull_left_needs_no_further_space() {
    let tree = Tree::default().file("a", noise(900_000, 1));
    let (sender, place) = (Sender::of(&tree), Place::new());
    let Some(_small) = Small::mount(&place.dest(), c"size=1200k") else { return };
    sender.behave(Behaviour { cut: Some(700_000), ..Behaviour::default() });
    run(place.mirror(&sender)).unwrap_err();
    assert!(place.file(".stillmirror-stage").exists());
    sender.behave(Behaviour::default());
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &tree);
}

#[test]
fn too_few_inodes_are_noticed_before_anything_is_fetched() {
    let tree = (0..50).fold(Tree::default(), |tree, number| tree.file(&format!("d/{number}"), "x"));
    let (sender, place) = (Sender::of(&tree), Place::new());
    let Some(small) = Small::mount(&place.dest(), c"size=10m,nr_inodes=40") else { return };
    let error = run(place.mirror(&sender)).unwrap_err();
    assert!(matches!(error, PullError::NoInodes { needed: 51, free: 1..40, .. }), "{error}");
    assert_nothing_was_fetched(&place, &sender);
    drop(small);
    let _small = Small::mount(&place.dest(), c"size=10m,nr_inodes=60").unwrap();
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &tree);
}

#[test]
fn a_small_file_system_below_the_tree_is_named() {
    let tree = |seed| Tree::default().file("pool/deep/a", noise(700_000, seed)).file("b", "b");
    let (sender, place) = (Sender::of(&tree(1)), Place::new());
    let Some(small) = Small::mount(&place.file("pool"), c"size=500k") else { return };
    let error = run(place.mirror(&sender)).unwrap_err();
    assert!(matches!(&error, PullError::NoSpace { path, .. } if *path == place.file("pool")), "{error}");
    assert_nothing_was_fetched(&place, &sender);
    drop(small);
    // Files are replaced one after the other there, so one that hardly grows fits.
    let _small = Small::mount(&place.file("pool"), c"size=1500k").unwrap();
    for seed in [1, 2] {
        sender.publish(&tree(seed));
        run(place.mirror(&sender)).unwrap();
        assert_same(&place.dest(), &tree(seed));
    }
}

#[test]
fn a_store_on_a_small_file_system_is_named() {
    let tree = (0..2000).fold(Tree::default(), |tree, number| tree.file(&format!("{number}"), "x"));
    let (sender, place) = (Sender::of(&tree), Place::new());
    let Some(_small) = Small::mount(&place.store(), c"size=100k") else { return };
    let error = run(place.mirror(&sender)).unwrap_err();
    assert!(matches!(&error, PullError::NoSpace { path, .. } if *path == place.store()), "{error}");
    assert_nothing_was_fetched(&place, &sender);
    assert!(Store::open(&place.store()).unwrap().current_head().unwrap().is_none());
}

#[test]
fn an_operator_may_keep_space_free() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", noise(400_000, 1)).file("z", "z")), Place::new());
    let Some(_small) = Small::mount(&place.dest(), c"size=1m") else { return };
    let with = |min_free| Options { min_free, ..place.mirror(&sender) };
    for min_free in [MinFree::Bytes(700_000), MinFree::Bytes(u64::MAX), MinFree::Percent(65.0), MinFree::Percent(100.0)]
    {
        // The store of this test is elsewhere, and much may be free there.
        let options = Options { store: None, ..with(min_free) };
        let error = run(options).unwrap_err();
        let expected = matches!(&error, PullError::NoSpace { keep, .. } if *keep > 0);
        assert!(expected && error.to_string().contains(", of which --min-free keeps "), "{error}");
        assert_nothing_was_fetched(&place, &sender);
    }
    run(Options { store: None, ..with(MinFree::Percent(50.0)) }).unwrap();
    // What takes no space is never refused.
    sender.publish(&Tree::default().file("a", noise(400_000, 1)));
    let report = run(Options { store: None, ..with(MinFree::Percent(100.0)) }).unwrap();
    assert_eq!(report.files_deleted, 1);
}

#[test]
fn a_tree_that_cannot_be_written_is_named() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a")), Place::new());
    let Some(_small) = Small::mount(&place.dest(), c"size=1m") else { return };
    rustix::mount::mount_remount(&*place.dest(), MountFlags::RDONLY, "").unwrap();
    let error = run(place.mirror(&sender)).unwrap_err();
    let names_it = matches!(&error, PullError::File { path, .. } if path.starts_with(place.dest()));
    assert!(names_it && error.to_string().contains("Read-only file system"), "{error}");
}
