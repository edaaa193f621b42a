use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use stillmirror_daemon::DirectPolicy;
use stillmirror_protocol::local::Pooled;
use stillmirror_protocol::wire::{Item, ItemFailure, Request};

use crate::rsync::support::{dest, rsync, rsync_with};
use crate::support::{Fixture, Server, has_reflinks, index, index_pinned, noise, soon};

/// Files that are sent in each of the daemon's ways: large, in batches, and from the store.
const SIZES: [(&str, usize); 7] = [
    ("large", 24 << 20),
    ("other/large", 5 << 20),
    ("medium", 300_000),
    ("small", 40_000),
    ("other/small", 20_000),
    ("tiny", 100),
    ("empty", 0),
];

/// Returns the ways in which this host can keep contents.
fn ways() -> Vec<Pooled> {
    [Pooled::Link].into_iter().chain(has_reflinks().then_some(Pooled::Copy)).collect()
}

fn fixture(pooled: Pooled) -> (Fixture, Vec<Item>, Vec<u8>) {
    let fixture = Fixture::new();
    let contents = SIZES.map(|(_, size)| noise(size));
    SIZES.iter().zip(&contents).for_each(|((name, _), content)| fixture.write(name, content));
    index_pinned(&fixture.root(), &fixture.store(), 16 << 10, pooled);
    let items = SIZES.map(|(name, _)| fixture.whole(name)).to_vec();
    (fixture, items, contents.concat())
}

/// Replaces the file at `path` by another one of the same size.
fn replace(path: &Path) {
    let size = fs::metadata(path).unwrap().len() as usize;
    fs::write(path.with_extension("new"), vec![b'#'; size]).unwrap();
    fs::rename(path.with_extension("new"), path).unwrap();
}

#[tokio::test]
async fn a_session_gets_its_generation_whole_although_all_files_are_replaced_or_removed() {
    for pooled in ways() {
        for direct in [DirectPolicy::Auto, DirectPolicy::Always, DirectPolicy::Never] {
            let (fixture, items, expected) = fixture(pooled);
            let server = Server::start(fixture.config(|config| {
                config.repositories[0].direct = direct;
                config.repositories[0].strict_ctime = direct == DirectPolicy::Never;
            }))
            .await;
            let mut client = server.client().await;
            let (handle, _) = client.pin().await;
            let request = client.send(&Request::Data { handle, items: items.clone() }).await;
            // The connection's buffers are full by then, and more is still to be sent.
            tokio::time::sleep(Duration::from_millis(300)).await;
            for name in ["large", "medium", "small", "tiny"] {
                replace(&fixture.root().join(name));
            }
            fs::remove_dir_all(fixture.root().join("other")).unwrap();
            fs::remove_file(fixture.root().join("empty")).unwrap();
            let answer = soon(client.answer(request)).await;
            assert_eq!(answer.failures, [], "{pooled:?}, {direct:?}");
            assert!(answer.bytes == expected, "{pooled:?}, {direct:?}");
            // The next generation does not change that, and neither do ranges.
            index_pinned(&fixture.root(), &fixture.store(), 16 << 10, pooled);
            server.reload.reload();
            let ranges = items.iter().map(|item| Item { offset: item.len / 3, len: item.len / 3, ..*item }).collect();
            let answer = soon(client.data(handle, ranges)).await;
            assert_eq!(answer.failures, [], "{pooled:?}, {direct:?}");
            let mut start = 0;
            let third = |size: usize| {
                start += size;
                expected[start - size..][size / 3..][..size / 3].to_vec()
            };
            assert!(answer.bytes == SIZES.map(|(_, size)| size).map(third).concat(), "{pooled:?}, {direct:?}");
        }
    }
}

#[tokio::test]
async fn without_a_pool_the_same_files_are_not_sent() {
    let (fixture, ..) = fixture(Pooled::Link);
    index(&fixture.root(), &fixture.store(), 16 << 10);
    let items = SIZES.map(|(name, _)| fixture.whole(name)).to_vec();
    let server = fixture.serve().await;
    SIZES.iter().for_each(|(name, _)| fs::remove_file(fixture.root().join(name)).unwrap());
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let answer = soon(client.data(handle, items)).await;
    assert!(answer.bytes.is_empty() && answer.failures.iter().all(|failure| failure.2 == ItemFailure::Vanished));
    // A request for an empty file asks for no bytes.
    assert_eq!(answer.failures.len(), SIZES.len() - 1);
}

#[tokio::test]
async fn files_that_are_written_to_in_place_are_sent_from_copies() {
    if !has_reflinks() {
        return;
    }
    let (fixture, items, expected) = fixture(Pooled::Copy);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    for (name, size) in SIZES {
        let file = fs::OpenOptions::new().write(true).open(fixture.root().join(name)).unwrap();
        file.write_all_at(&vec![b'#'; size / 2], 0).unwrap();
        file.set_len(size as u64 / 2 + 7).unwrap();
    }
    for _ in 0..2 {
        let answer = soon(client.data(handle, items.clone())).await;
        assert!(answer.bytes == expected && answer.failures.is_empty());
    }
}

#[tokio::test]
async fn what_was_written_to_in_place_is_never_sent_through_a_hard_link() {
    let (fixture, items, _) = fixture(Pooled::Link);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    for (name, size) in SIZES {
        let path = fixture.root().join(name);
        let mtime = fs::metadata(&path).unwrap().modified().unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&vec![b'#'; size.min(10)], 0).unwrap();
        if name == "medium" || name == "small" {
            // Only the content tells.
            file.set_modified(mtime).unwrap();
        }
        fs::remove_file(path).unwrap();
    }
    let answer = soon(client.data(handle, items)).await;
    let failed: Vec<_> = answer.failures.iter().map(|failure| SIZES[failure.1 as usize].0).collect();
    assert_eq!(failed, ["large", "other/large", "medium", "small", "other/small"]);
    assert!(answer.bytes == noise(100));
}

#[tokio::test]
async fn a_generation_whose_contents_are_gone_is_served_like_one_without_a_pool() {
    let (fixture, items, _) = fixture(Pooled::Link);
    let server = fixture.serve().await;
    fs::remove_dir_all(fixture.store().join("pool")).unwrap();
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    fs::remove_file(fixture.root().join("small")).unwrap();
    let answer = soon(client.data(handle, vec![items[3], items[4]])).await;
    assert_eq!((answer.bytes, answer.failures), (noise(20_000), vec![(0, 0, ItemFailure::Vanished)]));
    // Nor does a daemon that starts now.
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let answer = soon(client.data(handle, vec![items[3], items[4]])).await;
    assert_eq!((answer.bytes, answer.failures), (noise(20_000), vec![(0, 0, ItemFailure::Vanished)]));
}

#[tokio::test]
async fn a_file_that_the_pool_does_not_have_is_not_sent() {
    let (fixture, items, _) = fixture(Pooled::No);
    let server = fixture.serve().await;
    fs::remove_file(fixture.root().join("small")).unwrap();
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let answer = soon(client.data(handle, vec![items[3]])).await;
    assert_eq!(answer.failures, [(0, 0, ItemFailure::Vanished)]);
}

#[tokio::test]
async fn a_stock_client_gets_its_generation_whole() {
    for pooled in ways() {
        let (fixture, ..) = fixture(pooled);
        let (server, dest) = (fixture.serve().await, dest(&fixture));
        let root = fixture.root();
        let publish = std::thread::spawn(move || {
            // In the middle of the pull, which takes some seconds.
            std::thread::sleep(Duration::from_secs(1));
            ["large", "medium", "small", "tiny"].iter().for_each(|name| replace(&root.join(name)));
            fs::remove_dir_all(root.join("other")).unwrap();
            fs::remove_file(root.join("empty")).unwrap();
        });
        rsync(&server, &["-a", "--bwlimit=10M"], "repo/", Some(&dest)).await.exits(0);
        publish.join().unwrap();
        for (name, size) in SIZES {
            assert!(fs::read(dest.join(name)).unwrap() == noise(size), "{pooled:?}, {name}");
        }
        // And once more, from the pool alone, with the digest that was computed while the files were sent.
        fs::remove_dir_all(&dest).unwrap();
        rsync_with(&server, &["-a"], "repo/", Some(&dest), |_| {}).await.exits(0);
        for (name, size) in SIZES {
            assert!(fs::read(dest.join(name)).unwrap() == noise(size), "{pooled:?}, {name}");
        }
    }
}

#[tokio::test]
async fn a_daemon_that_serves_only_what_is_public_sends_nothing_else_from_the_pool() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let fixture = Fixture::new();
    for (name, mode) in [("open", 0o644), ("closed", 0o600)] {
        fixture.write(name, &noise(50_000));
        fs::set_permissions(fixture.root().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(fixture.root(), fs::Permissions::from_mode(0o755)).unwrap();
    index_pinned(&fixture.root(), &fixture.store(), 0, Pooled::Link);
    let server = Server::start(fixture.config(|config| config.serve_private = false)).await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let items = vec![fixture.whole("open"), fixture.whole("closed")];
    ["open", "closed"].iter().for_each(|name| fs::remove_file(fixture.root().join(name)).unwrap());
    let answer = soon(client.data(handle, items)).await;
    assert_eq!(answer.failures, [(50_000, 1, ItemFailure::Unreadable)]);
    assert!(answer.bytes == noise(50_000));
}
