//! What a downstream's `pull` deletes, when, and what it never touches.

use std::process::Output;
use std::time::Duration;

use crate::pull::wait_for_generation;
use crate::support::*;

/// A published change that removes a file and a directory with a file.
fn remove_some(world: &World, server: &Server) {
    std::fs::remove_file(world.src().join("pool/a/alpha_1.0.deb")).unwrap();
    std::fs::remove_dir_all(world.src().join("dists/stable/main")).unwrap();
    world.index();
    wait_for_generation(server, 2);
}

fn pull(world: &World, server: &Server, arguments: &[&str]) -> Output {
    world.pull_command(server).args(arguments).output().unwrap()
}

#[test]
fn names_wait_for_the_grace_that_was_asked_for() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    remove_some(&world, &server);
    let report = json(&pull(&world, &server, &["--delete-grace", "1d", "--max-delete", "0"]));
    assert_eq!((&report["deletes_waiting"], &report["files_deleted"]), (&2.into(), &0.into()), "{report}");
    assert!(world.dest().join("pool/a/alpha_1.0.deb").exists());
    assert!(world.dest().join("dists/stable/main/Packages").exists());
    // A mirror that pulls from here neither sees what waits nor hashes anything.
    let downstream = Server::start(&world.dest(), &world.path("dest-store"));
    let mut command = stillmirror(&["pull", "--json", &downstream.url("repo")]);
    json(&command.arg(world.path("third")).arg("--store").arg(world.path("third-store")).output().unwrap());
    assert_same_tree(&world.src(), &world.path("third"));
    for check in ["none", "stat", "hash"] {
        let report = json(&pull(&world, &server, &["--delete", "--delete-grace", "1d", "--check", check]));
        assert_eq!((&report["deletes_waiting"], &report["unchanged"]), (&2.into(), &true.into()), "{report}");
    }
    let arguments = ["--delete-grace", "12h", "--check", "none", "--verbose"];
    let mut command = stillmirror(&["pull", &server.url("repo")]);
    command.arg(world.dest()).arg("--store").arg(world.path("dest-store")).args(arguments);
    let output = command.output().unwrap();
    assert_exit(&output, 0);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("nothing is new") && text.contains("2 deletions left for a later pull"), "{text}");
    // Too many are due; then they go, although nothing is new.
    std::thread::sleep(Duration::from_millis(50));
    let due = ["--delete-grace", "20ms", "--check", "none"];
    assert_fails(&pull(&world, &server, &[&due[..], &["--max-delete", "2"]].concat()), 25, &["3 names"]);
    let report = json(&pull(&world, &server, &due));
    assert_eq!((&report["deletes_waiting"], &report["files_deleted"]), (&0.into(), &3.into()), "{report}");
    assert_same_tree(&world.src(), &world.dest());
    // What was deleted beside other names is served on.
    let report = json(&pull(&world, &server, &due));
    assert_eq!((&report["unchanged"], &report["round_trips"]), (&true.into(), &1.into()), "{report}");
}

#[test]
fn delete_alone_deletes_what_waits() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    remove_some(&world, &server);
    json(&pull(&world, &server, &["--delete-grace", "1d"]));
    let report = json(&pull(&world, &server, &["--check", "none"]));
    assert_eq!((&report["deletes_waiting"], &report["files_deleted"]), (&2.into(), &0.into()), "{report}");
    let report = json(&pull(&world, &server, &["--delete", "--check", "none"]));
    assert_eq!((&report["deletes_waiting"], &report["files_deleted"]), (&0.into(), &3.into()), "{report}");
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn a_pull_killed_at_any_moment_forgets_nothing_that_waits() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    remove_some(&world, &server);
    write(&world.src().join("README"), b"new");
    world.index();
    wait_for_generation(&server, 3);
    for moment in (0..60).step_by(6) {
        let mut command = world.pull_command(&server);
        command.args(["--delete-grace", "1d", "--check", "none"]).stdout(std::process::Stdio::null());
        let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(moment));
        let _ = child.kill();
        let _ = child.wait();
        assert!(world.dest().join("pool/a/alpha_1.0.deb").exists());
    }
    let report = json(&pull(&world, &server, &["--delete-grace", "1d", "--check", "none"]));
    assert_eq!(report["deletes_waiting"], 2, "{report}");
    json(&pull(&world, &server, &["--delete", "--check", "none"]));
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn stores_in_the_destination_survive_and_a_destination_in_a_store_is_refused() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let (dest, own) = (world.dest(), world.dest().join("var/own"));
    std::fs::create_dir_all(dest.join("var")).unwrap();
    let run = |dest: &std::path::Path, store: &std::path::Path| {
        let mut command = stillmirror(&["pull", "--json", "--delete", &server.url("repo")]);
        command.arg(dest).arg("--store").arg(store).output().unwrap()
    };
    for _ in 0..2 {
        json(&run(&dest, &own));
    }
    let report = json(&run(&dest, &own));
    assert_eq!(report["unchanged"], true, "{report}");
    assert!(own.join("current").exists());
    // Another pull, whose store is elsewhere, does not delete it either.
    json(&run(&dest, &world.path("dest-store")));
    let list = stillmirror(&["list", "--store", own.to_str().unwrap()]).output().unwrap();
    assert_exit(&list, 0);
    let store = world.path("store");
    let before = files(&store);
    for (dest, own) in [
        (store.clone(), world.path("new-store")),
        (store.join("generations"), world.path("new-store")),
        (store.join("new"), world.path("new-store")),
        (own.clone(), own.clone()),
        (world.path("same"), world.path("same")),
    ] {
        assert_fails(&run(&dest, &own), 1, &["the store"]);
    }
    assert_eq!(files(&store), before);
    assert!(!world.path("new-store").exists() && !world.path("same").exists());
}

#[test]
fn a_list_that_needs_the_place_of_a_store_does_not_get_it() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let mut command = stillmirror(&["index", "--json", "--name", "other"]);
    command.arg("--root").arg(world.src().join("odd")).arg("--store").arg(world.dest().join("pool"));
    json(&command.output().unwrap());
    let before = files(&world.dest().join("pool"));
    for _ in 0..2 {
        let output = pull(&world, &server, &["--delete"]);
        assert_fails(&output, 23, &["pool: a directory with local files is in the way"]);
        assert_eq!(files(&world.dest().join("pool")), before);
    }
    assert!(world.dest().join("README").exists());
}

#[test]
fn an_empty_destination_is_taken_for_one_that_is_not_mounted() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    for check in ["none", "stat"] {
        std::fs::rename(world.dest(), world.path("unmounted")).unwrap();
        std::fs::create_dir(world.dest()).unwrap();
        let words = ["is empty, and generation 1 has", "is it mounted?", "--allow-empty"];
        assert_fails(&pull(&world, &server, &["--check", check]), 11, &words);
        assert_eq!(std::fs::read_dir(world.dest()).unwrap().count(), 0);
        std::fs::remove_dir(world.dest()).unwrap();
        assert_fails(&pull(&world, &server, &["--check", check]), 11, &words);
        assert!(!world.dest().exists());
        std::fs::rename(world.path("unmounted"), world.dest()).unwrap();
    }
    std::fs::remove_dir_all(world.dest()).unwrap();
    json(&pull(&world, &server, &["--allow-empty"]));
    assert_same_tree(&world.src(), &world.dest());
}
