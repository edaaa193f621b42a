//! SIGUSR2: another process takes over, and no client notices.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::follow::Follower;
use crate::pull::signal;
use crate::reload::{configure, rsync, serve};
use crate::service_manager::Manager;
use crate::support::*;

/// The process that has taken over. Dropping it ends it.
struct Successor(u32);

impl Drop for Successor {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.0 as i32) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Upgrades the process, and returns the one that takes over.
fn upgrade(manager: &Manager, process: u32) -> Successor {
    signal("USR2", process);
    let message = manager.hears("MAINPID=");
    let successor = message.lines().find_map(|line| line.strip_prefix("MAINPID=")).expect("a process");
    Successor(successor.parse().expect("a number"))
}

/// Waits until the counter has grown by `more`.
fn wait_for_more(counter: &AtomicUsize, more: usize) {
    let wanted = counter.load(Ordering::Relaxed) + more;
    while counter.load(Ordering::Relaxed) < wanted {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn fifty_clients_pull_while_the_daemon_is_upgraded_twice_and_none_fails() {
    let world = World::with_tree();
    world.index();
    configure(&world, "connections_per_address = 0", "");
    let mut command = serve(&world);
    let manager = Manager::of(&world, &mut command);
    let mut server = Server::spawn(command);
    manager.hears("READY=1");
    let (address, url) = (server.address.clone(), server.url("repo"));
    let (is_over, pulls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let client = |number: usize| {
        let (dest, store) = (world.path(&format!("dest-{number}")), world.path(&format!("store-{number}")));
        while !is_over.load(Ordering::Relaxed) {
            if number.is_multiple_of(2) {
                assert_exit(&rsync(&address, "repo/", Some(&dest)), 0);
            } else {
                let mut pull = stillmirror(&["pull", &url]);
                assert_exit(&pull.arg(&dest).arg("--store").arg(&store).output().expect("pull runs"), 0);
                std::fs::remove_dir_all(&store).expect("a store");
            }
            std::fs::remove_dir_all(&dest).expect("a tree");
            pulls.fetch_add(1, Ordering::Relaxed);
        }
    };
    let (client, is_over, pulls) = (&client, &is_over, &pulls);
    let (first, second) = std::thread::scope(|threads| {
        // Clients that fail end the test, too.
        let clients: Vec<_> = (0..50).map(|number| threads.spawn(move || client(number))).collect();
        wait_for_more(pulls, 20);
        let first = upgrade(&manager, server.pid());
        wait_for_more(pulls, 20);
        let second = upgrade(&manager, first.0);
        wait_for_more(pulls, 60);
        is_over.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().expect("no client fails"));
        (first, second)
    });
    assert_eq!(server.wait(), Some(0), "the old process ends when its clients have finished");
    assert_exit(&rsync(&server.address, "repo/", Some(&world.dest())), 0);
    assert_same_tree(&world.src(), &world.dest());
    drop((first, second));
}

#[test]
fn an_upgrade_that_cannot_be_leaves_the_old_process_at_work() {
    let world = World::with_tree();
    world.index();
    configure(&world, "", "");
    let server = Server::spawn(serve(&world));
    configure(&world, "conections = 5", "");
    signal("USR2", server.pid());
    let logged = server.logged("upgrade failed");
    assert!(logged.contains("exit status: 1"), "{logged}");
    assert_exit(&rsync(&server.address, "repo/", Some(&world.dest())), 0);
    // It can still be reloaded, and upgraded later.
    configure(&world, "", "comment = \"a new one\"");
    signal("HUP", server.pid());
    server.logged("reloaded");
    let listed = rsync(&server.address, "", None);
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "repo           \ta new one\n");
}

#[test]
fn followers_come_back_to_the_new_process() {
    let world = World::with_tree();
    world.index();
    configure(&world, "", "");
    let mut command = serve(&world);
    let manager = Manager::of(&world, &mut command);
    let mut server = Server::spawn(command);
    manager.hears("READY=1");
    let mut follower = Follower::begin(&world, "mirror", &server, &[]);
    follower.reaches(1);
    let _successor = upgrade(&manager, server.pid());
    assert_eq!(server.wait(), Some(0), "a follower does not keep it");
    write(&world.src().join("new"), b"content");
    world.index();
    follower.reaches(2);
    assert_eq!(follower.end(), Some(0));
}

#[test]
fn the_new_process_needs_no_root() {
    if !geteuid().is_root() {
        return;
    }
    let world = World::with_tree();
    std::fs::set_permissions(world.path("."), std::fs::Permissions::from_mode(0o755)).unwrap();
    world.index();
    configure(&world, "user = \"65534\"\ngroup = \"65534\"", "");
    let mut command = serve(&world);
    let manager = Manager::of(&world, &mut command);
    std::fs::set_permissions(world.path("notify"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut server = Server::spawn(command);
    manager.hears("READY=1");
    let successor = upgrade(&manager, server.pid());
    assert_eq!(server.wait(), Some(0));
    let status = std::fs::read_to_string(format!("/proc/{}/status", successor.0)).unwrap();
    assert!(status.lines().any(|line| line.starts_with("Uid:\t65534\t65534\t65534")), "{status}");
    assert_exit(&rsync(&server.address, "repo/", Some(&world.dest())), 0);
}

#[test]
fn metrics_come_from_the_new_process_at_the_same_address() {
    let world = World::with_tree();
    world.index();
    configure(&world, "metrics_listen = \"127.0.0.1:0\"", "");
    let mut command = serve(&world);
    let manager = Manager::of(&world, &mut command);
    let mut server = Server::spawn(command);
    let logged = server.logged("metrics and status at");
    let address = logged.split_once("http://").expect("an address").1.trim_end_matches('/');
    let is_ready = || {
        let mut socket = std::net::TcpStream::connect(address).expect("a connection");
        socket.write_all(b"GET /ready HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer.contains(" 200 ") && answer.contains("\"draining\":false")
    };
    manager.hears("READY=1");
    assert!(is_ready());
    let _successor = upgrade(&manager, server.pid());
    assert_eq!(server.wait(), Some(0));
    assert!(is_ready());
}
