//! `pull`, as operators of downstream mirrors use it.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::support::*;

#[test]
fn a_first_pull_fetches_the_whole_tree() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let report = world.pull(&server);
    assert_same_tree(&world.src(), &world.dest());
    assert_eq!(report["generation"], 1);
    assert_eq!(report["unchanged"], false);
    assert!(report["bytes_literal"].as_u64() >= Some(1_500_000));
}

#[test]
fn a_pull_of_nothing_new_takes_one_round_trip_and_less_than_a_kilobyte() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    let report = json(&world.pull_command(&server).args(["--check", "none"]).output().unwrap());
    assert_eq!(report["unchanged"], true);
    assert_eq!(report["round_trips"], 1);
    assert!(report["bytes_received"].as_u64() < Some(1024), "{report}");
    assert!(report["bytes_sent"].as_u64() < Some(1024), "{report}");
}

#[test]
fn only_the_changed_part_of_a_file_is_fetched() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    let path = world.src().join("pool/b/beta.tar");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.splice(700_000..700_000, noise(500, 99));
    std::fs::write(&path, &bytes).unwrap();
    world.index();
    let report = pull_when_reloaded(&world, &server, 2);
    assert_same_tree(&world.src(), &world.dest());
    assert!(report["bytes_literal"].as_u64() < Some(50_000), "{report}");
    assert!(report["bytes_matched"].as_u64() > Some(1_400_000), "{report}");
    assert!(report["bytes_list"].as_u64() < Some(4_000), "{report}");
}

#[test]
fn new_changed_removed_renamed_and_retyped_names_all_arrive() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    let src = world.src();
    write(&src.join("pool/c/gamma.deb"), &noise(5_000, 1));
    write(&src.join("README"), b"changed");
    std::fs::remove_file(src.join("pool/a/alpha_1.0.deb")).unwrap();
    std::fs::rename(src.join("dists/stable/main/Packages"), src.join("dists/stable/main/Packages.old")).unwrap();
    std::fs::remove_file(src.join("empty")).unwrap();
    write(&src.join("empty/now a directory"), b"x");
    std::fs::remove_dir_all(src.join("nothing")).unwrap();
    write(&src.join("nothing"), b"now a file");
    std::fs::remove_file(src.join("dangling")).unwrap();
    std::os::unix::fs::symlink("elsewhere", src.join("dangling")).unwrap();
    world.index();
    pull_when_reloaded(&world, &server, 2);
    assert_same_tree(&src, &world.dest());
}

#[test]
fn a_renamed_file_is_not_fetched_again() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    let src = world.src();
    std::fs::create_dir(src.join("archive")).unwrap();
    std::fs::rename(src.join("pool/a/alpha_1.1.deb"), src.join("archive/alpha.deb")).unwrap();
    world.index();
    let report = pull_when_reloaded(&world, &server, 2);
    assert_same_tree(&src, &world.dest());
    assert_eq!(report["bytes_literal"], 0, "{report}");
}

#[test]
fn a_hard_link_group_is_fetched_once_and_restored_from_any_name() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    let inode = |name: &str| std::fs::metadata(world.dest().join(name)).unwrap().ino();
    assert_eq!(inode("pool/a/same.tar"), inode("pool/b/beta.tar"));
    // Only the first name is lost.
    std::fs::remove_file(world.dest().join("pool/a/same.tar")).unwrap();
    let report = world.pull(&server);
    assert_same_tree(&world.src(), &world.dest());
    assert_eq!(report["bytes_literal"], 0, "{report}");
}

#[test]
fn local_damage_is_found_by_check_stat_or_check_hash() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    std::fs::write(world.dest().join("README"), b"tampered").unwrap();
    world.pull(&server);
    assert_same_tree(&world.src(), &world.dest());
    // Same size, same mtime, different content: only reading the file finds it.
    let path = world.dest().join("README");
    let (before, mtime) = (std::fs::read(&path).unwrap(), std::fs::metadata(&path).unwrap().modified().unwrap());
    let damaged: Vec<u8> = before.iter().map(|byte| !byte).collect();
    std::fs::write(&path, damaged).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(mtime).unwrap();
    json(&world.pull_command(&server).args(["--delete", "--check", "hash"]).output().unwrap());
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn local_files_stay_unless_delete_is_given() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    write(&world.dest().join("my/own"), b"mine");
    json(&world.pull_command(&server).output().unwrap());
    assert!(world.dest().join("my/own").exists());
    let report = world.pull(&server);
    assert!(!world.dest().join("my").exists());
    assert_eq!(report["files_deleted"], 2, "the file and its directory: {report}");
}

#[test]
fn max_delete_keeps_a_broken_upstream_from_emptying_the_mirror() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    let before = files(&world.dest());
    std::fs::remove_dir_all(world.src().join("pool")).unwrap();
    world.index();
    wait_for_generation(&server, 2);
    let output = world.pull_command(&server).args(["--delete", "--max-delete", "2"]).output().unwrap();
    assert_fails(&output, 25, &["2"]);
    assert_eq!(files(&world.dest()), before);
}

#[test]
fn a_dry_run_prints_the_plan_and_changes_nothing() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let output = stillmirror(&["pull", &server.url("repo")]).arg(world.dest()).arg("--dry-run").output().unwrap();
    assert_exit(&output, 0);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("pool/b/beta.tar") && text.contains("README"), "{text}");
    assert!(!world.dest().exists() || files(&world.dest()).is_empty());
}

#[test]
fn a_part_of_a_repository_can_be_pulled() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let output = stillmirror(&["pull", "--json", &server.url("repo/dists/stable")]).arg(world.dest()).output().unwrap();
    json(&output);
    assert_same_tree(&world.src().join("dists/stable"), &world.dest());
}

#[test]
fn a_filtered_pull_is_unchanged_the_next_time() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let slice = ["--include", "*.deb", "--include", "*/", "--exclude", "*", "--delete"];
    json(&world.pull_command(&server).args(slice).output().unwrap());
    let names: Vec<_> = files(&world.dest()).into_keys().collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let report = json(&world.pull_command(&server).args(slice).args(["--check", "none"]).output().unwrap());
    assert_eq!(report["unchanged"], true, "{report}");
    // Without the filter, the same generation is another tree.
    let report = world.pull(&server);
    assert_eq!(report["unchanged"], false);
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn a_pull_needs_no_store() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    for _ in 0..2 {
        let mut command = stillmirror(&["pull", "--json", &server.url("repo")]);
        json(&command.arg(world.dest()).env("XDG_STATE_HOME", world.path("state")).output().unwrap());
        assert_same_tree(&world.src(), &world.dest());
    }
}

#[test]
fn a_local_symlink_in_place_of_a_directory_is_replaced_and_not_followed() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    std::fs::create_dir(world.dest()).unwrap();
    std::fs::create_dir(world.path("outside")).unwrap();
    std::os::unix::fs::symlink(world.path("outside"), world.dest().join("pool")).unwrap();
    world.pull(&server);
    assert!(files(&world.path("outside")).is_empty());
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn a_file_replaced_after_the_index_is_not_sent_as_the_indexed_one() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    write(&world.src().join("pool/a/alpha_1.0.deb"), b"newer than the index");
    let output = world.pull_command(&server).output().unwrap();
    assert_fails(&output, 24, &["alpha_1.0.deb"]);
    assert!(!world.dest().join("pool/a/alpha_1.0.deb").exists());
    assert!(world.dest().join("pool/a/alpha_1.1.deb").exists());
    world.index();
    pull_when_reloaded(&world, &server, 2);
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn nothing_is_deleted_until_everything_was_fetched() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    let (src, dest) = (world.src(), world.dest());
    std::fs::rename(src.join("pool/a/alpha_1.0.deb"), src.join("pool/a/alpha_2.0.deb")).unwrap();
    write(&src.join("pool/a/alpha_2.0.deb"), &noise(80_000, 4));
    std::fs::remove_dir_all(src.join("odd")).unwrap();
    world.index();
    wait_for_generation(&server, 2);
    write(&src.join("pool/a/alpha_2.0.deb"), b"newer than the index");
    let output = world.pull_command(&server).arg("--delete").output().unwrap();
    assert_fails(&output, 24, &["alpha_2.0.deb", "8 deletions held back"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["deletes_held"], &report["files_deleted"]), (&8.into(), &0.into()), "{report}");
    assert!(dest.join("pool/a/alpha_1.0.deb").exists() && dest.join("odd").exists());
    // The store lists the names that stay, so they are served.
    let downstream = Server::start(&dest, &world.path("dest-store"));
    let mut command = stillmirror(&["pull", "--json", &downstream.url("repo")]);
    json(&command.arg(world.path("third")).arg("--store").arg(world.path("third-store")).output().unwrap());
    assert_same_tree(&dest, &world.path("third"));
    world.index();
    let report = pull_when_reloaded(&world, &server, 3);
    assert_eq!((&report["deletes_held"], &report["files_deleted"]), (&0.into(), &8.into()), "{report}");
    assert_same_tree(&src, &dest);
}

#[test]
fn a_store_of_another_tree_is_not_trusted() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    write(&world.path("other").join("README"), b"not from here");
    let mut command = stillmirror(&["pull", "--json", "--delete", "--check", "none", &server.url("repo")]);
    let output = command.arg(world.path("other")).arg("--store").arg(world.path("dest-store")).output().unwrap();
    assert_eq!(json(&output)["unchanged"], false);
    assert_same_tree(&world.src(), &world.path("other"));
}

#[test]
fn a_pull_survives_a_restart_of_the_server() {
    let world = World::new();
    // More than socket buffers hold, so that the rest has not been sent yet.
    write(&world.src().join("file"), &noise(40_000_000, 5));
    world.index();
    let server = world.serve();
    let address = server.address.clone();
    let mut command = world.pull_command(&server);
    command.args(["--bwlimit", "20M"]).stdout(std::process::Stdio::piped());
    let pulling = command.spawn().unwrap();
    let stage = world.dest().join(".stillmirror-stage");
    while files(&stage).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(server);
    let mut command = stillmirror(&["serve", "--listen", &address, "--name", "repo"]);
    command.arg("--root").arg(world.src()).arg("--store").arg(world.path("store"));
    let _server = Server::spawn(command);
    let output = pulling.wait_with_output().unwrap();
    let report = json(&output);
    // Head, list and data take three round trips, a new connection two more.
    assert!(report["round_trips"].as_u64() > Some(3), "{report}");
    assert_eq!((&report["files_updated"], &report["bytes_matched"]), (&1.into(), &0.into()), "{report}");
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn verify_finds_the_one_damaged_file() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    world.pull(&server);
    let verify = || {
        let mut command = stillmirror(&["verify"]);
        command.arg(world.dest()).arg("--store").arg(world.path("dest-store")).output().unwrap()
    };
    assert_exit(&verify(), 0);
    std::fs::write(world.dest().join("pool/a/alpha_1.0.deb"), b"damaged").unwrap();
    let output = verify();
    assert_exit(&output, 23);
    let text = [output.stdout, output.stderr].concat();
    assert!(String::from_utf8_lossy(&text).contains("pool/a/alpha_1.0.deb"));
}

#[test]
fn the_bandwidth_limit_holds() {
    let world = World::new();
    write(&world.src().join("file"), &noise(600_000, 5));
    world.index();
    let server = world.serve();
    let report = json(&world.pull_command(&server).args(["--bwlimit", "200k"]).output().unwrap());
    // 600 kB at 200 KiB/s take almost three seconds; a burst may save some of it.
    assert!(report["seconds"].as_f64() > Some(1.5), "{report}");
}

#[test]
fn sigterm_ends_a_pull_and_the_next_one_finishes() {
    let world = World::new();
    write(&world.src().join("file"), &noise(3_000_000, 5));
    world.index();
    let server = world.serve();
    let mut child = world.pull_command(&server).args(["--bwlimit", "200k"]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    signal("TERM", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(20));
    assert!(!world.dest().join("file").exists());
    world.pull(&server);
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn list_shows_repositories_directories_and_the_whole_tree() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let list = |arguments: &[&str]| {
        let output = stillmirror(&[&["list"], arguments].concat()).output().unwrap();
        assert_exit(&output, 0);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(list(&[&server.url("")]).contains("repo"));
    let root = list(&[&server.url("repo")]);
    assert!(root.contains("README") && root.contains("pool") && !root.contains("beta.tar"), "{root}");
    assert!(list(&[&server.url("repo/pool/b")]).contains("beta.tar"));
    assert!(list(&[&server.url("repo"), "--recursive"]).contains("pool/b/beta.tar"));
    let store = world.path("store");
    let local = list(&["--store", store.to_str().unwrap(), "--recursive", "--json"]);
    assert!(local.contains("\"pool/b/beta.tar\""), "{local}");
}

/// Waits until the daemon, which checks its store once a second, serves a generation. Then pulls.
fn pull_when_reloaded(world: &World, server: &Server, generation: u64) -> serde_json::Value {
    wait_for_generation(server, generation);
    world.pull(server)
}

pub(crate) fn wait_for_generation(server: &Server, generation: u64) {
    for _ in 0..100 {
        let listed = json(&stillmirror(&["list", "--json", &server.url("")]).output().unwrap());
        if listed["repositories"][0]["generation"] == generation {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the daemon never served generation {generation}");
}

pub(crate) fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().expect("kill runs");
    assert!(status.success());
}
