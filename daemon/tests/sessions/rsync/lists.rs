//! Lists that clients ask for again: they are encoded once, and stay within their disk budget.

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
    // A list with a filter that hides something, and one whose filter hides nothing.
    for filter in ["--exclude=*7", "--exclude=none"] {
        rsync(&server, &["-rn", filter], "repo/", Some(&dest(&fixture))).await.exits(0);
    }
    for (number, filter) in (1..).zip(["--exclude=*7", "--exclude=none"]) {
        rsync(&server, &["-rn", filter], "repo/", Some(&dest(&fixture))).await.exits(0);
        // Lists are encoded in request order. Had the first requests been encoded too, there would be more files.
        assert_eq!(encoded(&lists, number).await, number);
    }
}

#[tokio::test]
async fn lists_stay_within_their_disk_budget_and_the_least_recently_used_are_evicted() {
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
        // The second request has the list encoded, however many there were before.
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

/// Returns the names of the encoded lists of the first generation.
fn names(dir: &Path) -> Vec<OsString> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).filter(|name| name.as_bytes().starts_with(b"1-")).collect()
}

/// Returns the disk usage, in bytes, of the files of a directory. It includes removed files that are still mapped.
fn disk(dir: &Path) -> u64 {
    let mut files = std::collections::HashMap::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        // The file may just have been removed.
        if let Ok(facts) = entry.metadata() {
            files.insert(facts.ino(), facts.blocks() * 512);
        }
    }
    for line in std::fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [range, _, _, _, inode, path, ..] = fields[..] else { continue };
        if Path::new(path).parent() == Some(dir) {
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
            files.entry(inode.parse().unwrap()).or_insert(end - start);
        }
    }
    files.values().sum()
}

#[tokio::test]
async fn a_list_with_filters_is_the_same_with_every_request() {
    let fixture = flat();
    let server = fixture.serve().await;
    // The second request has the list encoded, and a later one gets the encoded list.
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
        let arguments = ["-rn", "--out-format=%n"].into_iter().chain(filters.iter().map(String::as_str));
        let ran = rsync(&server, &arguments.collect::<Vec<_>>(), "repo/", Some(&dest(&fixture))).await;
        ran.exits(0).out.lines().filter(|name| !name.ends_with('/')).count()
    };
    let few = ["--exclude=*.none".to_owned()];
    // So many filters that the first client gets its list before it is known that they hide nothing.
    let many: Vec<String> = (0..1000).map(|number| format!("--exclude=*{number}*x*")).collect();
    for _ in 0..3 {
        assert_eq!(ask(&few).await, 5_001);
        assert_eq!(ask(&many).await, 5_001);
    }
    // Lists are encoded one after the other. Once this one exists, all that were requested before exist too.
    for _ in 0..2 {
        assert_eq!(ask(&["--exclude=*7".to_owned()]).await, 4_501);
    }
    assert_eq!(encoded(&fixture.store().join("lists"), 2).await, 2);
}

#[tokio::test]
async fn encoded_lists_are_kept_in_the_configured_directory_and_not_in_the_store() {
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

/// Creates a tree of one directory that is large enough for its encoded list to be kept.
fn flat() -> Fixture {
    let fixture = Fixture::new();
    fixture.write("first", b"x");
    for number in 0..5_000 {
        std::fs::hard_link(fixture.root().join("first"), fixture.root().join(number.to_string())).unwrap();
    }
    fixture.index();
    fixture
}

/// Waits for at least `count` encoded lists of the first generation, and returns their number.
pub(super) async fn encoded(dir: &Path, count: usize) -> usize {
    soon(async {
        while names(dir).len() < count {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    names(dir).len()
}
