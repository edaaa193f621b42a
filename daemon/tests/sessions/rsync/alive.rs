//! Clients that are in the midst of something when something else happens.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{assert_same, begin_29, dest, index_aged, rsync};
use crate::support::{Fixture, Server, noise, soon};

/// An empty frame.
const SIGN_OF_LIFE: [u8; 4] = [0, 0, 0, 7];

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write("big", &noise(24 << 20));
    fixture.write("small", b"x");
    index_aged(&fixture);
    fixture
}

/// A daemon that takes seconds for the big file.
async fn serve(fixture: &Fixture, drain: Duration) -> Server {
    let config = fixture.config(|config| {
        config.limits.drain = drain;
        config.limits.bandwidth_per_connection = 8 << 20;
    });
    Server::start(config).await
}

/// Waits until a client receives the big file.
async fn is_under_way(dest: &Path) {
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
async fn a_client_finishes_with_the_generation_that_it_began_with_and_the_next_one_gets_the_new_one() {
    let fixture = fixture();
    let server = serve(&fixture, Duration::from_secs(30)).await;
    let dest = dest(&fixture);
    let publish = async {
        is_under_way(&dest).await;
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
async fn a_transfer_that_runs_is_finished_before_the_shutdown() {
    let fixture = fixture();
    let mut server = serve(&fixture, Duration::from_secs(30)).await;
    let dest = dest(&fixture);
    let addr = server.addr;
    let stop = async {
        is_under_way(&dest).await;
        server.stop();
    };
    let (pulled, ()) = tokio::join!(pull(addr, &["-aH"], &dest), stop);
    assert_eq!(pulled.0, Some(0), "{}", pulled.1);
    assert_same(&fixture.root(), &dest);
    assert!(soon(server.running).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_client_that_is_not_through_in_time_is_told_so() {
    let fixture = fixture();
    for (protocol, code) in [("--protocol=32", 20), ("--protocol=29", 12)] {
        let mut server = serve(&fixture, Duration::from_millis(100)).await;
        let dest = fixture.dir.path().join(protocol);
        let (addr, options) = (server.addr, ["-a", protocol]);
        let stop = async {
            is_under_way(&dest).await;
            server.stop();
        };
        let ((exit, said), ()) = tokio::join!(pull(addr, &options, &dest), stop);
        assert_eq!(exit, Some(code), "{said}");
        assert!(said.contains("the daemon is going down"), "{said}");
        assert!(!dest.join("big").exists());
    }
}

/// Runs a client of a daemon that changes meanwhile: its exit code, and what it says.
async fn pull(addr: std::net::SocketAddr, options: &[&str], dest: &Path) -> (Option<i32>, String) {
    let mut command = std::process::Command::new("rsync");
    command.args(options).arg(format!("rsync://{addr}/repo/")).arg(dest);
    let output = soon(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_client_with_a_short_timeout_has_the_patience_to_wait_for_its_turn() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let config = fixture.config(|config| {
        config.repositories[0].module.max_connections = 1;
        config.limits.handshake = Duration::from_secs(7);
    });
    let server = Server::start(config).await;
    // Has the only place, and never says what it wants.
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
async fn a_client_with_a_timeout_is_sent_signs_of_life_whatever_it_is_at() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let begun = begin_29("-r\n--timeout=1");
    // In the midst of its rules; and with the list, of which it wants nothing yet.
    for said in [&begun[..begun.len() - 4], &begun] {
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        socket.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(&[SIGN_OF_LIFE; 3].concat()) {
            assert!(soon(socket.read_buf(&mut answer)).await.unwrap() > 0, "closed");
        }
    }
}
