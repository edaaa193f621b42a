//! Signed heads, with the stock program minisign as the judge in both directions.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::*;

/// Makes a key. Returns the secret and the public file.
fn keygen(world: &World) -> (PathBuf, PathBuf) {
    assert_exit(&stillmirror(&["keygen"]).arg(world.path("keys")).output().unwrap(), 0);
    (world.path("keys/stillmirror.key"), world.path("keys/stillmirror.pub"))
}

/// Returns the directory of a store's current generation.
fn current(store: &Path) -> PathBuf {
    fs::canonicalize(store.join("current")).unwrap()
}

/// Asserts that the stock program verifies the head of a store's current generation. Returns what it prints.
#[track_caller]
fn assert_minisign_verifies(store: &Path, public: &Path) -> String {
    let output = Command::new("minisign")
        .current_dir(current(store))
        .args(["-Vm", "head", "-x", "head.minisig", "-p"])
        .arg(public)
        .output()
        .expect("minisign is the judge of these tests: install it (tests/prepare)");
    assert_exit(&output, 0);
    String::from_utf8(output.stdout).unwrap()
}

fn signed_index(world: &World, key: &Path) -> Value {
    json(&world.index_command().arg("--sign").arg(key).output().unwrap())
}

fn trusting_pull(world: &World, server: &Server, public: &Path) -> Output {
    world.pull_command(server).arg("--delete").arg("--trust").arg(public).output().unwrap()
}

fn sign(world: &World, key: &Path, expires: &str) -> Output {
    let mut command = stillmirror(&["sign", "--json", "--expires", expires, "--store"]);
    command.arg(world.path("store")).arg("--key").arg(key).output().unwrap()
}

/// Pulls until the pull publishes a generation of the origin with this number.
fn pull_generation(world: &World, server: &Server, public: &Path, generation: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while json(&trusting_pull(world, server, public))["generation"] != generation {
        assert!(Instant::now() < deadline, "the daemon does not serve generation {generation}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_key_is_readable_by_its_owner_only_and_never_overwritten() {
    let world = World::new();
    let (secret, public) = keygen(&world);
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    let before = fs::read(&secret).unwrap();
    for remaining in [&secret, &public] {
        let again = stillmirror(&["keygen"]).arg(world.path("keys")).output().unwrap();
        assert_fails(&again, 1, &["exists already"]);
        let other = if remaining == &secret { &public } else { &secret };
        fs::rename(other, world.path("aside")).unwrap();
        assert_fails(&stillmirror(&["keygen"]).arg(world.path("keys")).output().unwrap(), 1, &["exists already"]);
        assert!(!other.exists());
        fs::rename(world.path("aside"), other).unwrap();
    }
    assert_eq!(fs::read(&secret).unwrap(), before);
}

#[test]
fn minisign_verifies_what_index_signs_and_the_comment_says_what_it_is() {
    let world = World::with_tree();
    let (secret, public) = keygen(&world);
    let report = signed_index(&world, &secret);
    let printed = assert_minisign_verifies(&world.path("store"), &public);
    let listed = stillmirror(&["list", "--json", "--store"]).arg(world.path("store")).output().unwrap();
    let digest = json(&listed)["list_digest"].as_str().unwrap().to_owned();
    let words = format!("repository repo, generation {}, list sha256 {digest}", report["generation"]);
    assert!(printed.contains(&words), "{printed}");
    assert!(json(&listed)["expires"].is_string());
}

#[test]
fn a_key_of_minisign_signs_and_is_trusted() {
    let world = World::with_tree();
    let (secret, public) = (world.path("own.key"), world.path("own.pub"));
    let made = Command::new("minisign").args(["-G", "-W", "-p"]).arg(&public).arg("-s").arg(&secret).output().unwrap();
    assert_exit(&made, 0);
    signed_index(&world, &secret);
    assert_minisign_verifies(&world.path("store"), &public);
    let server = world.serve();
    assert_exit(&trusting_pull(&world, &server, &public), 0);
    assert_same_tree(&world.src(), &world.dest());
    // The key itself, as well as its file; and any of several.
    let text = fs::read_to_string(&public).unwrap();
    let (_, other) = keygen(&world);
    let mut command = world.pull_command(&server);
    command.arg("--trust").arg(other).args(["--trust", text.lines().nth(1).unwrap()]);
    assert_exit(&command.output().unwrap(), 0);
}

#[test]
fn a_leaf_below_a_mirror_verifies_the_publishers_signature_and_its_renewal() {
    let world = World::with_tree();
    let (secret, public) = keygen(&world);
    signed_index(&world, &secret);
    let origin = world.serve();
    pull_generation(&world, &origin, &public, 1);
    let (store, leaf_store) = (world.path("dest-store"), world.path("leaf-store"));
    assert_minisign_verifies(&store, &public);
    let middle = Server::start(&world.dest(), &store);
    let leaf = || {
        let mut command = stillmirror(&["pull", "--json", "--delete", &middle.url("repo")]);
        command.arg(world.path("leaf")).arg("--store").arg(&leaf_store).arg("--trust").arg(&public).output().unwrap()
    };
    json(&leaf());
    assert_same_tree(&world.src(), &world.path("leaf"));
    for file in ["head", "head.minisig", "list"] {
        let same = fs::read(current(&world.path("store")).join(file)).unwrap();
        assert_eq!(fs::read(current(&leaf_store).join(file)).unwrap(), same, "{file}");
    }
    // A renewal reaches the leaf through the mirror, and replaces the generation that it renews.
    let renewed = json(&sign(&world, &secret, "30d"));
    assert_eq!(renewed["generation"], 2);
    assert_eq!(fs::read_dir(world.path("store/generations")).unwrap().count(), 1);
    pull_generation(&world, &origin, &public, 2);
    let deadline = Instant::now() + Duration::from_secs(20);
    while json(&leaf())["generation"] != 2 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_minisign_verifies(&leaf_store, &public);
    let signature = fs::read(current(&world.path("store")).join("head.minisig")).unwrap();
    assert_eq!(fs::read(current(&leaf_store).join("head.minisig")).unwrap(), signature);
    // What was pulled is not this host's to sign.
    let mut command = stillmirror(&["sign", "--store"]);
    let refused = command.arg(&store).arg("--key").arg(&secret).output().unwrap();
    assert_fails(&refused, 1, &["pulled from another host"]);
    let checked = stillmirror(&["verify"]).arg(world.path("leaf")).arg("--store").arg(&leaf_store).output().unwrap();
    assert_exit(&checked, 0);
}

#[test]
fn an_unsigned_and_an_expired_generation_are_refused_and_the_old_tree_stays() {
    let world = World::with_tree();
    let (secret, public) = keygen(&world);
    world.index();
    let server = world.serve();
    assert_fails(&trusting_pull(&world, &server, &public), 12, &["the head of 'repo' is not trusted", "not signed"]);
    assert!(!world.dest().exists());
    assert_exit(&sign(&world, &secret, "1s"), 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let output = trusting_pull(&world, &server, &public);
        if String::from_utf8_lossy(&output.stderr).contains("it expired at ") {
            assert_exit(&output, 12);
            break;
        }
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&output.stderr));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_index_without_changes_signs_again_when_half_of_the_lifetime_is_over() {
    let world = World::with_tree();
    let (secret, _) = keygen(&world);
    world.index();
    let index = |expires: &str| {
        json(&world.index_command().arg("--sign").arg(&secret).args(["--expires", expires]).output().unwrap())
    };
    assert_eq!((&index("1h")["generation"], &index("1h")["published"]), (&2.into(), &false.into()));
    // Of a day, less than half is left: one hour.
    assert_eq!(index("1d")["generation"], 3);
    assert_eq!(index("1d")["published"], false);
    // A later index of a changed tree is signed, too.
    write(&world.src().join("new"), b"new");
    assert_eq!(index("1d")["generation"], 4);
    assert_minisign_verifies(&world.path("store"), &world.path("keys/stillmirror.pub"));
}

#[test]
fn receivers_that_are_behind_get_deltas_to_a_renewed_generation() {
    let world = World::with_tree();
    let (secret, public) = keygen(&world);
    for n in 0..200 {
        write(&world.src().join(format!("many/{n}")), b"small");
    }
    signed_index(&world, &secret);
    let server = world.serve();
    pull_generation(&world, &server, &public, 1);
    let whole = fs::metadata(current(&world.path("store")).join("list.zst")).unwrap().len();
    write(&world.src().join("new"), b"new");
    signed_index(&world, &secret);
    sign(&world, &secret, "8d");
    let deadline = Instant::now() + Duration::from_secs(20);
    let report = loop {
        let report = json(&trusting_pull(&world, &server, &public));
        if report["bytes_list"] != 0 {
            break report;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(report["bytes_list"].as_u64().unwrap() < whole / 2, "{report} {whole}");
}

#[test]
fn keys_that_cannot_sign_are_refused_by_name() {
    let world = World::with_tree();
    let (secret, public) = keygen(&world);
    let refused = |key: &Path| world.index_command().arg("--sign").arg(key).output().unwrap();
    assert_fails(&refused(&public), 1, &["stillmirror.pub", "everybody on this host can read the key"]);
    fs::set_permissions(&public, fs::Permissions::from_mode(0o600)).unwrap();
    assert_fails(&refused(&public), 1, &["not a minisign secret key"]);
    assert_fails(&refused(&world.path("none")), 11, &["cannot open", "none"]);
    // The first letters of the key say that a password protects it.
    let text = fs::read_to_string(&secret).unwrap().replace("\nRWQAAEIy", "\nRWRTY0Iy");
    fs::write(&secret, text).unwrap();
    assert_fails(&refused(&secret), 1, &["protected by a password"]);
    assert!(!world.path("store").exists());
}

#[test]
fn the_configuration_names_the_key() {
    let world = World::with_tree();
    let (_, public) = keygen(&world);
    let config = format!(
        "[index]\nsign_key = 'keys/stillmirror.key'\nsign_expires = '1d'\n\
         [[repository]]\nname = 'repo'\nroot = '{}'\nstore = 'store'\n",
        world.src().display()
    );
    fs::write(world.path("mirror.toml"), config).unwrap();
    let output = stillmirror(&["index", "--json", "--config"]).arg(world.path("mirror.toml")).output().unwrap();
    assert_exit(&output, 0);
    assert_minisign_verifies(&world.path("store"), &public);
}

#[test]
fn an_invalid_trusted_key_is_a_usage_error() {
    let world = World::new();
    fs::write(world.path("garbage"), "garbage").unwrap();
    for key in [world.path("garbage"), world.path("missing")] {
        let mut command = stillmirror(&["pull", "stillmirror://127.0.0.1:1/repo", "dest", "--trust"]);
        assert_fails(&command.arg(key).output().unwrap(), 1, &["public key"]);
    }
}
