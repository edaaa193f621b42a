//! `shadow` compares a stock daemon with ours: it finds what differs, and nothing else.

mod configurations;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::rsync::peers::{Stock, am_root};
use crate::support::*;

/// Lines of an rsyncd.conf that make a stock daemon serve what ours serves to everybody.
fn globals() -> String {
    let owner = if am_root() { "uid = root\ngid = root\n" } else { "" };
    format!("use chroot = no\nmunge symlinks = no\nreverse lookup = no\nread only = yes\n{owner}")
}

fn shadow(old: &str, new: &str) -> Command {
    let mut command = stillmirror(&["shadow", "--json", "--seed", "1"]);
    command.args([old, new].map(|address| format!("rsync://{address}/")));
    command
}

fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error} in {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Indexes with a configuration, and serves it.
fn serve(world: &World, config: &str) -> Server {
    std::fs::write(world.path("mirror.toml"), config).unwrap();
    let with_config = |what: &str| {
        let mut command = stillmirror(&[what, "--config"]);
        command.arg(world.path("mirror.toml"));
        command
    };
    assert_exit(&with_config("index").output().expect("index runs"), 0);
    Server::spawn(with_config("serve"))
}

const DAEMON: &str = "[daemon]\nlisten = \"127.0.0.1:0\"\nserve_private = true\n[index]\nxxh128 = true\nmd5 = true\n";

fn repository(name: &str, root: &Path, more: &str) -> String {
    format!("[[repository]]\nname = \"{name}\"\nroot = \"{}\"\nstore = \"store-{name}\"\n{more}\n", root.display())
}

#[test]
fn equal_daemons_show_no_difference() {
    let world = World::with_tree();
    let stock = Stock::with_config(&format!("{}[repo]\npath = {}\n", globals(), world.src().display()));
    let ours = serve(&world, &format!("{DAEMON}{}", repository("repo", &world.src(), "")));
    let output = shadow(&stock.address, &ours.address)
        .args(["--sample", "12", "--checksum", "--client", "-av --stats"])
        .output()
        .unwrap();
    let report = report(&output);
    assert_exit(&output, 0);
    assert_eq!(report["noticeable"], 0, "{report:#}");
    let module = &report["modules"][0];
    assert_eq!((&module["name"], &module["entries"]), (&"repo".into(), &26.into()), "{module:#}");
    assert!(module["views"].as_array().unwrap().len() > 60, "{module:#}");
    // A file may be chosen by its size and by chance.
    assert!((6..=12).contains(&module["sampled_files"].as_u64().unwrap()), "{module:#}");
    // Without a terminal, nothing is said if there is nothing to say.
    let urls = [&stock.address, &ours.address].map(|address| format!("rsync://{address}/"));
    let quiet = stillmirror(&["shadow", "--module", "repo", "--sample", "0"]).args(urls).output().unwrap();
    assert_exit(&quiet, 0);
    assert_eq!((quiet.stdout, quiet.stderr), (Vec::new(), Vec::new()));
}

/// Returns the differences that clients could notice, as `module what subject`, sorted.
fn noticeable(report: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let differences = report["differences"].as_array().unwrap().iter();
    let found = differences.filter(|difference| difference["noticeable"] == true);
    let mut found: Vec<_> =
        found.map(|found| ["module", "what", "subject"].map(|key| text(&found[key])).join(" ")).collect();
    found.sort();
    found.dedup();
    found
}

/// Returns the reason for the first difference of a module.
#[track_caller]
fn reason(report: &Value, module: &str, what: &str) -> String {
    let differences = report["differences"].as_array().unwrap();
    let found = differences.iter().find(|found| found["module"] == module && found["what"] == what);
    found.unwrap_or_else(|| panic!("no {what} in {module}: {report:#}"))["reason"].as_str().unwrap().to_owned()
}

#[test]
fn each_planted_difference_is_named_with_its_reason() {
    let world = World::with_tree();
    let new = world.path("new");
    let copy = |name: &str| {
        let tree = new.join(name);
        std::fs::create_dir_all(&new).unwrap();
        assert!(Command::new("cp").arg("-a").args([&world.src(), &tree]).status().unwrap().success());
        tree
    };
    let lacking = copy("lacking");
    let readme = |tree: &Path| tree.join("README");
    std::fs::remove_file(lacking.join("dists/stable/Release")).unwrap();
    restore_time(&world, &lacking, "dists/stable");
    let modes = copy("modes");
    std::fs::set_permissions(readme(&modes), std::fs::Permissions::from_mode(0o600)).unwrap();
    let contents = copy("contents");
    std::fs::write(readme(&contents), noise(100, 99)).unwrap();
    restore_time(&world, &contents, "README");

    let (src, root) = (world.src(), world.src().display().to_string());
    let names = ["hidden", "lacking", "modes", "refusing", "contents", "closed", "locked"];
    let modules: String = names.map(|name| format!("[{name}]\npath = {root}\n")).concat();
    std::fs::write(world.path("motd"), "Welcome\n").unwrap();
    std::fs::write(world.path("other-motd"), "Go away\n").unwrap();
    let secrets = world.path("secrets");
    std::fs::write(&secrets, "ann:secret\n").unwrap();
    std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o600)).unwrap();
    let stock = Stock::with_config(&format!("motd file = {}\n{}{modules}", world.path("motd").display(), globals()));
    let ours = serve(
        &world,
        &[
            DAEMON.replace("[index]", "motd_file = \"other-motd\"\n[index]"),
            repository("hidden", &src, "list = false"),
            repository("lacking", &lacking, ""),
            repository("modes", &modes, ""),
            repository("refusing", &src, "refuse_options = [\"delete\", \"compress\", \"bwlimit\"]"),
            repository("contents", &contents, ""),
            repository("closed", &src, "hosts_deny = [\"*\"]"),
            repository("locked", &src, "auth_users = [\"ann\"]\nsecrets_file = \"secrets\""),
        ]
        .concat(),
    );
    let output = shadow(&stock.address, &ours.address).output().unwrap();
    let report = report(&output);
    assert_exit(&output, 42);
    let expected = [
        "- module hidden",
        "- motd ",
        "closed access ",
        "contents content README",
        "lacking entry dists/stable/Release",
        "locked access ",
        "modes mode README",
    ];
    let found = noticeable(&report);
    for line in expected {
        assert!(found.iter().any(|found| found == line), "{line:?} is not in {found:#?}");
    }
    let refused: Vec<_> = found.iter().filter(|line| line.starts_with("refusing")).collect();
    assert!(refused.iter().any(|line| *line == "refusing exit -z"), "{refused:?}");
    assert!(refused.iter().any(|line| *line == "refusing exit --bwlimit=10000"), "{refused:?}");
    for (module, what, word) in [
        ("lacking", "entry", "index"),
        ("modes", "mode", "outgoing chmod"),
        ("refusing", "exit", "refuse_options"),
        ("contents", "content", "verify"),
        ("closed", "access", "hosts deny"),
        ("locked", "access", "auth users"),
    ] {
        assert!(reason(&report, module, what).contains(word), "{module}: {}", reason(&report, module, what));
    }
    // Nothing else differs in these modules.
    let prefixes = ["- ", "closed access", "contents ", "lacking ", "locked access", "modes ", "refusing exit"];
    let other: Vec<_> = found.iter().filter(|line| !prefixes.iter().any(|prefix| line.starts_with(prefix))).collect();
    assert!(other.is_empty(), "{other:#?}");
}

/// Gives a name in a copy of the tree the times that it has in the tree.
fn restore_time(world: &World, copy: &Path, name: &str) {
    let mut touch = Command::new("touch");
    assert!(touch.arg("-r").args([world.src().join(name), copy.join(name)]).status().unwrap().success());
}

#[test]
fn modules_with_passwords_are_compared_behind_them() {
    let world = World::with_tree();
    let secrets = world.path("secrets");
    for (path, text) in
        [(&secrets, "ann:secret\n"), (&world.path("other"), "ann:changed\n"), (&world.path("mine"), "secret\n")]
    {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let lines = format!("path = {}\nauth users = ann\nsecrets file = {}\n", world.src().display(), secrets.display());
    let stock = Stock::with_config(&format!("{}[push]\n{lines}[changed]\n{lines}", globals()));
    let users = "auth_users = [\"ann\"]\nsecrets_file =";
    let ours = serve(
        &world,
        &[
            DAEMON,
            &repository("push", &world.src(), &format!("{users} \"secrets\"")),
            &repository("changed", &world.src(), &format!("{users} \"other\"")),
        ]
        .concat(),
    );
    let run = |user: &str, more: &[&str]| {
        let output = shadow(&format!("{user}{}", stock.address), &ours.address).args(more).output().unwrap();
        (report(&output), output)
    };
    let (without, output) = run("", &["--module", "push"]);
    assert_exit(&output, 23);
    assert!(without["not_compared"][0]["reason"].as_str().unwrap().contains("--password-file"), "{without:#}");
    assert_eq!(noticeable(&without), Vec::<String>::new());
    let mine = world.path("mine").display().to_string();
    let (with, output) = run("ann@", &["--password-file", &mine]);
    assert_exit(&output, 42);
    assert_eq!(noticeable(&with), ["changed login the given password"], "{with:#}");
    assert_eq!(with["modules"][0]["entries"], 26, "{with:#}");
}

#[test]
fn a_daemon_that_is_down_silent_or_full_is_named() {
    let world = World::with_tree();
    let stock = Stock::with_config(&format!("{}[repo]\npath = {}\n", globals(), world.src().display()));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let down = shadow(&stock.address, &free).output().unwrap();
    assert_fails(&down, 10, &["the new daemon at", &free]);
    assert!(report(&down)["stopped"].as_str().unwrap().contains("does not answer"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    let silent = shadow(&silent, &stock.address).args(["--timeout", "1s"]).output().unwrap();
    assert_fails(&silent, 30, &["the old daemon sent nothing for 1 s"]);
    let missing = shadow(&stock.address, &stock.address).args(["--rsync", "/nonexistent/rsync"]).output().unwrap();
    assert_fails(&missing, 1, &["/nonexistent/rsync is not installed"]);
    let url = format!("rsync://{}/repo/", stock.address);
    assert_fails(&stillmirror(&["shadow", &url, &url]).output().unwrap(), 1, &["--module repo"]);
}
