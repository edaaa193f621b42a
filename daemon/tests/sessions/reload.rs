//! Another configuration for a daemon that runs.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use stillmirror_daemon::{Changes, Config, DaemonError, DirectPolicy, RepositoryConfig, Users};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::wire::{ClientHello, ErrorCode, Reply, Request};
use stillmirror_store::StoreError;

use crate::rsync::support::{dest, rsync, rsync_with};
use crate::support::*;

type IsExpected = fn(&DaemonError) -> bool;

/// Indexes the fixture's tree as a repository of another name. Returns the repository.
fn other(fixture: &Fixture, name: &str) -> RepositoryConfig {
    let store = fixture.dir.path().join(name);
    index_as(name, &fixture.root(), &store, 0, |content| content);
    RepositoryConfig::new(name, fixture.root(), store)
}

async fn reconfigure(server: &Server, config: Config) -> Changes {
    soon(server.reload.reconfigure(config)).await.unwrap()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn head(name: &str) -> Request {
    Request::Head { repository: name.to_owned() }
}

#[tokio::test]
async fn repositories_come_and_go_and_running_sessions_finish_with_what_they_have() {
    let content = noise(24 << 20);
    let fixture = Fixture::with(&[("big", &content)]);
    let server = fixture.serve().await;
    let mut running = server.client().await;
    let (handle, _) = soon(running.pin()).await;
    let number = running.send(&Request::Data { handle, items: vec![fixture.whole("big")] }).await;
    let (_, first) = soon(running.frame()).await.unwrap();

    let new = other(&fixture, "new");
    let changes = reconfigure(&server, fixture.config(|config| config.repositories = vec![new])).await;
    assert_eq!(changes, Changes { added: names(&["new"]), removed: names(&["repo"]), ..Changes::default() });
    let mut client = server.client().await;
    assert_eq!(soon(client.ask(&head("repo"))).await.error.unwrap().0, ErrorCode::UnknownRepository);
    assert!(soon(client.ask(&head("new"))).await.pinned.is_some());
    rsync(&server, &["-r"], "repo/", None).await.exits(5).says("Unknown module 'repo'");
    rsync(&server, &["-r"], "new/", Some(&dest(&fixture))).await.exits(0);

    let rest = soon(running.answer(number)).await;
    assert!([first, rest.bytes].concat() == content);
    assert_eq!(soon(running.ask(&head("repo"))).await.error.unwrap().0, ErrorCode::UnknownRepository);
}

#[tokio::test]
async fn a_repository_keeps_its_edition_unless_it_is_opened_in_another_way() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = soon(client.pin()).await;
    let described = |comment: &str| fixture.config(|config| config.repositories[0].comment = comment.to_owned());
    assert_eq!(reconfigure(&server, described("another text")).await, Changes::default());
    // The same edition has the same handle.
    assert_eq!(soon(client.pin()).await.0, handle);
    rsync(&server, &[], "", None).await.exits(0).says("another text");

    let direct = fixture.config(|config| config.repositories[0].direct = DirectPolicy::Never);
    let moved = Changes { moved: names(&["repo"]), ..Changes::default() };
    assert_eq!(reconfigure(&server, direct).await, moved);
    assert_ne!(soon(client.pin()).await.0, handle);

    // A new generation is still noticed.
    fixture.write("b", b"y");
    let generation = fixture.index();
    soon(async { while client.pin().await.1.generation != generation {} }).await;
}

#[tokio::test]
async fn a_configuration_with_a_mistake_changes_nothing() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = soon(client.pin()).await;
    let wrong = |change: &dyn Fn(&mut RepositoryConfig)| {
        fixture.config(|config| {
            config.repositories.push(other(&fixture, "new"));
            config.repositories[0].comment = "not in force".to_owned();
            change(&mut config.repositories[0]);
        })
    };
    let nowhere = PathBuf::from("/nowhere");
    let users = Users { names: names(&["anna"]), secrets: nowhere.clone() };
    let empty = fixture.dir.path().join("empty");
    stillmirror_store::Store::create(&empty, "repo").unwrap();
    let expected: [(Config, IsExpected); 6] = [
        (wrong(&|repository| repository.users = users.clone()), |error| matches!(error, DaemonError::Secrets { .. })),
        (wrong(&|repository| repository.module.rules.exclude_from = Some(nowhere.clone())), |error| {
            matches!(error, DaemonError::Patterns { .. })
        }),
        (wrong(&|repository| repository.root = nowhere.clone()), |error| matches!(error, DaemonError::Move { .. })),
        (wrong(&|repository| repository.store = nowhere.clone()), |error| matches!(error, DaemonError::Move { .. })),
        (wrong(&|repository| repository.store = empty.clone()), |error| {
            matches!(error, DaemonError::NotIndexed { .. })
        }),
        (wrong(&|repository| repository.store = fixture.dir.path().join("new")), |error| {
            matches!(error, DaemonError::Store(StoreError::OtherRepository { .. }))
        }),
    ];
    for (config, is_expected) in expected {
        let error = soon(server.reload.reconfigure(config)).await.unwrap_err();
        assert!(is_expected(&error), "{error}");
        assert_eq!(soon(client.pin()).await.0, handle, "{error}");
        assert!(soon(client.ask(&head("new"))).await.error.is_some(), "{error}");
        assert_eq!(rsync(&server, &[], "", None).await.exits(0).out, "repo           \ta test\n", "{error}");
    }
}

#[tokio::test]
async fn a_new_repository_need_not_be_there_yet() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let later = RepositoryConfig::new("later", fixture.root(), fixture.dir.path().join("later"));
    reconfigure(&server, fixture.config(|config| config.repositories.push(later))).await;
    let mut client = server.client().await;
    assert_eq!(soon(client.ask(&head("later"))).await.error.unwrap().0, ErrorCode::NotIndexed);
    other(&fixture, "later");
    soon(async { while client.ask(&head("later")).await.error.is_some() {} }).await;
}

#[tokio::test]
async fn limits_change_for_those_who_wait() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let limited = |connections, queue| {
        fixture.config(|config| (config.limits.connections, config.limits.queue) = (connections, queue))
    };
    let server = Server::start(limited(1, 1)).await;
    let mut first = server.client().await;
    soon(first.pin()).await;
    let mut second = server.client().await;
    let (header, payload) = soon(second.frame()).await.unwrap();
    assert_eq!(Reply::decode(header.kind, &payload), Ok(Reply::Queued { place: 0 }));
    reconfigure(&server, limited(2, 0)).await;
    soon(second.pin()).await;
    let mut third = server.client().await;
    let (header, payload) = soon(third.frame()).await.unwrap();
    assert!(matches!(Reply::decode(header.kind, &payload), Ok(Reply::Error { code: ErrorCode::Refused, .. })));
    reconfigure(&server, limited(1, 1)).await;
    soon(first.pin()).await;
    soon(second.pin()).await;
}

#[tokio::test]
async fn another_bandwidth_holds_for_the_transfer_that_is_under_way() {
    let content = noise(8 << 20);
    let fixture = Fixture::with(&[("big", &content)]);
    let slow = |bandwidth| fixture.config(|config| config.repositories[0].bandwidth = bandwidth);
    let server = Server::start(slow(64 << 10)).await;
    let mut client = server.client().await;
    let (handle, _) = soon(client.pin()).await;
    let number = client.send(&Request::Data { handle, items: vec![fixture.whole("big")] }).await;
    let (_, first) = soon(client.frame()).await.unwrap();
    // At the old rate, this would take more than two minutes.
    reconfigure(&server, slow(0)).await;
    let rest = soon(client.answer(number)).await;
    assert!([first, rest.bytes].concat() == content);
}

#[tokio::test]
async fn users_and_rules_apply_to_new_sessions() {
    let fixture = Fixture::with(&[("a", b"x"), ("hidden", b"y")]);
    let server = fixture.serve().await;
    rsync(&server, &["-r", "--list-only"], "repo/", None).await.exits(0).says("hidden");
    let secrets = fixture.dir.path().join("secrets");
    std::fs::write(&secrets, "anna:secret\n").unwrap();
    std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o600)).unwrap();
    let closed = fixture.config(|config| {
        config.repositories[0].users = Users { names: names(&["anna"]), secrets };
        config.repositories[0].module.rules.exclude = names(&["hidden"]);
    });
    assert_eq!(reconfigure(&server, closed).await, Changes::default());
    rsync(&server, &["-r", "--list-only"], "repo/", None).await.exits(5);
    let listed = rsync_with(&server, &["-r", "--list-only"], "repo/", None, |command| {
        command.env("USER", "anna").env("RSYNC_PASSWORD", "secret");
    });
    assert!(!listed.await.exits(0).says("a").out.contains("hidden"));
    assert_eq!(soon(server.client().await.ask(&head("repo"))).await.error.unwrap().0, ErrorCode::Refused);
}

#[tokio::test]
async fn a_follower_is_told_that_its_repository_moved_or_is_gone() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let mut follower = Client::connect_as(server.addr, ClientHello::FOLLOWER).await;
    let follow = |known| Request::Follow { repository: "repo".to_owned(), known };
    let first = soon(follower.ask(&follow(Digest::NONE))).await.news.unwrap().1;
    let current = fixture.current();
    let known = stillmirror_protocol::wire::fingerprint(current.head_bytes(), current.signature());

    let waiting = follower.send(&follow(known)).await;
    fixture.write("b", b"y");
    let store = fixture.dir.path().join("elsewhere");
    index(&fixture.root(), &store, 0);
    index(&fixture.root(), &store, 0);
    reconfigure(&server, fixture.config(|config| config.repositories[0].store = store)).await;
    let news = soon(follower.answer(waiting)).await.news.unwrap().1;
    assert_ne!(news, first);

    let waiting = follower.send(&follow(stillmirror_protocol::wire::fingerprint(&news, None))).await;
    reconfigure(&server, fixture.config(|config| config.repositories = vec![other(&fixture, "new")])).await;
    assert_eq!(soon(follower.answer(waiting)).await.error.unwrap().0, ErrorCode::UnknownRepository);
}

#[tokio::test]
async fn stock_clients_pull_through_many_reloads() {
    let fixture = Fixture::new();
    (0..300).for_each(|number| fixture.write(&format!("dir/{number}"), &noise(10_000 + number)));
    fixture.index();
    let server = fixture.serve().await;
    let reloads = async {
        for number in 0_usize.. {
            let config = fixture.config(|config| {
                config.repositories[0].comment = number.to_string();
                config.repositories[0].direct =
                    if number % 2 == 0 { DirectPolicy::Always } else { DirectPolicy::Never };
                (config.limits.connections, config.limits.connections_per_address) = (2 + number % 9, 0);
                config.repositories[0].module.max_connections = number % 4;
                config.limits.followers = number % 7 * 1000;
            });
            reconfigure(&server, config).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    let url = format!("rsync://{}/repo/", server.addr);
    let pulls = async {
        for round in 0..3 {
            let pull = |number| {
                let dest = fixture.dir.path().join(format!("dest-{round}-{number}"));
                Command::new("rsync").arg("-a").arg(&url).arg(dest).spawn().expect("rsync is installed")
            };
            let mut pulls: Vec<_> = (0..8).map(pull).collect();
            let ended = tokio::task::spawn_blocking(move || {
                pulls.iter_mut().map(|pull| pull.wait().unwrap().code()).collect::<Vec<_>>()
            });
            assert_eq!(soon(ended).await.unwrap(), [Some(0); 8]);
        }
    };
    tokio::select! {
        () = pulls => {}
        () = reloads => {}
    }
}
