//! Followers: connections that wait for the next generation.

use std::time::Duration;

use stillmirror_daemon::{Hosts, Limits};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::wire::{ClientHello, ErrorCode, FOLLOWING, Reply, Request, fingerprint};

use crate::signed::sign;
use crate::support::*;

async fn follower(server: &Server) -> Client {
    Client::connect_as(server.addr, ClientHello::FOLLOWER).await
}

fn follow(known: Digest) -> Request {
    Request::Follow { repository: "repo".to_owned(), known }
}

/// Returns what a follower of the current generation knows.
fn known(fixture: &Fixture) -> Digest {
    let current = fixture.current();
    fingerprint(current.head_bytes(), current.signature())
}

/// Serves a fixture with limits that `change` changes. A generation is only noticed at once.
async fn serve_with(fixture: &Fixture, change: impl FnOnce(&mut Limits)) -> Server {
    let config = fixture.config(|config| {
        change(&mut config.limits);
        config.reload_interval = Duration::from_secs(3600);
    });
    Server::start(config).await
}

#[tokio::test]
async fn a_follower_is_told_as_soon_as_another_head_is_current() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = serve_with(&fixture, |_| {}).await;
    let mut client = follower(&server).await;
    assert_ne!(client.hello.capabilities & FOLLOWING, 0);
    let first = soon(client.ask(&follow(Digest::NONE))).await.news.unwrap();
    assert_eq!(first.1, fixture.current().head_bytes());

    let waiting = client.send(&follow(known(&fixture))).await;
    fixture.write("b", b"more");
    fixture.index();
    let news = soon(client.answer(waiting)).await;
    assert_eq!(Head::decode(&news.news.unwrap().1).unwrap().generation, 2);
    assert_eq!(news.signature, None);

    let waiting = client.send(&follow(known(&fixture))).await;
    let head = sign(&fixture, b"a signature");
    let news = soon(client.answer(waiting)).await;
    assert_eq!((news.news.unwrap().1, news.signature.as_deref()), (head, Some(&b"a signature"[..])));

    // Nothing is missed between two requests.
    let before = known(&fixture);
    sign(&fixture, b"another signature");
    assert_eq!(soon(client.ask(&follow(before))).await.signature.unwrap(), b"another signature");
}

#[tokio::test]
async fn a_follower_without_news_is_told_so_after_a_while() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = serve_with(&fixture, |limits| limits.follow = Duration::from_millis(50)).await;
    let mut client = follower(&server).await;
    for _ in 0..3 {
        assert_eq!(soon(client.ask(&follow(known(&fixture)))).await, Answer::default());
    }
}

#[tokio::test]
async fn the_more_followers_wait_the_longer_they_spread_their_pulls() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = serve_with(&fixture, |_| {}).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(follower(&server).await);
    }
    let told_all = async {
        // A follower cannot tell when its request has arrived.
        for pause in 1.. {
            let mut waiting = Vec::new();
            for client in &mut clients {
                waiting.push(client.send(&follow(known(&fixture))).await);
            }
            tokio::time::sleep(Duration::from_millis(20 * pause)).await;
            fixture.index();
            let mut spreads = Vec::new();
            for (client, number) in clients.iter_mut().zip(waiting) {
                spreads.push(client.answer(number).await.news.unwrap().0);
            }
            if spreads == vec![200; 40] {
                return;
            }
        }
    };
    soon(told_all).await;
}

#[tokio::test]
async fn a_follower_takes_no_session_and_holds_no_generation() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = Server::start(fixture.config(|config| {
        (config.limits.connections, config.limits.queue) = (1, 0);
    }))
    .await;
    let mut followers = Vec::new();
    for _ in 0..3 {
        let mut client = follower(&server).await;
        soon(client.ask(&follow(Digest::NONE))).await;
        let waiting = client.send(&follow(known(&fixture))).await;
        followers.push((client, waiting));
    }
    let mut session = server.client().await;
    assert_eq!(soon(session.pin()).await.1.generation, 1);
    drop(session);
    fixture.index();
    for (client, waiting) in &mut followers {
        soon(client.answer(*waiting)).await.news.unwrap();
        client.send(&follow(known(&fixture))).await;
    }
    let first = fixture.store().join("generations/1/");
    let is_mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(first.to_str().unwrap());
    let unmapped = async {
        while is_mapped() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(unmapped).await;
}

#[tokio::test]
async fn a_follower_beyond_the_limit_is_refused_until_another_leaves() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = serve_with(&fixture, |limits| limits.followers = 1).await;
    let mut first = follower(&server).await;
    soon(first.ask(&follow(Digest::NONE))).await;
    first.send(&follow(known(&fixture))).await;
    let mut second = follower(&server).await;
    assert_eq!(last_error(&mut second).await, Some((ErrorCode::Refused, "too many followers".to_owned())));
    // The daemon notices at once that a waiting follower leaves.
    drop(first);
    let admitted = async {
        loop {
            let mut client = follower(&server).await;
            client.send(&follow(Digest::NONE)).await;
            if client.frame().await.is_some_and(|(header, _)| header.request != 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(admitted).await;
}

/// Returns the error that ends a session, up to the first colon.
async fn last_error(client: &mut Client) -> Option<(ErrorCode, String)> {
    let (header, payload) = soon(client.frame()).await?;
    match Reply::decode(header.kind, &payload) {
        Ok(Reply::Error { code, message }) if header.request == 0 => {
            assert!(soon(client.frame()).await.is_none(), "nothing follows");
            Some((code, message.split(':').next().unwrap_or_default().to_owned()))
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_follower_is_told_no_more_of_a_repository_than_any_client() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let config = |list| {
        fixture.config(|config| {
            config.repositories[0].hosts = Hosts { allow: Vec::new(), deny: vec!["127.0.0.1".parse().unwrap()] };
            config.repositories[0].list = list;
        })
    };
    for (is_listed, name, code) in [
        (true, "repo", ErrorCode::Refused),
        (true, "other", ErrorCode::UnknownRepository),
        (false, "repo", ErrorCode::UnknownRepository),
    ] {
        let server = Server::start(config(is_listed)).await;
        let ask = Request::Follow { repository: name.to_owned(), known: Digest::NONE };
        let mut client = follower(&server).await;
        let head = Request::Head { repository: name.to_owned() };
        let refused = soon(client.ask(&ask)).await.error.unwrap();
        assert_eq!(refused.0, code);
        assert_eq!(soon(server.client().await.ask(&head)).await.error.unwrap(), refused);
    }
}

#[tokio::test]
async fn a_repository_that_is_not_indexed_yet_is_news_once_it_is() {
    let fixture = Fixture::new();
    let server = Server::start(fixture.config(|config| config.reload_interval = Duration::from_millis(20))).await;
    let mut client = follower(&server).await;
    let waiting = client.send(&follow(Digest::NONE)).await;
    fixture.index();
    assert!(soon(client.answer(waiting)).await.news.is_some());
}

#[tokio::test]
async fn a_follower_that_is_silent_when_its_next_request_is_due_is_dropped() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = serve_with(&fixture, |limits| {
        (limits.follow, limits.handshake) = (Duration::from_millis(20), Duration::from_millis(200));
    })
    .await;
    let mut client = follower(&server).await;
    let nothing = client.send(&follow(known(&fixture))).await;
    assert_eq!(soon(client.answer(nothing)).await, Answer::default());
    assert_eq!(last_error(&mut client).await.unwrap().0, ErrorCode::Refused);
}

#[tokio::test]
async fn a_follower_sends_nothing_but_one_request_to_follow_at_a_time() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = fixture.serve().await;
    for others in [
        vec![Request::Head { repository: "repo".to_owned() }],
        vec![Request::Dir { handle: 0, path: vec![b'x'; 4000] }],
        vec![follow(known(&fixture)), follow(known(&fixture))],
    ] {
        let mut client = follower(&server).await;
        for request in &others {
            client.send(request).await;
        }
        assert_eq!(last_error(&mut client).await.unwrap().0, ErrorCode::Malformed, "{others:?}");
    }
}

#[tokio::test]
async fn a_session_does_not_follow() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let server = fixture.serve().await;
    // An old client has no capabilities, and one that cannot read signed heads cannot follow either.
    for capabilities in [0, FOLLOWING, ClientHello::OURS.capabilities] {
        let mut client = Client::connect_as(server.addr, ClientHello { capabilities, ..ClientHello::OURS }).await;
        let refused = soon(client.ask(&follow(Digest::NONE))).await.error.unwrap();
        assert_eq!(refused.0, ErrorCode::Malformed);
        soon(client.pin()).await;
    }
    let server = serve_with(&fixture, |limits| limits.followers = 0).await;
    let mut client = follower(&server).await;
    assert_eq!(client.hello.capabilities & FOLLOWING, 0, "the daemon tells nobody");
    soon(client.pin()).await;
}

#[tokio::test]
async fn followers_are_told_that_the_daemon_stops() {
    let fixture = Fixture::with(&[("a", b"content")]);
    let mut server = fixture.serve().await;
    let mut client = follower(&server).await;
    client.send(&follow(known(&fixture))).await;
    server.stop();
    assert_eq!(last_error(&mut client).await.unwrap().0, ErrorCode::ShuttingDown);
    drop(client);
    soon(server.running).await.unwrap().unwrap();
}
