//! Lists that are made for single clients, and the memory that they share.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{holds, rsync_with};
use crate::crowded::connect;
use crate::support::{Fixture, Server, soon};

/// The number of files in the tree.
const FILES: usize = 100;
/// How often a client asks for the whole tree. The rows of all its entries take 160 KiB.
const TIMES: usize = 400;

fn fixture() -> Fixture {
    let files: Vec<String> = (0..FILES).map(|at| format!("file{at:03}")).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|name| (&**name, &b""[..])).collect();
    Fixture::with(&files)
}

async fn server(fixture: &Fixture, bytes: u64) -> Server {
    Server::start(fixture.config(|config| config.memory.lists = bytes)).await
}

/// Returns a client's half of protocol 29 that asks for everything many times.
fn client_half() -> Vec<u8> {
    client_half_with("-r")
}

fn client_half_with(options: &str) -> Vec<u8> {
    let text = format!("@RSYNCD: 29\nrepo\n--server\n--sender\n{options}\n.\n{}\n", "repo/\n".repeat(TIMES));
    [text.as_bytes(), &[0; 4]].concat()
}

/// Returns everything that the daemon sends to a client that leaves after the list.
async fn output(server: &Server, from: u8) -> Vec<u8> {
    let mut socket = connect(server, from).await;
    socket.write_all(&client_half()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut output = Vec::new();
    let _ = soon(socket.read_to_end(&mut output)).await;
    output
}

/// Connects a client that reads this many bytes, and stays connected.
async fn staying(server: &Server, from: u8, bytes: usize) -> TcpStream {
    let mut socket = connect(server, from).await;
    socket.write_all(&client_half()).await.unwrap();
    soon(socket.read_exact(&mut vec![0; bytes])).await.unwrap();
    socket
}

#[tokio::test]
async fn a_list_beyond_the_memory_of_one_client_is_refused_with_a_message() {
    let fixture = fixture();
    let server = server(&fixture, 128 << 10).await;
    let told = output(&server, 1).await;
    assert!(holds(&told, "no memory left for lists of single clients"));
    // A real client prints the message, and short lists are still served.
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
    // Half of the memory for each of two networks. Each half has room for one such list.
    let server = server(&fixture, 512 << 10).await;
    let whole = output(&server, 1).await.len();
    // The first session has given its memory back; otherwise this would wait.
    assert_eq!(output(&server, 1).await.len(), whole);
    let held = [staying(&server, 1, whole).await, staying(&server, 2, whole).await];
    let mut waiting = connect(&server, 3).await;
    waiting.write_all(&client_half()).await.unwrap();
    let mut list = vec![0; whole];
    {
        let mut read = std::pin::pin!(waiting.read_exact(&mut list));
        let early = tokio::time::timeout(Duration::from_millis(300), &mut read).await;
        assert!(early.is_err(), "the memory of two lists is taken");
        drop(held);
        soon(read).await.unwrap();
    }
    assert!(!holds(&list, "no memory left"));
}

#[tokio::test]
async fn a_client_with_a_timeout_that_waits_for_memory_is_sent_keep_alives() {
    let fixture = fixture();
    let server = server(&fixture, 512 << 10).await;
    let whole = output(&server, 1).await.len();
    let _held = [staying(&server, 1, whole).await, staying(&server, 2, whole).await];
    let mut waiting = connect(&server, 3).await;
    waiting.write_all(&client_half_with("-r\n--timeout=1")).await.unwrap();
    let mut received = Vec::new();
    // A keep-alive is an empty frame.
    while !received.ends_with(&[[0, 0, 0, 7]; 3].concat()) {
        assert!(soon(waiting.read_buf(&mut received)).await.unwrap() > 0, "closed");
    }
    assert!(received.len() < whole);
}
