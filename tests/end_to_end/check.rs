//! `stillmirror check`: each fault is found before the daemon meets it, with words and a remedy.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::*;

/// A user that no host has, for files that belong to somebody else.
const SOMEBODY: u32 = 54_321;

/// Writes a configuration with one repository, `repo`. `daemon` and `repository` are further keys.
fn configure(world: &World, daemon: &str, repository: &str) {
    let (root, store) = (world.src(), world.path("store"));
    let text = format!(
        "[daemon]\nlisten = \"127.0.0.1:{}\"\n{daemon}\n[[repository]]\nname = \"repo\"\nroot = \"{}\"\nstore = \"{}\"\n{repository}\n",
        free_port(),
        root.display(),
        store.display()
    );
    write(&world.path("mirror.toml"), text.as_bytes());
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn check(world: &World, arguments: &[&str]) -> Output {
    check_command(world).args(arguments).output().unwrap()
}

/// Checks as the user of the test, whatever users the host has.
fn check_command(world: &World) -> Command {
    let mut command = stillmirror(&["check", "--json", "--config"]);
    command.arg(world.path("mirror.toml"));
    command
}

fn own_user() -> String {
    nix_user(std::process::id())
}

/// Returns the number of the user of a process.
fn nix_user(process: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}

fn is_root() -> bool {
    own_user() == "0"
}

/// Checks as this user. Returns the findings, after making sure that the exit code is right.
#[track_caller]
fn findings(world: &World) -> Vec<Value> {
    findings_of(&check(world, &["--user", &own_user()]))
}

#[track_caller]
fn findings_of(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(i32::from(report["errors"] != 0)), "{text}");
    report["findings"].as_array().unwrap().clone()
}

/// Asserts that there is a finding of `level` whose text or remedy has all of `words`, in the same section.
#[track_caller]
fn assert_found(findings: &[Value], level: &str, section: &str, words: &[&str]) {
    let has_all = |finding: &Value| {
        let text = format!("{} {}", finding["text"].as_str().unwrap(), finding["remedy"].as_str().unwrap_or_default());
        finding["level"] == level && finding["section"] == section && words.iter().all(|word| text.contains(word))
    };
    assert!(findings.iter().any(has_all), "no {level} in '{section}' with {words:?}: {findings:#?}");
}

#[track_caller]
fn assert_none(findings: &[Value], level: &str) {
    let bad: Vec<_> = findings.iter().filter(|finding| finding["level"] == level).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_host_that_can_serve_has_neither_errors_nor_warnings() {
    let world = World::with_tree();
    configure(&world, "", "");
    world.index();
    let found = findings(&world);
    assert_none(&found, "error");
    assert_none(&found, "warning");
    assert_found(&found, "ok", "configuration", &["mirror.toml", "1 repository"]);
    assert_found(&found, "ok", "host", &["Linux"]);
    assert_found(&found, "ok", "ports", &["listen", "127.0.0.1:", "free"]);
    assert_found(&found, "ok", "repository repo", &["generation 1", "old"]);
    assert_found(&found, "ok", "repository repo", &["opened", "as indexed"]);
    assert_found(&found, "ok", "repository repo", &["encoded lists", "store/lists"]);
}

#[test]
fn people_read_sections_with_remedies_and_a_sum() {
    let world = World::with_tree();
    configure(&world, "", "");
    let mut command = stillmirror(&["check", "--user", &own_user(), "--config"]);
    let output = command.arg(world.path("mirror.toml")).output().unwrap();
    assert_exit(&output, 0);
    let text = String::from_utf8(output.stdout).unwrap();
    for line in
        ["host\n  ok       Linux ", "\nrepository repo\n  warning  it is not indexed yet", "\n0 errors, 1 warning\n"]
    {
        assert!(text.contains(line), "'{line}' is not in {text}");
    }
    assert_eq!(text.matches("\nrepository repo\n").count(), 1, "{text}");
}

#[test]
fn an_invalid_file_is_an_error_with_its_line_and_key() {
    let world = World::new();
    write(&world.path("mirror.toml"), b"[daemon]\nqueue = \"many\"\n");
    let found = findings(&world);
    assert_found(&found, "error", "configuration", &["mirror.toml", "line 2", "queue"]);
    std::fs::remove_file(world.path("mirror.toml")).unwrap();
    assert_found(&findings(&world), "error", "configuration", &["mirror.toml", "No such file"]);
}

#[test]
fn a_repository_that_is_not_indexed_is_a_warning_and_a_root_that_is_missing_an_error() {
    let world = World::with_tree();
    configure(&world, "", "");
    let found = findings(&world);
    assert_found(&found, "warning", "repository repo", &["not indexed yet", "stillmirror index"]);
    assert_none(&found, "error");
    std::fs::rename(world.src(), world.path("elsewhere")).unwrap();
    assert_found(&findings(&world), "error", "repository repo", &["cannot read the root", "src", "mount"]);
}

#[test]
fn a_root_that_is_missing_or_another_directory_is_an_error() {
    let world = World::with_tree();
    configure(&world, "", "");
    world.index();
    std::fs::rename(world.src(), world.path("elsewhere")).unwrap();
    assert_found(&findings(&world), "error", "repository repo", &["cannot open the root", "src", "mount its disk"]);
    std::fs::create_dir(world.src()).unwrap();
    assert_found(&findings(&world), "error", "repository repo", &["is not the indexed directory"]);
}

#[test]
fn files_that_changed_or_vanished_since_the_index_are_warnings_and_errors_if_it_is_all_of_them() {
    let world = World::with_tree();
    configure(&world, "", "");
    world.index();
    write(&world.src().join("README"), b"another content");
    std::fs::remove_file(world.src().join("dists/stable/Release")).unwrap();
    let found = findings(&world);
    assert_none(&found, "error");
    assert_found(&found, "warning", "repository repo", &["changed since", "such as README", "stillmirror index"]);
    assert_found(&found, "warning", "repository repo", &["gone since", "dists/stable/Release"]);

    let world = World::new();
    configure(&world, "", "");
    write(&world.src().join("file"), b"content");
    world.index();
    write(&world.src().join("file"), b"another content");
    assert_found(&findings(&world), "error", "repository repo", &["1 of 1 sampled file", "such as file"]);
}

#[test]
fn damage_to_the_store_is_an_error_and_a_missing_pack_a_warning() {
    let world = World::with_tree();
    configure(&world, "", "");
    world.index();
    std::fs::remove_file(world.path("store/sums/1.pack")).unwrap();
    let found = findings(&world);
    assert_found(&found, "warning", "repository repo", &["1.pack", "--verify-store"]);
    write(&world.path("store/generations/1/head"), b"nonsense");
    assert_found(&findings(&world), "error", "repository repo", &["generations/1/head", "index"]);
}

#[test]
fn the_store_of_another_repository_is_an_error() {
    let world = World::with_tree();
    configure(&world, "", "");
    world.index();
    let text = std::fs::read_to_string(world.path("mirror.toml")).unwrap().replace("\"repo\"", "\"other\"");
    write(&world.path("mirror.toml"), text.as_bytes());
    assert_found(&findings(&world), "error", "repository other", &["is the store of the repository 'repo'"]);
}

#[test]
fn a_store_inside_the_tree_is_a_warning() {
    let world = World::with_tree();
    configure(&world, "", "");
    let text = std::fs::read_to_string(world.path("mirror.toml")).unwrap();
    let inside = world.src().join("store");
    let text = text.replace(world.path("store").to_str().unwrap(), inside.to_str().unwrap());
    write(&world.path("mirror.toml"), text.as_bytes());
    assert_found(&findings(&world), "warning", "repository repo", &["store", "outside the tree"]);
}

#[test]
fn a_signature_is_checked_against_the_clock() {
    let world = World::with_tree();
    assert_exit(&stillmirror(&["keygen"]).arg(world.path("keys")).output().unwrap(), 0);
    let key = world.path("keys/stillmirror.key");
    configure(&world, "", &format!("[repository.index]\nsign_key = \"{}\"\n", key.display()));
    world.index();
    let found = findings(&world);
    assert_found(&found, "warning", "repository repo", &["sign_key", "not signed", "stillmirror index"]);
    assert_found(&found, "ok", "repository repo", &["signs with", "stillmirror.key"]);

    let sign = |expires| {
        let mut command = stillmirror(&["sign", "--expires", expires, "--key"]);
        json(&command.arg(&key).arg("--json").arg("--store").arg(world.path("store")).output().unwrap());
    };
    sign("7d");
    assert_found(&findings(&world), "ok", "repository repo", &["signed until"]);
    sign("2h");
    assert_found(&findings(&world), "warning", "repository repo", &["signature expires in"]);
    sign("1s");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_found(&findings(&world), "error", "repository repo", &["signature expired at"]);

    chmod(&key, 0o644);
    assert_found(&findings(&world), "error", "repository repo", &["cannot sign", "stillmirror.key"]);
}

#[test]
fn a_port_that_is_taken_is_an_error_with_the_process_that_has_it() {
    let world = World::with_tree();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    configure(&world, &format!("rsync_listen = \"{address}\""), "");
    let me = format!("process {}", std::process::id());
    assert_found(&findings(&world), "error", "ports", &["rsync_listen", &address.to_string(), &me, "another port"]);
    drop(taken);
    assert_found(&findings(&world), "ok", "ports", &["rsync_listen", "free"]);
}

#[test]
fn a_daemon_that_runs_already_is_no_error() {
    let world = World::with_tree();
    configure(&world, "", "");
    world.index();
    let mut command = stillmirror(&["serve", "--serve-private", "--config"]);
    command.arg(world.path("mirror.toml"));
    let server = Server::spawn(command);
    let found = findings(&world);
    assert_found(&found, "note", "ports", &["a daemon is running there", &server.pid().to_string()]);
    assert_none(&found, "error");
}

#[test]
fn an_address_that_the_host_does_not_have_is_an_error() {
    let world = World::with_tree();
    configure(&world, "rsync_listen = \"192.0.2.1:8873\"", "");
    assert_found(&findings(&world), "error", "ports", &["rsync_listen", "192.0.2.1:8873", "does not have the address"]);
}

#[test]
fn few_open_files_are_a_warning_with_what_is_wanted() {
    let world = World::with_tree();
    configure(&world, "connections = 5000", "");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 2000 && exec \"$@\"", "sh"]);
    let check = check_command(&world);
    command.arg(check.get_program()).args(check.get_args()).args(["--user", &own_user()]);
    assert_found(
        &findings_of(&command.output().unwrap()),
        "warning",
        "host",
        &["5,000 connections", "2,000", "LimitNOFILE"],
    );
}

#[test]
fn files_that_the_configuration_names_are_opened() {
    let world = World::with_tree();
    let secrets = "auth_users = \"anna\"\nsecrets_file = \"secrets\"\n";
    configure(&world, "motd_file = \"motd\"", secrets);
    let found = findings(&world);
    assert_found(&found, "warning", "files of the daemon", &["motd", "No such file"]);
    assert_found(&found, "error", "repository repo", &["secrets", "No such file", "does not start"]);
    write(&world.path("motd"), b"hello");
    write(&world.path("secrets"), b"anna:x\n");
    chmod(&world.path("secrets"), 0o644);
    let found = findings(&world);
    assert_found(&found, "ok", "files of the daemon", &["motd"]);
    assert_found(&found, "error", "repository repo", &["secrets", "accessible to everybody"]);
    chmod(&world.path("secrets"), 0o600);
    assert_none(&findings(&world), "error");

    configure(&world, "", "filter = [\"nonsense\"]\nexclude_from = \"patterns\"");
    assert_found(&findings(&world), "error", "repository repo", &["patterns", "No such file"]);
    write(&world.path("patterns"), b"*.o\n");
    assert_found(&findings(&world), "error", "repository repo", &["nonsense"]);
}

#[test]
fn what_the_services_user_may_not_do_is_found_before_it_happens() {
    if !is_root() {
        return;
    }
    let world = World::with_tree();
    // Others pass the directory of the world, which belongs to root alone.
    chmod(&world.path(""), 0o755);
    let user = format!("user = \"{SOMEBODY}\"\ngroup = \"{SOMEBODY}\"");
    configure(&world, &user, "");
    world.index();
    let found = findings_of(&check(&world, &[]));
    assert_none(&found, "error");
    assert_found(&found, "ok", "user", &["54321", "`user` in [daemon]"]);
    assert_found(&found, "warning", "repository repo", &["encoded lists", "Permission denied", "/var/cache"]);

    // One file, then the file itself that is read again at a reload, then the root, then the store.
    chmod(&world.src().join("README"), 0o600);
    world.index();
    chmod(&world.path("mirror.toml"), 0o600);
    let found = findings_of(&check(&world, &[]));
    assert_found(&found, "warning", "repository repo", &["1 of", "cannot be read", "such as README"]);
    assert_found(&found, "warning", "user", &["54321", "mirror.toml", "reload"]);
    chmod(&world.src(), 0o700);
    let found = findings_of(&check(&world, &[]));
    assert_found(&found, "error", "repository repo", &["cannot open the root", "Permission denied", "daemon's user"]);
    chmod(&world.src(), 0o755);
    chmod(&world.path("store"), 0o700);
    let found = findings_of(&check(&world, &[]));
    assert_found(
        &found,
        "error",
        "repository repo",
        &["store", "Permission denied", "let the daemon's user read the store"],
    );
}

#[test]
fn a_configuration_that_the_services_user_cannot_read_is_an_error() {
    if !is_root() {
        return;
    }
    let world = World::with_tree();
    chmod(&world.path(""), 0o755);
    configure(&world, "", "");
    world.index();
    chmod(&world.path("mirror.toml"), 0o600);
    let found = findings_of(&check(&world, &["--user", "nobody"]));
    assert_found(&found, "error", "user", &["nobody", "mirror.toml", "Permission denied"]);
    assert_found(&found, "ok", "user", &["nobody", "--user"]);
}

#[test]
fn a_user_that_the_host_does_not_have_is_an_error() {
    if !is_root() {
        return;
    }
    let world = World::with_tree();
    configure(&world, "user = \"no-such-user\"", "");
    assert_found(&findings_of(&check(&world, &[])), "error", "user", &["there is no user 'no-such-user'"]);
}

#[test]
fn a_daemon_that_runs_as_root_is_noted_to_send_only_public_files() {
    if !is_root() {
        return;
    }
    let world = World::with_tree();
    configure(&world, "", "");
    chmod(&world.src().join("README"), 0o600);
    world.index();
    let found = findings(&world);
    assert_found(&found, "note", "repository repo", &["runs as root", "everybody"]);
    assert_none(&found, "warning");
}

#[test]
fn how_files_are_read_is_said_for_each_policy() {
    let world = World::with_tree();
    configure(&world, "", "direct = \"never\"");
    world.index();
    assert_found(&findings(&world), "ok", "repository repo", &["through the page cache", "never"]);
    configure(&world, "", "direct = \"always\"");
    let found = findings(&world);
    let says = |words: &str| found.iter().any(|finding| finding["text"].as_str().unwrap().contains(words));
    assert!(says("O_DIRECT") || says("refuses direct reads"), "{found:#?}");
}

#[test]
fn digests_that_rsync_clients_use_are_missed_in_a_note() {
    let world = World::with_tree();
    configure(&world, "", "");
    world.index();
    assert_found(&findings(&world), "note", "repository repo", &["XXH128", "xxh128 = true"]);
    json(&world.index_command().arg("--xxh128").output().unwrap());
    let found = findings(&world);
    assert!(!found.iter().any(|finding| finding["text"].as_str().unwrap().contains("XXH128")), "{found:#?}");
}
