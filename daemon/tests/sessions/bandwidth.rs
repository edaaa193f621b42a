use std::time::{Duration, Instant};

use stillmirror_daemon::Config;
use stillmirror_protocol::wire::Request;

use crate::rsync::support::{assert_same, dest, index_aged, rsync};
use crate::support::{Fixture, Server, noise, soon};

/// Bytes a second.
const RATE: u64 = 1 << 20;
/// Bytes that may leave at once: an eighth of a second's.
const BURST: u64 = RATE / 8;
const SIZE: usize = 2 << 20;

/// A way to limit it, by name.
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
        // What a limit takes is not the client's fault.
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

/// Expects that so many bytes were not sent sooner than the rate allows.
#[track_caller]
fn took_its_time(began: Instant, bytes: u64, rate: u64, what: &str) {
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
        took_its_time(began, SIZE as u64, RATE, what);
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
        took_its_time(began, SIZE as u64, RATE, what);
        assert_same(&fixture.root(), &dest);
    }
}

#[tokio::test]
async fn an_rsync_client_gets_no_more_than_it_asks_for() {
    let fixture = fixture();
    let server = fixture.serve().await;
    let began = Instant::now();
    rsync(&server, &["-a", "--bwlimit=1024"], "repo/", Some(&dest(&fixture))).await.exits(0);
    took_its_time(began, SIZE as u64, RATE, "--bwlimit");
}

#[tokio::test]
async fn clients_of_both_kinds_share_what_they_may_have_together() {
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
        took_its_time(began, 3 * SIZE as u64, RATE, what);
    }
}

#[tokio::test]
async fn the_lowest_of_several_limits_holds() {
    let fixture = fixture();
    let server = serve(&fixture, |config| {
        config.limits.bandwidth_per_connection = 8 * RATE;
        config.repositories[0].bandwidth = RATE;
        config.limits.bandwidth = 4 * RATE;
    })
    .await;
    let began = Instant::now();
    assert!(soon(pull(&server, &fixture)).await);
    took_its_time(began, SIZE as u64, RATE, "all three");
}

#[tokio::test]
async fn lists_are_within_the_limit_as_files_are() {
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
    // Names that begin as the one before did by three bytes at the most.
    took_its_time(began, 4000 * 97, rate, "the list");
}

#[tokio::test]
async fn a_session_that_is_held_up_leaves_its_buffer_to_others() {
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
    // The only buffer is the slow one's, for a minute.
    let mut other = server.client().await;
    let (handle, _) = soon(other.pin()).await;
    assert_eq!(soon(other.data(handle, vec![fixture.whole("small/7")])).await.bytes, noise(1007));
    let mut sent = vec![0; 1 << 20];
    assert!(slow.socket.try_read(&mut sent).unwrap() < sent.len(), "the slow one was through with its buffer");
}

#[tokio::test]
async fn an_rsync_client_that_would_hold_its_place_for_days_is_sent_more_than_it_asks_for_and_told() {
    let fixture = fixture();
    let server = Server::start(fixture.config(|config| config.limits.minimum_bwlimit = 1 << 30)).await;
    // At a KiB a second this would take longer than anything here may.
    let ran = rsync(&server, &["-a", "--bwlimit=1"], "repo/", Some(&dest(&fixture))).await;
    ran.exits(0).says("--bwlimit of 1024 bytes a second is raised to 1073741824");
    for protocol in ["--protocol=29", "--protocol=27"] {
        let dest = fixture.dir.path().join(protocol);
        rsync(&server, &["-a", "--bwlimit=1", protocol], "repo/", Some(&dest)).await.exits(0).says("is raised to");
    }
}
