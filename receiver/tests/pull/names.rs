use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use stillmirror_receiver::{Check, Failure, Names, Options, Report};
use stillmirror_store::Store;

use crate::property::{build, path, step};
use crate::sender::Sender;
use crate::tree::{Tree, assert_same};
use crate::{Place, run};

const CHECKS: [Check; 3] = [Check::Stat, Check::Hash, Check::None];

fn only(names: &str) -> Option<Names> {
    Some(Names::parse(names.as_bytes(), false).unwrap())
}

fn missing(report: &Report) -> Vec<&str> {
    let missing = report.failed.iter().filter(|failed| failed.why == Failure::Missing);
    missing.map(|failed| std::str::from_utf8(&failed.path).unwrap()).collect()
}

fn sample() -> Tree {
    Tree::default()
        .file("a", "a")
        .file("d/b", "b")
        .file("d/e/c", "c")
        .file("d/e-f", "ef")
        .file("g/h", "h")
        .symlink("s", "a")
}

#[test]
fn only_named_files_and_what_is_below_named_directories_come() {
    for check in CHECKS {
        let (sender, place) = (Sender::of(&sample()), Place::new());
        let options = Options { names: only("d/e\na\nnot/there\n# g"), check, ..place.mirror(&sender) };
        for unchanged in [false, true] {
            let report = run(options.clone()).unwrap();
            assert_eq!((missing(&report), report.unchanged), (vec!["not/there"], unchanged));
            assert_same(&place.dest(), &Tree::default().file("a", "a").file("d/e/c", "c"));
        }
        let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
        assert!(held.origin().is_some() && held.list().find(b"d/e/c").is_some() && held.list().find(b"d/b").is_none());
        // Everything, by the directories at the top.
        let report = run(Options { names: only("a\nd\ng\ns"), ..options.clone() }).unwrap();
        assert!(report.failed.is_empty());
        assert_same(&place.dest(), &sample());
        let held = Store::open(&place.store()).unwrap().current().unwrap().unwrap();
        assert!(held.origin().is_none());
        assert!(run(Options { names: only("."), ..options }).unwrap().unchanged);
    }
}

#[test]
fn names_are_relative_to_the_pulled_part_and_a_filter_applies_to_them() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    let mut options = Options { path: b"d".to_vec(), names: only("e\nb"), ..place.mirror(&sender) };
    run(options.clone()).unwrap();
    assert!(place.file("b").exists() && place.file("e/c").exists() && !place.file("e-f").exists());
    options.filter.exclude(b"b").unwrap();
    fs::remove_file(place.file("b")).unwrap();
    assert!(run(options.clone()).unwrap().failed.is_empty(), "left out is not missing");
    assert!(!place.file("b").exists());
    options.path = b"d/b".to_vec();
    assert!(run(options).unwrap_err().to_string().contains("--files-from"));
}

#[test]
fn only_what_is_below_named_directories_is_deleted() {
    for check in CHECKS {
        for delete_grace in [None, Some(Duration::from_millis(1))] {
            let (sender, place) = (Sender::of(&sample()), Place::new());
            run(place.mirror(&sender)).unwrap();
            sender.publish(&Tree::default().file("d/e/new", "new").file("x", "x"));
            fs::write(place.file("d/e/stray"), "").unwrap();
            let options = Options { names: only("d/e\na"), check, delete_grace, ..place.mirror(&sender) };
            for _ in 0..2 {
                let report = run(options.clone()).unwrap();
                assert_eq!(missing(&report), ["a"]);
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(!place.file("d/e/c").exists() && place.file("d/e/new").exists());
            for kept in ["a", "d/b", "d/e-f", "g/h", "s"] {
                assert!(place.file(kept).symlink_metadata().is_ok(), "{kept}");
            }
        }
    }
}

#[test]
fn a_million_names_are_looked_up_in_bounded_time() {
    let (sender, place) = (Sender::of(&sample()), Place::new());
    let mut text = String::new();
    (0..1_000_000).for_each(|number| text += &format!("d/e/{}/{number}\n", number % 1000));
    text += "d/e/c\n";
    let report = run(Options { names: only(&text), ..place.mirror(&sender) }).unwrap();
    assert_eq!(missing(&report).len(), 1_000_000);
    assert_same(&place.dest(), &Tree::default().file("d/e/c", "c"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_named_part_is_the_same_as_in_a_whole_pull_and_nothing_else_changes(
        first in prop::collection::vec(step(), 0..14),
        second in prop::collection::vec(step(), 0..14),
        names in prop::collection::vec(path(), 0..4),
        check in prop::sample::select(CHECKS.to_vec()),
    ) {
        let one = first.iter().fold(Tree::default(), build);
        let two = second.iter().fold(one.clone(), build);
        let (sender, place, whole) = (Sender::of(&one), Place::new(), Place::new());
        run(place.mirror(&sender)).unwrap();
        sender.publish(&two);
        run(whole.mirror(&sender)).unwrap();
        let options = Options { names: only(&names.join("\n")), check, ..place.mirror(&sender) };
        for _ in 0..2 {
            let report = run(options.clone()).unwrap();
            for name in &names {
                let (here, there) = (place.file(name), whole.file(name));
                let is_missing = missing(&report).contains(&name.as_str());
                prop_assert_eq!(!two.0.contains_key(name.as_bytes()), is_missing, "{}", name);
                if !is_missing {
                    let same = |path: &std::path::Path| fs::symlink_metadata(path).unwrap().file_type();
                    prop_assert_eq!(same(&here), same(&there));
                    let content = |path: &std::path::Path| same(path).is_file().then(|| fs::read(path).unwrap());
                    prop_assert_eq!(content(&here), content(&there));
                }
            }
        }
        run(place.mirror(&sender)).unwrap();
        assert_same(&place.dest(), &two);
    }
}
