//! What happens to a tree without changing any content costs no reading, and what may have changed one is read.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use common::{Site, set_mtime, sha256};
use stillmirror_indexer::{CtimeRule, Report};
use stillmirror_protocol::local::{self, LocalTable};

/// A tree of a few files and two names of one inode, indexed.
fn site() -> Site {
    let site = Site::new();
    for name in ["a", "pool/b", "pool/deep/c"] {
        site.write(name, name.repeat(100));
    }
    site.link("pool/b", "pool/deep/b");
    site.index();
    site
}

/// Indexes, and asserts that nothing was read and that the list is right.
fn assert_unread(site: &Site, what: &str) -> Report {
    let report = site.index();
    assert_eq!((report.hashed_files, report.hashed_bytes), (0, 0), "{what}");
    site.assert_as_fresh(what);
    assert!(!site.index().published, "{what}: again");
    report
}

fn cp_al(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-al").args([from, to]).status().unwrap().success());
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_snapshot_of_hard_links_and_its_removal() {
    let site = site();
    let snapshot = site.dir.path().join("snapshot");
    let first = site.current().head().list_digest;
    cp_al(&site.options.root, &snapshot);
    assert!(assert_unread(&site, "cp -al").published, "the new ctimes are what the daemon compares");
    fs::remove_dir_all(&snapshot).unwrap();
    assert_unread(&site, "rm -rf of the copy");
    assert_eq!(site.current().head().list_digest, first);
}

#[test]
fn a_snapshot_that_came_and_went_between_two_runs_leaves_no_trace() {
    let mut site = site();
    let snapshot = site.dir.path().join("snapshot");
    let come_and_go = || {
        cp_al(&site.options.root, &snapshot);
        fs::remove_dir_all(&snapshot).unwrap();
    };
    come_and_go();
    let report = site.index();
    assert_eq!((report.hashed_files, report.changed), (3, 0), "each inode is read");
    come_and_go();
    site.options.ctime = CtimeRule::Ignored;
    assert_unread(&site, "ctime is ignored");
}

#[test]
fn a_link_elsewhere_and_one_in_the_tree() {
    let site = site();
    fs::hard_link(site.path("a"), site.dir.path().join("elsewhere")).unwrap();
    assert_unread(&site, "elsewhere");
    site.link("a", "pool/a");
    assert_unread(&site, "in the tree");
    fs::remove_file(site.dir.path().join("elsewhere")).unwrap();
    site.remove("a");
    let report = assert_unread(&site, "both gone");
    assert_eq!(report.removed, 1);
}

#[test]
fn modes_and_owners() {
    let site = site();
    for mode in [0o600, 0o644] {
        set_mode(&site.path("pool/b"), mode);
        assert_eq!(assert_unread(&site, "chmod").changed, 2, "both names");
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if uid == 0 {
        for id in [12_345, 0] {
            chown(site.path("a"), Some(id), Some(id)).unwrap();
            assert_eq!(assert_unread(&site, "chown").changed, 1);
        }
    }
    assert_eq!(fs::metadata(site.path("a")).unwrap().gid(), gid);
}

#[test]
fn a_directory_of_many_files_that_is_moved() {
    let site = site();
    for file in 0..10_000 {
        site.write(format!("many/{}/{file}", file % 7), file.to_string());
    }
    site.index();
    fs::rename(site.path("many"), site.path("pool/deep/moved")).unwrap();
    let report = assert_unread(&site, "mv of a directory");
    assert_eq!((report.added, report.removed), (10_008, 10_008));
    // A directory's own ctime is all that such a move changes: not even a strict rule has a reason to read.
    let mut site = site;
    site.options.ctime = CtimeRule::Strict;
    fs::rename(site.path("pool/deep/moved"), site.path("back")).unwrap();
    assert_unread(&site, "mv of a directory, strictly");
}

#[test]
fn files_that_are_renamed_swapped_and_made_one() {
    let site = site();
    let rename = |from: &str, to: &str| fs::rename(site.path(from), site.path(to)).unwrap();
    rename("a", "pool/z");
    let report = assert_unread(&site, "renamed");
    assert_eq!((report.added, report.removed), (1, 1));
    rename("pool/z", "x");
    rename("pool/deep/c", "pool/z");
    rename("x", "pool/deep/c");
    assert_unread(&site, "swapped");
    rename("pool/deep/b", "pool/deep/d");
    assert_unread(&site, "one of two names");
    rename("pool/deep/d", "../away");
    assert_unread(&site, "one of two names, out of the tree");
    site.remove("pool/z");
    site.link("pool/deep/c", "pool/z");
    assert_unread(&site, "one file in place of two");
}

#[test]
fn the_same_when_only_changed_paths_are_named() {
    let site = site();
    fs::rename(site.path("pool/deep"), site.path("deep")).unwrap();
    let report = site.index_changed(&[b"pool/deep", b"deep"]);
    assert_eq!((report.hashed_files, report.removed), (0, 3));
    site.assert_as_fresh("a named directory");
}

#[test]
fn the_indexed_digests_and_records_go_with_a_file() {
    let mut site = Site::new();
    site.options.xxh128 = true;
    site.options.md5 = true;
    site.write("a", vec![7; 10_000]);
    site.index();
    let first = site.current();
    fs::rename(site.path("a"), site.path("b")).unwrap();
    assert_unread(&site, "renamed");
    let second = site.current();
    assert_eq!(second.list().row(1).to_entry().kind, first.list().row(1).to_entry().kind);
    assert_eq!(second.local().record(0), first.local().record(0));
    assert!(second.record(0).unwrap().is_some());
}

#[test]
fn a_table_of_the_version_before_still_serves() {
    let site = site();
    let current = site.current();
    let (list, facts) = (current.list(), current.local());
    let mut older = LocalTable::default();
    for row in 0..list.len() {
        // Without a link count, a zero is left: the number of a device, as it was written then.
        let record = list.row(row).file_number().map(|file| facts.record(file).unwrap_or_default());
        older.push(facts.identity(row), None, record);
    }
    let mut older = older.encode(current.head().list_digest);
    older[8..10].copy_from_slice(&local::ABSOLUTE_DEVICES.to_le_bytes());
    fs::write(current.dir().join("local"), &older).unwrap();
    assert_unread(&site, "as it is");
    site.link("a", "pool/a");
    assert_unread(&site, "another name is a trace, without a count");
    fs::hard_link(site.path("pool/deep/c"), site.dir.path().join("elsewhere")).unwrap();
    assert_eq!(site.index().hashed_files, 1, "another count is none");
}

#[test]
fn a_content_that_was_rewritten_with_its_time_put_back_is_found() {
    for rule in [CtimeRule::Strict, CtimeRule::Explained] {
        let mut site = site();
        site.options.ctime = rule;
        let mtime = fs::metadata(site.path("a")).unwrap().mtime();
        set_mtime(&site.path("a"), mtime);
        site.index();
        site.write("a", "b".repeat(100));
        set_mtime(&site.path("a"), mtime);
        let report = site.index();
        assert_eq!((report.changed, report.hashed_files), (1, 1), "{rule:?}");
        assert_eq!(site.current().list().find(b"a").unwrap().sha256().0, sha256(&[b'b'; 100]));
    }
}

#[test]
fn a_new_file_that_got_the_inode_of_a_removed_one_is_read() {
    let site = site();
    // Of equal size and time, as trees with normalised times are full of.
    for round in 0..20 {
        let name = |round: i32| format!("pool/new-{round}");
        site.write(name(round), format!("{round:08}"));
        set_mtime(&site.path(name(round)), 1_000_000);
        if round > 0 {
            site.link(&name(round), &format!("pool/linked-{round}"));
        }
        let report = site.index();
        assert_eq!(report.hashed_files, 1, "{round}");
        site.assert_as_fresh("a reused inode");
        site.remove(&name(round));
        if round > 0 {
            site.remove(&format!("pool/linked-{round}"));
        }
    }
}

#[test]
fn a_strict_rule_reads_whatever_has_another_ctime() {
    let mut site = site();
    site.options.ctime = CtimeRule::Strict;
    fs::hard_link(site.path("a"), site.dir.path().join("elsewhere")).unwrap();
    set_mode(&site.path("pool/deep/c"), 0o600);
    fs::rename(site.path("pool/b"), site.path("pool/renamed")).unwrap();
    let report = site.index();
    assert_eq!(report.hashed_files, 3);
    site.assert_as_fresh("strictly");
}

#[test]
fn a_root_that_is_another_directory_with_the_same_content_is_named_by_its_own_inode() {
    let site = site();
    let (root, copy) = (site.options.root.clone(), site.dir.path().join("copy"));
    for changed_from in [false, true] {
        assert!(Command::new("cp").arg("-a").args([&root, &copy]).status().unwrap().success());
        fs::rename(&root, site.dir.path().join(format!("before-{changed_from}"))).unwrap();
        fs::rename(&copy, &root).unwrap();
        let report = if changed_from { site.index_changed(&[b"a"]) } else { site.index() };
        assert!(report.published);
        let generation = site.current();
        assert_eq!(generation.local().identity(0).inode, fs::metadata(&root).unwrap().ino());
    }
}
