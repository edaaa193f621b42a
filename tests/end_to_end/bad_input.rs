//! Errors: the message names the file and what to do, the exit code is right, and nothing is written.

use std::process::Output;

use crate::pull::signal;
use crate::support::*;

#[test]
fn a_missing_root_is_named_and_no_store_is_created() {
    let world = World::new();
    let output =
        stillmirror(&["index", "--root", "/no/such/tree", "--store"]).arg(world.path("store")).output().unwrap();
    assert_fails(&output, 11, &["/no/such/tree"]);
    assert!(!world.path("store").exists());
}

#[test]
fn a_store_of_another_repository_is_not_changed() {
    let world = World::with_tree();
    world.index();
    let before = files(&world.path("store"));
    let mut command = stillmirror(&["index", "--name", "other", "--root"]);
    let output = command.arg(world.src()).arg("--store").arg(world.path("store")).output().unwrap();
    assert_fails(&output, 1, &["repo", "other", "store"]);
    assert_eq!(files(&world.path("store")), before);
}

#[test]
fn any_damage_to_a_generation_is_reported_with_its_file() {
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
fn exit_codes_tell_a_refused_connection_from_an_unknown_repository() {
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
fn invalid_usage_is_exit_code_1() {
    for arguments in [&["pull"][..], &["frobnicate"], &["pull", "http://x/y", "dest"], &["index", "--root", "/tmp"]] {
        assert_exit(&stillmirror(arguments).output().unwrap(), 1);
    }
}

#[test]
fn an_unknown_config_key_is_exit_code_1_with_its_line() {
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
    assert_eq!(errors(&output).matches("(os error").count(), 1, "{output:?}");
    // Nobody can create a directory there, not even root.
    let mut command = stillmirror(&["index", "--store", "/proc/store", "--root"]);
    let output = command.arg(world.src()).output().unwrap();
    assert_fails(&output, 11, &["cannot create the store /proc/store: "]);
    assert_eq!(errors(&output).matches("(os error").count(), 1, "{output:?}");
}

#[test]
fn an_unusable_secrets_file_is_named_once() {
    let world = World::with_tree();
    world.index();
    let config = "[daemon]\nlisten = '127.0.0.1:0'\n[[repository]]\nname = 'repo'\nroot = 'src'\nstore = 'store'\n\
                  auth_users = 'anna'\nsecrets_file = 'no secrets'\n";
    write(&world.path("mirror.toml"), config.as_bytes());
    let output = stillmirror(&["serve", "--config"]).arg(world.path("mirror.toml")).output().unwrap();
    assert_fails(&output, 11, &["repository 'repo': cannot use the secrets file", "no secrets: "]);
    assert_eq!(errors(&output).matches("(os error").count(), 1, "{output:?}");
}

#[test]
fn urls_and_flags_of_other_programs_are_answered() {
    for (arguments, words) in [
        (&["pull", "rsync://host/debian", "dest"][..], &["`rsync -a rsync://host/debian DEST`"][..]),
        (&["pull", "host::debian", "dest"], &["`rsync -a host::debian DEST`", "stillmirror://host/debian"]),
        (&["list", "http://host/debian"], &["`wget --mirror http://host/debian`"]),
        (&["pull", "-avz", "stillmirror://host/debian", "dest"], &["rsync's letters are not needed", "--bwlimit"]),
        (&["pull", "--delte", "stillmirror://host/debian", "dest"], &["'--delete'"]),
    ] {
        assert_fails(&stillmirror(arguments).output().unwrap(), 1, words);
    }
}

#[test]
fn a_tilde_that_the_shell_did_not_expand_is_refused() {
    let world = World::new();
    for arguments in [
        &["pull", "stillmirror://127.0.0.1:1/repo", "~/dest"][..],
        &["pull", "stillmirror://127.0.0.1:1/repo", "dest", "--store=~/store"],
        &["index", "--root=~", "--store", "store"],
        &["index", "--config=~/mirror.toml"],
        &["serve", "--root", "src", "--store=~user/store"],
        &["list", "--store=~/store"],
        &["verify", "~/dest", "--store", "store"],
    ] {
        let output = stillmirror(arguments).current_dir(world.path("")).output().unwrap();
        assert_fails(&output, 1, &["the shell did not expand '~'"]);
    }
}

#[test]
fn a_dangling_symlink_as_destination_is_named() {
    let world = World::with_tree();
    world.index();
    std::os::unix::fs::symlink("nowhere", world.dest()).unwrap();
    let output = world.pull_command(&world.serve()).output().unwrap();
    assert_fails(&output, 11, &["dest: it is a symlink to nowhere, which does not exist"]);
    assert!(!world.path("nowhere").exists());
}

#[test]
fn a_bwlimit_that_cannot_work_is_refused_with_the_least_one() {
    let output = stillmirror(&["pull", "stillmirror://127.0.0.1:1/repo", "dest", "--bwlimit", "1"]).output().unwrap();
    assert_fails(&output, 1, &["--bwlimit", "the least is 16KiB"]);
}

#[test]
fn a_misspelt_repository_leaves_neither_a_store_nor_a_tree() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let mut command = stillmirror(&["pull", &server.url("rpeo")]);
    let output = command.arg(world.dest()).arg("--store").arg(world.path("dest-store")).output().unwrap();
    assert_fails(&output, 5, &["rpeo"]);
    assert!(!world.dest().exists() && !world.path("dest-store").exists());
    world.pull(&server);
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn list_without_arguments_names_both_forms() {
    assert_fails(&stillmirror(&["list"]).output().unwrap(), 1, &["list stillmirror://HOST/", "list --store DIR"]);
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn sigterm_drains_the_daemon_and_ends_it_cleanly() {
    let world = World::with_tree();
    world.index();
    let mut server = world.serve();
    signal("TERM", server.pid());
    assert_eq!(server.wait(), Some(0));
}
