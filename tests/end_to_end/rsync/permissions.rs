//! What a daemon that runs as root serves, compared with a stock daemon that runs as nobody.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::peers::{Pulled, Stock, am_root, copy, index, pull};
use crate::support::*;

/// Creates a tree with files and directories that not everybody may read.
fn world() -> World {
    let world = World::new();
    let at = |name: &str| world.src().join(name);
    for name in ["open/a", "closed/c", "closed/sub/d", "unlisted/n", "unsearched/m", "own", "group", "all", "own-names"]
    {
        write(&at(name), name.as_bytes());
    }
    write(&at("names"), b"open/a\nclosed/c\nown\n");
    write(&at("large"), &noise(700_000, 1));
    write(&at("closed/rules"), b"- c\n");
    std::fs::hard_link(at("own"), at("twin")).expect("a link");
    for (name, target) in [("to-file", "closed/c"), ("to-dir", "closed"), ("to-own", "own"), ("to-open", "open")] {
        symlink(target, at(name)).expect("a symlink");
    }
    for (name, mode) in [
        ("closed", 0o700),
        ("unlisted", 0o711),
        ("unsearched", 0o744),
        ("own", 0o600),
        ("own-names", 0o600),
        ("group", 0o640),
        ("large", 0o400),
    ] {
        std::fs::set_permissions(at(name), Permissions::from_mode(mode)).expect("a mode");
    }
    // The temporary directory is private.
    std::fs::set_permissions(world.path(""), Permissions::from_mode(0o755)).expect("a mode");
    index(&world);
    world
}

/// Runs `serve` with its defaults.
fn serve(world: &World, more: &[&str]) -> Server {
    let mut command = stillmirror(&["serve", "--listen", "127.0.0.1:0", "--name", "repo"]);
    command.arg("--root").arg(world.src()).arg("--store").arg(world.path("store")).args(more);
    Server::spawn(command)
}

/// Returns the sender's errors, sorted and with paths as from a daemon without chroot, and without the client's own lines.
fn errors(pulled: &Pulled) -> Vec<String> {
    let is_senders = |line: &&str| line.contains("[sender]");
    let mut lines: Vec<_> = pulled.errors.lines().filter(is_senders).map(|line| line.replace("\"/", "\"")).collect();
    lines.sort();
    lines
}

/// Asserts that both clients end in the same way, with the same tree.
#[track_caller]
fn same(world: &World, stock: &str, ours: &str, words: &str, compares_errors: bool) {
    let words: Vec<&str> = words.split(' ').collect();
    let [stock, ours] = [("stock", stock), ("ours", ours)].map(|(name, address)| {
        let dest = world.path(name);
        let _ = std::fs::remove_dir_all(&dest);
        let to = format!("{}/", dest.display());
        pull(address, &[&words[..], &[&to]].concat(), &dest)
    });
    assert_eq!((stock.code, &stock.out), (ours.code, &ours.out), "{words:?}: {}{}", stock.errors, ours.errors);
    if compares_errors {
        assert_eq!(errors(&stock), errors(&ours), "{words:?}");
    }
    let contents = |pulled: &Pulled| {
        let tree = pulled.tree.iter();
        tree.map(|(path, entry)| (path.clone(), entry.mode, entry.content.clone())).collect::<Vec<_>>()
    };
    assert_eq!(contents(&stock), contents(&ours), "{words:?}");
}

#[test]
fn a_daemon_running_as_root_serves_the_same_as_a_stock_daemon_running_as_nobody() {
    if !am_root() {
        return;
    }
    let world = world();
    let (stock, ours) = (Stock::start(&world.src(), "uid = nobody\ngid = nogroup"), serve(&world, &[]));
    let to = format!("{}/", world.path("probe").display());
    let probe = pull(&stock.address, &["--protocol=28", "-a", "{M}/unlisted/", &to], &world.path("probe"));
    if probe.tree.is_empty() {
        // This build of rsync looks at paths, not at names in open directories, and is refused at other places.
        return;
    }
    for (words, compares_errors) in [
        ("-a {M}/", true),
        ("-aH --no-inc-recursive {M}/", true),
        ("-ac {M}/", true),
        ("-r --list-only {M}/", true),
        ("-a {M}/own {M}/group {M}/all {M}/large", true),
        ("-a {M}/twin", true),
        ("-a {M}/closed", true),
        ("-a {M}/closed/", true),
        ("-a {M}/closed/c", true),
        ("-a {M}/closed/none", true),
        ("-a {M}/unlisted/", true),
        ("-a {M}/unlisted/n", true),
        ("-a {M}/unlisted/none", true),
        ("-a {M}/unsearched", true),
        ("-a {M}/unsearched/", true),
        ("-a {M}/unsearched/m", true),
        ("-aR {M}/closed/c", true),
        ("-aR {M}/unsearched/./m", true),
        ("-a {M}/*/*", true),
        ("-a {M}/unlisted/*", true),
        ("-a {M}/to-dir/", true),
        ("-a {M}/to-dir/c", true),
        ("-a {M}/to-open/", true),
        ("-a --files-from=:names {M}/", true),
        ("-d {M}/closed", true),
        ("-a --ignore-missing-args {M}/closed/none", true),
        ("-a --filter=:_rules {M}/", true),
        // Errors about a file behind a symlink name it differently.
        ("-aL {M}/", false),
        ("-ak {M}/", true),
        ("-aL {M}/to-file", true),
        ("-aL {M}/to-own", false),
    ] {
        for protocol in ["--protocol=28", "--protocol=29", "--protocol=31", "--protocol=32"] {
            same(&world, &stock.address, &ours.address, &format!("{protocol} {words}"), compares_errors);
        }
    }
    // A client that has the same content of a private file is not told so.
    let [theirs, own] = [("their-copy", &stock.address), ("our-copy", &ours.address)].map(|(name, address)| {
        copy(&world.src(), &world.path(name));
        let to = format!("{}/", world.path(name).display());
        pull(address, &["-rc", "--checksum-choice=md5", "{M}/", &to], &world.path(name))
    });
    assert_eq!((theirs.code, errors(&theirs)), (own.code, errors(&own)));
    assert!(own.errors.contains("failed to open \"/own\""), "{}", own.errors);
    let names = pull(&ours.address, &["-a", "--files-from=:own-names", "{M}/", "{D}"], &world.path("names"));
    assert!(names.code != Some(0) && names.errors.contains("failed to open files-from file"), "{}", names.errors);
    assert!(!names.errors.contains("link_stat"), "{}", names.errors);
}

#[test]
fn native_clients_get_private_files_only_with_serve_private() {
    if !am_root() {
        return;
    }
    let world = world();
    let of_root = serve(&world, &[]);
    let warned = of_root.logged("running as root");
    assert!(warned.contains("only files that everybody") && warned.contains("serve_private"), "{warned}");
    assert_exit(&world.pull_command(&of_root).output().expect("pull runs"), 23);
    let pulled = files(&world.dest());
    let names: Vec<_> = pulled.keys().filter_map(|path| path.to_str()).filter(|name| !name.starts_with('.')).collect();
    assert_eq!(names, ["all", "names", "open/a", "unlisted/n"]);
    let private = serve(&world, &["--serve-private"]);
    assert!(private.logged("running as root").contains("serve_private"));
    world.pull(&private);
    assert_same_tree(&world.src(), &world.dest());
}

/// Returns the distinct lines `Uid`, `Gid` and `Groups` of all threads of a process.
fn identities(pid: u32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let mut found = Vec::new();
    for thread in threads.flatten() {
        let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let lines = status.lines().filter(|line| ["Uid:", "Gid:", "Groups:"].iter().any(|key| line.starts_with(key)));
        found.extend(lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    found.sort();
    found.dedup();
    found
}

#[test]
fn a_daemon_opens_its_ports_and_then_changes_to_the_configured_user() {
    if !am_root() {
        return;
    }
    let world = world();
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = (600..1000).find(is_free).expect("a free privileged port");
    let config = format!(
        "[daemon]\nlisten = \"127.0.0.1:{port}\"\nuser = \"54321\"\ngroup = \"54322\"\n[[repository]]\nname = \"repo\"\n\
         root = \"src\"\nstore = \"store\"\n"
    );
    write(&world.path("mirror.toml"), config.as_bytes());
    let mut command = stillmirror(&["serve", "--config"]);
    command.arg(world.path("mirror.toml"));
    let server = Server::spawn(command);
    server.logged("serving a generation");
    let uid = "Uid: 54321 54321 54321 54321";
    assert_eq!(identities(server.pid()), ["Gid: 54322 54322 54322 54322", "Groups: 54322", uid]);
    let got = pull(&server.address, &["-r", "{M}/all", "{M}/own", "{M}/group", "{D}/"], &world.path("got"));
    assert_eq!(got.code, Some(23), "{}", got.errors);
    for name in ["own", "group"] {
        let wanted = format!("send_files failed to open \"/{name}\" (in repo): Permission denied (13)");
        assert!(got.errors.contains(&wanted), "{}", got.errors);
    }
    assert_eq!(got.tree.keys().map(PathBuf::as_path).collect::<Vec<_>>(), [Path::new(""), Path::new("all")]);
}

#[test]
fn an_unknown_user_or_group_is_a_configuration_error() {
    let world = World::with_tree();
    world.index();
    for (keys, wanted) in [
        ("user = \"no such user\"", "there is no user 'no such user'"),
        ("user = \"root\"\ngroup = \"no such group\"", "there is no group 'no such group'"),
        ("group = \"root\"", "daemon.group"),
    ] {
        let config = format!(
            "[daemon]\nlisten = \"127.0.0.1:0\"\n{keys}\n[[repository]]\nname = \"repo\"\nroot = \"src\"\nstore = \"store\"\n"
        );
        write(&world.path("mirror.toml"), config.as_bytes());
        let output = stillmirror(&["serve", "--config"]).arg(world.path("mirror.toml")).output().expect("serve runs");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && message.contains(wanted), "{message}");
    }
}
