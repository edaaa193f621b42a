//! What commands give up before they handle bytes of strangers.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::pull::signal;
use crate::reload::{configure, rsync, serve};
use crate::support::*;

/// Returns how many seccomp filters a process has. This test may have some itself, which its children inherit.
fn filters(pid: u32) -> u32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let count = text.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
    count.and_then(|count| count.trim().parse().ok()).expect("the kernel counts them")
}

/// Begins a pull that follows, waits until it has pulled, and returns whether it is in the sandbox.
fn is_confined(world: &World, server: &Server, more: &[&str]) -> bool {
    let dest = world.path(&format!("dest{}", more.len()));
    let mut command = stillmirror(&["pull", "--json", "--follow", &server.url("repo")]);
    command.arg(&dest).arg("--store").arg(world.path(&format!("store{}", more.len()))).args(more).stdout(Stdio::null());
    let mut child = command.spawn().expect("pull starts");
    let began = Instant::now();
    while !dest.join("README").exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "the pull takes too long");
        std::thread::sleep(Duration::from_millis(10));
    }
    let own = filters(child.id()) - filters(std::process::id());
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    own == 1
}

#[test]
fn a_pull_gives_up_what_it_does_not_need_unless_its_commands_may_need_it() {
    let world = World::with_tree();
    world.index();
    let server = world.serve();
    assert!(is_confined(&world, &server, &[]));
    assert!(is_confined(&world, &server, &["--switch"]));
    assert!(!is_confined(&world, &server, &["--before", "true"]));
    assert!(!is_confined(&world, &server, &["--delete", "--delete-grace=1h", "--no-sandbox"]));
}

#[test]
fn the_daemon_gives_up_what_it_does_not_need_unless_it_is_told_not_to() {
    let world = World::with_tree();
    world.index();
    for (daemon, expected) in [("", 1), ("sandbox = false", 0)] {
        configure(&world, daemon, "");
        let server = Server::spawn(serve(&world));
        assert_eq!(filters(server.pid()) - filters(std::process::id()), expected, "{daemon}");
        assert_exit(&rsync(&server.address, "repo/", Some(&world.path(&format!("dest-{expected}")))), 0);
    }
}

#[test]
fn a_reload_that_names_a_tree_outside_the_sandbox_says_what_to_do() {
    let (world, other) = (World::with_tree(), World::with_tree());
    world.index();
    configure(&world, "", "");
    let server = Server::spawn(serve(&world));
    let store = other.path("store").display().to_string();
    let more = format!("[[repository]]\nname = \"other\"\nroot = \"{}\"\nstore = \"{store}\"", other.src().display());
    configure(&world, "", &more);
    signal("HUP", server.pid());
    let line = server.logged("the sandbox does not allow this path: it needs a restart");
    assert!(line.contains(&other.src().parent().expect("a parent").display().to_string()), "{line}");
    server.logged("the configuration was reloaded");
    assert_exit(&rsync(&server.address, "repo/", Some(&world.dest())), 0);
}
