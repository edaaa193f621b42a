//! A file whose content changes although nothing writes to it is found, reported and not served. Its entry
//! stays.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::{Site, set_mtime, sha256};
use stillmirror_indexer::{Report, Share};
use stillmirror_protocol::entry::Time;
use stillmirror_protocol::local::{Identity, LocalTable};

/// Simulates rot: gives a file another content of the same length, and changes the local facts in the store
/// so that the file's state is still the indexed one.
fn rot(site: &Site, path: &str, content: &str) {
    let mtime = fs::metadata(site.path(path)).unwrap().mtime();
    fs::write(site.path(path), content).unwrap();
    set_mtime(&site.path(path), mtime);
    let stat = fs::metadata(site.path(path)).unwrap();
    let ctime = Time { sec: stat.ctime(), nsec: stat.ctime_nsec() as u32 };
    let current = site.current();
    let (list, local) = (current.list(), current.local());
    let mut table = LocalTable::default();
    for row in 0..list.len() {
        let was = local.last_seen(row);
        let identity = if was.inode == stat.ino() { Identity { ctime, ..was } } else { was };
        let record = list.row(row).file_number().map(|file| local.record(file).unwrap_or_default());
        table.push(identity, local.links(row), record);
    }
    fs::write(current.dir().join("local"), table.encode(current.head().list_digest)).unwrap();
}

/// Creates and indexes a tree of files whose times are whole seconds.
fn site() -> Site {
    let site = Site::new();
    for (at, name) in ["a", "pool/b", "pool/c", "pool/deep/d"].iter().enumerate() {
        site.write(name, format!("right {at}"));
    }
    site.link("pool/c", "pool/deep/c");
    for name in ["a", "pool/b", "pool/c", "pool/deep/d"] {
        set_mtime(&site.path(name), 1_000_000);
    }
    site.index();
    site
}

fn rotten(report: &Report) -> Vec<&str> {
    report.rotten.iter().map(|path| std::str::from_utf8(path).unwrap()).collect()
}

fn is_served(site: &Site, path: &str) -> bool {
    let current = site.current();
    let row = current.list().find(path.as_bytes()).unwrap().number();
    assert_eq!(current.local().is_rotten(row), current.local().identity(row) == Identity::UNKNOWN);
    !current.local().is_rotten(row)
}

#[test]
fn a_named_file_is_read_even_if_it_looks_unchanged() {
    let site = site();
    let right = site.current().head().list_digest;
    assert_eq!(site.index_changed(&[b"a", b"pool"]).hashed_files, 1, "a named directory only covers changed files");
    assert_eq!(site.index_changed(&[b"pool", b"pool/b"]).hashed_files, 1, "a named file is always read");
    rot(&site, "a", "wrong 0");
    let report = site.index();
    assert!(report.rotten.is_empty() && report.hashed_files == 0, "nothing indicates the rot");
    let report = site.index_changed(&[b"a"]);
    assert_eq!((rotten(&report), report.changed, report.hashed_files), (vec!["a"], 0, 1));
    assert!(report.published && !is_served(&site, "a") && is_served(&site, "pool/b"));
    assert_eq!(site.current().head().list_digest, right);
}

#[test]
fn rot_is_reported_until_the_content_is_restored() {
    let site = site();
    rot(&site, "pool/b", "wrong 1");
    site.index_changed(&[b"pool/b"]);
    for _ in 0..2 {
        let report = site.index();
        assert_eq!((rotten(&report), report.published, report.hashed_files), (vec!["pool/b"], false, 1));
    }
    // Another ctime, mode or name does not end the rot.
    fs::set_permissions(site.path("pool/b"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(rotten(&site.index()), ["pool/b"]);
    fs::set_permissions(site.path("pool/b"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::rename(site.path("pool/b"), site.path("pool/z")).unwrap();
    assert_eq!(rotten(&site.index()), ["pool/z"]);
    assert!(!is_served(&site, "pool/z"));
    fs::rename(site.path("pool/z"), site.path("pool/b")).unwrap();
    assert_eq!(rotten(&site.index()), ["pool/b"]);

    site.write("pool/b", "right 1");
    set_mtime(&site.path("pool/b"), 1_000_000);
    let report = site.index();
    assert!(report.rotten.is_empty() && report.published && is_served(&site, "pool/b"));
    assert_eq!(site.current().list().find(b"pool/b").unwrap().sha256().0, sha256(b"right 1"));
    assert!(!site.index().published);
}

#[test]
fn a_new_mtime_means_that_the_new_content_is_intended() {
    let site = site();
    rot(&site, "a", "wrong 0");
    site.index_changed(&[b"a"]);
    set_mtime(&site.path("a"), 2_000_000);
    let report = site.index();
    assert_eq!((rotten(&report).len(), report.changed), (0, 1));
    assert_eq!(site.current().list().find(b"a").unwrap().sha256().0, sha256(b"wrong 0"));
    assert!(is_served(&site, "a"));
    site.assert_same_as_fresh("as intended");
}

#[test]
fn all_names_of_a_rotten_file_are_reported() {
    for paths in [&[&b"pool/deep/c"[..]][..], &[b"pool/deep/c", b""]] {
        let site = site();
        rot(&site, "pool/c", "wrong 2");
        assert_eq!(rotten(&site.index_changed(paths)), ["pool/c", "pool/deep/c"], "{paths:?}");
        assert!(!is_served(&site, "pool/c") && !is_served(&site, "pool/deep/c"));
        assert_eq!(rotten(&site.index()), ["pool/c", "pool/deep/c"]);
        site.write("pool/c", "right 2");
        set_mtime(&site.path("pool/c"), 1_000_000);
        assert!(site.index().rotten.is_empty());
        assert!(is_served(&site, "pool/c") && is_served(&site, "pool/deep/c"));
        site.assert_same_as_fresh("restored");
    }
}

#[test]
fn a_round_of_scrubbing_reads_each_file_once_even_if_it_is_moved() {
    let mut site = Site::new();
    for file in 0..60 {
        site.write(format!("{}/{file}", file % 3), format!("content {file}"));
        set_mtime(&site.path(format!("{}/{file}", file % 3)), 1_000_000);
    }
    site.index();
    rot(&site, "1/7", "CONTENT 7");
    site.options.scrub = Share::new(1, 5);
    let (mut read, mut runs) = (0, 0);
    for round in 0..5 {
        // Move a directory between the turns.
        fs::rename(site.path(round.to_string()), site.path((round + 3).to_string())).unwrap();
        let report = site.index();
        read += report.hashed_files;
        runs += usize::from(!report.rotten.is_empty());
    }
    assert!(runs >= 1, "the rotten file had its turn");
    // A rotten file is read in each run after it was found.
    assert_eq!(read, 60 + runs as u64 - 1);
    let options = site.options.clone();
    site.options.scrub = None;
    assert_eq!(site.index().hashed_files, 1);
    site.options = options;
    site.options.scrub = Some(Share::ALL);
    let report = site.index();
    assert_eq!((report.hashed_files, report.rotten.len(), report.published), (60, 1, false));
}

#[test]
fn a_changed_file_is_not_rotten() {
    let mut site = site();
    site.options.scrub = Some(Share::ALL);
    site.write("a", "other 0");
    set_mtime(&site.path("a"), 1_000_000);
    fs::set_permissions(site.path("a"), fs::Permissions::from_mode(0o600)).unwrap();
    let report = site.index();
    assert_eq!((rotten(&report).len(), report.changed, report.hashed_files), (0, 1, 4));
    site.assert_same_as_fresh("changed");
}
