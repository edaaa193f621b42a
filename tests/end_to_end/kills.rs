//! Runs that are killed at any moment: afterwards the store has the old generation or the new one, and every file is the
//! old one or the new one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::*;

/// Changes the tree. Returns its files before and after.
fn change(world: &World) -> [BTreeMap<PathBuf, Vec<u8>>; 2] {
    let before = files(&world.src());
    write(&world.src().join("README"), b"new");
    write(&world.src().join("pool/b/beta.tar"), &noise(1_400_000, 77));
    write(&world.src().join("pool/z/new.deb"), &noise(300_000, 78));
    std::fs::remove_file(world.src().join("pool/a/alpha_1.0.deb")).unwrap();
    [before, files(&world.src())]
}

#[track_caller]
fn assert_every_file_is_old_or_new(world: &World, [old, new]: &[BTreeMap<PathBuf, Vec<u8>>; 2]) {
    for (path, bytes) in files(&world.dest()) {
        if path.starts_with(".stillmirror-stage") {
            continue;
        }
        let known = [old.get(&path), new.get(&path)];
        assert!(known.contains(&Some(&bytes)), "{} is neither the old nor the new file", path.display());
    }
}

#[test]
fn a_pull_killed_at_any_moment_leaves_whole_files_and_the_next_one_finishes() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    let states = change(&world);
    world.index();
    crate::pull::wait_for_generation(&server, 2);
    for moment in (0..60).step_by(4) {
        let mut child =
            world.pull_command(&server).arg("--delete").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(moment));
        let _ = child.kill();
        let _ = child.wait();
        assert_every_file_is_old_or_new(&world, &states);
    }
    world.pull(&server);
    assert_same_tree(&world.src(), &world.dest());
    assert!(!world.dest().join(".stillmirror-stage").exists());
}

#[test]
fn an_index_killed_at_any_moment_leaves_the_old_generation_or_the_new_one() {
    let world = World::with_tree();
    world.index();
    for moment in (0..40).step_by(3) {
        write(&world.src().join("README"), format!("moment {moment}").as_bytes());
        let mut child = world.index_command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(moment));
        let _ = child.kill();
        let _ = child.wait();
        let output = stillmirror(&["list", "--recursive", "--store"]).arg(world.path("store")).output().unwrap();
        assert_exit(&output, 0);
    }
    world.index();
    let server = world.serve();
    world.pull(&server);
    assert_same_tree(&world.src(), &world.dest());
}

/// The calls that change names.
const CALLS: [&str; 11] = [
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "symlink",
    "symlinkat",
    "mkdir",
    "mkdirat",
];

/// Publishes a version of a repository: a head names an index by its digest, and the index names packages. Indices by
/// digest are hard links, and the one before stays.
fn publish(world: &World, version: u64) {
    let src = world.src();
    let package = |number: u64| {
        let (name, content) = (format!("pool/p{number}_{version}"), noise(3_000, version * 10 + number));
        write(&src.join(&name), &content);
        format!("{name} {}\n", digest(&content))
    };
    let _ = std::fs::remove_dir_all(src.join("pool"));
    let index: String = (0..3).map(package).collect();
    let main = src.join("dists/stable/main");
    write(&main.join("Packages.new"), index.as_bytes());
    std::fs::create_dir_all(main.join("by-hash/SHA256")).unwrap();
    std::fs::hard_link(main.join("Packages.new"), main.join("by-hash/SHA256").join(digest(index.as_bytes()))).unwrap();
    std::fs::rename(main.join("Packages.new"), main.join("Packages")).unwrap();
    write(&src.join("dists/stable/InRelease"), digest(index.as_bytes()).as_bytes());
}

fn digest(content: &[u8]) -> String {
    stillmirror_protocol::list::digest(content).to_string()
}

/// Asserts that everything that the head leads to is there. Returns the head.
#[track_caller]
fn assert_whole(dest: &Path) -> String {
    let head = std::fs::read_to_string(dest.join("dists/stable/InRelease")).unwrap();
    let index = std::fs::read_to_string(dest.join("dists/stable/main/by-hash/SHA256").join(&head)).unwrap();
    for line in index.lines() {
        let (path, expected) = line.split_once(' ').unwrap();
        assert_eq!(digest(&std::fs::read(dest.join(path)).unwrap()), expected, "{path}");
    }
    head
}

fn copy(world: &World, names: &[&str], from: &str, to: &str) {
    for name in names {
        let (from, to) = (world.path(&format!("{name}{from}")), world.path(&format!("{name}{to}")));
        let _ = std::fs::remove_file(&to).or_else(|_| std::fs::remove_dir_all(&to));
        assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    }
}

/// Kills a pull before each call that changes a name. Readers of the tree must find it whole each time, and the next pull
/// must complete it.
fn kill_at_every_call(options: &[&str], state: &[&str]) {
    let traced = Command::new("strace").args(["-o", "/dev/null", "true"]).status();
    if !traced.expect("strace runs: `tests/prepare` installs it").success() {
        eprintln!("left out: this host forbids tracing");
        return;
    }
    let world = World::new();
    publish(&world, 1);
    world.index();
    let server = world.serve();
    let pull = || world.pull_command(&server).args(options).output().unwrap();
    assert_exit(&pull(), 0);
    copy(&world, state, "", ".before");
    publish(&world, 2);
    world.index();
    crate::pull::wait_for_generation(&server, 2);
    let mut kills = 0;
    for call in CALLS {
        for number in 1.. {
            let command = world.pull_command(&server);
            let killed = Command::new("strace")
                .args(["-f", "-qqq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"])
                .arg(format!("inject={call}:signal=KILL:when={number}"))
                .arg(command.get_program())
                .args(command.get_args())
                .args(options)
                .output()
                .unwrap();
            assert_whole(&world.dest());
            let is_over = killed.status.success();
            kills += u32::from(!is_over);
            assert_exit(&pull(), 0);
            assert_same_tree(&world.src(), &world.dest());
            assert_whole(&world.dest());
            copy(&world, state, ".before", "");
            if is_over {
                break;
            }
        }
    }
    assert!(kills >= 20, "the pull was killed only {kills} times");
}

#[test]
fn a_pull_killed_at_any_change_of_a_name_leaves_a_repository_that_is_whole() {
    kill_at_every_call(&["--delete"], &["dest", "dest-store"]);
}

#[test]
fn a_pull_that_switches_killed_at_any_change_of_a_name_leaves_a_tree_that_is_old_or_new() {
    kill_at_every_call(&["--delete", "--switch", "--keep-snapshots", "0s"], &["dest", "dest.snapshots", "dest-store"]);
}
