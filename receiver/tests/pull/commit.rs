//! The order of a commit, and names that cannot be changed.

use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use stillmirror_protocol::wire::ItemFailure;
use stillmirror_receiver::{Check, Failure, Options, Phase, Progress, Report};
use stillmirror_store::Store;
use tokio_util::sync::CancellationToken;

use crate::sender::Sender;
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

/// A Debian-like repository with one package, whose head, indices and package are of one version.
fn debian(version: u8) -> Tree {
    let packages = noise(3000, u64::from(version));
    Tree::default()
        .file(&format!("pool/a{version}.deb"), noise(30_000, u64::from(version) + 100))
        .file("dists/stable/InRelease", format!("release {version}"))
        .linked("dists/stable/main/Packages", packages.clone(), u64::from(version))
        .linked(&format!("dists/stable/main/by-hash/{version}"), packages, u64::from(version))
}

fn failures(report: &Report) -> Vec<(String, Failure)> {
    report.failed.iter().map(|failed| (String::from_utf8(failed.path.clone()).unwrap(), failed.why)).collect()
}

fn generation_is_whole(place: &Place) -> bool {
    Store::open(&place.store()).unwrap().current().unwrap().unwrap().origin().is_none()
}

#[test]
fn heads_and_indices_keep_their_old_state_if_a_package_does_not_arrive() {
    for failure in [ItemFailure::Vanished, ItemFailure::Stale, ItemFailure::Unreadable] {
        let (sender, place) = (Sender::of(&debian(1)), Place::new());
        run(place.mirror(&sender)).unwrap();
        let other = debian(2).file("iso/x.iso", "x").file("notes", "n");
        sender.publish_failing(&other, &[("pool/a2.deb", failure)]);
        for _ in 0..2 {
            let report = run(Options { delete: true, ..place.mirror(&sender) }).unwrap();
            let held: Vec<_> = failures(&report).into_iter().filter(|(_, why)| *why == Failure::Held).collect();
            let names: Vec<_> = held.iter().map(|(path, _)| &path[..]).collect();
            assert_eq!(names, ["dists/stable/InRelease", "dists/stable/main/Packages", "dists/stable/main/by-hash/2"]);
            assert_eq!(fs::read(place.file("dists/stable/InRelease")).unwrap(), b"release 1");
            assert_eq!(fs::read(place.file("dists/stable/main/by-hash/1")).unwrap(), noise(3000, 1));
            assert_eq!(fs::read(place.file("dists/stable/main/Packages")).unwrap(), noise(3000, 1));
            assert!(place.file("pool/a1.deb").exists(), "the old head refers to it");
            assert!(place.file("iso/x.iso").exists() && place.file("notes").exists(), "the rest goes on");
        }
        sender.publish(&other);
        run(Options { delete: true, check: Check::None, ..place.mirror(&sender) }).unwrap();
        assert_same(&place.dest(), &other);
        assert!(generation_is_whole(&place));
    }
}

#[test]
fn indices_wait_for_a_head_that_does_not_arrive() {
    let (sender, place) = (Sender::of(&debian(1)), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish_failing(&debian(2), &[("dists/stable/InRelease", ItemFailure::Stale)]);
    run(place.mirror(&sender)).unwrap();
    assert_eq!(fs::read(place.file("dists/stable/main/Packages")).unwrap(), noise(3000, 1));
    assert!(place.file("pool/a2.deb").exists());
    sender.publish(&debian(2));
    run(Options { delete: true, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &debian(2));
}

/// Publishes the next trees, one each time that a pull has fetched what it could.
struct Overtaking {
    sender: Sender,
    next: Mutex<Vec<Tree>>,
}

impl Progress for Overtaking {
    fn phase(&self, phase: Phase, _: u64, _: u64) {
        if phase != Phase::Commit {
            return;
        }
        let mut next = self.next.lock().unwrap();
        match (next.pop(), next.is_empty()) {
            (Some(tree), true) => self.sender.publish(&tree),
            (Some(tree), false) => self.sender.publish_failing(&tree, &[("pool/moving", ItemFailure::Vanished)]),
            (None, _) => {}
        }
    }

    fn advance(&self, _: u64, _: u64) {}
}

#[test]
fn a_pull_that_is_overtaken_continues_with_the_newest_generation() {
    let tree = |version: u8| debian(version).file("pool/moving", noise(8000, u64::from(version) + 50));
    let newest = tree(4);
    for patience in [Duration::ZERO, Duration::from_secs(60)] {
        let (sender, place) = (Sender::of(&tree(1)), Place::new());
        run(place.mirror(&sender)).unwrap();
        sender.publish_failing(&tree(2), &[("pool/moving", ItemFailure::Stale)]);
        let options = Options { patience, delete: true, ..place.mirror(&sender) };
        let overtaking = Overtaking { sender, next: Mutex::new(vec![newest.clone(), tree(3)]) };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let pull = stillmirror_receiver::pull(options, Arc::new(overtaking), CancellationToken::new());
        let report = runtime.block_on(pull).unwrap();
        if patience.is_zero() {
            assert_eq!((report.generation, report.has_failed(Failure::Stale)), (2, true));
            continue;
        }
        assert_eq!((report.generation, failures(&report)), (4, Vec::new()));
        assert_same(&place.dest(), &newest);
        assert!(generation_is_whole(&place));
    }
}

#[test]
fn a_pull_waits_a_moment_for_the_index_of_files_that_were_replaced() {
    let (sender, place) = (Sender::of(&debian(1)), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish_failing(&debian(2), &[("pool/a2.deb", ItemFailure::Vanished)]);
    let options = Options { patience: Duration::from_secs(60), delete: true, ..place.mirror(&sender) };
    let report = std::thread::scope(|scope| {
        let pull = scope.spawn(|| run(options).unwrap());
        std::thread::sleep(Duration::from_millis(600));
        sender.publish(&debian(3));
        pull.join().unwrap()
    });
    assert_eq!((report.generation, failures(&report)), (3, Vec::new()));
    assert_same(&place.dest(), &debian(3));
}

#[test]
fn a_failure_in_one_repository_does_not_hold_another_one() {
    let two = |version: u8| {
        Tree::default()
            .file(&format!("deb/pool/a{version}.deb"), noise(9000, version.into()))
            .file("deb/dists/stable/InRelease", format!("release {version}"))
            .file("rpm/repodata/repomd.xml", format!("md {version}"))
    };
    let (sender, place) = (Sender::of(&two(1)), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish_failing(&two(2), &[("deb/pool/a2.deb", ItemFailure::Vanished)]);
    run(place.mirror(&sender)).unwrap();
    assert_eq!(fs::read(place.file("rpm/repodata/repomd.xml")).unwrap(), b"md 2");
    assert_eq!(fs::read(place.file("deb/dists/stable/InRelease")).unwrap(), b"release 1");
}

/// Returns the names that a pull moves into place in these directories, in order.
fn order_of_names(dirs: &[PathBuf], pull: impl FnOnce()) -> Vec<String> {
    let inotify = inotify::init(CreateFlags::NONBLOCK).unwrap();
    for dir in dirs {
        inotify::add_watch(&inotify, dir, WatchFlags::MOVED_TO | WatchFlags::CREATE).unwrap();
    }
    pull();
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut reader = inotify::Reader::new(&inotify, &mut buffer);
    let mut names = Vec::new();
    while let Ok(event) = reader.next() {
        assert!(!event.events().contains(ReadFlags::QUEUE_OVERFLOW));
        names.extend(event.file_name().map(|name| name.to_str().unwrap().to_owned()));
    }
    names
}

#[test]
fn a_name_comes_after_all_names_that_it_refers_to_whether_they_are_files_or_hard_links() {
    let (sender, place) = (Sender::of(&debian(1)), Place::new());
    run(place.mirror(&sender)).unwrap();
    let two = debian(2).file("dists/stable/Release", "r2").file("dists/stable/Release.gpg", "g2");
    sender.publish(&two);
    let dirs = ["pool", "dists/stable", "dists/stable/main", "dists/stable/main/by-hash"].map(|dir| place.file(dir));
    let names = order_of_names(&dirs, || drop(run(place.mirror(&sender)).unwrap()));
    assert_eq!(names, ["a2.deb", "Packages", "2", "InRelease", "Release", "Release.gpg"]);
    assert_same_inode(&place, "dists/stable/main/Packages", "dists/stable/main/by-hash/2");
}

fn assert_same_inode(place: &Place, one: &str, other: &str) {
    let inode = |name: &str| fs::metadata(place.file(name)).unwrap().ino();
    assert_eq!(inode(one), inode(other), "{one} and {other}");
}

/// A hard link with a low rank to a file with a high rank.
#[test]
fn a_link_to_a_head_is_made_before_the_head_is_in_place_and_fails_with_it_together() {
    let tree = |version: u8| {
        let head = format!("head {version}");
        Tree::default()
            .linked("SHA256SUMS", &head[..], 1)
            .linked("pool/sums", &head[..], 1)
            .file("pool/x", noise(9, version.into()))
    };
    let (sender, place) = (Sender::of(&tree(1)), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish(&tree(2));
    let dirs = ["", "pool"].map(|dir| place.file(dir));
    let names = order_of_names(&dirs, || drop(run(place.mirror(&sender)).unwrap()));
    assert_eq!(names.iter().filter(|name| !name.starts_with('.')).collect::<Vec<_>>(), ["sums", "x", "SHA256SUMS"]);
    assert_same(&place.dest(), &tree(2));
    sender.publish_failing(&tree(3), &[("pool/x", ItemFailure::Stale)]);
    let report = run(place.mirror(&sender)).unwrap();
    assert!(report.has_failed(Failure::Held));
    assert_eq!(fs::read(place.file("SHA256SUMS")).unwrap(), b"head 2");
    sender.publish(&tree(3));
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &tree(3));
}

#[test]
fn a_file_whose_content_never_matches_its_digest_fails_alone() {
    let (sender, place) = (Sender::of(&debian(1)), Place::new());
    run(place.mirror(&sender)).unwrap();
    let two = debian(2).file("good", noise(20_000, 7));
    sender.publish(&two);
    sender.rot("pool/a2.deb");
    let report = run(place.mirror(&sender)).unwrap();
    assert!(report.has_failed(Failure::Damaged), "{:?}", failures(&report));
    assert_eq!(fs::read(place.file("dists/stable/InRelease")).unwrap(), b"release 1");
    sender.rot("pool/a2.deb");
    run(Options { delete: true, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &two);
}

/// Something that this host refuses to change, until it is dropped.
enum Obstacle {
    Immutable(PathBuf),
    Mount(PathBuf),
}

impl Obstacle {
    fn immutable(path: &Path) -> Option<Self> {
        let set = std::process::Command::new("chattr").arg("+i").arg(path).output().ok()?;
        set.status.success().then(|| Self::Immutable(path.to_owned()))
    }

    fn mount(path: &Path) -> Option<Self> {
        rustix::mount::mount("none", path, "tmpfs", rustix::mount::MountFlags::empty(), None).ok()?;
        Some(Self::Mount(path.to_owned()))
    }
}

impl Drop for Obstacle {
    fn drop(&mut self) {
        match self {
            Self::Immutable(path) => drop(std::process::Command::new("chattr").arg("-i").arg(path).output()),
            Self::Mount(path) => drop(rustix::mount::unmount(&**path, rustix::mount::UnmountFlags::DETACH)),
        }
    }
}

#[test]
fn an_immutable_file_holds_the_heads_and_deletions_and_nothing_else() {
    let tree = |version: u8| debian(version).file("pool/stuck", format!("stuck {version}"));
    let (sender, place) = (Sender::of(&tree(1)), Place::new());
    run(place.mirror(&sender)).unwrap();
    let Some(obstacle) = Obstacle::immutable(&place.file("pool/stuck")) else { return };
    let two = tree(2).file("zz", "z");
    sender.publish(&two);
    for _ in 0..2 {
        let report = run(Options { delete: true, ..place.mirror(&sender) }).unwrap();
        assert!(failures(&report).contains(&("pool/stuck".to_owned(), Failure::Stuck)), "{:?}", failures(&report));
        assert!(place.file("pool/a2.deb").exists() && place.file("zz").exists() && place.file("pool/a1.deb").exists());
        assert_eq!(fs::read(place.file("dists/stable/InRelease")).unwrap(), b"release 1");
    }
    drop(obstacle);
    run(Options { delete: true, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &two);
    assert!(generation_is_whole(&place));
}

#[test]
fn a_name_that_cannot_be_deleted_is_reported_and_the_rest_is_deleted() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a").file("b/c", "c").file("d", "d")), Place::new());
    run(place.mirror(&sender)).unwrap();
    let Some(obstacle) = Obstacle::immutable(&place.file("b/c")) else { return };
    let two = Tree::default().file("d", "d");
    sender.publish(&two);
    for check in [Check::Stat, Check::None] {
        let report = run(Options { delete: true, check, ..place.mirror(&sender) }).unwrap();
        assert_eq!(failures(&report), [("b".to_owned(), Failure::Stuck)]);
        assert!(!place.file("a").exists() && place.file("b/c").exists());
    }
    drop(obstacle);
    run(Options { delete: true, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &two);
}

#[test]
fn a_directory_on_another_file_system_is_updated_and_a_mount_point_in_the_way_is_reported() {
    let one = debian(1).linked("pool/l1", "linked", 9).linked("pool/l2", "linked", 9);
    let (sender, place) = (Sender::of(&one), Place::new());
    fs::create_dir(place.file("pool")).unwrap();
    let Some(pool) = Obstacle::mount(&place.file("pool")) else { return };
    run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &one);
    assert_same_inode(&place, "pool/l1", "pool/l2");
    let two = debian(2).linked("pool/l1", "relinked", 9).linked("pool/l3", "relinked", 9).symlink("pool/s", "l1");
    sender.publish(&two);
    run(Options { delete: true, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &two);
    assert_same_inode(&place, "pool/l1", "pool/l3");
    assert!(generation_is_whole(&place));
    // The mount point itself cannot become a file.
    let three = debian(3).without("pool").file("pool", "a file");
    sender.publish(&three);
    let report = run(Options { delete: true, ..place.mirror(&sender) }).unwrap();
    assert!(
        failures(&report).iter().any(|(path, why)| path == "pool" && *why == Failure::Stuck),
        "{:?}",
        failures(&report)
    );
    assert_eq!(fs::read(place.file("dists/stable/InRelease")).unwrap(), b"release 2");
    drop(pool);
    run(Options { delete: true, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &three);
}
