//! A daemon with few file descriptors serves all clients, even if not all at once.

use std::process::{Command, Stdio};

use crate::support::*;

/// Fewer than a batch of small files needs.
const OPEN_FILES: usize = 48;

#[test]
fn native_and_rsync_clients_get_every_file_from_a_daemon_with_few_descriptors() {
    let world = World::new();
    for number in 0..300 {
        write(&world.src().join(format!("d{}/{number}", number % 7)), &noise(number * 31, 1));
    }
    for number in 0..2 {
        write(&world.src().join(format!("large/{number}")), &noise(3 << 20, 2));
    }
    world.index();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {OPEN_FILES}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_stillmirror")]);
    command.args(["serve", "--listen", "127.0.0.1:0", "--name", "repo", "--root"]).arg(world.src());
    let server = Server::spawn({
        command.arg("--store").arg(world.path("store"));
        command
    });
    let pulled: Vec<_> = (0..16)
        .map(|number| {
            let dest = world.path(&format!("dest-{number}"));
            let mut client = if number % 2 == 0 {
                let mut client = Command::new("rsync");
                client.arg("-a").arg(format!("rsync://{}/repo/", server.address));
                client
            } else {
                stillmirror(&["pull", &server.url("repo")])
            };
            client.arg(&dest);
            if number % 2 == 1 {
                client.arg("--store").arg(world.path(&format!("dest-store-{number}")));
            }
            (client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the client runs"), dest)
        })
        .collect();
    for (mut client, dest) in pulled {
        assert_eq!(client.wait().expect("it ends").code(), Some(0), "{}", dest.display());
        assert_same_tree(&world.src(), &dest);
    }
}
