use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use stillmirror_daemon::{Config, Hosts, ModuleRules, Port, Users};
use stillmirror_protocol::wire::{self, ClientHello, ErrorCode, HELLO_BYTES, Request, ServerHello};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{dest, rsync, rsync_with};
use crate::support::{Fixture, Server, soon};

#[tokio::test]
async fn modules_are_listed_with_their_comments_unless_they_are_hidden() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let listed = rsync(&server, &[], "", None).await;
    assert_eq!(listed.exits(0).out, "repo           \ta test\n");
    let hidden = Server::start(fixture.config(|config| config.repositories[0].list = false)).await;
    assert_eq!(rsync(&hidden, &[], "", None).await.exits(0).out, "");
    rsync(&hidden, &["-r", "--list-only"], "repo/", None).await.exits(0).says("a");
}

#[tokio::test]
async fn the_message_of_the_day_is_sent_first() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let motd = fixture.dir.path().join("motd");
    std::fs::write(&motd, "welcome to the mirror\n").unwrap();
    let server = Server::start(fixture.config(|config| config.rsync.motd = Some(motd))).await;
    rsync(&server, &[], "", None).await.exits(0).says("welcome to the mirror\n\nrepo");
}

#[tokio::test]
async fn a_message_of_the_day_behind_another_users_symlink_is_not_shown() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let (motd, secret) = (fixture.dir.path().join("motd"), fixture.dir.path().join("secret"));
    std::fs::write(&secret, "root's alone\n").unwrap();
    std::os::unix::fs::symlink(&secret, &motd).unwrap();
    let server = Server::start(fixture.config(|config| config.rsync.motd = Some(motd.clone()))).await;
    rsync(&server, &[], "", None).await.exits(0).says("root's alone");
    // Only root can give the symlink to another user.
    if std::os::unix::fs::lchown(&motd, Some(12_345), Some(12_345)).is_ok() {
        let listed = rsync(&server, &[], "", None).await;
        assert_eq!(listed.exits(0).out, "repo           \ta test\n");
    }
}

/// Connects, and sends nothing until a whole line has arrived. Returns the line.
async fn greeted(addr: SocketAddr) -> (TcpStream, Vec<u8>) {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let mut line = Vec::new();
    soon(async {
        while !line.ends_with(b"\n") {
            line.push(socket.read_u8().await.expect("a greeting"));
        }
    })
    .await;
    (socket, line)
}

#[tokio::test]
async fn a_client_that_waits_for_the_greeting_gets_it_once_on_every_port() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let motd = fixture.dir.path().join("motd");
    std::fs::write(&motd, "welcome\n").unwrap();
    let config = fixture.config(|config| config.rsync.motd = Some(motd));
    let server = Server::start_on(config, &[Port::All, Port::Rsync]).await;
    for addr in &server.addrs {
        let (mut socket, line) = greeted(*addr).await;
        assert_eq!(line, b"@RSYNCD: 32.0 sha512 sha256 sha1 md5 md4\n");
        socket.write_all(b"@RSYNCD: 31.0\n#list\n").await.unwrap();
        let mut rest = String::new();
        soon(socket.read_to_string(&mut rest)).await.unwrap();
        assert_eq!(rest, "welcome\n\nrepo           \ta test\n@RSYNCD: EXIT\n");
    }
}

#[tokio::test]
async fn after_the_greeting_a_native_client_is_served_and_an_unknown_one_gets_an_error_line() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let (mut socket, _) = greeted(server.addr).await;
    socket.write_all(&ClientHello::OURS.encode()).await.unwrap();
    let mut hello = [0; HELLO_BYTES];
    soon(socket.read_exact(&mut hello)).await.unwrap();
    assert_eq!(ServerHello::decode(&hello).unwrap().version, 1);
    let (mut socket, _) = greeted(server.addr).await;
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = String::new();
    soon(socket.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.starts_with("@ERROR: protocol startup error"), "{rest}");
}

#[tokio::test]
async fn no_greeting_is_sent_where_rsync_is_disabled() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let config = fixture.config(|config| {
        config.rsync.enabled = false;
        config.limits.handshake = Duration::from_millis(1500);
    });
    let server = Server::start(config).await;
    let mut received = Vec::new();
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    soon(socket.read_to_end(&mut received)).await.unwrap();
    assert!(received.is_empty(), "{}", received.escape_ascii());
}

#[tokio::test]
async fn an_unknown_module_and_a_denied_one_are_refused() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let deny = |config: &mut Config| {
        config.repositories[0].hosts = Hosts { allow: Vec::new(), deny: vec!["127.0.0.0/8".parse().unwrap()] };
    };
    let server = Server::start(fixture.config(deny)).await;
    rsync(&server, &[], "other/", None).await.exits(5).says("@ERROR: Unknown module 'other'");
    rsync(&server, &[], "repo/", None).await.exits(5).says("@ERROR: access denied to repo from 127.0.0.1");
    let head = Request::Head { repository: "repo".to_owned() };
    let native = soon(async { server.client().await.ask(&head).await }).await;
    assert_eq!(native.error.unwrap().0, ErrorCode::Refused);
}

#[tokio::test]
async fn users_are_let_in_only_with_their_passwords() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let secrets = fixture.dir.path().join("secrets");
    std::fs::write(&secrets, "anna:right\neve:right\n").unwrap();
    std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o600)).unwrap();
    let users = Users { names: vec!["anna".to_owned()], secrets };
    let server = Server::start(fixture.config(|config| config.repositories[0].users = users)).await;
    for protocol in ["--protocol=27", "--protocol=30", "--protocol=32"] {
        for (user, password, code) in [("anna", "right", 0), ("anna", "wrong", 5), ("eve", "right", 5)] {
            let login = |command: &mut std::process::Command| {
                command.env("RSYNC_PASSWORD", password).env("USER", user).env("LOGNAME", user);
            };
            let ran = rsync_with(&server, &["-r", "--list-only", protocol], "repo/", None, login).await;
            assert_eq!(ran.code, Some(code), "{user} {password} {protocol}: {ran:?}");
            if code != 0 {
                ran.says("@ERROR: auth failed on module repo");
            }
        }
    }
    let head = Request::Head { repository: "repo".to_owned() };
    let native = soon(async { server.client().await.ask(&head).await }).await;
    assert_eq!(native.error.unwrap().0, ErrorCode::Refused, "the native protocol has no logins");
}

#[tokio::test]
async fn a_refused_option_ends_the_session_with_its_name() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let refuse = |config: &mut Config| {
        config.repositories[0].module.refuse_options = vec!["checksum".to_owned(), "compress*".to_owned()];
    };
    let server = Server::start(fixture.config(refuse)).await;
    for (option, protocol) in [("-c", "--protocol=32"), ("-z", "--protocol=30"), ("-c", "--protocol=29")] {
        let ran = rsync(&server, &["-r", option, protocol], "repo/", Some(&dest(&fixture))).await;
        assert_ne!(ran.says("refuse").code, Some(0));
    }
    rsync(&server, &["-r"], "repo/", Some(&dest(&fixture))).await.exits(0);
}

#[tokio::test]
async fn symlinks_are_followed_within_the_repository_only() {
    let fixture = Fixture::with(&[("a", b"x"), ("dir/b", b"y")]);
    std::fs::write(fixture.root().parent().unwrap().join("secret"), b"outside").unwrap();
    for (name, target) in [("link", "a"), ("to-dir", "/dir"), ("out", "../secret"), ("far", "/etc/hostname")] {
        std::os::unix::fs::symlink(target, fixture.root().join(name)).unwrap();
    }
    fixture.index();
    let server = fixture.serve().await;
    let dest = dest(&fixture);
    let ran = rsync(&server, &["-rL"], "repo/", Some(&dest)).await;
    ran.exits(23).says("symlink has no referent: \"/out\"").says("symlink has no referent: \"/far\"");
    assert_eq!(std::fs::read(dest.join("link")).unwrap(), b"x");
    assert_eq!(std::fs::read(dest.join("to-dir/b")).unwrap(), b"y");
    assert!(!dest.join("out").exists() && !dest.join("far").exists());
}

#[tokio::test]
async fn clients_cannot_write() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    let ran = {
        let mut command = std::process::Command::new("rsync");
        command.arg("-a").arg(fixture.root()).arg(format!("rsync://{}/repo/", server.addr));
        soon(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap()
    };
    assert!(!ran.status.success() && String::from_utf8_lossy(&ran.stderr).contains("read only"), "{ran:?}");
    let ran = rsync(&server, &["-a", "--remove-source-files"], "repo/", Some(&dest(&fixture))).await;
    assert_ne!(ran.code, Some(0));
    assert!(fixture.root().join("a").exists());
}

#[tokio::test]
async fn files_that_the_modules_rules_hide_are_not_listed_and_cannot_be_named() {
    let fixture = Fixture::with(&[("keep", b"x"), ("secret/file", b"y"), ("other.tmp", b"z")]);
    let rules = |config: &mut Config| {
        config.repositories[0].module.rules.exclude = vec!["/secret".to_owned(), "*.tmp".to_owned()];
    };
    let server = Server::start(fixture.config(rules)).await;
    let listed = rsync(&server, &["-r", "--list-only"], "repo/", None).await;
    assert!(listed.exits(0).out.contains("keep") && !listed.out.contains("secret") && !listed.out.contains("tmp"));
    rsync(&server, &["-r"], "repo/secret/file", Some(&dest(&fixture))).await.exits(23);
    rsync(&server, &["-r"], "repo/secret/", Some(&dest(&fixture))).await.exits(23);
    assert!(!dest(&fixture).join("file").exists());
}

#[tokio::test]
async fn a_client_beyond_the_limit_is_told_that_it_waits_and_then_served() {
    let fixture = Fixture::with(&[("a", b"x")]);
    for by_module in [false, true] {
        let config = fixture.config(|config| {
            if by_module {
                config.repositories[0].module.max_connections = 1;
            } else {
                config.limits.connections = 1;
            }
        });
        let server = Server::start(config).await;
        let mut first = TcpStream::connect(server.addr).await.unwrap();
        first.write_all(b"@RSYNCD: 29\nrepo\n").await.unwrap();
        let mut received = Vec::new();
        soon(async {
            while !received.ends_with(b"@RSYNCD: OK\n") {
                received.push(first.read_u8().await.unwrap());
            }
        })
        .await;
        let mut second = TcpStream::connect(server.addr).await.unwrap();
        second.write_all(b"@RSYNCD: 29\nrepo\n").await.unwrap();
        let mut received = Vec::new();
        let mut first = Some(first);
        soon(async {
            while !received.ends_with(b"@RSYNCD: OK\n") {
                received.push(second.read_u8().await.unwrap());
                if received.ends_with(b"ahead of you.\n") {
                    drop(first.take());
                }
            }
        })
        .await;
        assert!(first.is_none(), "the second client did not wait");
    }
}

/// Returns the repositories that are announced to a native client: the names, and whether each has a head.
async fn announced(server: &Server) -> Vec<(String, bool)> {
    let answer = soon(async { server.client().await.ask(&Request::Repositories).await }).await;
    let all = wire::Repository::decode_all(&answer.bytes).unwrap();
    all.into_iter().map(|repository| (repository.name, !repository.head.is_empty())).collect()
}

/// Returns the error that a native client gets when it asks for a repository, with the name replaced. `None` if it gets
/// the repository.
async fn asked_for(server: &Server, name: &str) -> Option<(ErrorCode, String)> {
    let head = Request::Head { repository: name.to_owned() };
    let answer = soon(async { server.client().await.ask(&head).await }).await;
    answer.error.map(|(code, message)| (code, message.replace(&format!("'{name}'"), "'NAME'")))
}

#[tokio::test]
async fn a_repository_with_hiding_rules_is_not_served_natively_unless_configured() {
    let fixture = Fixture::with(&[("keep", b"x"), ("secret", b"y")]);
    let rule = |rule: &str| vec![rule.to_owned()];
    let file = fixture.dir.path().join("patterns");
    std::fs::write(&file, "/secret\n").unwrap();
    let hiding = [
        ModuleRules { exclude: rule("/secret"), ..ModuleRules::default() },
        ModuleRules { filter: rule("- /secret"), ..ModuleRules::default() },
        ModuleRules { exclude_from: Some(file), ..ModuleRules::default() },
    ];
    for rules in hiding {
        let with = |natively| {
            let rules = rules.clone();
            fixture.config(move |config| {
                config.repositories[0].module.rules = rules;
                config.repositories[0].serve_hidden_natively = natively;
            })
        };
        let server = Server::start(with(false)).await;
        assert!(announced(&server).await.is_empty(), "{rules:?}");
        let (code, message) = asked_for(&server, "repo").await.unwrap();
        assert!(code == ErrorCode::Refused && message.contains("rules"), "{message}");
        rsync(&server, &["-r", "--list-only"], "repo/", None).await.exits(0).says("keep");
        let server = Server::start(with(true)).await;
        assert_eq!((announced(&server).await.len(), asked_for(&server, "repo").await), (1, None), "{rules:?}");
    }
    let keeping = ModuleRules { include: rule("*"), filter: rule("+ /keep"), ..ModuleRules::default() };
    let server = Server::start(fixture.config(|config| config.repositories[0].module.rules = keeping)).await;
    assert_eq!((announced(&server).await.len(), asked_for(&server, "repo").await), (1, None));
}

#[tokio::test]
async fn heads_are_announced_only_to_clients_with_access() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let deny = Hosts { allow: Vec::new(), deny: vec!["127.0.0.0/8".parse().unwrap()] };
    let denied = Server::start(fixture.config(|config| config.repositories[0].hosts = deny)).await;
    let users = users(&fixture);
    let private = Server::start(fixture.config(|config| config.repositories[0].users = users)).await;
    for (server, is_shown) in [(&fixture.serve().await, true), (&denied, false), (&private, false)] {
        assert_eq!(announced(server).await, [("repo".to_owned(), is_shown)]);
    }
}

/// Returns the users of a module: only `anna`, whose password is `right`.
fn users(fixture: &Fixture) -> Users {
    let secrets = fixture.dir.path().join("secrets");
    std::fs::write(&secrets, "anna:right\n").unwrap();
    std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o600)).unwrap();
    Users { names: vec!["anna".to_owned()], secrets }
}

/// Runs a stock client that asks for a module as `anna`. Returns its exit code and standard error, with the module's name
/// replaced.
async fn log_in(server: &Server, name: &str, address: &str, password: &str) -> (Option<i32>, String) {
    let options = ["-r", "--list-only", &format!("--address={address}")];
    let ran = rsync_with(server, &options, &format!("{name}/"), None, |command| {
        command.env("RSYNC_PASSWORD", password).env("USER", "anna").env("LOGNAME", "anna");
    })
    .await;
    (ran.code, ran.err.replace(name, "NAME"))
}

#[tokio::test]
async fn an_unlisted_repository_cannot_be_told_from_a_missing_one() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let (users, denying) = (users(&fixture), Hosts { allow: Vec::new(), deny: vec!["127.0.0.1".parse().unwrap()] });
    for (has_users, is_denied) in [(true, false), (false, true), (true, true)] {
        let change = |config: &mut Config| {
            let repository = &mut config.repositories[0];
            repository.list = false;
            repository.users = if has_users { users.clone() } else { Users::default() };
            repository.hosts = if is_denied { denying.clone() } else { Hosts::default() };
        };
        let server = Server::start(fixture.config(change)).await;
        let (there, absent) = (asked_for(&server, "repo").await, asked_for(&server, "none").await);
        assert_eq!(there, absent, "users: {has_users}, denied: {is_denied}");
        assert_eq!(there.unwrap().0, ErrorCode::UnknownRepository);
        for password in ["wrong", ""] {
            let there = log_in(&server, "repo", "127.0.0.1", password).await;
            let absent = log_in(&server, "none", "127.0.0.1", password).await;
            assert_eq!(there, absent, "users: {has_users}, denied: {is_denied}");
            assert_eq!(there.0, Some(5), "{}", there.1);
        }
    }
}

#[tokio::test]
async fn failed_logins_delay_only_their_own_network() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let users = users(&fixture);
    let server = Server::start(fixture.config(|config| config.repositories[0].users = users)).await;
    let server = std::sync::Arc::new(server);
    for _ in 0..4 {
        assert_eq!(log_in(&server, "repo", "127.0.0.2", "wrong").await.0, Some(5));
    }
    // By now, attempts wait one behind the other, for a second each.
    let attempts = (0..4).map(|_| {
        let server = std::sync::Arc::clone(&server);
        tokio::spawn(async move { log_in(&server, "repo", "127.0.0.2", "right").await.0 })
    });
    let attempts: Vec<_> = attempts.collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(log_in(&server, "repo", "127.0.0.1", "right").await.0, Some(0));
    assert!(attempts.iter().any(|attempt| !attempt.is_finished()), "no attempt waits");
    let mut codes = Vec::new();
    for attempt in attempts {
        codes.push(soon(attempt).await.unwrap());
    }
    assert_eq!(codes, [Some(0); 4]);
}
