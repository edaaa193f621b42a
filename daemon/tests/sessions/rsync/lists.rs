//! Lists that are asked for again: they are encoded once, and take no more disk than they may.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::rsync::support::{dest, rsync};
use crate::support::{Fixture, Server, soon};

#[tokio::test]
async fn a_list_is_encoded_when_it_is_asked_for_again() {
    let fixture = flat();
    let server = fixture.serve().await;
    let lists = fixture.store().join("lists");
    // A list with filters and one without.
    for filter in ["--exclude=*7", "--exclude=none"] {
        rsync(&server, &["-rn", filter], "repo/", Some(&dest(&fixture))).await.exits(0);
    }
    for (number, filter) in (1..).zip(["--exclude=*7", "--exclude=none"]) {
        rsync(&server, &["-rn", filter], "repo/", Some(&dest(&fixture))).await.exits(0);
        // Had the first ones been encoded, there would be more: they are encoded in the order of asking.
        assert_eq!(encoded(&lists, number).await, number);
    }
}

#[tokio::test]
async fn ever_more_lists_take_no_more_disk_than_they_may_and_the_ones_used_least_recently_go() {
    const LIMIT: u64 = 512 << 10;
    let fixture = flat();
    let server = Server::start(fixture.config(|config| config.rsync.cached_lists = LIMIT)).await;
    let lists = fixture.store().join("lists");
    let mut seen = std::collections::BTreeSet::new();
    for number in 1000..1060 {
        let filter = format!("--exclude=/{number}");
        for _ in 0..2 {
            rsync(&server, &["-rn", &filter], "repo/", Some(&dest(&fixture))).await.exits(0);
        }
        // The second asking has it encoded, however many there were before.
        soon(async {
            while !names(&lists).into_iter().any(|name| seen.insert(name)) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
        let taken = disk(&lists);
        assert!(taken <= LIMIT, "{taken} bytes after {}", number - 999);
    }
    assert_eq!(seen.len(), 60);
    assert!((2..60).contains(&names(&lists).len()), "{:?}", names(&lists));
}

/// The encoded lists of the first generation.
fn names(dir: &Path) -> Vec<OsString> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).filter(|name| name.as_bytes().starts_with(b"1-")).collect()
}

/// Bytes of disk that the files of a directory take: those that have a name, and those that are mapped.
fn disk(dir: &Path) -> u64 {
    let mut files = std::collections::HashMap::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        // Another one may just have been removed.
        if let Ok(facts) = entry.metadata() {
            files.insert(facts.ino(), facts.blocks() * 512);
        }
    }
    for line in std::fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [range, _, _, _, inode, path, ..] = words[..] else { continue };
        if Path::new(path).parent() == Some(dir) {
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
            files.entry(inode.parse().unwrap()).or_insert(end - start);
        }
    }
    files.values().sum()
}

#[tokio::test]
async fn a_list_with_filters_is_the_same_however_often_it_is_asked_for() {
    let fixture = flat();
    let server = fixture.serve().await;
    // The second one has it encoded, some later one gets it so.
    for _ in 0..5 {
        let asked = ["-rn", "--timeout=20", "--exclude=*7", "--out-format=%n"];
        let ran = rsync(&server, &asked, "repo/", Some(&dest(&fixture))).await;
        assert_eq!(ran.exits(0).out.lines().filter(|name| !name.ends_with('/')).count(), 4_501);
    }
}

#[tokio::test]
async fn clients_whose_filters_hide_nothing_share_one_list() {
    let fixture = flat();
    let server = fixture.serve().await;
    let ask = async |filters: &[String]| {
        let words = ["-rn", "--out-format=%n"].into_iter().chain(filters.iter().map(String::as_str));
        let ran = rsync(&server, &words.collect::<Vec<_>>(), "repo/", Some(&dest(&fixture))).await;
        ran.exits(0).out.lines().filter(|name| !name.ends_with('/')).count()
    };
    let few = ["--exclude=*.none".to_owned()];
    // So many that the first client with them gets its list before it is known that they hide nothing.
    let many: Vec<String> = (0..1000).map(|number| format!("--exclude=*{number}*x*")).collect();
    for _ in 0..3 {
        assert_eq!(ask(&few).await, 5_001);
        assert_eq!(ask(&many).await, 5_001);
    }
    // Lists are encoded one after the other: once this one is there, so are all that were wanted before.
    for _ in 0..2 {
        assert_eq!(ask(&["--exclude=*7".to_owned()]).await, 4_501);
    }
    assert_eq!(encoded(&fixture.store().join("lists"), 2).await, 2);
}

#[tokio::test]
async fn encoded_lists_are_kept_where_the_operator_wants_them_and_the_store_is_left_alone() {
    let fixture = flat();
    let lists = fixture.dir.path().join("cache/lists");
    let server = Server::start(fixture.config(|config| config.rsync.lists = Some(lists.clone()))).await;
    for _ in 0..2 {
        rsync(&server, &["-rn"], "repo/", Some(&dest(&fixture))).await.exits(0);
    }
    encoded(&lists.join("repo"), 1).await;
    rsync(&server, &["-rn"], "repo/", Some(&dest(&fixture))).await.exits(0);
    assert!(!fixture.store().join("lists").exists());
}

/// A tree of one directory, of which an encoded list is worth its place.
fn flat() -> Fixture {
    let fixture = Fixture::new();
    fixture.write("first", b"x");
    for number in 0..5_000 {
        std::fs::hard_link(fixture.root().join("first"), fixture.root().join(number.to_string())).unwrap();
    }
    fixture.index();
    fixture
}

/// Waits for so many encoded lists of the first generation, and says how many there are then.
pub(super) async fn encoded(dir: &Path, enough: usize) -> usize {
    soon(async {
        while names(dir).len() < enough {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    names(dir).len()
}
