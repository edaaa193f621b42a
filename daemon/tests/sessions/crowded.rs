//! Many connections from one address, beside connections from another.

use std::net::SocketAddr;
use std::time::Duration;

use stillmirror_daemon::Config;
use stillmirror_protocol::wire::{ClientHello, ErrorCode, HELLO_BYTES, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{Client, Fixture, Server, soon};

/// Connects from 127.0.0.`from`.
pub(crate) async fn connect(server: &Server, from: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, from], 0))).unwrap();
    socket.connect(server.addr).await.unwrap()
}

async fn served(change: impl FnOnce(&mut Config)) -> (Fixture, Server) {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = Server::start(fixture.config(change)).await;
    (fixture, server)
}

/// Sends bytes and reads until the daemon closes the connection.
async fn answer(mut socket: TcpStream, bytes: &[u8]) -> String {
    let mut answer = Vec::new();
    let _ = socket.write_all(bytes).await;
    let _ = soon(socket.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Connects as a native client from 127.0.0.`from`, and returns the code of the error that follows the hello.
async fn native_error(server: &Server, from: u8) -> ErrorCode {
    let mut socket = connect(server, from).await;
    socket.write_all(&ClientHello::OURS.encode()).await.unwrap();
    soon(socket.read_exact(&mut [0; HELLO_BYTES])).await.unwrap();
    let (header, payload) = soon(Client::resume(socket).frame()).await.unwrap();
    let Ok(Reply::Error { code, .. }) = Reply::decode(header.kind, &payload) else { panic!("{header:?}") };
    code
}

const LIST: &[u8] = b"@RSYNCD: 31.0 md5\n\n";

#[tokio::test]
async fn an_address_at_its_connection_limit_is_refused_and_others_are_served() {
    let (_fixture, server) = served(|config| config.limits.connections_per_address = 3).await;
    // Connections count from the start, before their hello and as sessions.
    let mut held = vec![connect(&server, 1).await, connect(&server, 1).await];
    let mut session = server.client().await;
    soon(session.pin()).await;
    let told = answer(connect(&server, 1).await, LIST).await;
    assert!(
        told.starts_with("@RSYNCD: ") && told.ends_with("@ERROR: max connections (3) reached -- try again later\n"),
        "{told}"
    );
    assert_eq!(native_error(&server, 1).await, ErrorCode::Refused);
    let other = answer(connect(&server, 2).await, LIST).await;
    assert!(other.contains("repo") && !other.contains("@ERROR"), "{other}");
    // A connection that ends makes room for the next one.
    held.pop();
    soon(async { while !answer(connect(&server, 1).await, LIST).await.contains("repo") {} }).await;
}

#[tokio::test]
async fn a_client_that_waits_for_the_greeting_is_told_of_the_limit_too() {
    let (_fixture, server) = served(|config| config.limits.connections_per_address = 1).await;
    let _held = connect(&server, 1).await;
    let mut waiting = connect(&server, 1).await;
    let mut greeting = Vec::new();
    soon(async {
        while !greeting.ends_with(b"\n") {
            waiting.read_buf(&mut greeting).await.unwrap();
        }
    })
    .await;
    assert!(greeting.starts_with(b"@RSYNCD: "));
    let told = answer(waiting, LIST).await;
    assert_eq!(told, "@ERROR: max connections (1) reached -- try again later\n");
}

#[tokio::test]
async fn a_flood_from_one_address_does_not_keep_another_from_its_session() {
    let (_fixture, server) = served(|config| {
        (config.limits.connections, config.limits.queue) = (2, 4);
        config.limits.handshake = Duration::from_secs(60);
    })
    .await;
    let mut sessions = [server.client().await, server.client().await];
    for session in &mut sessions {
        soon(session.pin()).await;
    }
    let mut flood = Vec::new();
    for _ in 0..50 {
        let mut socket = connect(&server, 1).await;
        let _ = socket.write_all(&ClientHello::OURS.encode()).await;
        flood.push(socket);
    }
    let mut other = connect(&server, 2).await;
    other.write_all(&ClientHello::OURS.encode()).await.unwrap();
    soon(other.read_exact(&mut [0; HELLO_BYTES])).await.unwrap();
    let mut other = Client::resume(other);
    // It waits behind one of them, not behind all that connected before.
    let (header, payload) = soon(other.frame()).await.unwrap();
    let Ok(Reply::Queued { place: 0..=1 }) = Reply::decode(header.kind, &payload) else {
        panic!("{:?}", Reply::decode(header.kind, &payload))
    };
    drop(sessions);
    soon(other.pin()).await;
}

#[tokio::test]
async fn a_connection_that_logs_in_counts_and_does_not_delay_the_shutdown() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let secrets = fixture.dir.path().join("secrets");
    std::fs::write(&secrets, "user:password\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&secrets, mode).unwrap();
    let config = fixture.config(|config| {
        config.limits.connections_per_address = 1;
        config.repositories[0].users.names = vec!["user".to_owned()];
        config.repositories[0].users.secrets = secrets;
    });
    let mut server = Server::start(config).await;
    let mut typing = connect(&server, 1).await;
    typing.write_all(b"@RSYNCD: 31.0 md5\nrepo\n").await.unwrap();
    let mut received = Vec::new();
    soon(async {
        while !String::from_utf8_lossy(&received).contains("@RSYNCD: AUTHREQD") {
            typing.read_buf(&mut received).await.unwrap();
        }
    })
    .await;
    let told = answer(connect(&server, 1).await, LIST).await;
    assert!(told.contains("@ERROR: max connections (1) reached"), "{told}");
    // The daemon stops without waiting for the password.
    server.stop();
    assert!(soon(server.running).await.unwrap().is_ok());
}
