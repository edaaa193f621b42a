use std::time::Duration;

use stillmirror_daemon::{Daemon, DaemonError};
use stillmirror_protocol::wire::{ErrorCode, Reply, Request, kind};
use stillmirror_store::StoreError;

use crate::support::{Fixture, Server, index, noise, soon};

#[tokio::test]
async fn a_session_keeps_its_generation_while_a_new_one_becomes_current() {
    let fixture = Fixture::with(&[("a", b"old"), ("gone", b"here")]);
    let server = fixture.serve().await;
    let mut before = server.client().await;
    let (old, old_head) = before.pin().await;
    let item = fixture.whole("a");
    std::fs::remove_file(fixture.root().join("gone")).unwrap();
    fixture.write("new", b"new");
    fixture.index();
    server.reload.reload();
    let mut client = server.client().await;
    soon(async {
        while client.pin().await.1 == old_head {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let (new, new_head) = before.pin().await;
    assert_ne!((old, &old_head), (new, &new_head));
    assert_eq!(soon(before.data(old, vec![item])).await.bytes, b"old");
    let gone = Request::Dir { handle: old, path: b"gone".to_vec() };
    assert_eq!(soon(before.ask(&gone)).await.error, None);
    let gone = Request::Dir { handle: new, path: b"gone".to_vec() };
    assert_eq!(soon(before.ask(&gone)).await.error.unwrap().0, ErrorCode::NotThere);
}

#[tokio::test]
async fn a_generation_keeps_its_handle_however_often_it_is_pinned() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let first = soon(client.pin()).await;
    for _ in 0..200 {
        assert_eq!(soon(client.pin()).await, first);
    }
}

#[tokio::test]
async fn a_repository_that_is_indexed_after_startup_is_served() {
    let fixture = Fixture::new();
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let head = Request::Head { repository: "repo".to_owned() };
    assert_eq!(soon(client.ask(&head)).await.error.unwrap().0, ErrorCode::NotIndexed);
    fixture.index();
    server.reload.reload();
    soon(async { while client.ask(&head).await.error.is_some() {} }).await;
}

#[tokio::test]
async fn a_damaged_generation_does_not_replace_the_one_before() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let first = soon(server.client().await.pin()).await;
    fixture.write("b", b"y");
    // The generation is made in another store, so that it is damaged before the daemon can see it.
    let elsewhere = Fixture::new();
    let number = index(&fixture.root(), &elsewhere.store(), 0);
    let target = fixture.store().join(format!("generations/{}", number + 1));
    std::fs::rename(elsewhere.store().join(format!("generations/{number}")), &target).unwrap();
    let list = target.join("list");
    let mut bytes = std::fs::read(&list).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::remove_file(&list).unwrap();
    std::fs::write(&list, bytes).unwrap();
    let current = fixture.store().join("current");
    std::fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink(format!("generations/{}", number + 1), &current).unwrap();
    server.reload.reload();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(soon(server.client().await.pin()).await, first);
}

#[tokio::test]
async fn a_store_of_another_repository_is_refused_at_startup() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let other = fixture.config(|config| config.repositories[0].name = "other".to_owned());
    let error = Daemon::open(other).await.err();
    assert!(matches!(error, Some(DaemonError::Store(StoreError::OtherRepository { .. }))), "{error:?}");
}

#[tokio::test]
async fn a_connection_beyond_the_limit_waits_and_one_beyond_the_queue_is_refused() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let config = fixture.config(|config| (config.limits.connections, config.limits.queue) = (1, 1));
    let server = Server::start(config).await;
    let mut first = server.client().await;
    soon(first.pin()).await;
    let mut second = server.client().await;
    let (header, payload) = soon(second.frame()).await.unwrap();
    assert_eq!(Reply::decode(header.kind, &payload), Ok(Reply::Queued { place: 0 }));
    let mut third = server.client().await;
    let (header, payload) = soon(third.frame()).await.unwrap();
    let Ok(Reply::Error { code, .. }) = Reply::decode(header.kind, &payload) else { panic!("{header:?}") };
    assert_eq!(code, ErrorCode::Refused);
    drop(first);
    soon(second.pin()).await;
}

#[tokio::test]
async fn an_idle_session_is_told_of_the_shutdown_and_the_daemon_exits() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let mut server = fixture.serve().await;
    let mut client = server.client().await;
    soon(client.pin()).await;
    server.stop();
    let (header, payload) = soon(client.frame()).await.unwrap();
    let Ok(Reply::Error { code, .. }) = Reply::decode(header.kind, &payload) else { panic!("{header:?}") };
    assert_eq!(code, ErrorCode::ShuttingDown);
    drop(client);
    assert!(soon(server.running).await.unwrap().is_ok());
}

#[tokio::test]
async fn an_in_flight_request_is_finished_before_the_shutdown() {
    let content = noise(24 << 20);
    let fixture = Fixture::with(&[("big", &content)]);
    let mut server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = soon(client.pin()).await;
    let number = client.send(&Request::Data { handle, items: vec![fixture.whole("big")] }).await;
    let (header, first) = soon(client.frame()).await.unwrap();
    assert_eq!((header.request, header.kind), (number, kind::BYTES));
    server.stop();
    let rest = soon(client.answer(number)).await;
    assert!([first, rest.bytes].concat() == content);
}

#[tokio::test]
async fn a_session_that_does_not_finish_in_time_is_cut_off() {
    let fixture = Fixture::with(&[("big", &noise(24 << 20))]);
    let mut server = Server::start(fixture.config(|config| config.limits.drain = Duration::from_millis(50))).await;
    let mut client = server.client().await;
    let (handle, _) = soon(client.pin()).await;
    client.send(&Request::Data { handle, items: vec![fixture.whole("big")] }).await;
    soon(client.frame()).await;
    server.stop();
    assert!(soon(server.running).await.unwrap().is_ok());
}
