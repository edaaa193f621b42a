//! Runs of the indexer on real files, and the generations that they publish.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Site, set_mtime, sha256};
use stillmirror_indexer::{IndexError, Options, Progress, STAGING, Specials, Unreadable, index};
use stillmirror_protocol::list::FileType;
use stillmirror_protocol::sums::SumsRef;
use stillmirror_store::{Store, StoreError};

#[test]
fn the_first_index_describes_the_tree_on_disk() {
    let site = Site::new();
    let content: Vec<u8> = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
    site.write("pool/a.deb", &content);
    site.write("README", b"");
    symlink("pool/a.deb", site.path("latest")).unwrap();
    fs::set_permissions(site.path("pool"), fs::Permissions::from_mode(0o2775)).unwrap();
    set_mtime(&site.path("latest"), -5);
    let report = site.index();
    assert!(report.published && report.generation == 1);
    assert_eq!((report.added, report.changed, report.removed), (4, 0, 0));
    assert_eq!((report.hashed_files, report.hashed_bytes), (2, 200_000));
    let counts = report.counts;
    assert_eq!((counts.files, counts.directories, counts.symlinks, counts.bytes), (2, 2, 1, 200_000));

    let generation = site.current();
    let list = generation.list();
    let stat = fs::metadata(site.path("pool/a.deb")).unwrap();
    let row = list.find(b"pool/a.deb").unwrap();
    assert_eq!((row.size(), row.sha256().0), (200_000, sha256(&content)));
    assert_eq!((row.mtime().sec, i64::from(row.mtime().nsec)), (stat.mtime(), stat.mtime_nsec()));
    assert_eq!((row.owner().uid, row.owner().gid), (stat.uid(), stat.gid()));
    assert_eq!(generation.local().identity(row.number()).inode, stat.ino());
    let sums = SumsRef::parse(generation.sums(row.file_number().unwrap()).unwrap()).unwrap();
    assert_eq!(sums.size(), 200_000);
    assert_eq!(list.find(b"README").unwrap().sha256().0, sha256(b""));
    assert_eq!(list.find(b"pool").unwrap().permissions(), 0o2775);
    let link = list.find(b"latest").unwrap();
    assert_eq!((link.target(), link.mtime().sec), (Some(&b"pool/a.deb"[..]), -5));
    assert!(generation.digest_is_right() && generation.delta().is_none());
}

#[test]
fn owners_have_the_names_that_the_host_knows() {
    let site = Site::new();
    site.write("a", "x");
    site.index();
    let uid = fs::metadata(site.path("a")).unwrap().uid();
    let name = Command::new("id").args(["-nu", &uid.to_string()]).output().unwrap().stdout;
    assert_eq!(site.current().list().find(b"a").unwrap().owner().user, name.trim_ascii_end());
}

#[test]
fn an_unchanged_tree_publishes_nothing_and_reads_no_file() {
    let site = Site::new();
    site.write("a/b", "x");
    site.write("a/c", "y");
    site.link("a/b", "a/d");
    symlink("b", site.path("a/l")).unwrap();
    site.index();
    let report = site.index();
    assert!(!report.published);
    assert_eq!((report.generation, report.hashed_files, report.counts.files), (1, 0, 3));
    assert_eq!((report.added, report.changed, report.removed), (0, 0, 0));
    assert_eq!(Store::open(&site.options.store).unwrap().generations().unwrap(), [1]);
}

#[test]
fn changes_are_counted_and_the_delta_produces_the_new_list() {
    let site = Site::new();
    for name in ["a", "b", "c", "d/e", "d/f"] {
        site.write(name, name);
    }
    site.index();
    let before = site.current();
    site.write("a", "changed");
    site.write("new/file", "n");
    site.remove("b");
    fs::remove_dir_all(site.path("d")).unwrap();
    let report = site.index();
    assert_eq!((report.added, report.changed, report.removed), (2, 1, 4));
    assert_eq!(report.hashed_files, 2);
    assert_eq!(site.paths(), ["a", "c", "new", "new/file"]);
    site.assert_same_as_fresh("after changes");

    let after = site.current();
    assert_eq!(after.head().previous, before.head().list_digest);
    let (from, to, changes) = stillmirror_protocol::changes::Changes::decode(after.delta().unwrap().bytes()).unwrap();
    assert_eq!((from, to), (before.head().list_digest, after.head().list_digest));
    let rebuilt = stillmirror_protocol::changes::apply(Some(before.list()), &changes).unwrap().list.encode();
    assert_eq!(&rebuilt[..], after.list_bytes());
}

#[test]
fn a_changed_file_with_equal_size_and_mtime_is_noticed() {
    let site = Site::new();
    site.write("a", "one");
    set_mtime(&site.path("a"), 1_000_000);
    site.index();
    site.write("a", "two");
    set_mtime(&site.path("a"), 1_000_000);
    let report = site.index();
    assert_eq!((report.changed, report.hashed_files), (1, 1));
    assert_eq!(site.current().list().find(b"a").unwrap().sha256().0, sha256(b"two"));
}

#[test]
fn a_file_that_was_renamed_and_renamed_back_keeps_its_entry() {
    let site = Site::new();
    site.write("a", "x");
    site.index();
    let first = site.current();
    fs::rename(site.path("a"), site.path("b")).unwrap();
    fs::rename(site.path("b"), site.path("a")).unwrap();
    set_mtime(&site.options.root, first.list().row(0).mtime().sec);
    site.index();
    site.write("b", "y");
    site.remove("b");
    // The list may differ in the root's time, but the file's entry is unchanged.
    let second = site.current();
    assert_eq!(second.list().find(b"a").unwrap().to_entry(), first.list().find(b"a").unwrap().to_entry());
    let ctime = fs::metadata(site.path("a")).unwrap().ctime_nsec();
    assert_eq!(i64::from(second.local().identity(1).ctime.nsec), ctime);
}

#[test]
fn changed_local_facts_alone_publish_a_generation_with_the_same_list() {
    let site = Site::new();
    site.write("d/a", "x");
    site.index();
    let first = site.current();
    let mode = fs::metadata(site.path("d/a")).unwrap().permissions();
    fs::set_permissions(site.path("d/a"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(site.path("d/a"), mode).unwrap();
    let report = site.index();
    let second = site.current();
    assert_eq!((report.published, report.generation, report.changed, report.hashed_files), (true, 2, 0, 1));
    assert_eq!(second.head().list_digest, first.head().list_digest);
    assert_ne!(second.local().identity(2), first.local().identity(2));
    let inode = |generation: &stillmirror_store::Generation| fs::metadata(generation.dir().join("list")).unwrap().ino();
    assert_eq!(inode(&first), inode(&second));
    assert_eq!(site.index().generation, 2);
}

#[test]
fn a_renamed_file_keeps_its_block_checksums() {
    let site = Site::new();
    site.write("a", vec![7; 10_000]);
    site.index();
    fs::rename(site.path("a"), site.path("b")).unwrap();
    site.index();
    let generation = site.current();
    assert!(generation.sums(0).is_some());
    assert_eq!(generation.local().record(0).unwrap().pack, 1);
    assert!(!site.options.store.join("sums/2.pack").exists());
}

/// Returns the content that the store keeps of a path.
fn content(site: &Site, path: &str) -> Vec<u8> {
    let generation = site.current();
    let file = generation.list().find(path.as_bytes()).unwrap().file_number().unwrap();
    generation.record(file).unwrap().map_or_else(Vec::new, |record| record.content.to_vec())
}

#[test]
fn files_up_to_the_configured_size_are_kept_with_their_content() {
    let mut site = Site::new();
    site.options.keep_contents = 5_000;
    for (name, size) in [("empty", 0), ("one", 1), ("few", 5_000), ("more", 5_001), ("much", 100_000)] {
        site.write(name, vec![7; size]);
    }
    site.index();
    for (name, size) in [("empty", 0), ("one", 1), ("few", 5_000), ("more", 0), ("much", 0)] {
        assert_eq!(content(&site, name), vec![7; size], "{name}");
    }
    site.write("few", vec![8; 4_000]);
    site.write("more", vec![8; 4_000]);
    site.index();
    assert_eq!((content(&site, "few"), content(&site, "one")), (vec![8; 4_000], vec![7]));
    let generation = site.current();
    let at = |path: &[u8]| generation.local().record(generation.list().find(path).unwrap().file_number().unwrap());
    assert_eq!(at(b"few"), at(b"more"), "equal contents share one record");

    site.options.keep_contents = u64::MAX;
    site.write("much", vec![9; 64 << 10]);
    site.write("more", vec![9; (64 << 10) + 1]);
    site.index();
    assert_eq!((content(&site, "much").len(), content(&site, "more").len()), (64 << 10, 0), "there is a limit");
}

/// Flips a bit in the middle of this content in every pack that contains it.
fn rot(site: &Site, content: &[u8]) {
    for pack in std::fs::read_dir(site.options.store.join("sums")).unwrap() {
        let pack = pack.unwrap().path();
        let mut bytes = std::fs::read(&pack).unwrap();
        if let Some(at) = bytes.windows(content.len()).position(|window| window == content) {
            bytes[at + content.len() / 2] ^= 1;
            std::fs::write(&pack, bytes).unwrap();
        }
    }
}

#[test]
fn damage_in_the_store_is_repaired_on_request() {
    let mut site = Site::new();
    for (name, byte) in [("one", 1), ("twin", 1), ("dir/two", 2), ("three", 3)] {
        site.write(name, vec![byte; 3_000]);
    }
    site.index();
    rot(&site, &[1; 3_000]);
    let files = || 0..site.current().list().files();
    assert!(!site.index().published, "without the option, only the tree is looked at");
    assert_eq!(files().filter(|&file| site.current().record(file).is_err()).count(), 2);

    site.options.verify_store = true;
    let report = site.index();
    assert!(report.published && report.damaged == 2 && report.hashed_files == 2, "{report:?}");
    assert_eq!((content(&site, "one"), content(&site, "twin")), (vec![1; 3_000], vec![1; 3_000]));
    let report = site.index();
    assert!(!report.published && report.damaged == 0 && report.hashed_files == 0, "{report:?}");

    // A missing pack, and then a damaged compressed list.
    std::fs::remove_file(site.options.store.join("sums/1.pack")).unwrap();
    let report = site.index();
    assert!(report.published && report.damaged == 2, "{report:?}");
    assert_eq!((content(&site, "dir/two"), content(&site, "three")), (vec![2; 3_000], vec![3; 3_000]));
    let compressed = site.current().dir().join("list.zst");
    let mut bytes = std::fs::read(&compressed).unwrap();
    bytes[40] ^= 1;
    std::fs::remove_file(&compressed).unwrap();
    std::fs::write(compressed, bytes).unwrap();
    assert!(!site.current().list_zst_is_right());
    let report = site.index();
    assert!(report.published && report.damaged == 0 && site.current().list_zst_is_right(), "{report:?}");
}

#[test]
fn a_damaged_record_is_not_shared_with_another_file_of_equal_content() {
    let site = Site::new();
    site.write("old", vec![1; 3_000]);
    site.index();
    rot(&site, &[1; 3_000]);
    site.write("new", vec![1; 3_000]);
    site.index();
    assert_eq!(content(&site, "new"), vec![1; 3_000]);
}

#[test]
fn contents_that_not_everybody_may_read_are_not_kept() {
    let site = Site::new();
    let allow = |path: &str, mode| fs::set_permissions(site.path(path), fs::Permissions::from_mode(mode)).unwrap();
    for name in ["all", "own", "shut/in", "shut/deep/in", "open/in"] {
        site.write(name, name);
    }
    allow("own", 0o640);
    allow("shut", 0o750);
    site.index();
    for (name, is_kept) in
        [("all", true), ("own", false), ("shut/in", false), ("shut/deep/in", false), ("open/in", true)]
    {
        assert_eq!(content(&site, name), if is_kept { name.as_bytes() } else { b"" }, "{name}");
    }
    allow("own", 0o644);
    site.index();
    assert_eq!(content(&site, "own"), b"own", "it is read again so that it can be kept");
}

#[test]
fn a_new_file_is_kept_even_if_an_equal_old_one_was_not() {
    let mut site = Site::new();
    site.options.keep_contents = 0;
    site.write("a", vec![7; 10_000]);
    site.index();
    assert_eq!(content(&site, "a"), b"");
    site.options.keep_contents = 16 << 10;
    site.write("b", vec![7; 10_000]);
    site.index();
    assert_eq!((content(&site, "a").len(), content(&site, "b").len()), (0, 10_000));
}

#[test]
fn compaction_moves_contents_and_their_block_checksums() {
    let site = Site::new();
    for name in 0..50 {
        site.write(format!("{name}"), vec![name; 9_000]);
    }
    site.index();
    // Most of the first pack is unused now, so the rest of it moves.
    for name in 0..40 {
        site.remove(&name.to_string());
    }
    site.index();
    site.write("new", "x");
    site.index();
    let packs: Vec<u32> = site.current().pack_uses().iter().map(|uses| uses.pack).collect();
    assert_eq!(packs, [3]);
    for name in 40..50u8 {
        assert_eq!(content(&site, &name.to_string()), vec![name; 9_000]);
    }
    assert!(site.current().sums(0).is_some());
}

#[test]
fn names_can_change_their_type() {
    let site = Site::new();
    site.write("x", "file");
    site.write("y/below", "file");
    symlink("x", site.path("z")).unwrap();
    site.index();
    site.remove("x");
    site.write("x/below/deep", "now a directory");
    fs::remove_dir_all(site.path("y")).unwrap();
    site.write("y", "now a file");
    site.remove("z");
    fs::create_dir(site.path("z")).unwrap();
    site.index();
    assert_eq!(site.paths(), ["y", "x", "z", "x/below", "x/below/deep"]);
    site.assert_same_as_fresh("after type changes");
}

#[test]
fn link_groups_can_form_grow_shrink_and_break_up() {
    let site = Site::new();
    site.write("a", "one");
    site.write("b", "two");
    site.index();
    assert_eq!(site.group("a"), Vec::<String>::new());

    site.link("a", "c");
    let report = site.index();
    assert_eq!(site.group("a"), ["a", "c"]);
    assert_eq!(report.hashed_files, 0, "a new name of a known inode needs no reading");
    site.assert_same_as_fresh("formed");

    site.link("a", "e");
    site.index();
    assert_eq!(site.group("e"), ["a", "c", "e"]);
    site.assert_same_as_fresh("grown");

    site.remove("a");
    site.index();
    assert_eq!(site.group("c"), ["c", "e"]);
    site.assert_same_as_fresh("its leader lost");

    site.remove("c");
    site.link("b", "c");
    site.index();
    assert_eq!((site.group("c"), site.group("e")), (vec!["b".to_owned(), "c".to_owned()], vec![]));
    site.assert_same_as_fresh("moved");

    fs::write(site.path("x"), "two").unwrap();
    fs::rename(site.path("x"), site.path("c")).unwrap();
    site.index();
    assert_eq!(site.group("b"), Vec::<String>::new());
    site.assert_same_as_fresh("broken");
    assert_eq!(site.current().head().counts.bytes, 9);
}

#[test]
fn symlinks_and_fifos_are_grouped_like_files() {
    let site = Site::new();
    let new_symlink = || {
        symlink("target", site.path("s1")).unwrap();
        set_mtime(&site.path("s1"), 1000);
    };
    new_symlink();
    let status = Command::new("mkfifo").arg(site.path("p1")).status();
    assert!(status.unwrap().success());
    site.index();
    assert_eq!((site.group("s1").len(), site.group("p1").len()), (0, 0));

    site.link("s1", "s2");
    site.link("p1", "p2");
    assert_eq!(site.index().added, 2);
    assert_eq!((site.group("s1"), site.group("p2")), (vec!["s1".into(), "s2".into()], vec!["p1".into(), "p2".into()]));
    site.assert_same_as_fresh("formed");

    // The new symlink looks the same but has another inode.
    site.remove("s1");
    new_symlink();
    site.remove("p2");
    site.index_changed(&[b"s1", b"p2"]);
    assert_eq!((site.group("s2").len(), site.group("p1").len()), (0, 0));
    site.assert_same_as_fresh("parted");
    assert!(!site.index().published);
}

#[test]
fn a_hard_link_outside_the_tree_makes_no_group() {
    let site = Site::new();
    site.write("a", "x");
    fs::hard_link(site.path("a"), site.dir.path().join("outside")).unwrap();
    site.index();
    assert_eq!(site.current().list().links().len(), 0);
    site.assert_same_as_fresh("with a name outside");
}

#[test]
fn names_may_be_any_bytes() {
    let site = Site::new();
    let names: [&[u8]; 6] = [b"caf\xe9", b"new\nline", b"\xff\xfe", b" ", b"-rf", b"a\\b"];
    for name in names {
        site.write(name, name);
        site.write([name, b".d/", name].concat(), name);
    }
    site.index();
    let generation = site.current();
    for name in names {
        assert_eq!(generation.list().find(name).unwrap().sha256().0, sha256(name));
        assert!(generation.list().find(&[name, b".d/", name].concat()).is_some());
    }
    assert!(!site.index().published);
}

#[test]
fn symlinks_are_never_followed() {
    let site = Site::new();
    let outside = site.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "s").unwrap();
    symlink(&outside, site.path("dir")).unwrap();
    symlink(outside.join("secret"), site.path("file")).unwrap();
    symlink("dir", site.path("loop")).unwrap();
    site.index();
    assert_eq!(site.paths(), ["dir", "file", "loop"]);
    // This also holds if the path of a changed file leads through one.
    site.index_changed(&[b"dir/secret", b"loop/secret"]);
    assert_eq!(site.paths(), ["dir", "file", "loop"]);
}

#[test]
fn specials_are_kept_or_skipped() {
    let mut site = Site::new();
    rustix::fs::mkfifoat(rustix::fs::CWD, site.path("fifo"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(site.path("socket")).unwrap();
    assert_eq!(site.index().counts.specials, 2);
    assert_eq!(site.current().list().find(b"fifo").unwrap().file_type(), FileType::Fifo);
    assert!(!site.index().published);
    site.options.specials = Specials::Skip;
    assert_eq!(site.index().removed, 2);
    assert!(site.paths().is_empty());
}

#[test]
fn filters_decide_what_is_indexed() {
    let mut site = Site::new();
    for name in ["keep", "drop.tmp", "dir/keep", "dir/x.tmp", "build/all", "deep/build"] {
        site.write(name, name);
    }
    site.options.filter.exclude(b"*.tmp").unwrap();
    site.options.filter.exclude(b"/build/").unwrap();
    site.index();
    assert_eq!(site.paths(), ["keep", "deep", "dir", "deep/build", "dir/keep"]);
    assert!(!site.index().published);
    site.index_changed(&[b"build/all", b"drop.tmp"]);
    assert_eq!(site.paths(), ["keep", "deep", "dir", "deep/build", "dir/keep"]);
}

#[test]
fn staging_and_a_store_below_the_root_are_left_out() {
    let mut site = Site::new();
    site.options.store = site.path("meta/store");
    site.write([STAGING, "/half"].concat(), "x");
    site.write(["deep/", STAGING].concat(), "only special in the root");
    site.index();
    assert!(!site.index().published, "the run's own writes are no change");
    assert_eq!(site.paths(), ["deep", "meta", "deep/.stillmirror-stage"]);
    site.options.store = site.options.root.clone();
    assert!(matches!(site.try_index(), Err(IndexError::StoreIsRoot(_))));
}

#[test]
fn requested_digests_are_added_for_all_files() {
    let mut site = Site::new();
    site.write("a", "abc");
    site.write("b", "x");
    site.index();
    site.options.md5 = true;
    site.options.xxh128 = true;
    assert_eq!(site.index().hashed_files, 2);
    let generation = site.current();
    let digests = generation.list().find(b"a").unwrap().digests().unwrap();
    assert_eq!(
        digests.md5,
        [0x90, 1, 0x50, 0x98, 0x3c, 0xd2, 0x4f, 0xb0, 0xd6, 0x96, 0x3f, 0x7d, 0x28, 0xe1, 0x7f, 0x72]
    );
    assert_eq!(digests.xxh128, twox_hash::XxHash3_128::oneshot(b"abc").to_le_bytes());
    assert!(generation.delta().is_none(), "a delta cannot add a column");
    site.assert_same_as_fresh("with all digests");
    assert!(!site.index().published);
}

#[test]
fn block_checksums_can_be_turned_off_by_pattern() {
    let mut site = Site::new();
    site.write("a.iso", vec![1; 9000]);
    site.write("a.gz", vec![2; 9000]);
    site.options.sums_for.exclude(b"*.gz").unwrap();
    site.index();
    let generation = site.current();
    let sums = |path: &[u8]| generation.sums(generation.list().find(path).unwrap().file_number().unwrap());
    assert!(sums(b"a.iso").is_some() && sums(b"a.gz").is_none());
}

#[test]
fn a_file_that_keeps_changing_is_reported_and_not_indexed() {
    let site = Site::new();
    site.write("calm", "x");
    site.write("log", vec![0; 64 << 20]);
    let written = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::os::unix::fs::FileExt;
            let file = fs::OpenOptions::new().write(true).open(site.path("log")).unwrap();
            for at in 0u64.. {
                file.write_at(b"x", at % 4096).unwrap();
                if written.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let report = site.try_index();
        written.store(true, Ordering::Relaxed);
        assert_eq!(report.unwrap().torn, [b"log"]);
    });
    assert_eq!(site.paths(), ["calm"]);
    let report = site.index();
    assert!(report.torn.is_empty());
    assert_eq!(site.paths(), ["calm", "log"]);
}

/// Runs `work` as a user who may not read everything, even if root runs the tests.
fn as_nobody(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                let nobody = rustix::process::Uid::from_raw(65534);
                // This only affects this thread and those that it starts.
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            work();
        });
    });
}

#[test]
fn unreadable_entries_are_reported_and_kept_or_left_out() {
    let mut site = Site::new();
    for path in [site.dir.path(), &site.options.root] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    site.write("file", "one");
    site.write("dir/below", "two");
    let mode = |mode| {
        for path in ["file", "dir"] {
            let mode = if path == "dir" { mode | (mode & 0o444) >> 2 } else { mode };
            fs::set_permissions(site.path(path), fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    as_nobody(|| drop(site.index()));
    let old = site.current().list().find(b"file").unwrap().to_entry();
    mode(0);
    site.write("new", "n");
    fs::set_permissions(site.path("new"), fs::Permissions::from_mode(0o000)).unwrap();
    as_nobody(|| {
        let report = site.index();
        let paths: Vec<&[u8]> = report.unreadable.iter().map(|problem| &problem.path[..]).collect();
        assert_eq!(paths, [&b"dir"[..], b"file", b"new"]);
    });
    assert_eq!(site.paths(), ["file", "dir", "dir/below"]);
    assert_eq!(site.current().list().find(b"file").unwrap().to_entry(), old);
    site.options.unreadable = Unreadable::LeaveOut;
    as_nobody(|| assert_eq!(site.index().unreadable.len(), 3));
    assert!(site.paths().is_empty());
}

#[test]
fn new_digests_are_postponed_until_every_file_that_stays_can_be_read() {
    let mut site = Site::new();
    for path in [site.dir.path(), &site.options.root] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mode = |path: &str, mode| fs::set_permissions(site.path(path), fs::Permissions::from_mode(mode)).unwrap();
    site.write("file", "one");
    site.write("dir/below", "two");
    as_nobody(|| drop(site.index()));
    let with_md5 = Options { md5: true, ..site.options.clone() };
    let index_with = |options: &Options| index(options, &(), &AtomicBool::new(false)).unwrap();
    for shut in ["file", "dir"] {
        mode(shut, 0);
        site.write("new", shut);
        as_nobody(|| {
            let report = index_with(&with_md5);
            assert!(report.digests_postponed && report.published, "{report:?}");
            assert_eq!(report.unreadable.len(), 1, "{report:?}");
        });
        assert_eq!(site.paths(), ["file", "new", "dir", "dir/below"]);
        assert!(!site.current().list().has_md5() && site.current().delta().is_some());
        mode(shut, 0o777);
    }
    as_nobody(|| assert!(!index_with(&with_md5).digests_postponed));
    assert!(site.current().list().has_md5());
    // Files that are left out do not delay the digests.
    mode("file", 0);
    site.options = Options { xxh128: true, unreadable: Unreadable::LeaveOut, ..with_md5.clone() };
    as_nobody(|| assert!(!site.index().digests_postponed));
    assert_eq!(site.paths(), ["new", "dir", "dir/below"]);
    assert!(site.current().list().has_xxh128());
}

#[test]
fn no_store_is_created_for_a_missing_or_invalid_root() {
    let mut site = Site::new();
    site.options.root = site.dir.path().join("nowhere");
    assert!(matches!(site.try_index(), Err(IndexError::NoRoot(path)) if path == site.options.root));
    fs::write(&site.options.root, "x").unwrap();
    assert!(matches!(site.try_index(), Err(IndexError::RootNotADirectory(_))));
    assert!(!site.options.store.exists());
}

#[test]
fn an_emptied_root_is_only_published_on_request() {
    let mut site = Site::new();
    assert!(site.index().published, "a first index may be empty");
    fs::create_dir(site.path("dir")).unwrap();
    site.index();
    fs::remove_dir(site.path("dir")).unwrap();
    assert!(site.index().published, "no file was lost");
    site.write("dir/file", "x");
    let full = site.index().generation;
    fs::remove_dir_all(site.path("dir")).unwrap();
    for named in [None, Some(vec![b"dir/file".to_vec()])] {
        site.options.changed_from = named;
        let error = site.try_index().unwrap_err();
        assert!(matches!(error, IndexError::EmptyRoot { generation, files: 1, .. } if generation == full), "{error}");
    }
    assert_eq!(site.current().number(), full);
    site.options.allow_empty = true;
    assert_eq!(site.index().removed, 2);
    assert!(site.paths().is_empty());
}

#[test]
fn errors_of_the_store_are_passed_on() {
    let mut site = Site::new();
    site.index();
    let lock = Store::open(&site.options.store).unwrap().lock().unwrap();
    assert!(matches!(site.try_index(), Err(IndexError::Store(StoreError::Locked { .. }))));
    drop(lock);
    site.options.name = "fedora".to_owned();
    assert!(matches!(site.try_index(), Err(IndexError::Store(StoreError::OtherRepository { .. }))));
}

#[test]
fn the_error_for_an_impossible_store_path_names_the_store() {
    let site = Site::new();
    site.write("file", "in the way");
    for (store, path) in [(site.path("file/store"), site.path("file/store")), ("".into(), "".into())] {
        let options = Options { store, ..site.options.clone() };
        match index(&options, &(), &AtomicBool::new(false)) {
            Err(IndexError::Store(StoreError::Io { path: named, .. })) => {
                assert!(named.starts_with(&path), "{named:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_stopped_run_publishes_nothing() {
    struct StopAt<'a>(&'a AtomicBool, AtomicU64);
    impl Progress for StopAt<'_> {
        fn to_hash(&self, files: u64, bytes: u64) {
            self.1.store(files * 1000 + bytes, Ordering::Relaxed);
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let site = Site::new();
    site.write("a", "x");
    site.write("b", "y");
    let stop = AtomicBool::new(false);
    let progress = StopAt(&stop, AtomicU64::new(0));
    assert!(matches!(index(&site.options, &progress, &stop), Err(IndexError::Stopped)));
    assert_eq!(progress.1.into_inner(), 2002);
    let store = Store::open(&site.options.store).unwrap();
    assert_eq!(store.current_number().unwrap(), None);
    assert_eq!(fs::read_dir(store.dir().join("generations")).unwrap().count(), 0);
}

#[test]
fn old_generations_are_removed_with_their_packs() {
    let mut site = Site::new();
    site.options.retention.count = 2;
    for round in 0u8..5 {
        site.write("big", vec![round; 20_000]);
        site.index();
    }
    assert_eq!(Store::open(&site.options.store).unwrap().generations().unwrap(), [4, 5]);
    let mut packs: Vec<_> =
        fs::read_dir(site.options.store.join("sums")).unwrap().map(|e| e.unwrap().file_name()).collect();
    packs.sort();
    assert_eq!(packs, ["4.pack", "5.pack"]);
}

#[test]
fn a_mostly_unused_pack_is_compacted_and_removed() {
    let mut site = Site::new();
    site.options.retention.count = 1;
    for name in ["a", "b", "c", "d"] {
        site.write(name, name.repeat(20_000));
    }
    site.index();
    for name in ["a", "b", "c"] {
        site.write(name, format!("{name}!").repeat(20_000));
    }
    // This run leaves the pack mostly unused, and the next one compacts it.
    site.index();
    site.write("a", "another".repeat(20_000));
    site.index();
    assert!(!site.options.store.join("sums/1.pack").exists());
    let generation = site.current();
    for file in 0..4 {
        SumsRef::parse(generation.sums(file).unwrap()).unwrap();
    }
}

#[test]
fn a_tree_that_vanishes_during_a_run_is_no_error() {
    let mut site = Site::new();
    site.options.allow_empty = true;
    for at in 0..50 {
        site.write(format!("d{at}/file"), "x");
    }
    std::thread::scope(|scope| {
        scope.spawn(|| (0..50).for_each(|at| fs::remove_dir_all(site.path(format!("d{at}"))).unwrap()));
        for _ in 0..5 {
            let report = site.index();
            assert!(report.unreadable.is_empty() && report.torn.is_empty(), "{report:?}");
        }
    });
    site.index();
    assert!(site.paths().is_empty());
}
