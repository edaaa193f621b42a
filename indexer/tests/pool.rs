//! The pool has the contents that the generations of a store refer to.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use common::{Site, set_mtime, sha256};
use stillmirror_indexer::{CtimeRule, IndexError, Report, index};
use stillmirror_store::{ContentPool, PoolName, PoolPlace, Retention, Store, StoreError};

/// Returns a site with a pool that keeps this many generations, and whose store keeps no contents.
fn site(generations: u32) -> Site {
    let mut site = Site::new();
    site.options.pin = true;
    site.options.keep_contents = 0;
    site.options.retention = Retention { count: generations, age: None };
    fs::set_permissions(&site.options.root, fs::Permissions::from_mode(0o755)).unwrap();
    site
}

/// Returns the contents of the pool.
fn contents(pool: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for class in ["public", "private"] {
        for shard in fs::read_dir(pool.join(class)).unwrap().map(|entry| entry.unwrap().path()) {
            for file in fs::read_dir(shard).unwrap().map(|entry| entry.unwrap().path()) {
                assert!(found.insert(fs::read_to_string(file).unwrap()), "a content is there twice");
            }
        }
    }
    found
}

fn pool(site: &Site) -> PathBuf {
    site.options.store.join("pool")
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Returns whether the file system of temporary directories shares blocks between files.
fn has_reflinks() -> bool {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "a").unwrap();
    let (from, to) = (fs::File::open(dir.path().join("a")).unwrap(), fs::File::create(dir.path().join("b")).unwrap());
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

/// Replaces a file, as publishers do.
fn replace(site: &Site, path: &str, content: &str) {
    site.write(format!("{path}.new"), content);
    fs::rename(site.path(format!("{path}.new")), site.path(path)).unwrap();
}

#[test]
fn contents_stay_while_a_generation_refers_to_them_and_no_longer() {
    let site = site(2);
    site.write("a", "one");
    site.write("dir/b", "other");
    assert_eq!(site.index().pooled, 2);
    replace(&site, "a", "two");
    assert_eq!(site.index().pooled, 1);
    assert_eq!(contents(&pool(&site)), set(&["one", "two", "other"]));
    replace(&site, "a", "three");
    site.remove("dir/b");
    site.index();
    assert_eq!(contents(&pool(&site)), set(&["two", "three", "other"]));
    // A content that comes back is needed again, although an older generation has dropped it.
    replace(&site, "a", "two");
    site.index();
    assert_eq!(contents(&pool(&site)), set(&["two", "three"]));
    site.write("c", "c");
    site.index();
    assert_eq!(contents(&pool(&site)), set(&["two", "c"]));
    assert_eq!(site.index().pooled, 0);
}

#[test]
fn contents_that_the_packs_have_are_not_in_the_pool() {
    let mut site = site(2);
    site.options.keep_contents = 4;
    site.write("small", "tiny");
    site.write("hidden", "mine");
    fs::set_permissions(site.path("hidden"), fs::Permissions::from_mode(0o600)).unwrap();
    site.write("large", "larger");
    site.index();
    assert_eq!(contents(&pool(&site)), set(&["mine", "larger"]));
}

#[test]
fn what_not_everybody_may_read_is_where_only_the_indexer_may_go() {
    let site = site(2);
    site.write("open", "open");
    site.write("closed", "closed");
    site.write("dir/below", "below");
    fs::set_permissions(site.path("closed"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(site.path("dir"), fs::Permissions::from_mode(0o750)).unwrap();
    site.index();
    let mode = |path: &str| fs::metadata(pool(&site).join(path)).unwrap().mode() & 0o777;
    assert_eq!((mode(""), mode("public"), mode("private"), mode("tmp")), (0o755, 0o755, 0o700, 0o700));
    let of = |class: &str| {
        let shards = fs::read_dir(pool(&site).join(class)).unwrap().map(|entry| entry.unwrap().path());
        shards.flat_map(|shard| fs::read_dir(shard).unwrap()).count()
    };
    assert_eq!((of("public"), of("private")), (1, 2));
    // A directory that is opened later, and a directory that is closed later.
    fs::set_permissions(site.path("dir"), fs::Permissions::from_mode(0o755)).unwrap();
    site.index();
    assert!(has(&site, "dir/below"));
    fs::set_permissions(site.path("dir"), fs::Permissions::from_mode(0o700)).unwrap();
    site.index();
    assert!(has(&site, "dir/below"));
}

/// Returns whether the pool has the content of a path in the current generation.
fn has(site: &Site, path: &str) -> bool {
    let generation = site.current();
    let row = generation.list().find(path.as_bytes()).unwrap().number();
    let name = PoolName::of_row(generation.list(), generation.local(), row).expect("it is kept");
    let place = generation.pool().expect("there is a pool").path(&site.options.store, &site.options.root);
    let file = ContentPool::open(&place).unwrap().content(&name, rustix::fs::OFlags::RDONLY);
    file.is_ok_and(|file| {
        std::io::read_to_string(fs::File::from(file)).unwrap().len() as u64 == generation.list().row(row).size()
    })
}

#[test]
fn turning_it_on_fills_the_pool_and_turning_it_off_removes_it_although_nothing_changed() {
    let mut site = site(8);
    site.options.pin = false;
    site.write("a", "one");
    site.write("dir/b", "other");
    site.link("dir/b", "dir/c");
    site.index();
    let list = site.current().list_bytes().to_vec();
    site.options.pin = true;
    let report = site.index();
    assert_eq!((report.hashed_files, report.pooled, report.published), (0, 2, true));
    assert!(has(&site, "a") && has(&site, "dir/b") && has(&site, "dir/c"));
    assert!(!site.index().published && site.current().list_bytes() == list);
    site.options.pin = false;
    let report = site.index();
    assert_eq!((report.hashed_files, report.published), (0, true));
    assert!(!pool(&site).exists() && site.current().pool().is_none());
    assert!(!site.index().published && site.current().list_bytes() == list);
    assert_eq!(site.group("dir/b"), ["dir/b", "dir/c"]);
}

#[test]
fn a_pool_that_was_removed_is_filled_again() {
    let site = site(8);
    site.write("a", "one");
    site.index();
    fs::remove_dir_all(pool(&site)).unwrap();
    assert_eq!(site.index().pooled, 1);
    assert!(has(&site, "a"));
}

#[test]
fn the_pool_changes_neither_what_is_read_nor_the_link_groups() {
    for ctime in [CtimeRule::Explained, CtimeRule::Strict, CtimeRule::Ignored] {
        let mut site = site(3);
        site.options.ctime = ctime;
        for name in ["a", "b", "dir/c"] {
            site.write(name, name);
        }
        site.link("dir/c", "dir/d");
        let plain = site.fresh_list_without_pool();
        assert_eq!(site.index().hashed_files, 3);
        assert!(site.current().list_bytes() == plain, "{ctime:?}");
        let report = site.index();
        assert_eq!((report.hashed_files, report.published), (0, false), "{ctime:?}");
        replace(&site, "b", "new");
        assert_eq!(site.index().hashed_files, 1, "{ctime:?}");
        fs::rename(site.path("dir"), site.path("moved")).unwrap();
        assert_eq!(site.index().hashed_files, 0, "{ctime:?}");
        for n in 0..4 {
            replace(&site, "b", &format!("content {n}"));
            assert_eq!(site.index().hashed_files, 1, "{ctime:?}");
        }
        assert_eq!(site.group("moved/c"), ["moved/c", "moved/d"]);
        assert!(site.current().list_bytes() == site.fresh_list_without_pool(), "{ctime:?}");
        assert!(!site.index().published);
    }
}

#[test]
fn a_file_that_is_written_to_in_place_keeps_its_old_content_where_blocks_are_shared() {
    let site = site(3);
    site.write("a", "first");
    site.write("b", "other");
    site.index();
    for n in 0..3 {
        site.write("a", format!("longer content {n}"));
        let report = site.index();
        assert_eq!((report.hashed_files, report.pooled), (1, 1));
        let report = site.index();
        assert_eq!((report.hashed_files, report.published), (0, false));
    }
    let kept = contents(&pool(&site));
    if has_reflinks() {
        assert_eq!(kept, set(&["longer content 0", "longer content 1", "longer content 2", "other"]));
    } else {
        assert_eq!(kept, set(&["longer content 2", "other"]));
        assert_eq!(fs::metadata(site.path("a")).unwrap().nlink(), 2);
    }
}

#[test]
fn a_file_that_changes_after_it_was_read_is_not_published_with_a_content_that_the_pool_lacks() {
    /// Writes to a file as soon as its last byte was read.
    struct Writer<'a>(&'a Path, Mutex<u32>);
    impl stillmirror_indexer::Progress for Writer<'_> {
        fn hashed(&self, _files: u64, _bytes: u64) {
            let mut count = self.1.lock().unwrap();
            *count += 1;
            fs::write(self.0, (*count % 10).to_string().repeat(4 << 20)).unwrap();
        }
    }
    let site = site(3);
    site.write("a", "x".repeat(4 << 20));
    site.write("b", "quiet");
    let path = site.path("a");
    let report =
        index(&site.options, &Writer(&path, Mutex::new(0)), &std::sync::atomic::AtomicBool::new(false)).unwrap();
    assert_eq!(report.torn, [b"a".to_vec()]);
    assert_eq!((site.paths(), contents(&pool(&site))), (vec!["b".to_owned()], set(&["quiet"])));
}

#[test]
fn the_pool_is_in_the_tree_if_the_store_is_on_another_file_system_and_nobody_sees_it() {
    let mut site = site(2);
    // tmpfs, on every usual system.
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else { return };
    if fs::metadata(elsewhere.path()).unwrap().dev() == fs::metadata(&site.options.root).unwrap().dev() {
        return;
    }
    site.options.store = elsewhere.path().join("store");
    site.write("a", "one");
    assert_eq!(site.index().pooled, 1);
    assert_eq!(site.current().pool(), Some(&PoolPlace::Root));
    assert_eq!((site.paths(), site.index().published), (vec!["a".to_owned()], false));
    assert_eq!(contents(&site.path(".stillmirror-pool")), set(&["one"]));
    site.remove("a");
    assert!(matches!(site.try_index(), Err(IndexError::EmptyRoot { .. })), "the pool alone is no tree");
    site.write("a", "one");
    site.options.pool = Some(elsewhere.path().join("pool"));
    let error = site.try_index().unwrap_err();
    assert!(matches!(error, IndexError::PoolElsewhere { .. }) && error.to_string().contains("`pool`"), "{error}");
    site.options.pin = false;
    site.index();
    assert!(!site.path(".stillmirror-pool").exists() && site.current().pool().is_none());
}

#[test]
fn a_pool_may_be_anywhere_on_the_file_system_and_belongs_to_one_store() {
    let mut site = site(2);
    site.options.pool = Some(site.path("below/pool"));
    site.write("a", "one");
    site.index();
    assert_eq!(
        (site.paths(), contents(&site.path("below/pool"))),
        (vec!["a".to_owned(), "below".to_owned()], set(&["one"]))
    );
    let mut other = site.options.clone();
    other.store = site.dir.path().join("other");
    let error = index(&other, &(), &std::sync::atomic::AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, IndexError::Store(StoreError::OtherPool { .. })), "{error}");
    // Another place: the new pool is filled, and the old one is removed.
    site.options.pool = None;
    assert_eq!(site.index().pooled, 1);
    assert!(!site.path("below/pool").exists() && has(&site, "a"));
    for (pool, is_right) in [
        (
            site.options.root.clone(),
            (|error| matches!(error, IndexError::RootInPool { .. })) as fn(&IndexError) -> bool,
        ),
        (site.dir.path().to_owned(), |error| matches!(error, IndexError::RootInPool { .. })),
        (site.path("full"), |error| matches!(error, IndexError::Store(StoreError::NotAPool(_)))),
    ] {
        site.write("full/of", "files");
        site.options.pool = Some(pool);
        let error = site.try_index().unwrap_err();
        assert!(is_right(&error) && error.to_string().contains("`pool`"), "{error}");
    }
}

#[test]
fn contents_that_a_killed_run_left_behind_are_removed_by_the_next_one() {
    let site = site(2);
    site.write("a", "one");
    site.index();
    // As after a kill: a content that no generation refers to, a draft, and the note that there may be some.
    let stray = format!("public/aa/{}", "aa".repeat(32));
    fs::create_dir_all(pool(&site).join("public/aa")).unwrap();
    for name in [&stray[..], "tmp/1-2", "dirty"] {
        fs::write(pool(&site).join(name), "stray").unwrap();
    }
    let report: Report = site.index();
    assert!(!report.published && !pool(&site).join("dirty").exists() && !pool(&site).join("tmp/1-2").exists());
    assert_eq!(contents(&pool(&site)), set(&["one"]));
}

#[test]
fn a_store_whose_current_generation_was_removed_gets_rid_of_the_contents() {
    let site = site(4);
    site.write("a", "one");
    site.index();
    replace(&site, "a", "two");
    site.index();
    fs::remove_file(site.options.store.join("current")).unwrap();
    site.index();
    assert_eq!(contents(&pool(&site)), set(&["two"]));
    assert_eq!(Store::open(&site.options.store).unwrap().generations().unwrap().len(), 1);
}

#[test]
fn a_new_mtime_alone_keeps_the_content() {
    let site = site(1);
    site.write("a", "one");
    site.index();
    set_mtime(&site.path("a"), 1_000_000_000);
    site.index();
    assert!(has(&site, "a"));
    assert_eq!(contents(&pool(&site)), set(&["one"]));
    assert_eq!(site.current().list().find(b"a").unwrap().sha256().0, sha256(b"one"));
}

#[test]
fn named_paths_are_kept_like_all_others() {
    let site = site(2);
    site.write("a", "one");
    site.write("b", "two");
    site.index();
    replace(&site, "a", "three");
    assert_eq!(site.index_changed(&[b"a"]).pooled, 1);
    assert!(has(&site, "a") && has(&site, "b"));
    assert_eq!(contents(&pool(&site)), set(&["one", "two", "three"]));
}
