use std::time::{Duration, Instant};

use stillmirror_daemon::Config;
use stillmirror_protocol::wire::Request;

use crate::rsync::support::{assert_same, dest, index_aged, rsync};
use crate::support::{Fixture, Server, noise, soon};

/// The limit in bytes a second.
const RATE: u64 = 1 << 20;
/// Bytes that may be sent at once: the amount of an eighth of a second.
const BURST: u64 = RATE / 8;
const SIZE: usize = 2 << 20;

/// The name of a bandwidth limit, and how to set it.
type Limit = (&'static str, fn(&mut Config));

const LIMITS: [Limit; 3] = [
    ("per connection", |config| config.limits.bandwidth_per_connection = RATE),
    ("per repository", |config| config.repositories[0].bandwidth = RATE),
    ("in total", |config| config.limits.bandwidth = RATE),
];

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write("big", &noise(SIZE));
    (0..50).for_each(|number| fixture.write(&format!("small/{number}"), &noise(1000 + number)));
    index_aged(&fixture);
    fixture
}

async fn serve(fixture: &Fixture, change: impl FnOnce(&mut Config)) -> Server {
    Server::start(fixture.config(|config| {
        // A delay by a bandwidth limit must not count against the client.
        config.limits.minimum_rate = 4 * RATE;
        config.limits.rate_window = Duration::from_millis(300);
        config.limits.idle = Duration::from_millis(500);
        change(config);
    }))
    .await
}

async fn pull(server: &Server, fixture: &Fixture) -> bool {
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let content = client.data(handle, vec![fixture.whole("big")]).await.bytes;
    content == std::fs::read(fixture.root().join("big")).unwrap()
}

/// Expects that `bytes` bytes were not sent faster than the rate allows.
#[track_caller]
fn assert_within_rate(began: Instant, bytes: u64, rate: u64, what: &str) {
    let least = Duration::from_secs_f64((bytes - BURST) as f64 / rate as f64);
    assert!(began.elapsed() >= least, "{what}: {bytes} bytes in {:?}", began.elapsed());
}

#[tokio::test]
async fn a_native_client_gets_no_more_than_each_limit_allows() {
    let fixture = fixture();
    for (what, limit) in LIMITS {
        let server = serve(&fixture, limit).await;
        let began = Instant::now();
        assert!(soon(pull(&server, &fixture)).await, "{what}");
        assert_within_rate(began, SIZE as u64, RATE, what);
    }
}

#[tokio::test]
async fn an_rsync_client_gets_no_more_than_each_limit_allows() {
    let fixture = fixture();
    for (what, limit) in LIMITS {
        let server = serve(&fixture, limit).await;
        let dest = fixture.dir.path().join(what);
        let began = Instant::now();
        rsync(&server, &["-aH"], "repo/", Some(&dest)).await.exits(0);
        assert_within_rate(began, SIZE as u64, RATE, what);
        assert_same(&fixture.root(), &dest);
    }
}

#[tokio::test]
async fn an_rsync_client_gets_no_more_than_it_asks_for() {
    let fixture = fixture();
    let server = fixture.serve().await;
    let began = Instant::now();
    rsync(&server, &["-a", "--bwlimit=1024"], "repo/", Some(&dest(&fixture))).await.exits(0);
    assert_within_rate(began, SIZE as u64, RATE, "--bwlimit");
}

#[tokio::test]
async fn clients_of_both_kinds_share_a_common_limit() {
    let fixture = fixture();
    for (what, limit) in [LIMITS[1], LIMITS[2]] {
        let server = serve(&fixture, limit).await;
        let dest = fixture.dir.path().join(what);
        let began = Instant::now();
        let stock = rsync(&server, &["-aH"], "repo/", Some(&dest));
        let (first, second, stock) =
            soon(async { tokio::join!(pull(&server, &fixture), pull(&server, &fixture), stock) }).await;
        stock.exits(0);
        assert!(first && second, "{what}");
        assert_within_rate(began, 3 * SIZE as u64, RATE, what);
    }
}

#[tokio::test]
async fn the_lowest_of_several_limits_applies() {
    let fixture = fixture();
    let server = serve(&fixture, |config| {
        config.limits.bandwidth_per_connection = 8 * RATE;
        config.repositories[0].bandwidth = RATE;
        config.limits.bandwidth = 4 * RATE;
    })
    .await;
    let began = Instant::now();
    assert!(soon(pull(&server, &fixture)).await);
    assert_within_rate(began, SIZE as u64, RATE, "all three");
}

#[tokio::test]
async fn the_limit_applies_to_lists_too() {
    let fixture = Fixture::new();
    fixture.write("first", b"x");
    for number in 0..4000 {
        let name = format!("{number:04}{:x<96}", "");
        std::fs::hard_link(fixture.root().join("first"), fixture.root().join(name)).unwrap();
    }
    fixture.index();
    let rate = 128 << 10;
    let server = serve(&fixture, |config| config.limits.bandwidth = rate).await;
    let began = Instant::now();
    let listed = rsync(&server, &["-r", "--list-only"], "repo/", None).await;
    assert_eq!(listed.exits(0).out.lines().count(), 4002);
    // A name shares at most its first three bytes with the name before, so the list is hardly compressed.
    assert_within_rate(began, 4000 * 97, rate, "the list");
}

#[tokio::test]
async fn a_session_that_a_limit_delays_gives_its_buffer_to_others() {
    let fixture = fixture();
    let server = serve(&fixture, |config| {
        (config.memory.cache, config.memory.buffers) = (0, 1 << 20);
        config.limits.bandwidth_per_connection = 16 << 10;
    })
    .await;
    let mut slow = server.client().await;
    let (handle, _) = soon(slow.pin()).await;
    slow.send(&Request::Data { handle, items: vec![fixture.whole("big")] }).await;
    soon(slow.socket.readable()).await.unwrap();
    // The slow session would keep the only buffer for a minute.
    let mut other = server.client().await;
    let (handle, _) = soon(other.pin()).await;
    assert_eq!(soon(other.data(handle, vec![fixture.whole("small/7")])).await.bytes, noise(1007));
    let mut sent = vec![0; 1 << 20];
    assert!(
        slow.socket.try_read(&mut sent).unwrap() < sent.len(),
        "the slow session had sent all of its buffer already"
    );
}

#[tokio::test]
async fn a_bwlimit_below_the_minimum_is_raised_and_the_client_is_told() {
    let fixture = fixture();
    let server = Server::start(fixture.config(|config| config.limits.minimum_bwlimit = 1 << 30)).await;
    // At 1 KiB a second, this would exceed the timeout of these tests.
    let ran = rsync(&server, &["-a", "--bwlimit=1"], "repo/", Some(&dest(&fixture))).await;
    ran.exits(0).says("--bwlimit of 1024 bytes a second is raised to 1073741824");
    for protocol in ["--protocol=29", "--protocol=27"] {
        let dest = fixture.dir.path().join(protocol);
        rsync(&server, &["-a", "--bwlimit=1", protocol], "repo/", Some(&dest)).await.exits(0).says("is raised to");
    }
}
