//! Files are not read again after operations that change no content, and are read after those that may change
//! it.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use common::{Site, set_mtime, sha256};
use stillmirror_indexer::{CtimeRule, Report};
use stillmirror_protocol::local::{self, LocalTable};

/// Creates and indexes a tree of a few files, one of which has two names.
fn site() -> Site {
    let site = Site::new();
    for name in ["a", "pool/b", "pool/deep/c"] {
        site.write(name, name.repeat(100));
    }
    site.link("pool/b", "pool/deep/b");
    site.index();
    site
}

/// Indexes, and asserts that no file was read and that the list is right.
fn assert_unread(site: &Site, what: &str) -> Report {
    let report = site.index();
    assert_eq!((report.hashed_files, report.hashed_bytes), (0, 0), "{what}");
    site.assert_same_as_fresh(what);
    assert!(!site.index().published, "{what}: second run");
    report
}

fn cp_al(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-al").args([from, to]).status().unwrap().success());
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_hard_link_snapshot_and_its_removal_read_no_files() {
    let site = site();
    let snapshot = site.dir.path().join("snapshot");
    let first = site.current().head().list_digest;
    cp_al(&site.options.root, &snapshot);
    assert!(assert_unread(&site, "cp -al").published, "the daemon needs the new ctimes");
    fs::remove_dir_all(&snapshot).unwrap();
    assert_unread(&site, "rm -rf of the copy");
    assert_eq!(site.current().head().list_digest, first);
}

#[test]
fn files_are_read_after_a_snapshot_came_and_went_between_two_runs() {
    let mut site = site();
    let snapshot = site.dir.path().join("snapshot");
    let make_and_remove_snapshot = || {
        cp_al(&site.options.root, &snapshot);
        fs::remove_dir_all(&snapshot).unwrap();
    };
    make_and_remove_snapshot();
    let report = site.index();
    assert_eq!((report.hashed_files, report.changed), (3, 0), "each inode is read");
    make_and_remove_snapshot();
    site.options.ctime = CtimeRule::Ignored;
    assert_unread(&site, "ctime is ignored");
}

#[test]
fn adding_and_removing_hard_links_reads_no_files() {
    let site = site();
    fs::hard_link(site.path("a"), site.dir.path().join("elsewhere")).unwrap();
    assert_unread(&site, "link outside the tree");
    site.link("a", "pool/a");
    assert_unread(&site, "link in the tree");
    fs::remove_file(site.dir.path().join("elsewhere")).unwrap();
    site.remove("a");
    let report = assert_unread(&site, "both links removed");
    assert_eq!(report.removed, 1);
}

#[test]
fn changing_modes_and_owners_reads_no_files() {
    let site = site();
    for mode in [0o600, 0o644] {
        set_mode(&site.path("pool/b"), mode);
        assert_eq!(assert_unread(&site, "chmod").changed, 2, "both names change");
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
fn moving_a_directory_of_many_files_reads_no_files() {
    let site = site();
    for file in 0..10_000 {
        site.write(format!("many/{}/{file}", file % 7), file.to_string());
    }
    site.index();
    fs::rename(site.path("many"), site.path("pool/deep/moved")).unwrap();
    let report = assert_unread(&site, "mv of a directory");
    assert_eq!((report.added, report.removed), (10_008, 10_008));
    // Such a move only changes the directory's own ctime, so even the strict rule has no reason to read files.
    let mut site = site;
    site.options.ctime = CtimeRule::Strict;
    fs::rename(site.path("pool/deep/moved"), site.path("back")).unwrap();
    assert_unread(&site, "mv of a directory, strict rule");
}

#[test]
fn renaming_swapping_and_linking_files_reads_no_files() {
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
    assert_unread(&site, "one of two names renamed");
    rename("pool/deep/d", "../away");
    assert_unread(&site, "one of two names moved out of the tree");
    site.remove("pool/z");
    site.link("pool/deep/c", "pool/z");
    assert_unread(&site, "one file replaced by a link to another");
}

#[test]
fn a_moved_directory_is_not_read_if_only_changed_paths_are_named() {
    let site = site();
    fs::rename(site.path("pool/deep"), site.path("deep")).unwrap();
    let report = site.index_changed(&[b"pool/deep", b"deep"]);
    assert_eq!((report.hashed_files, report.removed), (0, 3));
    site.assert_same_as_fresh("a named directory");
}

#[test]
fn a_renamed_file_keeps_its_digests_and_record() {
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
fn a_table_of_the_previous_format_version_is_still_used() {
    let site = site();
    let current = site.current();
    let (list, facts) = (current.list(), current.local());
    let mut older = LocalTable::default();
    for row in 0..list.len() {
        // Without a link count, this column is zero, which the previous version reads as a device number.
        let record = list.row(row).file_number().map(|file| facts.record(file).unwrap_or_default());
        older.push(facts.identity(row), None, record);
    }
    let mut older = older.encode(current.head().list_digest);
    older[8..10].copy_from_slice(&local::ABSOLUTE_DEVICES.to_le_bytes());
    fs::write(current.dir().join("local"), &older).unwrap();
    assert_unread(&site, "unchanged");
    site.link("a", "pool/a");
    assert_unread(&site, "a new name is a trace even without a link count");
    fs::hard_link(site.path("pool/deep/c"), site.dir.path().join("elsewhere")).unwrap();
    assert_eq!(site.index().hashed_files, 1, "a changed link count is no trace without an old one");
}

#[test]
fn a_rewrite_with_a_restored_mtime_is_found() {
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
fn a_new_file_with_the_inode_number_of_a_removed_one_is_read() {
    let site = site();
    // All have equal size and time, as is common in trees with normalised times.
    for round in 0..20 {
        let name = |round: i32| format!("pool/new-{round}");
        site.write(name(round), format!("{round:08}"));
        set_mtime(&site.path(name(round)), 1_000_000);
        if round > 0 {
            site.link(&name(round), &format!("pool/linked-{round}"));
        }
        let report = site.index();
        assert_eq!(report.hashed_files, 1, "{round}");
        site.assert_same_as_fresh("a reused inode");
        site.remove(&name(round));
        if round > 0 {
            site.remove(&format!("pool/linked-{round}"));
        }
    }
}

#[test]
fn the_strict_rule_reads_every_file_with_another_ctime() {
    let mut site = site();
    site.options.ctime = CtimeRule::Strict;
    fs::hard_link(site.path("a"), site.dir.path().join("elsewhere")).unwrap();
    set_mode(&site.path("pool/deep/c"), 0o600);
    fs::rename(site.path("pool/b"), site.path("pool/renamed")).unwrap();
    let report = site.index();
    assert_eq!(report.hashed_files, 3);
    site.assert_same_as_fresh("strict rule");
}

#[test]
fn a_root_that_was_replaced_by_a_copy_is_indexed_with_its_new_inode() {
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
