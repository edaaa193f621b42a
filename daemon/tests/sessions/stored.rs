//! Small files whose content is in the store.

use stillmirror_daemon::DirectPolicy;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::wire::{Item, ItemFailure, ListForm, Request};

use crate::rsync::support::{assert_same, dest, index_aged, rsync};
use crate::support::{Fixture, Server, index_keeping, noise, soon};

/// Creates files of all sizes. Some are small enough for the store, and some are too large.
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

async fn pull(server: &Server, items: &[Item]) -> (Vec<u8>, Vec<(u32, ItemFailure)>) {
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let answer = soon(client.data(handle, items.to_vec())).await;
    (answer.bytes, answer.failures.iter().map(|&(_, item, reason)| (item, reason)).collect())
}

#[tokio::test]
async fn contents_from_store_and_tree_are_sent_in_request_order_with_every_read_policy() {
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
async fn a_stored_content_is_sent_only_while_the_tree_has_the_indexed_file() {
    for direct in [DirectPolicy::Auto, DirectPolicy::Always, DirectPolicy::Never] {
        let (fixture, files) = fixture();
        fixture.index_with_contents();
        let items: Vec<Item> = files.iter().map(|(name, _)| fixture.whole(name)).collect();
        let server = Server::start(fixture.config(|config| config.repositories[0].direct = direct)).await;
        let (mut expected, mut failed) = (Vec::new(), Vec::new());
        for (item, (name, content)) in (0..).zip(&files) {
            let path = fixture.root().join(name);
            match item % 7 {
                // A request for an empty file asks for no bytes.
                _ if content.is_empty() => {}
                1 => {
                    std::fs::remove_file(path).unwrap();
                    failed.push((item, ItemFailure::Vanished));
                }
                // The same length and inode as before.
                3 => {
                    std::fs::write(path, content).unwrap();
                    failed.push((item, ItemFailure::Stale));
                }
                5 => {
                    std::fs::rename(&path, path.with_extension("away")).unwrap();
                    std::os::unix::fs::symlink(path.with_extension("away"), path).unwrap();
                    failed.push((item, ItemFailure::Stale));
                }
                _ => expected.extend_from_slice(content),
            }
        }
        let (bytes, failures) = pull(&server, &items).await;
        assert!(bytes == expected, "{direct:?}");
        assert_eq!(failures, failed, "{direct:?}");
    }
}

#[tokio::test]
async fn the_contents_of_a_removed_or_replaced_directory_are_not_sent() {
    let (fixture, files) = fixture();
    fixture.index_with_contents();
    let items: Vec<Item> = files.iter().map(|(name, _)| fixture.whole(name)).collect();
    let server = fixture.serve().await;
    std::fs::remove_dir_all(fixture.root().join("d1")).unwrap();
    std::fs::rename(fixture.root().join("d2"), fixture.dir.path().join("d2")).unwrap();
    std::os::unix::fs::symlink(fixture.dir.path().join("d2"), fixture.root().join("d2")).unwrap();
    let (bytes, failures) = pull(&server, &items).await;
    let there = |name: &str| name.starts_with("d0");
    let expected: Vec<u8> =
        files.iter().filter(|(name, _)| there(name)).flat_map(|(_, content)| content.clone()).collect();
    assert!(bytes == expected);
    let reason = |name: &str| if name.starts_with("d1") { ItemFailure::Vanished } else { ItemFailure::Stale };
    let gone = (0..).zip(&files).filter(|(_, (name, content))| !there(name) && !content.is_empty());
    assert_eq!(failures, gone.map(|(item, (name, _))| (item, reason(name))).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_changed_file_is_reported_to_a_stock_client_as_vanished() {
    let fixture = Fixture::with(&[("same", b"content"), ("small", b"as it was indexed"), ("large", &noise(20_000))]);
    fixture.index_with_contents();
    let (server, dest) = (fixture.serve().await, dest(&fixture));
    fixture.write("small", b"changed since");
    fixture.write("large", b"changed since");
    let pulled = rsync(&server, &["-a"], "repo/", Some(&dest)).await;
    pulled.exits(24).says("file has vanished: \"/large\"").says("file has vanished: \"/small\"");
    assert_eq!(std::fs::read(dest.join("same")).unwrap(), b"content");
    assert!(!dest.join("small").exists() && !dest.join("large").exists());
}

#[tokio::test]
async fn files_that_are_not_readable_for_everybody_are_read_from_the_tree() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::with(&[("all", b"all"), ("own", b"own"), ("dir/in", b"dir"), ("dir/deep/in", b"deep")]);
    let allow = |path: &str, mode| {
        std::fs::set_permissions(fixture.root().join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    allow("own", 0o640);
    allow("dir", 0o750);
    // Contents in the store are in upper case, so they can be told from those of the tree.
    index_keeping(&fixture.root(), &fixture.store(), 100, |content| content.to_ascii_uppercase());
    let names = ["all", "own", "dir/in", "dir/deep/in"];
    let items = names.map(|name| fixture.whole(name));
    let server = fixture.serve().await;
    assert_eq!(pull(&server, &items).await, (b"ALLowndirdeep".to_vec(), vec![]));
}

#[tokio::test]
async fn damaged_contents_are_read_from_the_tree_for_both_kinds_of_clients() {
    for direct in [DirectPolicy::Auto, DirectPolicy::Always, DirectPolicy::Never] {
        let (fixture, mut files) = fixture();
        // Files with equal contents share one record. If it is damaged, that affects both.
        fixture.write("d0/twin", &files[5].1);
        files.insert(7, ("d0/twin".to_owned(), files[5].1.clone()));
        fixture.index_with_contents();
        let items: Vec<Item> = files.iter().map(|(name, _)| fixture.whole(name)).collect();
        let parts: Vec<Item> =
            items.iter().map(|item| Item { offset: item.len / 3, len: item.len / 3, ..*item }).collect();
        let whole: Vec<u8> = files.iter().flat_map(|(_, content)| content.clone()).collect();
        let thirds: Vec<u8> =
            files.iter().flat_map(|(_, content)| content[content.len() / 3..][..content.len() / 3].to_vec()).collect();
        let server = Server::start(fixture.config(|config| config.repositories[0].direct = direct)).await;
        assert!(pull(&server, &items).await.0 == whole, "{direct:?}, sound");
        // Damage to a few records, and then to nearly all: contents, checksums, and bytes of the pack's index.
        for step in [100_003, 997] {
            fixture.rot("sums/1.pack", |at| at > 64 && at % step == 0);
            let (bytes, failures) = pull(&server, &items).await;
            assert!(bytes == whole && failures.is_empty(), "{direct:?}, each {step}th byte: {failures:?}");
            assert!(pull(&server, &parts).await == (thirds.clone(), vec![]), "{direct:?}, each {step}th byte, parts");
        }
        // Another daemon, which opens the store only after the damage.
        let server = Server::start(fixture.config(|config| config.repositories[0].direct = direct)).await;
        assert!(pull(&server, &items).await == (whole, vec![]), "{direct:?}, opened when it had rotted");
        for protocol in [27, 29, 32] {
            let (version, dest) = (format!("--protocol={protocol}"), fixture.dir.path().join("rotten"));
            for options in [&["-rt"][..], &["-rtc"], &["-rt", "--append-verify"]] {
                rsync(&server, &[options, &[&version]].concat(), "repo/", Some(&dest)).await.exits(0);
                for (name, content) in &files {
                    assert!(std::fs::read(dest.join(name)).unwrap() == *content, "{direct:?} {protocol}: {name}");
                }
                std::fs::remove_dir_all(&dest).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_changed_file_is_not_sent_in_place_of_its_damaged_content() {
    let (fixture, files) = fixture();
    fixture.index_with_contents();
    let items: Vec<Item> = files.iter().map(|(name, _)| fixture.whole(name)).collect();
    let server = fixture.serve().await;
    fixture.rot("sums/1.pack", |at| at > 64 && at % 997 == 0);
    fixture.write(&files[3].0, b"changed since");
    let rest = files.iter().enumerate().filter(|(at, _)| *at != 3).flat_map(|(_, (_, content))| content.clone());
    assert!(pull(&server, &items).await == (rest.collect(), vec![(3, ItemFailure::Stale)]));
}

#[tokio::test]
async fn a_damaged_block_checksum_record_is_sent_as_an_empty_one() {
    let fixture = Fixture::with(&[("a-file", b"x"), ("dir/other", b"y")]);
    let server = fixture.serve().await;
    let mut client = server.client().await;
    let (handle, _) = client.pin().await;
    let items = ["a-file", "dir/other"].map(|name| Item { row: fixture.row(name), offset: 0, len: 1000 }).to_vec();
    let sound = soon(client.ask(&Request::Sums { handle, items: items.clone() })).await;
    assert_eq!(sound.bytes, b"\x06\0\0\0a-file\x09\0\0\0dir/other");
    // The first record begins behind the header.
    fixture.rot("sums/1.pack", |at| at == 66);
    let rotten = soon(client.ask(&Request::Sums { handle, items })).await;
    assert_eq!(rotten.bytes, b"\0\0\0\0\x09\0\0\0dir/other");
}

#[tokio::test]
async fn a_list_is_sent_whole_and_correct_although_its_compressed_form_and_delta_are_damaged() {
    let fixture = Fixture::new();
    (0..300).for_each(|n| fixture.write(&format!("f{n}"), &noise(n)));
    fixture.index();
    let first = fixture.current();
    fixture.write("f7", b"changed");
    fixture.index();
    let second = fixture.current();
    let (server, head) = (fixture.serve().await, second.head());
    let form = async |have| {
        let mut client = server.client().await;
        let (handle, _) = client.pin().await;
        let answer = soon(client.ask(&Request::List { handle, have })).await;
        (answer.form, answer.bytes)
    };
    let whole = |(form, bytes): (Option<ListForm>, Vec<u8>)| {
        form == Some(ListForm::Whole { list_len: head.list_len })
            && stillmirror_protocol::list::digest(&zstd::decode_all(&bytes[..]).unwrap()) == head.list_digest
    };
    assert!(matches!(form(first.head().list_digest).await.0, Some(ListForm::Deltas(_))));
    assert!(whole(form(Digest::NONE).await));
    // The same daemon has found both sound before.
    fixture.rot("generations/2/delta", |at| at == 100);
    assert!(whole(form(first.head().list_digest).await));
    fixture.rot("generations/2/list.zst", |at| at == 1000);
    assert!(whole(form(Digest::NONE).await) && whole(form(first.head().list_digest).await));
}

#[tokio::test]
async fn without_the_packs_everything_is_read_from_the_tree() {
    let (fixture, files) = fixture();
    fixture.index_with_contents();
    let items: Vec<Item> = files.iter().map(|(name, _)| fixture.whole(name)).collect();
    let expected: Vec<u8> = files.iter().flat_map(|(_, content)| content.clone()).collect();
    let server = fixture.serve().await;
    let pack = fixture.store().join("sums/1.pack");
    // Another file under the pack's name, as after the store was recreated, must not be taken for the pack.
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
async fn stored_contents_are_sent_with_every_protocol_version() {
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
