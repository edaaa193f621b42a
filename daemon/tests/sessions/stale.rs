use std::os::unix::fs::{FileExt, symlink};
use std::time::Duration;

use stillmirror_protocol::wire::{Item, ItemFailure, Request};

use crate::support::{Fixture, Server, noise, soon};

#[tokio::test]
async fn a_changed_file_is_not_sent_but_those_around_it_are() {
    let fixture = Fixture::with(&[("a", b"first"), ("b", b"second"), ("c", b"third"), ("d", b"fourth")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    fixture.write("b", b"sEcond");
    std::fs::remove_file(fixture.root().join("c")).unwrap();
    let items = ["a", "b", "c", "d"].map(|name| fixture.whole(name)).to_vec();
    let answer = soon(client.data(handle, items)).await;
    assert_eq!(answer.bytes, b"firstfourth");
    assert_eq!(answer.failures, [(5, 1, ItemFailure::Stale), (5, 2, ItemFailure::Vanished)]);
}

#[tokio::test]
async fn the_replacement_of_a_large_file_is_not_sent() {
    let fixture = Fixture::with(&[("big", &noise(5 << 20)), ("small", b"small")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let items = vec![fixture.whole("big"), fixture.whole("small")];
    fixture.write("other", &noise(5 << 20));
    std::fs::rename(fixture.root().join("other"), fixture.root().join("big")).unwrap();
    let answer = soon(client.data(handle, items)).await;
    assert_eq!(answer.bytes, b"small");
    assert_eq!(answer.failures, [(0, 0, ItemFailure::Stale)]);
}

#[tokio::test]
async fn a_large_file_that_changes_while_it_is_sent_fails_where_the_change_is_noticed() {
    let content = noise(24 << 20);
    let fixture = Fixture::with(&[("big", &content), ("small", b"small")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let items = vec![fixture.whole("big"), fixture.whole("small")];
    let request = client.send(&Request::Data { handle, items }).await;
    // The connection's buffers are full by then, and more is still to be sent.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let file = std::fs::OpenOptions::new().write(true).open(fixture.root().join("big")).unwrap();
    file.write_all_at(b"changed", (24 << 20) - 7).unwrap();
    let answer = soon(client.answer(request)).await;
    let (sent, item, reason) = answer.failures[0];
    assert_eq!((item, reason, answer.failures.len()), (0, ItemFailure::Stale, 1));
    assert!(sent > 0 && answer.bytes == [&content[..sent], b"small"].concat());
}

#[tokio::test]
async fn a_symlink_in_place_of_a_directory_or_a_file_is_never_followed() {
    let fixture = Fixture::with(&[("dir/file", b"content"), ("plain", b"plain")]);
    let items: Vec<Item> = ["dir/file", "plain"].map(|name| fixture.whole(name)).to_vec();
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    // The inodes are the same. Only the path to them leads through a symlink.
    let (root, outside) = (fixture.root(), fixture.dir.path().join("outside"));
    std::fs::rename(root.join("dir"), &outside).unwrap();
    symlink(&outside, root.join("dir")).unwrap();
    std::fs::rename(root.join("plain"), outside.join("plain")).unwrap();
    symlink("../outside/plain", root.join("plain")).unwrap();
    let answer = soon(client.data(handle, items)).await;
    assert_eq!(answer.bytes, b"");
    assert_eq!(answer.failures, [(0, 0, ItemFailure::Stale), (0, 1, ItemFailure::Stale)]);
}

#[tokio::test]
async fn a_fifo_in_place_of_a_file_does_not_block_the_session() {
    let fixture = Fixture::with(&[("a", b"content"), ("b", b"other")]);
    let items = vec![fixture.whole("a"), fixture.whole("b")];
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let path = fixture.root().join("a");
    std::fs::remove_file(&path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let answer = soon(client.data(handle, items)).await;
    assert_eq!((answer.bytes.as_slice(), answer.failures), (&b"other"[..], vec![(0, 0, ItemFailure::Stale)]));
}

#[tokio::test]
async fn small_files_that_were_read_twice_are_sent_from_the_cache() {
    let files: Vec<_> = (0..100).map(|n| (format!("f{n:02}"), noise((16 << 10) + n))).collect();
    let borrowed: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    let fixture = Fixture::with(&borrowed);
    let items: Vec<Item> = files.iter().map(|(name, _)| fixture.whole(name)).collect();
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let expected: Vec<u8> = files.iter().flat_map(|(_, content)| content.clone()).collect();
    for _ in 0..3 {
        let answer = soon(client.data(handle, items.clone())).await;
        assert!(answer.failures.is_empty() && answer.bytes == expected);
    }
    for (name, _) in &files {
        std::fs::remove_file(fixture.root().join(name)).unwrap();
    }
    // A full shelf holds 64 of them. Files whose hashes collide may be missing there.
    let answer = soon(client.data(handle, items)).await;
    let gone: Vec<_> = answer.failures.iter().map(|&(_, item, reason)| (item, reason)).collect();
    assert!((36..60).contains(&gone.len()) && gone.iter().all(|&(_, reason)| reason == ItemFailure::Vanished));
    let there = |at: &usize| gone.iter().all(|&(item, _)| item as usize != *at);
    let expected: Vec<u8> = (0..100).filter(there).flat_map(|at| files[at].1.clone()).collect();
    assert!(answer.bytes == expected);
}

/// Writes other content of the same length, and restores the mtime.
fn forge(path: &std::path::Path, content: &[u8]) {
    let mtime = std::fs::metadata(path).unwrap().modified().unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(content, 0).unwrap();
    file.set_modified(mtime).unwrap();
}

#[tokio::test]
async fn touched_files_are_sent_if_their_content_is_still_the_indexed_one() {
    let (big, forged) = (noise(5 << 20), noise(3 << 20));
    let fixture = Fixture::with(&[("big", &big), ("forged", &forged), ("small", b"small"), ("tiny", b"right")]);
    let server = fixture.serve().await;
    let items = ["big", "forged", "small", "tiny"].map(|name| fixture.whole(name)).to_vec();
    // A copy of the tree by hard links is made and removed. That changes the ctimes.
    for name in ["big", "small"] {
        std::fs::hard_link(fixture.root().join(name), fixture.dir.path().join(name)).unwrap();
        std::fs::remove_file(fixture.dir.path().join(name)).unwrap();
    }
    forge(&fixture.root().join("forged"), &[7; 100]);
    forge(&fixture.root().join("tiny"), b"wrong");
    for _ in 0..2 {
        let mut client = server.client().await;
        let (handle, _) = client.pin().await;
        let answer = soon(client.data(handle, items.clone())).await;
        assert!(answer.bytes == [&big[..], b"small"].concat());
        let failed: Vec<_> = answer.failures.iter().map(|&(_, item, reason)| (item, reason)).collect();
        assert_eq!(failed, [(1, ItemFailure::Stale), (3, ItemFailure::Stale)]);
    }
}

#[tokio::test]
async fn a_large_file_that_is_touched_while_it_is_sent_is_sent_completely() {
    let content = noise(24 << 20);
    let fixture = Fixture::with(&[("big", &content)]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let number = client.send(&Request::Data { handle, items: vec![fixture.whole("big")] }).await;
    let (_, first) = soon(client.frame()).await.unwrap();
    std::fs::hard_link(fixture.root().join("big"), fixture.dir.path().join("link")).unwrap();
    let rest = soon(client.answer(number)).await;
    assert_eq!(rest.failures, []);
    assert!([first, rest.bytes].concat() == content);
}

#[tokio::test]
async fn with_strict_ctime_a_touched_file_is_stale() {
    let fixture = Fixture::with(&[("a", b"first"), ("b", b"second")]);
    let server = Server::start(fixture.config(|config| config.repositories[0].strict_ctime = true)).await;
    std::fs::hard_link(fixture.root().join("a"), fixture.dir.path().join("a")).unwrap();
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let answer = soon(client.data(handle, vec![fixture.whole("a"), fixture.whole("b")])).await;
    assert_eq!((answer.bytes, answer.failures), (b"second".to_vec(), vec![(0, 0, ItemFailure::Stale)]));
}
