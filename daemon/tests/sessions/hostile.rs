use std::time::Duration;

use stillmirror_protocol::limits;
use stillmirror_protocol::wire::{ClientHello, ErrorCode, FrameHeader, Reply, Request, frame, kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Client, Fixture, Server, noise, soon};

/// Sends bytes on a new connection and returns everything that the daemon sends.
async fn exchange(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut all = Vec::new();
    let _ = soon(socket.read_to_end(&mut all)).await;
    all
}

#[tokio::test]
async fn an_rsync_client_gets_an_error_line_where_rsync_is_disabled() {
    let fixture = Fixture::with(&[]);
    let server = Server::start(fixture.config(|config| config.rsync.enabled = false)).await;
    let answer = exchange(&server, b"@RSYNCD: 31.0 sha512 md5\n").await;
    assert!(answer.starts_with(b"@ERROR: "), "{answer:?}");
}

#[tokio::test]
async fn a_client_of_an_unknown_protocol_gets_an_error_frame() {
    let fixture = Fixture::with(&[]);
    let server = fixture.serve().await;
    let answer = exchange(&server, b"GET / HTTP/1.1\r\n\r\n").await;
    let header = FrameHeader::decode(answer[..12].try_into().unwrap(), limits::REPLY_PAYLOAD).unwrap();
    assert_eq!((header.request, header.kind), (0, kind::ERROR));
}

#[tokio::test]
async fn the_hello_states_the_limits_of_the_session() {
    let fixture = Fixture::with(&[]);
    let hello = fixture.serve().await.client().await.hello;
    assert_eq!((hello.version, usize::from(hello.requests)), (1, limits::REQUESTS_UNDER_WAY));
    assert!(hello.reply_payload as usize <= limits::REPLY_PAYLOAD);
}

#[tokio::test]
async fn a_client_without_a_common_version_gets_version_0() {
    let fixture = Fixture::with(&[]);
    let server = fixture.serve().await;
    let newer = ClientHello { min_version: 7, max_version: 9, capabilities: 0 };
    let answer = exchange(&server, &newer.encode()).await;
    assert_eq!((answer.len(), &answer[8..10]), (24, &[0, 0][..]));
}

#[tokio::test]
async fn malformed_frames_end_the_session_with_an_error_frame() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let header = |len, request, kind| FrameHeader { len, request, kind }.encode().to_vec();
    let lying_count = [&[0][..], &[0xff, 0x7f], &[0; 3]].concat();
    for bytes in [
        header(u32::MAX, 1, kind::DATA),
        header(limits::REQUEST_PAYLOAD as u32 + 1, 1, kind::DATA),
        header(0, 1, 99),
        header(0, 1, kind::END),
        header(0, 0, kind::REPOSITORIES),
        frame(1, kind::REPOSITORIES, b"trailing"),
        frame(1, kind::DATA, &lying_count),
        frame(1, kind::DIR, b"\0\x05../.."),
        frame(1, kind::HEAD, b"\xff\xff\xff\xff\x0f"),
        [&header(0, 1, kind::REPOSITORIES)[..11], b"x"].concat(),
    ] {
        let mut client = server.client().await;
        client.socket.write_all(&bytes).await.unwrap();
        let (header, payload) = soon(client.frame()).await.unwrap();
        assert_eq!(header.request, 0);
        let Ok(Reply::Error { code, .. }) = Reply::decode(header.kind, &payload) else { panic!("{header:?}") };
        assert_eq!(code, ErrorCode::Malformed);
        assert_eq!(soon(client.frame()).await, None);
    }
}

#[tokio::test]
async fn an_error_frame_never_splits_an_answer() {
    let content = noise(20 << 20);
    let fixture = Fixture::with(&[("big", &content)]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    client.send(&Request::Data { handle, items: vec![fixture.whole("big")] }).await;
    client.socket.write_all(&frame(9, 99, b"")).await.unwrap();
    let mut data = Vec::new();
    loop {
        let (header, payload) = soon(client.frame()).await.unwrap();
        if header.request == 0 {
            assert_eq!(header.kind, kind::ERROR);
            break;
        }
        data.extend_from_slice(&payload);
    }
    assert!(content.starts_with(&data));
}

#[tokio::test]
async fn an_unfinished_request_ends_the_session() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = Server::start(fixture.config(|config| config.limits.handshake = Duration::from_millis(100))).await;
    let mut client = server.client().await;
    client.socket.write_all(&[1, 0, 0]).await.unwrap();
    let (header, payload) = soon(client.frame()).await.unwrap();
    let Ok(Reply::Error { code, .. }) = Reply::decode(header.kind, &payload) else { panic!("{header:?}") };
    assert_eq!(code, ErrorCode::Refused);
}

#[tokio::test]
async fn an_idle_session_ends() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = Server::start(fixture.config(|config| config.limits.idle = Duration::from_millis(100))).await;
    let mut client = server.client().await;
    let (header, _) = soon(client.frame()).await.unwrap();
    assert_eq!((header.request, header.kind), (0, kind::ERROR));
    assert_eq!(soon(client.frame()).await, None);
}

#[tokio::test]
async fn stalled_clients_of_every_kind_do_not_block_an_honest_one() {
    let content = noise(24 << 20);
    let fixture = Fixture::with(&[("big", &content)]);
    // One buffer in all, and no minimum rate that would end the stalled clients.
    let config = fixture.config(|config| {
        config.memory.cache = 0;
        config.memory.buffers = 1 << 20;
        config.limits.minimum_rate = 0;
    });
    let server = Server::start(config).await;
    let mut stalled = Vec::new();
    for n in 0..20 {
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        socket.write_all(&ClientHello::OURS.encode()[..n % 24]).await.unwrap();
        stalled.push(socket);
        let mut client = server.client().await;
        let (handle, _) = soon(client.pin()).await;
        client.send(&Request::Data { handle, items: vec![fixture.whole("big")] }).await;
        stalled.push(client.socket);
    }
    let mut honest = server.client().await;
    let (handle, _) = soon(honest.pin()).await;
    let answer = soon(honest.data(handle, vec![fixture.whole("big")])).await;
    assert!(answer.bytes == content);

    // One of the stalled clients goes on reading, and gets every byte.
    let socket = stalled.pop().unwrap();
    let mut late = Client::resume(socket);
    assert!(soon(late.answer(2)).await.bytes == content);
}

#[tokio::test]
async fn stalled_clients_outnumber_the_pipes_and_still_get_every_byte_when_they_read_on() {
    const CLIENTS: usize = 40;
    let content = noise(12 << 20);
    let fixture = Fixture::with(&[("big", &content)]);
    let config = fixture.config(|config| {
        config.memory.cache = 0;
        config.limits.minimum_rate = 0;
    });
    let server = Server::start(config).await;
    let mut stalled = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = server.client().await;
        let (handle, _) = soon(client.pin()).await;
        let request = client.send(&Request::Data { handle, items: vec![fixture.whole("big")] }).await;
        stalled.push((client, request));
    }
    // Long enough for the sessions with a pipe to notice that others have none, and to give it up half sent.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for (mut client, request) in stalled {
        assert!(soon(client.answer(request)).await.bytes == content);
    }
}

#[tokio::test]
async fn the_session_of_a_client_that_does_not_read_is_ended() {
    let content = noise(24 << 20);
    let fixture = Fixture::with(&[("big", &content)]);
    let config = fixture.config(|config| {
        config.limits.rate_window = Duration::from_millis(200);
        config.limits.connections = 1;
    });
    let server = Server::start(config).await;
    let mut stalled = server.client().await;
    let (handle, _) = soon(stalled.pin()).await;
    stalled.send(&Request::Data { handle, items: vec![fixture.whole("big")] }).await;
    // The only slot becomes free once the stalled session is ended.
    let mut next = server.client().await;
    soon(next.pin()).await;
}
