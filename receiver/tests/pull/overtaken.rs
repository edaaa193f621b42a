//! A publisher that replaces and removes names while they are pulled.

use std::fs;

use stillmirror_protocol::list;
use stillmirror_protocol::wire::{ItemFailure, Request};
use stillmirror_receiver::{Failed, Failure};

use crate::sender::Sender;
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

const INDEX: &str = "dists/s/main/binary-amd64/Packages";

/// A repository with packages, an index that changes in part, and a head.
fn repository(version: u64) -> Tree {
    let mut index = noise(200_000, 1);
    index.extend(version.to_le_bytes());
    let tree = Tree::default().file(INDEX, index).file("dists/s/InRelease", version.to_le_bytes());
    (0..10).fold(tree, |tree, number| tree.file(&format!("pool/{number}"), noise(30_000, number + 100 * version)))
}

/// Returns the paths of which data was requested, in the order of the requests.
fn requested(sender: &Sender) -> Vec<String> {
    let generation = sender.current();
    let list = list::open(&generation.encoded).unwrap();
    let requests = sender.requests();
    let items = requests.iter().filter_map(|request| match request {
        Request::Data { items, .. } => Some(items),
        _ => None,
    });
    items.flatten().map(|item| String::from_utf8(list.path(item.row)).unwrap()).collect()
}

#[test]
fn heads_and_indices_are_fetched_before_packages_with_and_without_a_basis() {
    let (sender, place) = (Sender::of(&repository(1)), Place::new());
    for version in 1..=2 {
        if version > 1 {
            sender.publish(&repository(version));
        }
        run(place.mirror(&sender)).unwrap();
        assert_same(&place.dest(), &repository(version));
        let requested = requested(&sender);
        let first_package = requested.iter().position(|path| path.starts_with("pool/")).unwrap();
        let last_index = requested.iter().rposition(|path| path.starts_with("dists/")).unwrap();
        assert!(last_index < first_package, "{requested:?}");
        assert!(requested.iter().any(|path| path == INDEX), "{requested:?}");
    }
}

/// A repository whose index has a second name, and a package that is there twice.
fn with_other_names(version: u64) -> Tree {
    let by_hash = "dists/s/main/binary-amd64/by-hash/SHA256/abc";
    let index = [noise(200_000, 1), version.to_le_bytes().to_vec()].concat();
    let package = noise(30_000, version + 10);
    let tree = Tree::default().file("dists/s/InRelease", version.to_le_bytes());
    let tree = tree.linked(INDEX, index.clone(), 1).linked(by_hash, index, 1);
    tree.file("pool/one", package.clone()).file("pool/two", package)
}

#[test]
fn a_content_that_the_sender_lacks_under_one_name_comes_by_another() {
    for why in [ItemFailure::Stale, ItemFailure::Vanished, ItemFailure::Unreadable] {
        let (sender, place) = (Sender::of(&with_other_names(1)), Place::new());
        sender.fail(&[(INDEX, why), ("pool/one", why)]);
        let report = run(place.mirror(&sender)).unwrap();
        assert_eq!(report.failed, []);
        assert_same(&place.dest(), &with_other_names(1));
        // Now with a basis.
        sender.publish_failing(&with_other_names(2), &[(INDEX, why), ("pool/one", why)]);
        sender.requests();
        let report = run(place.mirror(&sender)).unwrap();
        assert_eq!(report.failed, []);
        assert!(report.bytes_matched > 150_000, "{report:?}");
        assert_same(&place.dest(), &with_other_names(2));
    }
}

#[test]
fn a_content_that_the_sender_has_under_no_name_fails_once_for_each_name() {
    let (sender, place) = (Sender::of(&with_other_names(1)), Place::new());
    let all = ["pool/one", "pool/two"];
    sender.fail(&all.map(|path| (path, ItemFailure::Stale)));
    let report = run(place.mirror(&sender)).unwrap();
    let mut failed = report.failed;
    failed.retain(|failed| failed.why != Failure::Held);
    failed.sort_by(|one, other| one.path.cmp(&other.path));
    assert_eq!(failed, all.map(|path| Failed { path: path.into(), why: Failure::Stale }));
    assert!(fs::metadata(place.file("dists/s/InRelease")).is_err());
}
