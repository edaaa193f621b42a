//! The daemon as a service: what it tells the service manager, and sockets that the service manager opened.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};

use crate::pull::signal;
use crate::reload::{configure, rsync, serve};
use crate::support::*;

/// A service manager, as far as services can see it.
pub(crate) struct Manager(UnixDatagram);

impl Manager {
    /// Creates one that `command` notifies.
    pub(crate) fn of(world: &World, command: &mut Command) -> Self {
        let path = world.path("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        command.env("NOTIFY_SOCKET", path).env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
        Self(socket)
    }

    /// Returns the next message, or `None` if none comes in time.
    fn next(&self, within: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(within)).unwrap();
        let mut message = [0; 4096];
        let len = self.0.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..len]).into_owned())
    }

    /// Waits for the next message that contains `word`, and returns it.
    #[track_caller]
    pub(crate) fn hears(&self, word: &str) -> String {
        loop {
            let message = self.next(Duration::from_secs(20));
            let message = message.unwrap_or_else(|| panic!("it should hear '{word}' by now"));
            if message.contains(word) {
                return message;
            }
        }
    }
}

#[test]
fn the_service_manager_hears_of_the_start_reloads_and_the_end() {
    let world = World::with_tree();
    world.index();
    configure(&world, "drain = \"90s\"", "");
    let mut command = serve(&world);
    let manager = Manager::of(&world, &mut command);
    let mut server = Server::spawn(command);
    assert_eq!(manager.hears("READY=1"), "READY=1\nSTATUS=serving 1 repository\n");
    assert_exit(&rsync(&server.address, "repo/", Some(&world.dest())), 0);

    signal("HUP", server.pid());
    let message = manager.hears("RELOADING=1");
    let at = message.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("a time");
    assert!(at.parse::<u64>().unwrap() > 0);
    assert_eq!(manager.hears("READY=1"), "READY=1\nSTATUS=serving 1 repository\n");

    configure(&world, "cache = \"five\"", "");
    signal("HUP", server.pid());
    manager.hears("RELOADING=1");
    let message = manager.hears("READY=1");
    let status = message.lines().find_map(|line| line.strip_prefix("STATUS=")).expect("a status");
    assert!(status.contains("not reloaded") && status.contains("mirror.toml"), "{status}");

    signal("TERM", server.pid());
    let message = manager.hears("STOPPING=1");
    assert!(
        message.contains("STATUS=ending: clients may finish for 90 s\nEXTEND_TIMEOUT_USEC=100000000\n"),
        "{message}"
    );
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn the_watchdog_is_fed_for_as_long_as_the_daemon_runs() {
    let world = World::with_tree();
    world.index();
    configure(&world, "", "");
    let mut command = serve(&world);
    let manager = Manager::of(&world, &mut command);
    command.env("WATCHDOG_USEC", "200000");
    let server = Server::spawn(command);
    for _ in 0..5 {
        assert_eq!(manager.hears("WATCHDOG"), "WATCHDOG=1\n");
    }
    signal("STOP", server.pid());
    // A signal takes a moment to arrive.
    while manager.next(Duration::from_millis(500)).is_some() {}
    assert_eq!(manager.next(Duration::from_secs(1)), None, "it is stopped");
    signal("CONT", server.pid());
    manager.hears("WATCHDOG=1");

    // A client that takes nothing holds up the end, and the watchdog is still fed.
    let mut held = std::net::TcpStream::connect(&server.address).unwrap();
    std::io::Write::write_all(&mut held, b"@RSYNCD: 31.0\nrepo\n").unwrap();
    std::io::Read::read_exact(&mut held, &mut [0; 8]).unwrap();
    signal("TERM", server.pid());
    manager.hears("STOPPING=1");
    manager.hears("WATCHDOG=1");
}

#[test]
fn the_watchdog_of_another_process_is_not_fed() {
    let world = World::with_tree();
    world.index();
    configure(&world, "", "");
    let mut command = serve(&world);
    let manager = Manager::of(&world, &mut command);
    command.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    let _server = Server::spawn(command);
    manager.hears("READY=1");
    assert_eq!(manager.next(Duration::from_millis(300)), None);
}

/// Returns a command that runs `command` with these descriptors and names, as systemd would.
fn activate(command: &Command, descriptors: Vec<(&str, OwnedFd)>) -> Command {
    // The number of the process is known only there.
    let mut shell = Command::new("sh");
    shell.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    let names: Vec<_> = descriptors.iter().map(|(name, _)| *name).collect();
    shell.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    let mappings = descriptors.into_iter().enumerate();
    let mappings = mappings.map(|(at, (_, parent_fd))| FdMapping { parent_fd, child_fd: 3 + at as i32 });
    shell.fd_mappings(mappings.collect()).unwrap();
    shell
}

fn listening() -> (String, OwnedFd) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    (socket.local_addr().unwrap().to_string(), socket.into())
}

/// Returns a command that serves the configuration on the addresses in it.
fn serve_as_configured(world: &World) -> Command {
    let mut command = stillmirror(&["serve", "--config"]);
    command.arg(world.path("mirror.toml"));
    command
}

#[test]
fn sockets_are_taken_by_name_or_address_and_clients_may_come_first() {
    let world = World::with_tree();
    world.index();
    let ((by_name, rsync_socket), (by_address, socket)) = (listening(), listening());
    configure(&world, &format!("listen = \"{by_address}\""), "");
    // A client that has to wait for the service to start.
    let early = std::thread::spawn({
        let (address, dest) = (by_name.clone(), world.path("early"));
        move || rsync(&address, "repo/", Some(&dest))
    });
    let sockets = vec![("rsync", rsync_socket), ("stillmirror.socket", socket)];
    let server = Server::spawn(activate(&serve_as_configured(&world), sockets));
    assert_exit(&early.join().unwrap(), 0);
    assert_exit(&rsync(&by_address, "repo/", Some(&world.dest())), 0);
    assert_exit(&stillmirror(&["list", &format!("stillmirror://{by_address}/")]).output().unwrap(), 0);
    drop(server);
}

#[test]
fn what_is_passed_must_listen_and_have_a_place() {
    let world = World::with_tree();
    world.index();
    configure(&world, "listen = \"127.0.0.1:0\"", "");
    let ((address, socket), (other_address, other)) = (listening(), listening());
    let connected = std::net::TcpStream::connect(&address).unwrap();
    let cases: [(&str, OwnedFd, &[&str]); 5] = [
        ("a.socket", other, &[&other_address, "'a.socket'", "FileDescriptorName="]),
        ("listen", UdpSocket::bind("127.0.0.1:0").unwrap().into(), &["descriptor 3", "'listen'"]),
        ("listen", std::fs::File::open("/dev/null").unwrap().into(), &["descriptor 3", "'listen'"]),
        ("rsync", connected.into(), &["descriptor 3", "'rsync'", "does not listen"]),
        ("", socket, &[&address, "'unknown'"]),
    ];
    for (name, descriptor, words) in cases {
        let output = activate(&serve_as_configured(&world), vec![(name, descriptor)]).output().unwrap();
        assert_fails(&output, 1, words);
    }
}

#[test]
fn sockets_for_another_process_are_left_alone() {
    let world = World::with_tree();
    world.index();
    configure(&world, "", "");
    let mut command = serve(&world);
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1").env("LISTEN_FDNAMES", "listen");
    let server = Server::spawn(command);
    assert_exit(&rsync(&server.address, "repo/", Some(&world.dest())), 0);
}
