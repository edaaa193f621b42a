use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use stillmirror_daemon::{Config, Daemon, DirectPolicy, Listeners};
use stillmirror_protocol::wire::ClientHello;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::support::{Client, Fixture, noise, soon};

/// A running daemon with a socket for metrics.
struct Observed {
    addr: SocketAddr,
    http: SocketAddr,
}

impl Observed {
    async fn start(config: Config) -> Self {
        let (all, http) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let observed = Self { addr: all.local_addr().unwrap(), http: http.local_addr().unwrap() };
        let mut listeners = Listeners::from(all);
        listeners.add_metrics(http);
        let daemon = Daemon::open(config).await.unwrap();
        tokio::spawn(daemon.run(listeners, std::future::pending()));
        observed
    }

    /// Returns the value of each metric that has labels or is one of the plain ones.
    async fn metrics(&self) -> BTreeMap<String, f64> {
        let mut socket = TcpStream::connect(self.http).await.unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (_, text) = answer.split_once("\r\n\r\n").unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        lines.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
    }

    /// Waits until this many bytes of contents have come from these sources. They are counted once they are sent.
    async fn contents(&self, sources: &[&str], bytes: usize) {
        let name = |source: &&str| {
            format!("stillmirror_content_bytes_total{{dialect=\"native\",repository=\"repo\",source=\"{source}\"}}")
        };
        soon(async {
            loop {
                let metrics = self.metrics().await;
                if sources.iter().filter_map(|source| metrics.get(&name(source))).sum::<f64>() == bytes as f64 {
                    return;
                }
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Waits until connections of this kind have ended for this cause.
    async fn ended(&self, dialect: &str, cause: &str) {
        let words = [format!("dialect=\"{dialect}\""), format!("cause=\"{cause}\"")];
        soon(async {
            loop {
                let metrics = self.metrics().await;
                let is_meant =
                    |name: &str| name.contains("_ended_total") && words.iter().all(|word| name.contains(word));
                if metrics.keys().any(|name| is_meant(name)) {
                    return;
                }
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn contents_are_counted_by_where_they_came_from_while_the_session_runs() {
    let large = noise(3_000_000);
    let fixture = Fixture::new();
    fixture.write("large", &large);
    fixture.write("small", b"hello");
    fixture.index_with_contents();
    for policy in [DirectPolicy::Never, DirectPolicy::Always] {
        let observed = Observed::start(fixture.config(|config| config.repositories[0].direct = policy)).await;
        let mut client = Client::connect(observed.addr).await;
        let (handle, _) = client.pin().await;
        soon(client.data(handle, vec![fixture.whole("small"), fixture.whole("large")])).await;
        observed.contents(&["pack"], 5).await;
        let disk: &[&str] = match policy {
            DirectPolicy::Never => &["page_cache"],
            // File systems without direct reads give the others.
            _ => &["direct", "buffered", "page_cache"],
        };
        observed.contents(disk, large.len()).await;
        // What the daemon has read is kept in its memory, because it is less than an eighth of the cache.
        if policy == DirectPolicy::Always {
            soon(client.data(handle, vec![fixture.whole("large")])).await;
            observed.contents(&["cache"], large.len()).await;
        }
    }
}

#[tokio::test]
async fn connections_without_a_session_are_counted_by_their_cause() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let observed = Observed::start(fixture.config(|config| {
        config.limits.connections = 1;
        config.limits.queue = 0;
        config.limits.connections_per_address = 3;
        config.limits.handshake = Duration::from_millis(300);
    }))
    .await;
    let _holder = Client::connect(observed.addr).await;
    let mut refused = Client::connect(observed.addr).await;
    assert!(soon(refused.frame()).await.is_some());
    observed.ended("native", "queue_full").await;
    drop(refused);
    TcpStream::connect(observed.addr).await.unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    observed.ended("unknown", "unknown_protocol").await;
    drop(TcpStream::connect(observed.addr).await.unwrap());
    observed.ended("unknown", "disconnected").await;
    let _silent = TcpStream::connect(observed.addr).await.unwrap();
    observed.ended("unknown", "request_timeout").await;
    let mut many: Vec<TcpStream> = Vec::new();
    for _ in 0..4 {
        let mut socket = TcpStream::connect(observed.addr).await.unwrap();
        let _ = socket.write_all(&ClientHello::OURS.encode()).await;
        many.push(socket);
    }
    observed.ended("native", "address_limit").await;
}

#[tokio::test]
async fn running_sessions_and_followers_are_counted_until_they_end() {
    let fixture = Fixture::with(&[("a", b"x")]);
    let observed = Observed::start(fixture.config(|_| {})).await;
    let running = async |dialect: &str, number: f64| {
        let begin = format!("stillmirror_sessions{{dialect=\"{dialect}\"");
        soon(async {
            loop {
                let metrics = observed.metrics().await;
                let all = metrics.iter().filter(|(name, _)| name.starts_with(&begin)).map(|(_, value)| value);
                if all.sum::<f64>() == number {
                    return;
                }
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    };
    let mut client = Client::connect(observed.addr).await;
    running("native", 1.0).await;
    client.pin().await;
    running("native", 1.0).await;
    let follower = Client::connect_as(observed.addr, ClientHello::FOLLOWER).await;
    running("follower", 1.0).await;
    drop((client, follower));
    running("native", 0.0).await;
    running("follower", 0.0).await;
    observed.ended("native", "done").await;
}
