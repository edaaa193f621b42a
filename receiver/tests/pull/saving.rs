use std::fs;
use std::time::Duration;

use stillmirror_protocol::wire::Request;
use stillmirror_receiver::{Check, Options, PullError};
use tokio_util::sync::CancellationToken;

use crate::sender::{Behaviour, Sender};
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run, run_until};

#[test]
fn a_trusted_unchanged_tree_costs_one_round_trip() {
    let tree = Tree::default().file("a/b", "c");
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.requests();
    let report = run(Options { check: Check::None, ..place.mirror(&sender) }).unwrap();
    assert!(report.unchanged);
    assert_eq!(report.round_trips, 1);
    assert_eq!(sender.requests().len(), 1);
    assert!(report.bytes_received < 1024 && report.bytes_sent < 1024, "{report:?}");
}

#[test]
fn an_unchanged_tree_that_is_checked_costs_no_list() {
    let tree = Tree::default().file("a/b", "c");
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.mirror(&sender)).unwrap();
    let report = run(place.mirror(&sender)).unwrap();
    assert_eq!((report.unchanged, report.round_trips, report.bytes_list), (true, 1, 0));
    assert_eq!(report.published, None);
}

#[test]
fn a_list_several_generations_ahead_arrives_as_deltas() {
    let mut tree = Tree::default();
    for number in 0..2000 {
        tree = tree.file(&format!("pool/{number:04}"), number.to_string());
    }
    let (sender, place) = (Sender::of(&tree), Place::new());
    let first = run(place.mirror(&sender)).unwrap();
    for change in 0..3 {
        tree = tree.file(&format!("pool/{change:04}"), format!("changed {change}"));
        sender.publish(&tree);
    }
    let report = run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &tree);
    assert!(report.bytes_list < first.bytes_list / 20, "{} of {}", report.bytes_list, first.bytes_list);
    assert_eq!(report.generation, 4);
}

#[test]
fn a_changed_file_is_built_from_its_old_content() {
    let mut content = noise(4_000_000, 5);
    let tree = Tree::default().file("image", content.clone());
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.mirror(&sender)).unwrap();
    content.splice(1_000_000..1_000_010, *b"inserted text");
    content.truncate(3_900_000);
    let next = Tree::default().file("image", content);
    sender.publish(&next);
    let report = run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &next);
    assert!(report.bytes_literal < 10_000, "{report:?}");
    assert!(report.bytes_checksums < 60_000, "{report:?}");
    assert_eq!(report.bytes_matched + report.bytes_literal, 3_900_003 - 3);
}

#[test]
fn a_new_version_under_a_similar_name_is_built_from_the_old_one() {
    let old = noise(1_000_000, 6);
    let new = [&old[..600_000], b"version two", &old[600_000..]].concat();
    let tree = Tree::default().file("pool/foo_1.2-1.tar", old);
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.options(&sender)).unwrap();
    let next = Tree::default().file("pool/foo_1.2-2.tar", new);
    sender.publish(&next);
    let report = run(place.options(&sender)).unwrap();
    assert_same(&place.dest(), &next);
    assert!(report.bytes_literal < 10_000, "{report:?}");
}

#[test]
fn a_renamed_directory_with_a_store_and_a_renamed_file_without_one_cost_no_data() {
    let tree = Tree::default().file("old/a", noise(200_000, 1)).file("old/b/c", noise(100_000, 2)).file("x", "x");
    let next = tree.clone().renamed("old", "new");
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish(&next);
    let report = run(place.mirror(&sender)).unwrap();
    assert_eq!((report.bytes_literal, report.bytes_checksums, report.files_reused), (0, 0, 2));
    assert_same(&place.dest(), &next);

    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.options(&sender)).unwrap();
    let next = tree.renamed("old/a", "old/z");
    sender.publish(&next);
    assert_eq!(run(place.options(&sender)).unwrap().bytes_literal, 0);
    assert_same(&place.dest(), &next);
}

#[test]
fn swapped_names_cost_no_data() {
    let tree = Tree::default().file("a", noise(50_000, 1)).file("b", noise(50_000, 2)).file("c", "c");
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.mirror(&sender)).unwrap();
    let next = tree.renamed("a", "t").renamed("b", "a").renamed("t", "b");
    sender.publish(&next);
    assert_eq!(run(place.mirror(&sender)).unwrap().bytes_literal, 0);
    assert_same(&place.dest(), &next);
}

#[test]
fn equal_contents_are_fetched_once() {
    let tree = Tree::default().file("a", noise(90_000, 1)).file("b", noise(90_000, 1)).file("c/d", noise(90_000, 1));
    let (sender, place) = (Sender::of(&tree), Place::new());
    assert_eq!(run(place.mirror(&sender)).unwrap().bytes_literal, 90_000);
    assert_same(&place.dest(), &tree);
}

#[test]
fn a_touched_file_is_not_fetched() {
    let tree = Tree::default().file("a", noise(90_000, 1)).file("b", "b");
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.mirror(&sender)).unwrap();
    let mut next = tree;
    next.0.get_mut(&b"a"[..]).unwrap().mtime.sec += 5;
    sender.publish(&next);
    let report = run(place.mirror(&sender)).unwrap();
    assert_eq!((report.bytes_literal, report.bytes_checksums, report.metadata_changed), (0, 0, 1));
    assert_same(&place.dest(), &next);
}

#[test]
fn many_small_files_over_a_slow_link_take_few_round_trips() {
    let mut tree = Tree::default();
    for number in 0..3000u64 {
        tree = tree.file(&format!("d{}/f{number}", number % 30), noise(4096, number));
    }
    let (sender, place) = (Sender::of(&tree), Place::new());
    sender.behave(Behaviour { latency: Duration::from_millis(20), ..Behaviour::default() });
    let report = run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &tree);
    assert!(report.round_trips <= 4, "{report:?}");
    assert!(sender.requests().len() < 20);
}

#[test]
fn many_changed_files_share_the_round_trips_for_their_checksums() {
    let tree = |version: u64| {
        (0..200u64).fold(Tree::default(), |tree, number| {
            let mut content = noise(40_000, number);
            content[20_000] ^= version as u8;
            tree.file(&format!("f{number}"), content)
        })
    };
    let (sender, place) = (Sender::of(&tree(0)), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.requests();
    sender.publish(&tree(1));
    let report = run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &tree(1));
    assert!(report.bytes_literal < 200 * 2048, "{report:?}");
    let sums = sender.requests().iter().filter(|request| matches!(request, Request::Sums { .. })).count();
    assert!(sums <= 8, "{sums} requests for checksums");
}

#[test]
fn an_interrupted_pull_is_continued() {
    let tree = Tree::default().file("a", noise(3_000_000, 1)).file("b", noise(3_000_000, 2));
    let (sender, place) = (Sender::of(&tree), Place::new());
    sender.behave(Behaviour { cut: Some(4_500_000), ..Behaviour::default() });
    let error = run(place.mirror(&sender)).unwrap_err();
    assert!(matches!(error, PullError::Socket { .. }), "{error}");
    assert!(!place.file("a").exists(), "no file is moved into place before all are complete");
    sender.behave(Behaviour::default());
    let report = run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &tree);
    assert!(report.bytes_literal < 2_500_000, "{report:?}");
}

#[test]
fn after_a_reconnect_nothing_is_fetched_again() {
    let tree = Tree::default().file("a", noise(3_000_000, 1)).file("b", noise(3_000_000, 2)).file("c", noise(9_000, 3));
    let (sender, place) = (Sender::of(&tree), Place::new());
    sender.behave(Behaviour { cut: Some(4_500_000), ..Behaviour::default() });
    let report = run(Options { reconnects: 2, ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &tree);
    assert_eq!((report.files_updated, report.bytes_matched), (3, 0), "nothing is counted twice");
    assert!(report.bytes_literal < 6_009_000 + 500_000, "{report:?}");
    assert!(report.bytes_received > report.bytes_literal, "the sum of both connections: {report:?}");
    assert!(run(place.mirror(&sender)).unwrap().unchanged);
}

#[test]
fn a_connection_that_keeps_breaking_is_given_up() {
    let tree = Tree::default().file("a", noise(10_000_000, 1));
    let (sender, place) = (Sender::of(&tree), Place::new());
    sender.behave(Behaviour { cut: Some(1_000_000), ..Behaviour::default() });
    let error = run(Options { reconnects: 2, ..place.mirror(&sender) }).unwrap_err();
    assert!(matches!(error, PullError::Socket { .. }), "{error}");
    let heads = sender.requests().iter().filter(|request| matches!(request, Request::Head { .. })).count();
    assert_eq!(heads, 3);
}

#[test]
fn a_broken_pull_ends_if_the_sender_has_another_generation_by_then() {
    let tree = Tree::default().file("a", noise(3_000_000, 1)).file("b", "b");
    let (sender, place) = (Sender::of(&tree), Place::new());
    let next = tree.clone().file("b", "another");
    let (publisher, once, published) = (sender.clone(), std::sync::Once::new(), next.clone());
    let tamper = move |_: u32, request: &Request, frames: Vec<Vec<u8>>| {
        if matches!(request, Request::Data { .. }) {
            once.call_once(|| publisher.publish(&published));
        }
        frames
    };
    let cut = Behaviour { cut: Some(2_000_000), tamper: Some(std::sync::Arc::new(tamper)), ..Behaviour::default() };
    sender.behave(cut);
    let error = run(Options { reconnects: 2, ..place.mirror(&sender) }).unwrap_err();
    assert!(matches!(error, PullError::Socket { .. }), "{error}");
    assert!(!place.file("b").exists());
    sender.behave(Behaviour::default());
    let report = run(place.mirror(&sender)).unwrap();
    assert_same(&place.dest(), &next);
    assert!(report.bytes_literal < 1_500_000, "{report:?}");
}

#[test]
fn a_damaged_part_of_an_earlier_pull_is_noticed() {
    let tree = Tree::default().file("a", noise(3_000_000, 1));
    let (sender, place) = (Sender::of(&tree), Place::new());
    sender.behave(Behaviour { cut: Some(2_000_000), ..Behaviour::default() });
    run(place.options(&sender)).unwrap_err();
    let stage = place.file(".stillmirror-stage");
    let names = fs::read_dir(stage).unwrap().map(|entry| entry.unwrap().path());
    let part = names.into_iter().find(|path| path.extension().is_some_and(|suffix| suffix == "part")).unwrap();
    let mut bytes = fs::read(&part).unwrap();
    bytes[1000] ^= 1;
    fs::write(&part, bytes).unwrap();
    sender.behave(Behaviour::default());
    run(place.options(&sender)).unwrap();
    assert_same(&place.dest(), &tree);
}

#[test]
fn a_pull_succeeds_even_if_an_unsuccessful_copy_has_overwritten_a_part() {
    let tree = Tree::default().file("a", noise(3_000_000, 1));
    let (sender, place) = (Sender::of(&tree), Place::new());
    sender.behave(Behaviour { cut: Some(2_000_000), ..Behaviour::default() });
    run(place.options(&sender)).unwrap_err();
    // This file has the size and time of the wanted one, but another content.
    let mtime = tree.0[&b"a"[..]].mtime;
    let mtime = std::time::UNIX_EPOCH + Duration::new(mtime.sec as u64, mtime.nsec);
    fs::write(place.file("other"), noise(3_000_000, 2)).unwrap();
    fs::File::options().write(true).open(place.file("other")).unwrap().set_modified(mtime).unwrap();
    sender.behave(Behaviour::default());
    run(place.options(&sender)).unwrap();
    assert_same(&place.dest(), &tree);
}

#[test]
fn a_cancelled_pull_ends_and_leaves_the_old_tree() {
    let old = Tree::default().file("a", "old");
    let (sender, place) = (Sender::of(&old), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish(&Tree::default().file("a", noise(1_000_000, 3)));
    sender.behave(Behaviour { mute: true, ..Behaviour::default() });
    let cancel = CancellationToken::new();
    let pulling = {
        let (options, cancel) = (place.mirror(&sender), cancel.clone());
        std::thread::spawn(move || run_until(options, cancel))
    };
    while sender.requests().is_empty() {
        std::thread::yield_now();
    }
    cancel.cancel();
    assert!(matches!(pulling.join().unwrap(), Err(PullError::Interrupted)));
    assert_same(&place.dest(), &old);
}

#[test]
fn wrong_block_checksums_cost_no_more_data_than_the_file() {
    let tree = Tree::default().file("a", noise(500_000, 1));
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.mirror(&sender)).unwrap();
    let next = Tree::default().file("a", noise(500_000, 2));
    sender.publish(&next);
    // First the checksums match nothing; then the header is invalid.
    for wrong in [0u8, 40] {
        sender.tamper(move |number, request, mut frames| {
            if let Request::Sums { items, .. } = request
                && items[0].offset == 0
                && wrong > 0
            {
                let bytes: Vec<u8> = items.iter().flat_map(|_| [4u32.to_le_bytes(), *b"junk"].concat()).collect();
                let end = frames.pop().unwrap();
                frames = crate::sender::in_frames(number, &bytes);
                frames.push(end);
            }
            frames
        });
        let report = run(place.mirror(&sender)).unwrap();
        assert!(report.bytes_literal <= 500_000, "{report:?}");
        assert_same(&place.dest(), &next);
        fs::write(place.file("a"), noise(400_000, 9)).unwrap();
    }
}
