use std::time::Duration;

use stillmirror_daemon::{Config, RuleLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{assert_same, begin_29, dest, exchange, holds, index_aged, rsync};
use crate::support::{Fixture, Server, noise, soon};

/// Starts a daemon with short timeouts.
async fn server(fixture: &Fixture) -> Server {
    let change = |config: &mut Config| {
        config.limits.handshake = Duration::from_millis(300);
        config.repositories[0].module.timeout = Duration::from_millis(300);
        config.limits.rate_window = Duration::from_millis(500);
    };
    Server::start(fixture.config(change)).await
}

#[tokio::test]
async fn an_invalid_greeting_gets_an_error_line() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = server(&fixture).await;
    let long = [b"@RSYNCD: 31.0\n".as_slice(), &[b'x'; 8000]].concat();
    for bytes in [
        b"@RSYNCD: nonsense\n".as_slice(),
        b"@RSYNCD: 12.0\nrepo\n",
        b"@RSYNCD: 31.0\n#early_input=999999999\n",
        b"@RSYNCD: 31.0\n#what\n",
        b"@RSYNCD: 31.0\nre\0po\n",
        b"@RSYNCD: 31.0\n../repo\n",
        &long,
    ] {
        let answer = exchange(&server, bytes).await;
        assert!(
            holds(&answer, "@ERROR: "),
            "{}: {}",
            bytes[..20.min(bytes.len())].escape_ascii(),
            answer.escape_ascii()
        );
    }
}

#[tokio::test]
async fn endless_arguments_end_the_session() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = server(&fixture).await;
    let many = [b"@RSYNCD: 31.0\nrepo\n".to_vec(), b"--server\0".repeat(100_000)].concat();
    let long = [b"@RSYNCD: 31.0\nrepo\n".to_vec(), vec![b'x'; 4 << 20]].concat();
    for bytes in [many, long] {
        assert!(holds(&exchange(&server, &bytes).await, "arguments"));
    }
}

#[tokio::test]
async fn invalid_requests_end_the_session_with_a_message() {
    let fixture = Fixture::with(&[("a", b"x"), ("b", b"y")]);
    let server = server(&fixture).await;
    let request = |fields: &[i32]| {
        // The index, 16 bits of flags, and the header of the block checksums.
        let mut bytes = fields[0].to_le_bytes().to_vec();
        bytes.extend_from_slice(&0x8000u16.to_le_bytes());
        fields[1..].iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
        bytes
    };
    for bytes in [
        request(&[1000, 0, 0, 0, 0]),
        request(&[i32::MAX, 0, 0, 0, 0]),
        request(&[-7, 0, 0, 0, 0]),
        // The root, which is not a file.
        request(&[0, 0, 0, 0, 0]),
        request(&[1, -1, 0, 0, 0]),
        request(&[1, 1, i32::MAX, 16, 0]),
        request(&[1, 1, 700, 1000, 0]),
        // More ends than lists and phases.
        [-1i32; 9].iter().flat_map(|ndx| ndx.to_le_bytes()).collect(),
    ] {
        let answer = exchange(&server, &[begin_29("-r"), bytes.clone()].concat()).await;
        assert!(holds(&answer, "@RSYNCD: OK"), "{}", answer.escape_ascii());
        let is_ended = holds(&answer, "invalid") || holds(&answer, "phases");
        assert!(is_ended || bytes.len() == 36, "{}: {}", bytes.escape_ascii(), answer.escape_ascii());
    }
}

#[tokio::test]
async fn endless_rules_end_the_session() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = server(&fixture).await;
    let text = b"@RSYNCD: 29\nrepo\n--server\n--sender\n-r\n.\nrepo/\n\n".to_vec();
    let rule = [&4i32.to_le_bytes()[..], b"- ab"].concat();
    for rules in [rule.repeat(50_000), i32::MAX.to_le_bytes().to_vec(), (-5i32).to_le_bytes().to_vec()] {
        let answer = exchange(&server, &[text.clone(), rules].concat()).await;
        assert!(holds(&answer, "@RSYNCD: OK") && !holds(&answer, "\0a\0"), "{}", answer.escape_ascii());
    }
}

/// Writes a file of `count` rules of 80 bytes each. Returns the option that names it.
fn rules(fixture: &Fixture, count: usize) -> String {
    let file = fixture.dir.path().join(format!("rules-{count}"));
    let rules: String = (0..count).map(|number| format!("- /{number:y<77}\n")).collect();
    std::fs::write(&file, rules).unwrap();
    format!("--exclude-from={}", file.display())
}

#[tokio::test]
async fn a_client_is_told_why_its_session_ends_while_it_still_sends() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let refuse = |config: &mut Config| config.repositories[0].module.refuse_options = vec!["checksum".to_owned()];
    let server = Server::start(fixture.config(refuse)).await;
    // More rules than fit into the buffers of both sockets.
    let (many, dest) = (rules(&fixture, 100_000), dest(&fixture));
    let paths: Vec<String> = (0..600).map(|number| format!("rsync://{}/repo/{number:y<2000}", server.addr)).collect();
    for protocol in 27..=32 {
        let version = format!("--protocol={protocol}");
        let ran = rsync(&server, &["-r", &version, &many], "repo/", Some(&dest)).await;
        ran.says("more than 10000 filter rules").exits(if protocol < 31 { 12 } else { 4 });
        let ran = rsync(&server, &["-rc", &version, &many], "repo/", Some(&dest)).await;
        ran.says("refuse --checksum").exits(if protocol < 31 { 12 } else { 4 });
        let arguments: Vec<&str> = ["-r", &version].into_iter().chain(paths.iter().map(String::as_str)).collect();
        let ran = rsync(&server, &arguments, "repo/", Some(&dest)).await;
        ran.says("more than 16384 arguments").exits(if protocol < 31 { 12 } else { 5 });
    }
}

#[tokio::test]
async fn a_client_with_thousands_of_rules_is_served_up_to_the_configured_limit() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    for protocol in ["--protocol=28", "--protocol=30", "--protocol=32"] {
        let listed = rsync(&server, &["-r", "--list-only", protocol, &rules(&fixture, 4000)], "repo/", None).await;
        listed.exits(0).says(" a\n");
    }
    let few = |config: &mut Config| config.rsync.rule_limits = RuleLimits { count: 100, bytes: 5000 };
    let server = Server::start(fixture.config(few)).await;
    let ran = rsync(&server, &["-r", "--list-only", &rules(&fixture, 101)], "repo/", None).await;
    ran.exits(4).says("filter rules of more than 5000 bytes");
    let exclude = ["--exclude=a"; 101];
    let ran = rsync(&server, &[&["-r", "--list-only"][..], &exclude].concat(), "repo/", None).await;
    ran.exits(4).says("more than 100 filter rules");
}

#[tokio::test]
async fn the_session_of_a_silent_client_is_ended_at_every_stage() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = server(&fixture).await;
    let whole = begin_29("-r");
    for len in [1, 9, 12, 20, 40, whole.len() - 4, whole.len()] {
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        socket.write_all(&whole[..len]).await.unwrap();
        let mut answer = Vec::new();
        let _ = soon(socket.read_to_end(&mut answer)).await;
    }
}

#[tokio::test]
async fn random_bytes_after_an_honest_start_do_no_harm() {
    let fixture = Fixture::with(&[("a", &noise(100_000)), ("dir/b", b"y")]);
    index_aged(&fixture);
    let server = server(&fixture).await;
    let start = b"@RSYNCD: 31.0\nrepo\n--server\0--sender\0-logDtpre.iLsfxCIvu\0.\0repo/\0\0".to_vec();
    let noise = noise(64 << 10);
    for at in 0..60 {
        let junk = &noise[at * 1000..at * 1000 + 100 + at * 13];
        exchange(&server, &[start.as_slice(), junk].concat()).await;
        let framed = [&((junk.len() as u32) | 7 << 24).to_le_bytes()[..], junk].concat();
        let names = b"\x04\x06xxh128".as_slice();
        exchange(&server, &[start.as_slice(), names, &framed].concat()).await;
    }
    rsync(&server, &["-a"], "repo/", Some(&dest(&fixture))).await.exits(0);
    assert_same(&fixture.root(), &dest(&fixture));
}

#[tokio::test]
async fn any_number_of_requests_with_long_basis_names_is_answered() {
    const REQUESTS: usize = 3000;
    let fixture = Fixture::with(&[("a", b"x")]);
    let server = fixture.serve().await;
    // The index, the flags, and a name of 4000 bytes.
    let request = [&1i32.to_le_bytes()[..], &0x1000u16.to_le_bytes(), &[0x8f, 0xa0], &[b'~'; 4000]].concat();
    let (mut from, mut to) = TcpStream::connect(server.addr).await.unwrap().into_split();
    let ask = async {
        to.write_all(&[begin_29("-r"), request.repeat(REQUESTS)].concat()).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut answer = Vec::new();
    let (_, read) = soon(async { tokio::join!(ask, from.read_to_end(&mut answer)) }).await;
    read.unwrap();
    // The times in the list may contain that byte too.
    let extra = answer.iter().filter(|&&byte| byte == b'~').count().checked_sub(REQUESTS * 4000);
    assert!(extra.is_some_and(|extra| extra < 100), "{extra:?} more bytes than the names have");
}

#[tokio::test]
async fn stalled_clients_do_not_block_an_honest_one() {
    let fixture = Fixture::with(&[("big", &noise(8 << 20))]);
    index_aged(&fixture);
    let config = fixture.config(|config| (config.memory.cache, config.memory.buffers) = (0, 2 << 20));
    let server = Server::start(config).await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        let request = [&1i32.to_le_bytes()[..], &0x8000u16.to_le_bytes(), &[0; 16]].concat();
        socket.write_all(&[begin_29("-r"), request].concat()).await.unwrap();
        stalled.push(socket);
    }
    rsync(&server, &["-a"], "repo/", Some(&dest(&fixture))).await.exits(0);
    assert_same(&fixture.root(), &dest(&fixture));
}
