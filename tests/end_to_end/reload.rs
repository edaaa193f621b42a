//! SIGHUP: the daemon reads its configuration again, and drops nobody.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::pull::signal;
use crate::support::*;

/// Writes a configuration with the repository `repo` and more lines for it, after those of `[daemon]`.
pub(crate) fn configure(world: &World, daemon: &str, repository: &str) {
    let (root, store) = (world.src().display().to_string(), world.path("store").display().to_string());
    let text = format!(
        "[daemon]\nserve_private = true\n{daemon}\n[[repository]]\nname = \"repo\"\nroot = \"{root}\"\nstore = \"{store}\"\n\
         {repository}\n"
    );
    std::fs::write(world.path("mirror.toml"), text).expect("a configuration");
}

/// Returns a command that serves this configuration on a free port.
pub(crate) fn serve(world: &World) -> Command {
    let mut command = stillmirror(&["serve", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(world.path("mirror.toml"));
    command
}

pub(crate) fn rsync(address: &str, path: &str, dest: Option<&Path>) -> Output {
    let mut command = Command::new("rsync");
    command.args(["-aH", "--timeout=60"]).arg(format!("rsync://{address}/{path}")).args(dest);
    command.output().expect("rsync is installed (tests/prepare)")
}

fn reload(server: &Server) -> String {
    signal("HUP", server.pid());
    server.logged("reloaded")
}

#[test]
fn stock_clients_pull_while_the_configuration_changes_again_and_again() {
    let world = World::with_tree();
    world.index();
    configure(&world, "", "");
    let server = Server::spawn(serve(&world));
    let is_over = AtomicBool::new(false);
    let pull = |number: usize| {
        let dest = world.path(&format!("dest-{number}"));
        let mut pulls = 0;
        while !is_over.load(Ordering::Relaxed) || pulls == 0 {
            assert_exit(&rsync(&server.address, "repo/", Some(&dest)), 0);
            std::fs::remove_dir_all(&dest).unwrap();
            pulls += 1;
        }
    };
    std::thread::scope(|threads| {
        (0..6).for_each(|number| drop(threads.spawn(move || pull(number))));
        for round in 0..20 {
            let daemon = format!("connections = {}\nmotd_file = \"motd\"", 1 + round % 5);
            let direct = ["auto", "always", "never"][round % 3];
            configure(&world, &daemon, &format!("comment = \"round {round}\"\ndirect = \"{direct}\""));
            std::fs::write(world.path("motd"), format!("welcome in round {round}\n")).unwrap();
            let logged = reload(&server);
            assert!(logged.contains("INFO"), "{logged}");
            let listed = rsync(&server.address, "", None);
            let listed = String::from_utf8_lossy(&listed.stdout);
            assert!(listed.contains(&format!("welcome in round {round}\n")), "{listed}");
            assert!(listed.contains(&format!("repo           \tround {round}\n")), "{listed}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_exit(&rsync(&server.address, "repo/", Some(&world.dest())), 0);
    assert_same_tree(&world.src(), &world.dest());
}

#[test]
fn a_file_with_a_mistake_leaves_the_old_configuration_in_force() {
    let world = World::with_tree();
    world.index();
    configure(&world, "", "comment = \"the old one\"");
    let server = Server::spawn(serve(&world));
    let file = world.path("mirror.toml").display().to_string();
    for (daemon, repository, words) in [
        ("conections = 5", "", &["line 3", "conections"][..]),
        ("bandwidth = 5", "", &["daemon.bandwidth", "the least is 1KiB"]),
        ("cache = \"five\"", "", &["line 3", "cache", "'five' does not begin with a number"]),
        ("", "root = \"/elsewhere\"", &["line 9", "root"]),
    ] {
        configure(&world, daemon, &format!("comment = \"a new one\"\n{repository}"));
        let logged = reload(&server);
        let logged = format!("{logged}\n{}", server.logged_so_far());
        for word in [&[file.as_str(), "the old one stays in force"], words].concat() {
            assert!(logged.contains(word), "'{word}' is not in {logged}");
        }
        let listed = rsync(&server.address, "", None);
        assert_eq!(String::from_utf8_lossy(&listed.stdout), "repo           \tthe old one\n");
    }
    // Mistakes that only show when the daemon takes the configuration up.
    for (repository, words) in [
        ("auth_users = \"anna\"\nsecrets_file = \"nothing\"", ["nothing", "No such file"]),
        ("exclude_from = \"nothing\"", ["nothing", "No such file"]),
    ] {
        configure(&world, "", &format!("comment = \"a new one\"\n{repository}"));
        let logged = reload(&server);
        assert!(words.iter().all(|word| logged.contains(word)), "{logged}");
        assert_exit(&rsync(&server.address, "repo/", Some(&world.dest())), 0);
    }
    std::fs::remove_file(world.path("mirror.toml")).unwrap();
    let logged = reload(&server);
    assert!(logged.contains(&file) && logged.contains("No such file"), "{logged}");
    configure(&world, "", "comment = \"a new one\"");
    reload(&server);
    let listed = rsync(&server.address, "", None);
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "repo           \ta new one\n");
}

#[test]
fn keys_that_only_a_start_takes_up_are_named_and_options_still_override() {
    let world = World::with_tree();
    world.index();
    configure(&world, "listen = \"127.0.0.1:1\"", "");
    let server = Server::spawn(serve(&world));
    // The option decides, so this changes nothing.
    configure(&world, "listen = \"127.0.0.1:2\"", "");
    let logged = reload(&server);
    assert!(logged.contains("INFO") && !logged.contains("restart"), "{logged}");
    configure(&world, "cache = \"1MiB\"\nlists = \"lists\"", "comment = \"a new one\"");
    signal("HUP", server.pid());
    let logged = server.logged("after a restart");
    assert!(logged.contains("keys=\"cache, lists\""), "{logged}");
    server.logged("reloaded");
    let listed = rsync(&server.address, "", None);
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "repo           \ta new one\n");
}

#[test]
fn a_single_tree_is_looked_at_again() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    let logged = reload(&server);
    assert!(logged.contains("INFO"), "{logged}");
    world.pull(&server);
}
