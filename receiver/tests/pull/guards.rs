use std::fs;

use stillmirror_receiver::{Check, Failure, MaxDelete, Options, PullError};

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
