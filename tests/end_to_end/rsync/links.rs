//! Symlinks that the client wants followed, and paths through symlinks, compared with a stock daemon that uses chroot:
//! targets that are absolute or leave the tree are resolved within the tree.

use std::path::Path;

use super::peers::{Pair, am_root, stock_version};
use super::tree;
use crate::support::*;

/// Creates a tree with all forms of symlinks to files and directories, and some dangling ones.
fn pair() -> Pair {
    let world = World::new();
    let src = world.src();
    for path in ["a/b/f", "a/c/g", "a/x/2", "a/x-y/1", "l/sub/h"] {
        write(&src.join(path), path.as_bytes());
    }
    std::fs::hard_link(src.join("a/b/f"), src.join("a/b/hard")).expect("a hard link");
    for (name, target) in [
        ("l/d", "../a"),
        ("l/dd", "d"),
        ("l/lf", "../a/b/f"),
        ("l/dang", "nowhere"),
        ("l/abs", "/a/b/f"),
        ("l/absd", "/a/c"),
        ("l/outside", "/etc/hostname"),
        ("l/clamped", "../../../a/b"),
        ("l/loop1", "loop2"),
        ("l/loop2", "loop1"),
        ("l/notdir", "../a/b/f/x"),
        ("l/chain", "d/b"),
        ("l/sub/c2", "../../a/c"),
        ("a/x.d", "x"),
        ("a/x+", "x-y"),
    ] {
        std::os::unix::fs::symlink(target, src.join(name)).expect("a symlink");
    }
    tree::age(&src);
    Pair::of_root(world)
}

/// The oldest protocol, those that changed the order of names and the format of errors, and the newest.
const PROTOCOLS: [u8; 4] = [27, 29, 30, 32];

fn each(pair: &Pair, cases: &[(&str, &[&str])]) {
    for (options, paths) in cases {
        for protocol in PROTOCOLS {
            let words: Vec<_> = options.split(' ').chain(paths.iter().copied()).chain(["{D}/"]).collect();
            pair.same("links", protocol, &words);
        }
    }
}

#[test]
fn symlinks_are_replaced_by_their_targets() {
    if !am_root() {
        return;
    }
    each(
        &pair(),
        &[
            ("-aLi", &["{M}/"]),
            ("-aki", &["{M}/"]),
            ("-a --copy-unsafe-links", &["{M}/"]),
            ("-akL", &["{M}/l/"]),
            ("-ak --copy-unsafe-links", &["{M}/l"]),
            ("-aLH --stats", &["{M}/"]),
            ("-dL", &["{M}/l/"]),
            ("-aL --exclude=d/ --exclude=x* --exclude=dang", &["{M}/"]),
            ("-aL --delete", &["{M}/l/d", "{M}/l/lf", "{M}/l/dang"]),
            ("-ak", &["{M}/l/d", "{M}/l/lf", "{M}/l/dang", "{M}/l/loop1"]),
            ("-a --copy-unsafe-links", &["{M}/l/notdir", "{M}/l/absd", "{M}/l/dang"]),
            ("-aIL --partial", &["{M}/"]),
        ],
    );
}

#[test]
fn paths_through_symlinks_are_resolved() {
    if !am_root() {
        return;
    }
    let pair = pair();
    each(
        &pair,
        &[
            ("-aR", &["{M}/l/d/b/f"]),
            ("-aR", &["{M}/l/d/", "{M}/a/b/f"]),
            ("-aR", &["{M}/l/chain/f", "{M}/l/d", "{M}/l/dang/"]),
            ("-aRL", &["{M}/l/dd/b"]),
            ("-aR", &["{M}/l/dang/x", "{M}/l/lf/x", "{M}/l/loop1/x"]),
            ("-aR", &["{M}/l/*/b", "{M}/l/d*"]),
            ("-a", &["{M}/l/dd/b/"]),
        ],
    );
    let names = pair.world.path("names");
    std::fs::write(&names, "l/d/b/f\nl/d\nl/dd/\nl/sub\nl/dang/x\nl/lf\nl/chain/hard\na/x.d/2\n").expect("names");
    let names = format!("--files-from={}", names.display());
    for options in ["-a", "-ar", "-aH", "-aL", "-ark", "-a --no-R"] {
        each(&pair, &[(&format!("{options} {names}"), &["{M}/"])]);
    }
}

#[test]
fn a_symlink_to_its_own_directory_is_followed_as_often_as_by_a_stock_daemon() {
    if !am_root() {
        return;
    }
    let world = World::new();
    write(&world.src().join("x/f"), b"once more");
    std::os::unix::fs::symlink(".", world.src().join("x/self")).expect("a symlink");
    tree::age(&world.src());
    let pair = Pair::of_root(world);
    if stock_version().starts_with("3.2.") {
        // They give up one level earlier.
        return;
    }
    each(&pair, &[("-aL", &["{M}/"]), ("-ak", &["{M}/x"])]);
    let pulled = pair.same("links", 31, &["-aL", "{M}/", "{D}/"]);
    assert!(pulled.tree.contains_key(Path::new(&format!("x{}/f", "/self".repeat(40)))));
}
