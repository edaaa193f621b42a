//! Small files whose content the store has.

use stillmirror_daemon::DirectPolicy;
use stillmirror_protocol::wire::{Item, ItemFailure};

use crate::rsync::support::{assert_same, dest, index_aged, rsync};
use crate::support::{Fixture, Server, noise, soon};

/// Files of all sizes: of these, some are in the store, some are too large.
fn fixture() -> (Fixture, Vec<(String, Vec<u8>)>) {
    let fixture = Fixture::new();
    let sizes = (0..400).map(|n| match n % 9 {
        0 => 20_000 + n,
        1 => 0,
        2 => 16 << 10,
        _ => n * 37 % 9_000,
    });
    let files: Vec<_> =
        sizes.enumerate().map(|(n, size)| (format!("d{}/f{n:03}", n % 3), noise(size + n)[n..].to_vec())).collect();
    files.iter().for_each(|(name, content)| fixture.write(name, content));
    (fixture, files)
}

/// Whether the tree is of no concern.
fn is_stored(content: &[u8]) -> bool {
    content.len() <= 16 << 10
}

async fn pull(server: &Server, items: &[Item]) -> (Vec<u8>, Vec<(u32, ItemFailure)>) {
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let answer = soon(client.data(handle, items.to_vec())).await;
    (answer.bytes, answer.failures.iter().map(|&(_, item, reason)| (item, reason)).collect())
}

#[tokio::test]
async fn contents_of_the_store_and_of_the_tree_come_in_the_order_of_asking_however_they_are_read() {
    let (fixture, files) = fixture();
    fixture.index_with_contents();
    let items: Vec<Item> = files.iter().map(|(name, _)| fixture.whole(name)).collect();
    let expected: Vec<u8> = files.iter().flat_map(|(_, content)| content.clone()).collect();
    for direct in [DirectPolicy::Auto, DirectPolicy::Always, DirectPolicy::Never] {
        let server = Server::start(fixture.config(|config| config.repositories[0].direct = direct)).await;
        let (bytes, failures) = pull(&server, &items).await;
        assert!(bytes == expected && failures.is_empty(), "{direct:?}");
        let ranges: Vec<Item> =
            items.iter().map(|item| Item { offset: item.len / 3, len: item.len / 3, ..*item }).collect();
        let expected: Vec<u8> =
            files.iter().flat_map(|(_, content)| content[content.len() / 3..][..content.len() / 3].to_vec()).collect();
        assert!(pull(&server, &ranges).await.0 == expected, "{direct:?}, ranges");
    }
}

#[tokio::test]
async fn what_the_store_has_is_sent_as_it_was_indexed_whatever_became_of_the_tree() {
    let (fixture, files) = fixture();
    fixture.index_with_contents();
    let items: Vec<Item> = files.iter().map(|(name, _)| fixture.whole(name)).collect();
    let server = fixture.serve().await;
    files.iter().for_each(|(name, _)| std::fs::remove_file(fixture.root().join(name)).unwrap());
    let (bytes, failures) = pull(&server, &items).await;
    let stored: Vec<u8> =
        files.iter().filter(|(_, content)| is_stored(content)).flat_map(|(_, content)| content.clone()).collect();
    let missing = (0..).zip(&files).filter(|(_, (_, content))| !is_stored(content));
    let missing: Vec<_> = missing.map(|(item, _)| (item, ItemFailure::Vanished)).collect();
    assert!(bytes == stored);
    assert_eq!(failures, missing);
}

#[tokio::test]
async fn a_stock_client_gets_what_the_store_has_and_hears_of_the_rest_that_it_has_vanished() {
    let fixture = Fixture::with(&[("small", b"as it was indexed"), ("large", &noise(20_000))]);
    fixture.index_with_contents();
    let (server, dest) = (fixture.serve().await, dest(&fixture));
    fixture.write("small", b"changed since");
    fixture.write("large", b"changed since");
    rsync(&server, &["-a"], "repo/", Some(&dest)).await.exits(24).says("file has vanished: \"/large\"");
    assert_eq!(std::fs::read(dest.join("small")).unwrap(), b"as it was indexed");
    assert!(!dest.join("large").exists());
}

#[tokio::test]
async fn of_what_not_everybody_may_read_the_tree_decides() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::with(&[("all", b"1"), ("own", b"22"), ("dir/in", b"333"), ("dir/deep/in", b"4444")]);
    let allow = |path: &str, mode| {
        std::fs::set_permissions(fixture.root().join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    allow("own", 0o640);
    allow("dir", 0o750);
    fixture.index_with_contents();
    let names = ["all", "own", "dir/in", "dir/deep/in"];
    let items = names.map(|name| fixture.whole(name));
    let server = fixture.serve().await;
    assert_eq!(pull(&server, &items).await, (b"1223334444".to_vec(), vec![]));
    names.iter().for_each(|name| std::fs::remove_file(fixture.root().join(name)).unwrap());
    let (bytes, failures) = pull(&server, &items).await;
    assert_eq!(bytes, b"1");
    assert_eq!(failures, [1, 2, 3].map(|item| (item, ItemFailure::Vanished)));
}

#[tokio::test]
async fn without_the_packs_all_comes_from_the_tree() {
    let (fixture, files) = fixture();
    fixture.index_with_contents();
    let items: Vec<Item> = files.iter().map(|(name, _)| fixture.whole(name)).collect();
    let expected: Vec<u8> = files.iter().flat_map(|(_, content)| content.clone()).collect();
    let server = fixture.serve().await;
    let pack = fixture.store().join("sums/1.pack");
    // Another file of that name, as after the store was made anew: it must not be taken for the pack.
    let other = noise(std::fs::metadata(&pack).unwrap().len() as usize);
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, other).unwrap();
    assert!(pull(&server, &items).await.0 == expected);
    std::fs::remove_file(&pack).unwrap();
    fixture.write(&files[3].0, b"changed since");
    let (bytes, failures) = pull(&server, &items).await;
    let rest: Vec<u8> =
        files.iter().enumerate().filter(|(at, _)| *at != 3).flat_map(|(_, file)| file.1.clone()).collect();
    assert!(bytes == rest);
    assert_eq!(failures, [(3, ItemFailure::Stale)]);
}

#[tokio::test]
async fn every_protocol_brings_stored_contents() {
    let (fixture, _) = fixture();
    index_aged(&fixture);
    fixture.index_with_contents();
    let server = fixture.serve().await;
    for protocol in 27..=32 {
        let (version, dest) = (format!("--protocol={protocol}"), fixture.dir.path().join(protocol.to_string()));
        for options in [&["-aH"][..], &["-aHz"], &["-aH", "--append-verify"], &["-aH", "--checksum-choice=md5"]] {
            if protocol < 30 && options.contains(&"--checksum-choice=md5") {
                continue;
            }
            rsync(&server, &[options, &[&version]].concat(), "repo/", Some(&dest)).await.exits(0);
            if protocol >= 31 {
                assert_same(&fixture.root(), &dest);
            }
            std::fs::remove_dir_all(&dest).unwrap();
        }
    }
}
