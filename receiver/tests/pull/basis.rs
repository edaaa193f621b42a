use std::time::Duration;

use stillmirror_receiver::{Check, Options};

use crate::sender::Sender;
use crate::tree::{Tree, assert_same, noise};
use crate::{Place, run};

/// Returns the options of a pull that deletes nothing.
fn without_delete(options: Options) -> Options {
    Options { delete: false, ..options }
}

/// Returns the tree with other times, as if it had been unpacked again.
fn unpacked_again(mut tree: Tree) -> Tree {
    tree.0.values_mut().for_each(|entry| entry.mtime.sec += 1000);
    tree
}

#[test]
fn moved_files_cost_no_data_although_nothing_is_deleted() {
    let tree = Tree::default().file("a/one", noise(50_000, 1)).file("a/b/two", noise(60_000, 2)).file("c", "c");
    let next = unpacked_again(tree.clone().renamed("a", "z").renamed("c", "d"));
    for check in [Check::Stat, Check::None, Check::Hash] {
        let (sender, place) = (Sender::of(&tree), Place::new());
        run(without_delete(place.mirror(&sender))).unwrap();
        sender.publish(&next);
        let report = run(Options { check, ..without_delete(place.mirror(&sender)) }).unwrap();
        assert_eq!((report.bytes_literal, report.bytes_checksums, report.files_reused), (0, 0, 3), "{check:?}");
        assert!(place.file("a/one").exists() && place.file("c").exists());
        run(place.mirror(&sender)).unwrap();
        assert_same(&place.dest(), &next);
    }
}

#[test]
fn a_moved_directory_costs_no_data_although_the_store_does_not_know_it() {
    let tree = Tree::default().file("old/a", noise(50_000, 1)).file("old/b/c", noise(60_000, 2));
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(place.options(&sender)).unwrap();
    let next = tree.renamed("old", "new");
    sender.publish(&next);
    let report = run(place.mirror(&sender)).unwrap();
    assert_eq!((report.bytes_literal, report.files_reused), (0, 2));
    assert_same(&place.dest(), &next);
}

#[test]
fn a_directory_that_waits_for_its_deletion_serves_a_new_one() {
    let tree = Tree::default().file("old/a", noise(50_000, 1)).file("old/b/c", noise(60_000, 2)).file("x", "x");
    let (sender, place) = (Sender::of(&tree), Place::new());
    let options = Options { delete_grace: Some(Duration::from_secs(3600)), ..place.mirror(&sender) };
    run(options.clone()).unwrap();
    sender.publish(&tree.clone().without("old"));
    assert_eq!(run(options.clone()).unwrap().deletes_waiting, 1);
    for check in [Check::Stat, Check::None] {
        let name = format!("new-{check:?}");
        sender.publish(&tree.clone().renamed("old", &name));
        let report = run(Options { check, ..options.clone() }).unwrap();
        assert_eq!((report.bytes_literal, report.files_reused), (0, 2), "{check:?}");
    }
    assert!(place.file("old/a").exists());
}

#[test]
fn a_file_that_only_the_disk_knows_serves_a_new_one_of_its_size() {
    let tree = Tree::default().file("one", noise(50_000, 1)).file("x", "x");
    let (sender, place) = (Sender::of(&tree), Place::new());
    run(without_delete(place.mirror(&sender))).unwrap();
    sender.publish(&Tree::default().file("x", "x"));
    run(without_delete(place.mirror(&sender))).unwrap();
    let next = unpacked_again(tree.renamed("one", "two"));
    sender.publish(&next);
    let report = run(without_delete(place.mirror(&sender))).unwrap();
    assert_eq!(report.bytes_literal, 0, "{report:?}");
    assert!(report.bytes_checksums < 1000, "{report:?}");
}

/// A program of three files, of which `version` changes some bytes.
fn program(dir: &str, version: u8) -> Tree {
    let file = |seed, len: usize| {
        let mut content = noise(len, seed);
        content[len / 2] ^= version;
        content
    };
    Tree::default()
        .file(&format!("{dir}/src/main.c"), file(1, 90_000))
        .file(&format!("{dir}/doc/manual.txt"), file(2, 70_000))
        .file(&format!("{dir}/LICENSE"), noise(20_000, 3))
}

#[test]
fn a_version_that_is_unpacked_beside_the_last_one_is_built_from_it() {
    let old = program("pool/foo-1.2", 0);
    let mut both = program("pool/foo-1.3", 1);
    both.0.extend(old.0.clone());
    for (with_store, next) in
        [(true, both.clone()), (false, both), (true, program("pool/foo-1.3", 1)), (false, program("pool/foo-1.3", 1))]
    {
        let (sender, place) = (Sender::of(&old), Place::new());
        let options = if with_store { place.mirror(&sender) } else { place.options(&sender) };
        run(options.clone()).unwrap();
        sender.publish(&next);
        let report = run(options).unwrap();
        assert!(report.bytes_literal < 4000, "{report:?}");
        assert_same(&place.dest(), &next);
    }
}

#[test]
fn a_file_with_a_version_in_its_own_name_is_found_in_the_last_version_of_its_directory() {
    let tree = |version: u8| {
        let mut content = noise(200_000, 1);
        content[100_000] ^= version;
        Tree::default().file(&format!("rel-{version}/inner-{version}.x/libfoo-{version}.tar"), content)
    };
    let (sender, place) = (Sender::of(&tree(1)), Place::new());
    run(place.mirror(&sender)).unwrap();
    sender.publish(&tree(2));
    let report = run(place.mirror(&sender)).unwrap();
    assert!(report.bytes_literal < 4000, "{report:?}");
    assert_same(&place.dest(), &tree(2));
}

/// Two files of 100,000 bytes and one small one.
fn sample() -> Tree {
    Tree::default().file("dir/a", noise(100_000, 1)).file("b", noise(100_000, 2)).file("c", "small")
}

/// Pulls a tree into a place of its own, as another mirror would have it.
fn mirror_of(tree: &Tree) -> Place {
    let (sender, place) = (Sender::of(tree), Place::new());
    run(place.options(&sender)).unwrap();
    place
}

#[test]
fn files_of_a_basis_are_copied_and_its_other_versions_are_searched() {
    let mut older = noise(100_000, 2);
    older[50_000] ^= 1;
    let old = unpacked_again(Tree::default().file("b", older)).file("dir/a", noise(100_000, 1)).file("c", "other");
    let (sender, place, basis) = (Sender::of(&sample()), Place::new(), mirror_of(&old));
    let report = run(Options { bases: vec![basis.dest()], ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &sample());
    assert_eq!(report.files_reused, 1, "{report:?}");
    assert!(report.bytes_literal < 2000, "{report:?}");
    assert_same(&basis.dest(), &old);
}

#[test]
fn a_basis_that_looks_right_is_not_trusted() {
    let old = Tree::default().file("b", noise(100_000, 7)).file("c", "SMALL");
    let (sender, place, basis) = (Sender::of(&sample()), Place::new(), mirror_of(&old));
    let report = run(Options { bases: vec![basis.dest()], ..place.mirror(&sender) }).unwrap();
    assert_same(&place.dest(), &sample());
    assert_eq!(report.files_reused, 0);
}

#[test]
fn a_basis_in_any_state_costs_nothing_but_data() {
    let outside = mirror_of(&sample());
    let break_it: [fn(&Place, &Place); 6] = [
        |basis, _| std::fs::remove_dir_all(basis.dest()).unwrap(),
        |basis, _| {
            std::fs::remove_file(basis.file("b")).unwrap();
            rustix::fs::mkfifoat(rustix::fs::CWD, basis.file("b"), rustix::fs::Mode::RUSR).unwrap();
        },
        |basis, _| {
            std::fs::remove_file(basis.file("b")).unwrap();
            std::fs::create_dir(basis.file("b")).unwrap();
        },
        |basis, _| std::fs::File::options().write(true).open(basis.file("b")).unwrap().set_len(10).unwrap(),
        |basis, outside| {
            std::fs::remove_file(basis.file("b")).unwrap();
            std::os::unix::fs::symlink(outside.file("b"), basis.file("b")).unwrap();
        },
        |basis, outside| {
            std::fs::remove_dir_all(basis.file("dir")).unwrap();
            std::os::unix::fs::symlink(outside.file("dir"), basis.file("dir")).unwrap();
        },
    ];
    for (number, break_it) in break_it.into_iter().enumerate() {
        let (sender, place, basis) = (Sender::of(&sample()), Place::new(), mirror_of(&sample()));
        break_it(&basis, &outside);
        let report = run(Options { bases: vec![basis.dest()], ..place.mirror(&sender) }).unwrap();
        assert_same(&place.dest(), &sample());
        let expected = if number == 0 { 200_005 } else { 100_000 };
        assert_eq!(report.bytes_literal, expected, "state {number}: {report:?}");
    }
}

#[test]
fn a_basis_that_vanishes_during_the_search_is_replaced_by_the_sender() {
    let mut older = noise(400_000, 2);
    older[200_000] ^= 1;
    for fate in ["gone", "short", "other"] {
        let tree = Tree::default().file("b", noise(400_000, 2));
        let old = unpacked_again(Tree::default().file("b", older.clone()));
        let (sender, place, basis) = (Sender::of(&tree), Place::new(), mirror_of(&old));
        let file = basis.file("b");
        sender.tamper(move |_, request, frames| {
            // The matches are known by now, and nothing of them is copied yet.
            if matches!(request, stillmirror_protocol::wire::Request::Data { .. }) {
                match fate {
                    "gone" => drop(std::fs::remove_file(&file)),
                    "short" => std::fs::write(&file, "short").unwrap(),
                    _ => std::fs::write(&file, noise(400_000, 9)).unwrap(),
                }
            }
            frames
        });
        run(Options { bases: vec![basis.dest()], ..place.mirror(&sender) }).unwrap();
        assert_same(&place.dest(), &tree);
    }
}

#[test]
fn a_part_of_an_earlier_pull_is_not_lost_to_a_basis_that_only_looks_right() {
    let (sender, place) = (Sender::of(&Tree::default().file("b", noise(3_000_000, 2))), Place::new());
    let basis = mirror_of(&Tree::default().file("b", noise(3_000_000, 8)));
    sender.behave(crate::sender::Behaviour { cut: Some(2_000_000), ..Default::default() });
    run(place.mirror(&sender)).unwrap_err();
    sender.behave(Default::default());
    let report = run(Options { bases: vec![basis.dest()], ..place.mirror(&sender) }).unwrap();
    assert!(report.bytes_literal < 1_500_000, "{report:?}");
}
