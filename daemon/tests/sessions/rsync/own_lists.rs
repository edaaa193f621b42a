//! Lists of single clients, and what all of them take together.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{holds, rsync_with};
use crate::crowded::connect;
use crate::support::{Fixture, Server, soon};

/// Files of the tree, and how often the client asks for all of it: rows for so many entries take 160 KiB.
const FILES: usize = 100;
const TIMES: usize = 400;

fn fixture() -> Fixture {
    let files: Vec<String> = (0..FILES).map(|at| format!("file{at:03}")).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|name| (&**name, &b""[..])).collect();
    Fixture::with(&files)
}

async fn server(fixture: &Fixture, bytes: u64) -> Server {
    Server::start(fixture.config(|config| config.memory.lists = bytes)).await
}

/// A client's half of protocol 29 that asks for everything many times over.
fn words() -> Vec<u8> {
    words_with("-r")
}

fn words_with(options: &str) -> Vec<u8> {
    let text = format!("@RSYNCD: 29\nrepo\n--server\n--sender\n{options}\n.\n{}\n", "repo/\n".repeat(TIMES));
    [text.as_bytes(), &[0; 4]].concat()
}

/// All that the daemon says to a client that leaves after the list.
async fn heard(server: &Server, from: u8) -> Vec<u8> {
    let mut socket = connect(server, from).await;
    socket.write_all(&words()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut heard = Vec::new();
    let _ = soon(socket.read_to_end(&mut heard)).await;
    heard
}

/// A client that has read that much, and stays.
async fn staying(server: &Server, from: u8, bytes: usize) -> TcpStream {
    let mut socket = connect(server, from).await;
    socket.write_all(&words()).await.unwrap();
    soon(socket.read_exact(&mut vec![0; bytes])).await.unwrap();
    socket
}

#[tokio::test]
async fn a_list_that_takes_more_than_one_client_may_have_is_refused_with_a_message() {
    let fixture = fixture();
    let server = server(&fixture, 128 << 10).await;
    let told = heard(&server, 1).await;
    assert!(holds(&told, "no memory left for lists of single clients"));
    // A real client says so, and short lists are served as before.
    let many = |command: &mut std::process::Command| {
        command.args(vec!["::repo/"; TIMES]).args(["--port", &server.addr.port().to_string()]);
    };
    let ran = rsync_with(&server, &["-r", "--list-only"], "repo/", None, many).await;
    ran.exits(22).says("no memory left for lists of single clients");
    rsync_with(&server, &["-r", "--list-only", "--exclude=nothing"], "repo/", None, |_| {}).await.exits(0);
}

#[tokio::test]
async fn a_session_waits_until_others_give_their_memory_back() {
    let fixture = fixture();
    // One half for each of two networks, of which each has room for one such list.
    let server = server(&fixture, 512 << 10).await;
    let whole = heard(&server, 1).await.len();
    // The daemon has it all back: else this would wait.
    assert_eq!(heard(&server, 1).await.len(), whole);
    let held = [staying(&server, 1, whole).await, staying(&server, 2, whole).await];
    let mut waits = connect(&server, 3).await;
    waits.write_all(&words()).await.unwrap();
    let mut list = vec![0; whole];
    {
        let mut read = std::pin::pin!(waits.read_exact(&mut list));
        let early = tokio::time::timeout(Duration::from_millis(300), &mut read).await;
        assert!(early.is_err(), "the memory of two lists is taken");
        drop(held);
        soon(read).await.unwrap();
    }
    assert!(!holds(&list, "no memory left"));
}

#[tokio::test]
async fn a_client_with_a_timeout_that_waits_for_memory_is_sent_signs_of_life() {
    let fixture = fixture();
    let server = server(&fixture, 512 << 10).await;
    let whole = heard(&server, 1).await.len();
    let _held = [staying(&server, 1, whole).await, staying(&server, 2, whole).await];
    let mut waits = connect(&server, 3).await;
    waits.write_all(&words_with("-r\n--timeout=1")).await.unwrap();
    let mut heard = Vec::new();
    // An empty frame each.
    while !heard.ends_with(&[[0, 0, 0, 7]; 3].concat()) {
        assert!(soon(waits.read_buf(&mut heard)).await.unwrap() > 0, "closed");
    }
    assert!(heard.len() < whole);
}
