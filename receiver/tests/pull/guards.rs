use std::fs;

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::head::{Head, SliceMark};
use stillmirror_receiver::{Check, Failure, MaxDelete, Options, PullError};
use stillmirror_store::Store;

use crate::sender::Sender;
use crate::tree::{Tree, assert_same};
use crate::{Place, run};

const CHECKS: [Check; 3] = [Check::Stat, Check::Hash, Check::None];

#[test]
fn a_generation_that_is_older_by_number_and_time_is_refused_unless_it_is_allowed() {
    for check in CHECKS {
        let (sender, place) = (Sender::of(&Tree::default().file("a", "a")), Place::new());
        sender.renumber(7, 1000);
        run(place.mirror(&sender)).unwrap();
        let next = Tree::default().file("a", "other");
        sender.publish(&next);
        let options = Options { check, ..place.mirror(&sender) };
        for (number, created) in [(6, 999), (7, 999), (6, 1000), (1, 1)] {
            sender.renumber(number, created);
            let error = run(options.clone()).unwrap_err();
            assert!(matches!(error, PullError::Older { generation, held: 7 } if generation == number), "{error}");
            assert_eq!(fs::read(place.file("a")).unwrap(), b"a");
        }
        // A sender that counts anew, and one whose clock was set back.
        for (number, created) in [(1, 1001), (8, 1)] {
            sender.renumber(number, created);
            run(Options { dry_run: true, ..options.clone() }).unwrap();
        }
        sender.renumber(1, 1);
        run(Options { allow_older: true, ..options.clone() }).unwrap();
        assert_same(&place.dest(), &next);
        assert!(run(options).unwrap().unchanged);
    }
}

#[test]
fn a_slice_of_an_older_generation_is_refused_too() {
    let (sender, place) = (Sender::of(&Tree::default().file("d/a", "a").file("e", "e")), Place::new());
    sender.renumber(3, 30);
    let options = Options { path: b"d".to_vec(), ..place.mirror(&sender) };
    run(options.clone()).unwrap();
    sender.renumber(2, 20);
    assert!(matches!(run(options), Err(PullError::Older { generation: 2, held: 3 })));
}

#[test]
fn a_share_is_of_the_names_that_the_tree_has_without_those_that_a_filter_protects() {
    let names = |count: usize| (0..count).fold(Tree::default(), |tree, number| tree.file(&format!("f{number}"), "x"));
    for check in CHECKS {
        let (sender, place) = (Sender::of(&names(10)), Place::new());
        run(place.mirror(&sender)).unwrap();
        fs::write(place.file("mine"), "").unwrap();
        sender.publish(&names(8));
        let mut options = Options { check, max_delete: MaxDelete::Percent(19.9), ..place.mirror(&sender) };
        options.filter.exclude(b"mine").unwrap();
        let error = run(options.clone()).unwrap_err();
        let PullError::DeleteLimit { wanted, total, report, .. } = error else { panic!("{error}") };
        assert_eq!((wanted, total, report.deletes_held, report.files_deleted), (2, 10, 2, 0));
        assert!(!report.has_failed(Failure::Stuck));
        run(Options { max_delete: MaxDelete::Percent(20.0), ..options }).unwrap();
        assert!(place.file("mine").exists() && !place.file("f9").exists());
    }
}

#[test]
fn the_usual_limit_lets_small_changes_pass_and_stops_at_an_empty_repository() {
    let (sender, place) = (Sender::of(&Tree::default().file("a", "a").file("b", "b")), Place::new());
    let options = Options { max_delete: MaxDelete::Usual, ..place.mirror(&sender) };
    run(options.clone()).unwrap();
    sender.publish(&Tree::default().file("a", "a"));
    assert_eq!(run(options.clone()).unwrap().files_deleted, 1);
    sender.publish(&Tree::default());
    assert!(matches!(run(options), Err(PullError::DeleteLimit { wanted: 1, total: 1, .. })));
    assert!(place.file("a").exists());
}

/// Publishes a tree as a slice of another one.
fn publish_slice(sender: &Sender, tree: &Tree) {
    sender.publish(tree);
    sender.amend(|last| last.head.slice = Some(SliceMark::new(Digest([9; 32]), "suite stable")));
}

fn head_of(place: &Place) -> Head {
    Store::open(&place.store()).unwrap().current_head().unwrap().unwrap().head
}

#[test]
fn a_sender_that_has_only_a_slice_now_is_refused_unless_that_is_allowed() {
    let named = |names: &str, dir: &str| {
        names.chars().fold(Tree::default(), |tree, name| tree.file(&format!("{dir}{name}"), name.to_string()))
    };
    for check in CHECKS {
        // All of the sender's tree, and a part of it.
        for dir in ["", "d/"] {
            let (sender, place) = (Sender::of(&named("abc", dir)), Place::new());
            let names = || {
                let read =
                    fs::read_dir(place.dest()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
                std::collections::BTreeSet::from_iter(read).into_iter().collect::<String>()
            };
            let options = Options { check, path: dir.trim_end_matches('/').into(), ..place.mirror(&sender) };
            run(options.clone()).unwrap();
            publish_slice(&sender, &named("ab", dir));
            for dry_run in [false, true] {
                let error = run(Options { dry_run, ..options.clone() }).unwrap_err();
                assert!(
                    matches!(&error, PullError::TurnedSlice { selected, .. } if selected == "suite stable"),
                    "{error}"
                );
                assert!(error.to_string().contains("--allow-slice"));
            }
            assert_eq!(names(), "abc");
            run(Options { allow_slice: true, ..options.clone() }).unwrap();
            assert_eq!(names(), "ab");
            assert!(head_of(&place).slice.is_some());
            // From then on the store knows.
            publish_slice(&sender, &named("a", dir));
            run(options.clone()).unwrap();
            assert!(!place.file("b").exists());
            sender.publish(&named("abc", dir));
            run(options).unwrap();
            assert_eq!(names(), "abc");
        }
    }
}

#[test]
fn a_first_pull_takes_a_slice_and_another_sender_that_is_whole_is_preferred() {
    let whole = Tree::default().file("a", "a").file("b", "b");
    let (sender, other, place) = (Sender::of(&whole), Sender::of(&whole), Place::new());
    run(place.mirror(&sender)).unwrap();
    publish_slice(&sender, &Tree::default().file("a", "a"));
    let first = Place::new();
    run(first.mirror(&sender)).unwrap();
    assert_eq!(head_of(&first), sender.current().head);
    other.publish(&whole);
    let options = Options { alternatives: vec![other.address.clone().into()], ..place.mirror(&sender) };
    let report = run(options).unwrap();
    assert!(report.senders[0].failure.as_ref().unwrap().contains("only a slice"), "{:?}", report.senders);
    assert_same(&place.dest(), &whole);
}

#[test]
fn a_generation_of_a_part_says_of_what_it_is_a_part() {
    let (sender, place) = (Sender::of(&Tree::default().file("d/a", "a").file("e", "e")), Place::new());
    let options = Options { path: b"d".to_vec(), ..place.mirror(&sender) };
    run(options.clone()).unwrap();
    let mark = head_of(&place).slice.unwrap();
    assert_eq!((mark.of, &mark.selected[..]), (sender.current().head.list_digest, "directory d"));
    assert!(run(options.clone()).unwrap().unchanged);
    // A slice of a slice.
    publish_slice(&sender, &Tree::default().file("d/a", "a"));
    run(Options { allow_slice: true, ..options.clone() }).unwrap();
    assert_eq!(head_of(&place).slice.unwrap().selected, "directory d, of: suite stable");
    // The same files, selected in another way.
    let mut options = Options { names: Some(stillmirror_receiver::Names::parse(b"a", false).unwrap()), ..options };
    options.filter.exclude(b"x").unwrap();
    run(options).unwrap();
    assert_eq!(head_of(&place).slice.unwrap().selected, "directory d; names from a file; filtered, of: suite stable");
}

#[test]
fn a_whole_pull_of_which_a_part_failed_is_no_slice() {
    let (sender, place) = (Sender::of(&Tree::default()), Place::new());
    let tree = Tree::default().file("a", "a").file("b", "b");
    sender.publish_failing(&tree, &[("b", stillmirror_protocol::wire::ItemFailure::Unreadable)]);
    assert!(!run(place.mirror(&sender)).unwrap().failed.is_empty());
    assert_eq!(head_of(&place).slice, None);
}
