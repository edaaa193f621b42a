//! Mirrors of mirrors: a pulled generation can be served like an indexed one.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::*;

fn list_digest(store: &Path) -> String {
    let output = stillmirror(&["list", "--json", "--store"]).arg(store).output().unwrap();
    json(&output)["list_digest"].as_str().expect("a digest").to_owned()
}

#[test]
fn a_downstream_serves_a_pulled_generation_without_indexing() {
    let world = World::with_tree();
    world.index();
    let origin = world.serve();
    world.pull(&origin);
    assert_eq!(list_digest(&world.path("store")), list_digest(&world.path("dest-store")));

    let middle = Server::start(&world.dest(), &world.path("dest-store"));
    let mut command = stillmirror(&["pull", "--json", &middle.url("repo")]);
    command.arg(world.path("third")).arg("--store").arg(world.path("third-store"));
    json(&command.output().unwrap());
    assert_same_tree(&world.src(), &world.path("third"));
    assert_eq!(list_digest(&world.path("store")), list_digest(&world.path("third-store")));
}

#[test]
fn a_filtered_pull_is_served_with_the_pulled_files_only() {
    let world = World::with_tree();
    world.index();
    let origin = world.serve();
    json(&world.pull_command(&origin).args(["--exclude", "*.tar"]).output().unwrap());
    let middle = Server::start(&world.dest(), &world.path("dest-store"));
    let mut command = stillmirror(&["pull", "--json", &middle.url("repo")]);
    json(&command.arg(world.path("third")).output().unwrap());
    assert_same_tree(&world.dest(), &world.path("third"));
}

#[test]
fn a_leaf_keeps_everything_when_its_upstream_takes_only_a_slice_by_mistake() {
    let world = World::with_tree();
    world.index();
    let origin = world.serve();
    world.pull(&origin);
    let middle = Server::start(&world.dest(), &world.path("dest-store"));
    let leaf = |arguments: &[&str]| {
        let mut command = stillmirror(&["pull", "--json", "--delete", "--max-delete", "100%", &middle.url("repo")]);
        command.arg(world.path("leaf")).arg("--store").arg(world.path("leaf-store")).args(arguments).output().unwrap()
    };
    json(&leaf(&[]));
    json(
        &world.pull_command(&origin).args(["--delete", "--max-delete", "100%", "--exclude", "/pool"]).output().unwrap(),
    );
    let wait = || std::thread::sleep(std::time::Duration::from_millis(50));
    let listed =
        || json(&stillmirror(&["list", "--json", &middle.url("")]).output().unwrap())["repositories"][0].clone();
    while listed()["slice"].is_null() {
        wait();
    }
    assert_fails(&leaf(&[]), 25, &["only a slice of 'repo'", "filtered", "nothing was changed", "--allow-slice"]);
    assert_same_tree(&world.src(), &world.path("leaf"));
    let shown = stillmirror(&["list", &middle.url("")]).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("only a slice: filtered"));
    json(&leaf(&["--allow-slice"]));
    assert!(!world.path("leaf/pool").exists());
    assert!(json(&leaf(&[]))["unchanged"].as_bool().unwrap());
    // The mark travels on, as the middle tier wrote it.
    let stored = json(&stillmirror(&["list", "--json", "--store"]).arg(world.path("leaf-store")).output().unwrap());
    let origins = json(&stillmirror(&["list", "--json", "--store"]).arg(world.path("store")).output().unwrap());
    assert_eq!((&stored["slice"], &stored["slice"]["of"]), (&listed()["slice"], &origins["list_digest"]));
}

/// Pulls with `rsync` until `until` returns true. Returns the exit codes.
fn pull_with_rsync(address: &str, dest: &Path, mut until: impl FnMut() -> bool) -> Vec<i32> {
    let mut codes = Vec::new();
    while !until() {
        let mut command = std::process::Command::new("rsync");
        let url = format!("rsync://{address}/repo/");
        let output = command.args(["-aH", "--delete", "--checksum", &url]).arg(dest).output().unwrap();
        codes.push(output.status.code().unwrap());
    }
    codes
}

#[test]
fn a_downstream_that_switches_its_tree_serves_every_client_all_the_time_and_reads_no_file_again() {
    let world = World::with_tree();
    world.index();
    let origin = world.serve();
    let pull = |keep: &str| {
        let mut command = world.pull_command(&origin);
        json(&command.args(["--delete", "--switch", "--keep-snapshots", keep]).output().unwrap())
    };
    pull("1h");
    let middle = Server::start(&world.dest(), &world.path("dest-store"));
    let served = || {
        let mut command = stillmirror(&["pull", "--json", "--delete", &middle.url("repo")]);
        json(&command.arg(world.path("third")).arg("--store").arg(world.path("third-store")).output().unwrap())
    };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (address, dest, is_over) = (middle.address.clone(), world.path("stock"), || over.load(Ordering::Relaxed));
        let client = scope.spawn(move || pull_with_rsync(&address, &dest, is_over));
        for number in 2..8 {
            write(&world.src().join("README"), format!("number {number}").as_bytes());
            write(&world.src().join(format!("pool/new-{number}")), &noise(200_000, number));
            let _ = std::fs::remove_file(world.src().join(format!("pool/new-{}", number - 2)));
            world.index();
            crate::pull::wait_for_generation(&origin, number);
            // The last pull removes all snapshots that its clients began with.
            let report = pull(if number < 7 { "1h" } else { "0s" });
            assert_eq!(report["switched"], true);
            while served()["generation"] != number {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            if number == 6 {
                over.store(true, Ordering::Relaxed);
            }
        }
        let codes = client.join().unwrap();
        assert!(codes.iter().all(|&code| code == 0), "{codes:?}");
    });
    let mut pulls = 0;
    let codes = pull_with_rsync(&middle.address, &world.path("stock"), || {
        pulls += 1;
        pulls > 1
    });
    assert_eq!(codes, [0]);
    assert_same_tree(&world.src(), &world.path("stock"));
    assert_same_tree(&world.src(), &world.path("third"));
    assert_eq!(std::fs::read_dir(world.path("dest.snapshots")).unwrap().count(), 1);
    let log = middle.logged_so_far();
    assert!(!log.contains("touched since they were indexed"), "{log}");
}
