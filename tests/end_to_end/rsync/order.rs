//! The order of sub-lists. A client's generator relies on their depth, so it must do the same as with a stock daemon.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::peers::{Pair, copy};
use super::tree;
use crate::support::*;

/// Creates a tree in which the subdirectories of two neighbours are equally deep.
fn pair() -> Pair {
    let world = World::new();
    for path in ["a/f", "a/b/f", "a/b/c/f", "z/new/n"] {
        write(&world.src().join(path), b"new\n");
    }
    tree::age(&world.src());
    Pair::of(world)
}

/// Creates a destination: a copy of the tree with some changes.
fn destination(pair: &Pair, name: &str, change: impl FnOnce(&Path)) -> std::path::PathBuf {
    let dest = pair.world.path(name);
    copy(&pair.world.src(), &dest);
    change(&dest);
    // The judge ignores times that are almost as late as the start of a run: the client's clock set them.
    std::thread::sleep(Duration::from_millis(60));
    dest
}

fn age(path: &Path) {
    write(path, b"older\n");
    let file = std::fs::File::options().write(true).open(path).expect("it is there");
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(978_307_200)).expect("a time");
}

#[test]
fn files_protected_by_per_directory_filters_are_not_deleted() {
    let pair = pair();
    let dest = destination(&pair, "filtered", |dest| {
        for name in [".rsync-filter", ".name"] {
            write(&dest.join("a").join(name), b"- local*\n");
        }
        for name in ["a/b/local1", "a/b/c/local2", "z/local3", "a/b/other"] {
            write(&dest.join(name), b"kept or not\n");
        }
    });
    for protocol in 27..=32 {
        for options in [
            "-aF --delete",
            "-aFF --delete",
            "-aF --delete-delay",
            "-a --delete --filter=:_.name --exclude=.name",
            "-a --delete --filter=:r_.name --exclude=.rsync-filter",
        ] {
            let words: Vec<_> = options.split(' ').chain(["{M}/", "{D}/"]).collect();
            let pulled = pair.same_over(&dest, "order", protocol, &words);
            let has = |name: &str| pulled.tree.contains_key(Path::new(name));
            if protocol < 29 {
                // The client itself refuses per-directory rules at old protocols.
                continue;
            }
            assert_eq!(pulled.code, Some(0), "{}", pulled.errors);
            assert!(!has("a/b/other") && !has("z/local3"), "{options} at {protocol}");
            assert!(has("a/b/local1") && has("a/b/c/local2"), "{options} at {protocol}");
        }
    }
}

#[test]
fn missing_names_in_one_directory_do_not_affect_another() {
    let pair = pair();
    let dest = destination(&pair, "lacking", |dest| {
        std::fs::remove_dir_all(dest.join("z/new")).expect("it is there");
        age(&dest.join("a/b/c/f"));
    });
    for protocol in 27..=32 {
        let existing = pair.same_over(&dest, "order", protocol, &["-a", "--existing", "{M}/", "{D}/"]);
        assert!(!existing.tree.contains_key(Path::new("z/new")));
        pair.same_over(&dest, "order", protocol, &["-ain", "{M}/", "{D}/"]);
        pair.same_over(&dest, "order", protocol, &["-ai", "--existing", "--delete", "{M}/", "{D}/"]);
    }
}

#[test]
fn a_directory_that_cannot_be_created_does_not_affect_others() {
    let pair = pair();
    let dest = destination(&pair, "obstructed", |dest| {
        std::fs::remove_dir_all(dest.join("z/new")).expect("it is there");
        // Without --force, no client replaces a directory that is not empty.
        std::fs::remove_file(dest.join("a/f")).expect("it is there");
        write(&dest.join("a/f/in the way"), b"local\n");
        age(&dest.join("a/b/c/f"));
        write(&dest.join("z/new"), b"a file in place of a directory\n");
    });
    for protocol in 27..=32 {
        pair.same_over(&dest, "order", protocol, &["-ai", "{M}/", "{D}/"]);
        pair.same_over(&dest, "order", protocol, &["-ain", "{M}/", "{D}/"]);
        pair.same_over(&dest, "order", protocol, &["-ai", "--ignore-existing", "{M}/", "{D}/"]);
    }
}

#[test]
fn the_total_size_is_that_of_the_sent_list() {
    let pair = pair();
    write(&pair.world.src().join("empty"), b"");
    std::fs::hard_link(pair.world.src().join("a/f"), pair.world.src().join("z/link")).expect("a link");
    std::os::unix::fs::symlink("nowhere", pair.world.src().join("symlink")).expect("a symlink");
    super::peers::index(&pair.world);
    super::changes::wait_for(&pair, "symlink");
    for protocol in 27..=32 {
        for words in [
            &["-aH", "{M}/"][..],
            &["-r", "{M}/"],
            &["-a", "{M}/empty"],
            &["-a", "{M}/a/f", "{M}/z/"],
            &["-a", "--exclude=b", "{M}/"],
            &["-aH", "--no-inc-recursive", "{M}/"],
        ] {
            pair.same("total", protocol, &[&["--stats"], words, &["{D}/"]].concat());
        }
    }
}
