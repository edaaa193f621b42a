//! Events in the middle of a session: new generations, shutdowns, waits, and keep-alives.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{assert_same, begin_29, dest, index_aged, rsync};
use crate::support::{Fixture, Server, noise, soon};

/// A keep-alive: an empty frame.
const KEEP_ALIVE: [u8; 4] = [0, 0, 0, 7];

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write("big", &noise(24 << 20));
    fixture.write("small", b"x");
    index_aged(&fixture);
    fixture
}

/// Starts a daemon that takes seconds to send the big file.
async fn serve(fixture: &Fixture, drain: Duration) -> Server {
    let config = fixture.config(|config| {
        config.limits.drain = drain;
        config.limits.bandwidth_per_connection = 8 << 20;
    });
    Server::start(config).await
}

/// Waits until a client has begun to receive the big file.
async fn transfer_begun(dest: &Path) {
    let has_begun = || {
        let names = std::fs::read_dir(dest).into_iter().flatten().flatten();
        names.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".big."))
    };
    soon(async {
        while !has_begun() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_running_client_keeps_its_generation_and_the_next_one_gets_the_new_one() {
    let fixture = fixture();
    let server = serve(&fixture, Duration::from_secs(30)).await;
    let dest = dest(&fixture);
    let publish = async {
        transfer_begun(&dest).await;
        fixture.write("new", b"y");
        index_aged(&fixture);
        server.reload.reload();
    };
    let (pulled, ()) = tokio::join!(rsync(&server, &["-aH"], "repo/", Some(&dest)), publish);
    pulled.exits(0);
    assert!(dest.join("big").exists() && !dest.join("new").exists());
    soon(async {
        while !dest.join("new").exists() {
            rsync(&server, &["-aH"], "repo/", Some(&dest)).await.exits(0);
        }
    })
    .await;
    assert_same(&fixture.root(), &dest);
}

#[tokio::test]
async fn a_running_transfer_is_finished_before_the_shutdown() {
    let fixture = fixture();
    let mut server = serve(&fixture, Duration::from_secs(30)).await;
    let dest = dest(&fixture);
    let addr = server.addr;
    let stop = async {
        transfer_begun(&dest).await;
        server.stop();
    };
    let (pulled, ()) = tokio::join!(pull(addr, &["-aH"], &dest), stop);
    assert_eq!(pulled.0, Some(0), "{}", pulled.1);
    assert_same(&fixture.root(), &dest);
    assert!(soon(server.running).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_client_that_does_not_finish_before_the_shutdown_is_told() {
    let fixture = fixture();
    for (protocol, code) in [("--protocol=32", 20), ("--protocol=29", 12)] {
        let mut server = serve(&fixture, Duration::from_millis(100)).await;
        let dest = fixture.dir.path().join(protocol);
        let (addr, options) = (server.addr, ["-a", protocol]);
        let stop = async {
            transfer_begun(&dest).await;
            server.stop();
        };
        let ((exit, errors), ()) = tokio::join!(pull(addr, &options, &dest), stop);
        assert_eq!(exit, Some(code), "{errors}");
        assert!(errors.contains("the daemon is going down"), "{errors}");
        assert!(!dest.join("big").exists());
    }
}

/// Runs `rsync` against an address, so that the test can change the server meanwhile. Returns the exit code and the
/// standard error.
async fn pull(addr: std::net::SocketAddr, options: &[&str], dest: &Path) -> (Option<i32>, String) {
    let mut command = std::process::Command::new("rsync");
    command.args(options).arg(format!("rsync://{addr}/repo/")).arg(dest);
    let output = soon(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_client_with_a_short_timeout_does_not_time_out_in_the_queue() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let config = fixture.config(|config| {
        config.repositories[0].module.max_connections = 1;
        config.limits.handshake = Duration::from_secs(7);
    });
    let server = Server::start(config).await;
    // This client has the only slot, and never sends its arguments.
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    silent.write_all(b"@RSYNCD: 31.0 md5\nrepo\n").await.unwrap();
    let mut lines = String::new();
    while !lines.ends_with("@RSYNCD: OK\n") {
        lines.push(char::from(soon(silent.read_u8()).await.unwrap()));
    }
    let dest = dest(&fixture);
    rsync(&server, &["-a", "--timeout=3"], "repo/", Some(&dest))
        .await
        .exits(0)
        .says("0 others are waiting ahead of you");
    assert!(dest.join("a").exists());
}

#[tokio::test]
async fn a_client_with_a_timeout_is_sent_keep_alives_at_every_stage() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let begun = begin_29("-r\n--timeout=1");
    // Before the end of its rules, and after the list, while it requests nothing.
    for sent in [&begun[..begun.len() - 4], &begun] {
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        socket.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(&[KEEP_ALIVE; 3].concat()) {
            assert!(soon(socket.read_buf(&mut answer)).await.unwrap() > 0, "closed");
        }
    }
}
