//! Runs that are killed at any moment: afterwards the store has the old generation or the new one, and every file is the
//! old one or the new one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
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
