//! Connections of proxies, which begin with a header that names the client.

use std::net::IpAddr;
use std::time::Duration;

use stillmirror_daemon::{Config, Hosts, Port};
use stillmirror_protocol::wire::{ClientHello, ErrorCode, HELLO_BYTES, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

/// The client that may use the repository.
const FRIEND: &str = "192.0.2.7";
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Serves a repository that only [`FRIEND`] may use, behind proxies on this host.
async fn serve(fixture: &Fixture, change: impl FnOnce(&mut Config)) -> Server {
    let config = fixture.config(|config| {
        config.proxies = vec!["127.0.0.0/8".parse().unwrap()];
        let allow = vec![FRIEND.parse().unwrap(), "2001:db8::7".parse().unwrap()];
        config.repositories[0].hosts = Hosts { allow, deny: vec!["*".parse().unwrap()] };
        change(config);
    });
    Server::start_on(config, &[Port::All, Port::Rsync]).await
}

/// Returns a header of version 1.
fn text(source: &str) -> Vec<u8> {
    let source: IpAddr = source.parse().unwrap();
    let (family, dest) = if source.is_ipv4() { ("TCP4", "198.51.100.1") } else { ("TCP6", "2001:db8::1") };
    format!("PROXY {family} {source} {dest} 40000 873\r\n").into_bytes()
}

/// Returns a header of version 2 with extensions of `more` bytes.
fn binary(source: &str, more: usize) -> Vec<u8> {
    let (family, addresses) = match source.parse().unwrap() {
        IpAddr::V4(source) => (0x11, [source.octets(), [198, 51, 100, 1]].concat()),
        IpAddr::V6(source) => (0x21, [source.octets(), [1; 16]].concat()),
    };
    let extension = [&[0xea][..], &(more.saturating_sub(3) as u16).to_be_bytes(), &vec![7; more.saturating_sub(3)]];
    let extensions = if more == 0 { Vec::new() } else { extension.concat() };
    let len = (addresses.len() + 4 + extensions.len()) as u16;
    let fixed = [&SIGNATURE[..], &[0x21, family], &len.to_be_bytes()].concat();
    [fixed, addresses, 40_000u16.to_be_bytes().to_vec(), 873u16.to_be_bytes().to_vec(), extensions].concat()
}

/// The header of a health check: version 2, `LOCAL`.
fn local() -> Vec<u8> {
    [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat()
}

async fn connect(server: &Server, header: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    socket.write_all(header).await.unwrap();
    socket
}

/// Asks for the repository through a proxy. Returns the error code if it is refused.
async fn ask(server: &Server, header: &[u8]) -> Option<ErrorCode> {
    let mut client = soon(Client::begin(connect(server, header).await, ClientHello::OURS)).await;
    let answer = soon(client.ask(&Request::Head { repository: "repo".to_owned() })).await;
    answer.error.map(|(code, _)| code)
}

/// Returns everything that the daemon says, until it closes the connection.
async fn said(mut socket: TcpStream) -> String {
    let mut said = Vec::new();
    let _ = soon(socket.read_to_end(&mut said)).await;
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn the_client_in_the_header_counts_for_access() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = serve(&fixture, |_| {}).await;
    for friend in [FRIEND, "2001:db8::7"] {
        for header in [text(friend), binary(friend, 0), binary(friend, 500)] {
            assert_eq!(ask(&server, &header).await, None, "{}", header.escape_ascii());
        }
    }
    for stranger in ["192.0.2.8", "2001:db8::8", "127.0.0.1"] {
        for header in [text(stranger), binary(stranger, 0)] {
            assert!(ask(&server, &header).await.is_some(), "{}", header.escape_ascii());
        }
    }
    // What the proxy says about itself.
    for header in [local(), b"PROXY UNKNOWN\r\n".to_vec(), b"PROXY UNKNOWN ffff:f::1 ffff:f::2 1 2\r\n".to_vec()] {
        assert!(ask(&server, &header).await.is_some(), "{}", header.escape_ascii());
    }
}

#[tokio::test]
async fn stock_clients_are_told_their_own_address() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = serve(&fixture, |_| {}).await;
    for addr in &server.addrs {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        let begin = [&text("192.0.2.8")[..], b"@RSYNCD: 31.0\nrepo\n"].concat();
        socket.write_all(&begin).await.unwrap();
        let said = said(socket).await;
        assert!(said.contains("@ERROR: access denied to repo from 192.0.2.8 (192.0.2.8)"), "{said}");
    }
}

#[tokio::test]
async fn headers_may_arrive_in_pieces_and_with_the_first_bytes_of_the_client() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = serve(&fixture, |_| {}).await;
    for header in [text(FRIEND), binary(FRIEND, 9)] {
        let all = [&header[..], &ClientHello::OURS.encode()].concat();
        for size in [1, 7, all.len()] {
            let mut socket = TcpStream::connect(server.addr).await.unwrap();
            socket.set_nodelay(true).unwrap();
            for piece in all.chunks(size) {
                socket.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut hello = [0; HELLO_BYTES];
            soon(socket.read_exact(&mut hello)).await.expect("the daemon's hello");
        }
    }
}

#[tokio::test]
async fn each_client_has_connections_of_its_own_and_the_proxy_none() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = serve(&fixture, |config| config.limits.connections_per_address = 2).await;
    let mut held = Vec::new();
    for number in 1..=20 {
        for _ in 0..2 {
            let socket = connect(&server, &text(&format!("192.0.2.{number}"))).await;
            held.push(soon(Client::begin(socket, ClientHello::OURS)).await);
        }
    }
    let mut over = soon(Client::begin(connect(&server, &text("192.0.2.20")).await, ClientHello::OURS)).await;
    let (_, payload) = soon(over.frame()).await.unwrap();
    let message = String::from_utf8_lossy(&payload).into_owned();
    assert!(message.contains("too many connections from this address: the limit is 2"), "{message}");
}

#[tokio::test]
async fn a_connection_of_a_proxy_without_a_valid_header_is_closed() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = serve(&fixture, |config| config.limits.handshake = Duration::from_millis(500)).await;
    let endless = [&b"PROXY TCP4 "[..], &[b'1'; 5000]].concat();
    let large = binary(FRIEND, 4000);
    let half = &binary(FRIEND, 100)[..60];
    for bytes in [
        &b"@RSYNCD: 31.0\n#list\n"[..],
        &ClientHello::OURS.encode(),
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 873\n@RSYNCD: 31.0\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000\r\n",
        b"PROXY TCP4 localhost 198.51.100.1 40000 873\r\n",
        b"PROXY TCP5 192.0.2.7 198.51.100.1 40000 873\r\n",
        b"PROXY",
        b"",
        b"\r\n\r\n\0\r\nQUIT\r",
        half,
        &endless,
        &large,
    ] {
        assert_eq!(said(connect(&server, bytes).await).await, "", "{}", bytes.escape_ascii());
    }
}

#[tokio::test]
async fn headers_from_elsewhere_are_not_believed() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = serve(&fixture, |config| config.proxies = vec!["192.0.2.0/24".parse().unwrap()]).await;
    for header in [text(FRIEND), binary(FRIEND, 0), local()] {
        let begin = [&header[..], &ClientHello::OURS.encode()].concat();
        let said = said(connect(&server, &begin).await).await;
        assert!(said.contains("expected the hello of the native protocol"), "{said}");
    }
}

#[tokio::test]
async fn a_health_check_that_only_connects_or_waits_for_the_greeting_is_answered_calmly() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = serve(&fixture, |_| {}).await;
    drop(connect(&server, b"").await);
    drop(connect(&server, &local()).await);
    let mut socket = connect(&server, &local()).await;
    let mut greeting = [0; 8];
    soon(socket.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"@RSYNCD:");
}
