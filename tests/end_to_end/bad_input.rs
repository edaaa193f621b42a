//! What goes wrong: a message that names the file and what to do, an exit code, nothing written.

use crate::pull::signal;
use crate::support::*;

#[test]
fn a_missing_root_is_named_and_no_store_is_made() {
    let world = World::new();
    let output =
        stillmirror(&["index", "--root", "/no/such/tree", "--store"]).arg(world.path("store")).output().unwrap();
    assert_fails(&output, 11, &["/no/such/tree"]);
    assert!(!world.path("store").exists());
}

#[test]
fn a_store_of_another_repository_is_left_alone() {
    let world = World::with_tree();
    world.index();
    let before = files(&world.path("store"));
    let mut command = stillmirror(&["index", "--name", "other", "--root"]);
    let output = command.arg(world.src()).arg("--store").arg(world.path("store")).output().unwrap();
    assert_fails(&output, 1, &["repo", "other", "store"]);
    assert_eq!(files(&world.path("store")), before);
}

#[test]
fn any_damage_to_a_generation_is_named_and_no_tree_is_served_from_it() {
    let world = World::with_tree();
    world.index();
    let generation = world.path("store/generations/1");
    for name in ["head", "list", "local"] {
        let path = generation.join(name);
        let good = std::fs::read(&path).unwrap();
        for at in [0, 9, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            std::fs::write(&path, &bad).unwrap();
            let output =
                stillmirror(&["verify", "--store"]).arg(world.path("store")).arg(world.src()).output().unwrap();
            assert_fails(&output, 11, &[path.to_str().unwrap()]);
        }
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        let output = stillmirror(&["verify", "--store"]).arg(world.path("store")).arg(world.src()).output().unwrap();
        assert_fails(&output, 11, &[path.to_str().unwrap()]);
        std::fs::write(&path, &good).unwrap();
    }
    let output = stillmirror(&["verify", "--store"]).arg(world.path("store")).arg(world.src()).output().unwrap();
    assert_exit(&output, 0);
}

#[test]
fn nobody_listening_is_a_socket_error_and_no_repository_a_handshake_error() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let output = stillmirror(&["pull", &server.url("nonsense")]).arg(world.dest()).output().unwrap();
    assert_fails(&output, 5, &["nonsense"]);
    let url = server.url("repo");
    drop(server);
    let output = stillmirror(&["pull", &url]).arg(world.dest()).output().unwrap();
    assert_exit(&output, 10);
}

#[test]
fn wrong_usage_is_exit_code_1() {
    for arguments in [&["pull"][..], &["frobnicate"], &["pull", "http://x/y", "dest"], &["index", "--root", "/tmp"]] {
        assert_exit(&stillmirror(arguments).output().unwrap(), 1);
    }
}

#[test]
fn a_bad_config_key_is_exit_code_1_with_the_line() {
    let world = World::new();
    write(&world.path("mirror.toml"), b"[daemon]\nqueu = 3\n");
    let output = stillmirror(&["serve", "--config"]).arg(world.path("mirror.toml")).output().unwrap();
    assert_fails(&output, 1, &["mirror.toml", "line 2", "queu"]);
}

#[test]
fn an_unwritable_store_is_named() {
    let world = World::with_tree();
    write(&world.path("in the way"), b"a file");
    let mut command = stillmirror(&["index", "--root"]);
    let output = command.arg(world.src()).arg("--store").arg(world.path("in the way/store")).output().unwrap();
    assert_fails(&output, 11, &["in the way/store"]);
}

#[test]
fn sigterm_drains_the_daemon_and_ends_it_cleanly() {
    let world = World::with_tree();
    world.index();
    let mut server = world.serve();
    signal("TERM", server.pid());
    assert_eq!(server.wait(), Some(0));
}
