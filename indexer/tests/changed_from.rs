//! Indexing only the named changes gives the same list as a whole walk.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use common::{Site, set_mtime};
use proptest::prelude::*;
use stillmirror_indexer::{IndexError, Options, index};

#[test]
fn only_named_paths_are_looked_at() {
    let site = Site::new();
    site.write("a/one", "1");
    site.write("b/two", "2");
    site.index();
    site.write("a/one", "changed");
    site.write("b/two", "changed");
    let report = site.index_changed(&[b"a/one"]);
    assert_eq!((report.changed, report.hashed_files), (1, 1));
    let report = site.index_changed(&[b"b/"]);
    assert_eq!((report.changed, report.hashed_files), (1, 1));
    site.assert_same_as_fresh("both named");
    assert!(!site.index_changed(&[b"a/one", b"b", b"not/there"]).published);
}

#[test]
fn a_path_below_another_named_path_is_looked_at_once() {
    let site = Site::new();
    site.write("a/one", "1");
    fs::hard_link(site.path("a/one"), site.dir.path().join("outside")).unwrap();
    site.index();
    assert!(!site.index_changed(&[b"", b"a", b"a/one", b"a/one"]).published);
    site.write("a/one", "changed");
    assert_eq!(site.index_changed(&[b"", b"a/one"]).hashed_files, 1);
    site.assert_same_as_fresh("named twice");
}

#[test]
fn a_missing_path_is_removed_and_a_new_one_adds_its_directories() {
    let site = Site::new();
    site.write("gone/deep/file", "x");
    site.write("stays", "x");
    site.index();
    fs::remove_dir_all(site.path("gone")).unwrap();
    site.write("new/deep/file", "y");
    site.write("new/other", "not named, but in a new directory");
    let report = site.index_changed(&[b"gone/deep/file", b"new/deep/file"]);
    assert_eq!((report.added, report.removed), (4, 3));
    site.assert_same_as_fresh("after a move");
}

#[test]
fn other_names_of_a_changed_inode_need_not_be_named() {
    let site = Site::new();
    site.write("a/x", "one");
    site.write("b/y", "two");
    site.write("b/z", "three");
    site.link("b/z", "a/z");
    site.index();
    site.link("a/x", "b/x");
    site.remove("a/z");
    site.index_changed(&[b"b/x", b"a/z"]);
    assert_eq!(site.group("a/x"), ["a/x", "b/x"]);
    site.assert_same_as_fresh("linked and unlinked");
    assert!(!site.index().published, "the unnamed names were looked at too");
    // The removed directory contains names of inodes that have other names.
    fs::remove_dir_all(site.path("b")).unwrap();
    site.index_changed(&[b"b"]);
    assert!(!site.index().published);
}

#[test]
fn without_a_previous_generation_the_whole_tree_is_walked() {
    let site = Site::new();
    site.write("a", "1");
    site.write("b", "2");
    site.index_changed(&[b"a"]);
    assert_eq!(site.paths(), ["a", "b"]);
}

#[test]
fn a_path_that_leaves_the_root_is_refused() {
    let site = Site::new();
    for path in [&b"/etc/passwd"[..], b"../x", b"a/../../x", b"a\0"] {
        let options = Options { changed_from: Some(vec![path.to_vec()]), ..site.options.clone() };
        let result = index(&options, &(), &std::sync::atomic::AtomicBool::new(false));
        assert!(matches!(result, Err(IndexError::ChangedPath { .. })));
    }
    assert!(!site.options.store.exists());
}

/// A change that a publisher makes to a tree.
#[derive(Debug, Clone)]
enum Step {
    Write(String, u8),
    /// Replaces a file by a new inode, often with a number that was just freed, and with the size and mtime
    /// of many others.
    Replace(String, u8),
    Symlink(String, String),
    Directory(String),
    Remove(String),
    Rename(String, String),
    Link(String, String),
    Mode(String, u32),
}

/// Generates paths from few names, so that different steps often use the same path.
fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "a.d", "c\u{e9}"]);
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (path(), 0u8..4).prop_map(|(path, content)| Step::Write(path, content)),
        4 => (path(), 0u8..4).prop_map(|(path, content)| Step::Replace(path, content)),
        1 => (path(), path()).prop_map(|(path, target)| Step::Symlink(path, target)),
        1 => path().prop_map(Step::Directory),
        2 => path().prop_map(Step::Remove),
        2 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        3 => (path(), path()).prop_map(|(from, to)| Step::Link(from, to)),
        1 => (path(), 0u32..8).prop_map(|(path, bits)| Step::Mode(path, 0o700 | bits)),
    ]
}

/// Takes a step if the tree allows it, and adds the paths that it changed to `changed`.
fn take(site: &Site, step: &Step, changed: &mut BTreeSet<Vec<u8>>) {
    let (done, paths) = match step {
        Step::Write(path, content) => (fs::write(site.path(path), [*content; 5]).is_ok(), vec![path]),
        Step::Replace(path, content) => {
            let _ = fs::remove_file(site.path(path));
            let is_written = fs::write(site.path(path), [*content; 5]).is_ok();
            if is_written {
                set_mtime(&site.path(path), 1_000_000);
            }
            (is_written, vec![path])
        }
        Step::Symlink(path, target) => (symlink(target, site.path(path)).is_ok(), vec![path]),
        Step::Directory(path) => (fs::create_dir(site.path(path)).is_ok(), vec![path]),
        Step::Remove(path) => {
            let gone = fs::remove_file(site.path(path)).or_else(|_| fs::remove_dir_all(site.path(path)));
            (gone.is_ok(), vec![path])
        }
        Step::Rename(from, to) => (fs::rename(site.path(from), site.path(to)).is_ok(), vec![from, to]),
        Step::Link(from, to) => (fs::hard_link(site.path(from), site.path(to)).is_ok(), vec![to]),
        Step::Mode(path, mode) => {
            // Not through a symlink, because then its target would change.
            let own = fs::symlink_metadata(site.path(path)).is_ok_and(|facts| !facts.is_symlink());
            (own && fs::set_permissions(site.path(path), fs::Permissions::from_mode(*mode)).is_ok(), vec![path])
        }
    };
    if done {
        // A path through a symlink names another place, so the publisher names the real path.
        let writes = matches!(step, Step::Write(..));
        changed.extend(paths.into_iter().filter_map(|path| real(site, path, writes)));
    }
}

/// Returns the path relative to the root, without symlinks in its parent. If the step `writes`, a symlink at
/// the path is resolved too.
fn real(site: &Site, path: &str, writes: bool) -> Option<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let full = site.path(path);
    let root = site.options.root.canonicalize().unwrap();
    let parent = full.parent()?.canonicalize().ok()?;
    let real = parent.join(full.file_name()?);
    // A write through a symlink changes its target.
    let target = real.canonicalize().ok().filter(|_| writes && real.is_symlink());
    let real = target.unwrap_or(real);
    Some(real.strip_prefix(&root).ok()?.as_os_str().as_bytes().to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whole_walks_and_named_changes_give_the_same_list_as_a_fresh_store(
        rounds in prop::collection::vec((prop::collection::vec(step(), 1..12), any::<bool>()), 1..5)
    ) {
        let mut site = Site::new();
        site.options.allow_empty = true;
        for (path, content) in ["a/a", "a/b/c\u{e9}", "b/a", "b/b"].iter().zip(10..) {
            site.write(path, [content; 5]);
            set_mtime(&site.path(path), 1_000_000);
        }
        site.link("a/a", "a/link");
        site.index();
        for (steps, named) in &rounds {
            let mut changed = BTreeSet::new();
            for step in steps {
                take(&site, step, &mut changed);
            }
            let report = if *named {
                site.index_changed(&changed.iter().map(Vec::as_slice).collect::<Vec<_>>())
            } else {
                site.index()
            };
            prop_assert!(report.rotten.is_empty(), "{steps:?}: {report:?}");
            site.assert_same_as_fresh(&format!("{steps:?}, named {named}: {changed:?}"));
            // A link that came and went between two runs changes the ctime of an inode that no named path
            // leads to. The next whole walk may have to read it, but its list must not change.
            let list = site.current().head().list_digest;
            let published = site.index().published;
            prop_assert!(*named || !published, "something was overlooked: {steps:?}");
            prop_assert_eq!(site.current().head().list_digest, list);
        }
    }
}
