//! Clients of both dialects within TLS: openssl, stock rsync through rsync-ssl, and native clients.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use stillmirror_daemon::{Config, Daemon, Port, TlsConfig};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::wire::{ClientHello, ErrorCode, Reply, Request, fingerprint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::rsync::support::{assert_same, dest, index_aged};
use crate::support::*;

/// Makes a certificate for localhost that signs itself, and its key.
fn issue(dir: &Path, name: &str) -> TlsConfig {
    let file = |ending: &str| dir.join(format!("{name}.{ending}"));
    let (certificate, key) = (file("pem"), file("key"));
    let config = file("conf");
    let text = "[req]\ndistinguished_name = name\nx509_extensions = own\nprompt = no\n[name]\nCN = mirror\n[own]\n\
                subjectAltName = DNS:localhost, IP:127.0.0.1\n";
    std::fs::write(&config, text).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    openssl.arg("-config").arg(config);
    openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    let made = openssl.output().expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    TlsConfig { certificate, key }
}

/// Serves a fixture within TLS.
async fn serve(fixture: &Fixture, change: impl FnOnce(&mut Config)) -> (Server, TlsConfig) {
    let files = issue(fixture.dir.path(), "first");
    let config = fixture.config(|config| {
        config.tls = Some(files.clone());
        change(config);
    });
    (Server::start_on(config, &[Port::Tls, Port::All]).await, files)
}

/// Connects as a client that trusts this certificate alone.
async fn connect(server: &Server, certificate: &Path) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let socket = TcpStream::connect(server.addr).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config.with_no_client_auth())).connect(name, socket).await
}

async fn client(server: &Server, files: &TlsConfig) -> Client<TlsStream<TcpStream>> {
    Client::begin(soon(connect(server, &files.certificate)).await.unwrap(), ClientHello::OURS).await
}

/// A tree with small files, one that fills many records, and directories.
fn fixture() -> Fixture {
    let large = noise(5 << 20);
    let mut files: Vec<(String, Vec<u8>)> = (0..50).map(|at| (format!("many/{at}"), noise(at * 700))).collect();
    files.push(("large".to_owned(), large));
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, content)| (&name[..], &content[..])).collect();
    Fixture::with(&files)
}

#[tokio::test]
async fn openssl_is_greeted_and_lists_the_repositories_with_every_version_of_tls() {
    let fixture = fixture();
    let (server, files) = serve(&fixture, |_| {}).await;
    for version in ["-tls1_2", "-tls1_3"] {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-quiet", "-verify_return_error", version, "-connect", &server.addr.to_string()]);
        openssl.arg("-CAfile").arg(&files.certificate).stdin(Stdio::piped()).stdout(Stdio::piped());
        let talk = move || {
            let mut peer = openssl.stderr(Stdio::null()).spawn().expect("openssl is installed");
            peer.stdin.as_mut().unwrap().write_all(b"@RSYNCD: 31.0\n#list\n").unwrap();
            let mut said = String::new();
            peer.stdout.take().unwrap().read_to_string(&mut said).unwrap();
            peer.wait().unwrap();
            said
        };
        let said = soon(tokio::task::spawn_blocking(talk)).await.unwrap();
        assert!(said.starts_with("@RSYNCD: 32.0 "), "{version}: {said}");
        assert!(said.ends_with("repo           \ta test\n@RSYNCD: EXIT\n"), "{version}: {said}");
    }
}

#[tokio::test]
async fn rsync_pulls_through_rsync_ssl() {
    let fixture = fixture();
    let (server, files) = serve(&fixture, |_| {}).await;
    index_aged(&fixture);
    for protocol in ["--protocol=31", "--protocol=32"] {
        let dest = dest(&fixture);
        let mut rsync = Command::new("rsync-ssl");
        rsync.args(["-aH", protocol, &format!("rsync://localhost:{}/repo/", server.addr.port())]).arg(&dest);
        rsync.env("RSYNC_SSL_TYPE", "openssl").env("RSYNC_SSL_CA_CERT", &files.certificate);
        let pulled = soon(tokio::task::spawn_blocking(move || rsync.output())).await.unwrap();
        let pulled = pulled.expect("rsync-ssl is installed");
        assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
        assert_same(&fixture.root(), &dest);
        std::fs::remove_dir_all(dest).unwrap();
    }
}

#[tokio::test]
async fn native_clients_get_the_same_as_without_tls() {
    let fixture = fixture();
    let (server, files) = serve(&fixture, |_| {}).await;
    let mut client = client(&server, &files).await;
    let (handle, _) = soon(client.pin()).await;
    let wanted: Vec<_> =
        ["large", "many/1", "many/49", "large", "many/0"].iter().map(|path| fixture.whole(path)).collect();
    let answer = soon(client.data(handle, wanted.clone())).await;
    let mut plain = Client::connect(server.addrs[1]).await;
    let (handle, _) = soon(plain.pin()).await;
    assert!(answer == soon(plain.data(handle, wanted)).await);
}

#[tokio::test]
async fn a_client_that_sends_no_more_still_gets_its_answers() {
    let fixture = fixture();
    let (server, files) = serve(&fixture, |_| {}).await;
    let mut client = client(&server, &files).await;
    let (handle, _) = soon(client.pin()).await;
    let requests = [fixture.whole("large"), fixture.whole("many/7")];
    let mut numbers = Vec::new();
    for item in requests {
        numbers.push(client.send(&Request::Data { handle, items: vec![item] }).await);
    }
    // This announces the end within TLS, and then closes this half of the socket.
    client.socket.shutdown().await.unwrap();
    for (number, item) in numbers.into_iter().zip(requests) {
        assert_eq!(soon(client.answer(number)).await.bytes.len() as u64, item.len);
    }
    let mut rest = Vec::new();
    soon(client.socket.read_to_end(&mut rest)).await.expect("the daemon announces the end, too");
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_follower_within_tls_is_told_and_is_missed_when_it_leaves() {
    let fixture = fixture();
    let (server, files) = serve(&fixture, |config| config.limits.followers = 1).await;
    let follow = || Request::Follow { repository: "repo".to_owned(), known: Digest::NONE };
    for _ in 0..3 {
        let mut follower = loop {
            let socket = soon(connect(&server, &files.certificate)).await.unwrap();
            let mut follower = Client::begin(socket, ClientHello::FOLLOWER).await;
            let number = follower.send(&follow()).await;
            match soon(follower.frame()).await {
                // The daemon has not noticed yet that the one before has left.
                Some((header, payload)) if header.request == 0 => {
                    let refused = Reply::decode(header.kind, &payload).unwrap();
                    assert!(matches!(refused, Reply::Error { code: ErrorCode::Refused, .. }), "{refused:?}");
                }
                Some((header, _)) => {
                    assert_eq!(header.request, number);
                    break follower;
                }
                None => {}
            }
        };
        let current = fixture.current();
        let known = fingerprint(current.head_bytes(), current.signature());
        let waiting = follower.send(&Request::Follow { repository: "repo".to_owned(), known }).await;
        fixture.write("more", &noise(fixture.current().head().generation as usize));
        fixture.index();
        while soon(follower.answer(waiting)).await.news.is_none() {}
    }
}

#[tokio::test]
async fn the_session_of_a_client_that_does_not_read_is_ended() {
    let content = noise(24 << 20);
    let fixture = Fixture::with(&[("big", &content)]);
    let (server, files) = serve(&fixture, |config| {
        config.limits.rate_window = Duration::from_millis(200);
        config.limits.connections = 1;
    })
    .await;
    let mut stalled = client(&server, &files).await;
    let (handle, _) = soon(stalled.pin()).await;
    stalled.send(&Request::Data { handle, items: vec![fixture.whole("big")] }).await;
    // The only slot becomes free once the stalled session is ended.
    let mut next = client(&server, &files).await;
    soon(next.pin()).await;
}

#[tokio::test]
async fn many_sessions_that_are_slow_get_everything_although_buffers_are_short() {
    let content = noise(3 << 20);
    let fixture = Fixture::with(&[("big", &content)]);
    let (server, files) = serve(&fixture, |config| {
        config.memory.cache = 0;
        config.memory.buffers = 2 << 20;
        config.limits.minimum_rate = 0;
    })
    .await;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut client = client(&server, &files).await;
        let (handle, _) = soon(client.pin()).await;
        let items = vec![fixture.whole("big"), fixture.whole("big")];
        let request = client.send(&Request::Data { handle, items }).await;
        stalled.push((client, request));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for (mut client, request) in stalled {
        let answer = soon(client.answer(request)).await.bytes;
        assert!(answer == [&content[..], &content[..]].concat());
    }
}

#[tokio::test]
async fn handshakes_that_are_cut_half_way_end_at_the_deadline_and_nobody_else_waits() {
    let fixture = fixture();
    let (server, files) = serve(&fixture, |config| {
        config.limits.handshake = Duration::from_millis(500);
        config.limits.connections_per_address = 60;
    })
    .await;
    // The first bytes of a client's hello, and what is no TLS at all.
    let begun = [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"@RSYNCD: 31.0\n"];
    let mut halves = Vec::new();
    for at in 0..50 {
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        socket.write_all(begun[at % begun.len()]).await.unwrap();
        halves.push(socket);
    }
    let mut honest = client(&server, &files).await;
    soon(honest.pin()).await;
    for mut socket in halves {
        let mut said = Vec::new();
        let _ = soon(socket.read_to_end(&mut said)).await;
        // At most an alert.
        assert!(said.is_empty() || said[0] == 0x15, "{said:?}");
    }
    soon(honest.pin()).await;
}

#[tokio::test]
async fn a_reload_replaces_the_certificate_for_new_connections_under_load() {
    let fixture = fixture();
    let (server, files) = serve(&fixture, |_| {}).await;
    let mut old = client(&server, &files).await;
    let first = fixture.dir.path().join("trusted-before.pem");
    std::fs::copy(&files.certificate, &first).unwrap();
    let second = issue(fixture.dir.path(), "second");

    // A key without its certificate changes nothing.
    std::fs::copy(&second.key, &files.key).unwrap();
    let config = fixture.config(|config| config.tls = Some(files.clone()));
    let error = soon(server.reload.reconfigure(config.clone())).await.unwrap_err();
    assert!(error.to_string().contains("does not belong to the certificate"), "{error}");
    soon(connect(&server, &first)).await.expect("the old pair stays in use");

    std::fs::copy(&second.certificate, &files.certificate).unwrap();
    let pulls = tokio::spawn({
        let large = fixture.whole("large");
        let mut client = client(&server, &TlsConfig { certificate: first.clone(), key: files.key.clone() }).await;
        async move {
            let (handle, _) = soon(client.pin()).await;
            for _ in 0..20 {
                assert_eq!(soon(client.data(handle, vec![large])).await.bytes.len() as u64, large.len);
            }
        }
    });
    soon(server.reload.reconfigure(config)).await.unwrap();
    soon(connect(&server, &second.certificate)).await.expect("the new certificate");
    assert!(connect(&server, &first).await.is_err(), "the old certificate is gone");
    pulls.await.unwrap();
    soon(old.pin()).await;
}

#[tokio::test]
async fn unusable_certificates_and_keys_are_named_at_the_start() {
    let fixture = fixture();
    let (one, other) = (issue(fixture.dir.path(), "one"), issue(fixture.dir.path(), "other"));
    let refused = async |certificate: &Path, key: &Path| {
        let tls = Some(TlsConfig { certificate: certificate.to_owned(), key: key.to_owned() });
        let opened = Daemon::open(Config { tls, ..Config::default() }).await;
        opened.err().expect("it is refused").to_string()
    };
    let (certificate, key) = (one.certificate.display(), other.key.display());
    assert_eq!(
        refused(&one.certificate, &other.key).await,
        format!("the key {key} does not belong to the certificate {certificate}")
    );
    let missing = fixture.dir.path().join("missing");
    assert!(refused(&missing, &one.key).await.starts_with(&format!("cannot read {}: ", missing.display())));
    let has_none = refused(&one.key, &one.key).await;
    assert_eq!(has_none, format!("{} has no certificate in PEM format", one.key.display()));
    let has_none = refused(&one.certificate, &one.certificate).await;
    assert_eq!(has_none, format!("the key {certificate} is accessible to everybody; run `chmod o-rwx` on it"));
    let copy = fixture.dir.path().join("copy");
    std::fs::copy(&one.certificate, &copy).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&copy, mode).unwrap();
    let has_none = refused(&one.certificate, &copy).await;
    assert_eq!(has_none, format!("{} has no private key in PEM format", copy.display()));
}
