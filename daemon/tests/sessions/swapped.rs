//! Directories and files that are exchanged for symlinks again and again while they are served.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use stillmirror_daemon::DirectPolicy;
use stillmirror_protocol::wire::Item;

use crate::rsync::support::{dest, rsync};
use crate::support::{Fixture, Server, noise, soon};

/// The content of the files outside of the tree. No file of the tree has a run of this byte.
const SECRET: u8 = 0xee;

/// Exchanges names of the tree for symlinks that lead out of it, and back, until this is dropped.
struct Swapping {
    ends: Arc<AtomicBool>,
    rounds: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Swapping {
    /// Starts to exchange the two names of each pair.
    fn start(pairs: Vec<(PathBuf, PathBuf)>) -> Self {
        let (ends, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (ending, counting) = (Arc::clone(&ends), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            while !ending.load(Ordering::Relaxed) {
                // In both directions, so that each round ends as it began.
                for (one, other) in pairs.iter().chain(pairs.iter().rev()) {
                    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
                    std::thread::yield_now();
                }
                counting.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { ends, rounds, thread: Some(thread) }
    }
}

impl Drop for Swapping {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Creates a tree, and outside of it another one with the same names, sizes and times, but other contents. The store has
/// the contents of the tree.
fn fixture() -> (Fixture, Vec<(String, Vec<u8>)>) {
    let fixture = Fixture::new();
    let sizes = (0..48).map(|number| [900, 14_000, 40_000, 1_300_000][number % 4] + number);
    let files: Vec<_> =
        sizes.enumerate().map(|(n, size)| (format!("d{}/sub/f{n:02}", n % 3), noise(size + n)[n..].to_vec())).collect();
    for (name, content) in &files {
        fixture.write(name, content);
        let (inside, outside) = (fixture.root().join(name), fixture.dir.path().join("outside").join(name));
        std::fs::create_dir_all(outside.parent().unwrap()).unwrap();
        std::fs::write(&outside, vec![SECRET; content.len()]).unwrap();
        let time = std::fs::metadata(inside).unwrap().modified().unwrap();
        std::fs::File::options().write(true).open(outside).unwrap().set_modified(time).unwrap();
    }
    fixture.index_with_contents();
    (fixture, files)
}

/// Returns directories at both depths and some files of the tree, each paired with a symlink to the same name outside.
fn pairs(fixture: &Fixture) -> Vec<(PathBuf, PathBuf)> {
    let (root, outside) = (fixture.root(), fixture.dir.path().join("outside"));
    let away = fixture.dir.path().join("away");
    std::fs::create_dir(&away).unwrap();
    let names = ["d0", "d1/sub", "d2/sub/f02", "d2/sub/f05", "d2", "d0/sub", "d1/sub/f01"];
    let pair = |(number, name): (usize, &str)| {
        let other = away.join(number.to_string());
        symlink(outside.join(name), &other).unwrap();
        (root.join(name), other)
    };
    // A name below another one is exchanged first, while its path still exists.
    let mut pairs: Vec<_> = names.into_iter().enumerate().map(pair).collect();
    pairs.sort_by_key(|(name, _)| std::cmp::Reverse(name.components().count()));
    pairs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_client_gets_nothing_outside_the_root_while_names_are_exchanged() {
    for direct in [DirectPolicy::Never, DirectPolicy::Always] {
        let (fixture, files) = fixture();
        let items: Vec<Item> = files.iter().map(|(name, _)| fixture.whole(name)).collect();
        let server = Server::start(fixture.config(|config| config.repositories[0].direct = direct)).await;
        let swapping = Swapping::start(pairs(&fixture));
        let mut received = 0;
        for _ in 0..60 {
            let mut client = server.client().await;
            let (handle, _) = client.pin().await;
            let answer = soon(client.data(handle, items.clone())).await;
            let mut rest = &answer.bytes[..];
            for (item, (name, content)) in (0..).zip(&files) {
                let failed = answer.failures.iter().find(|&&(_, failed, _)| failed == item);
                // The beginning of a failed file may have been sent.
                let len = failed.map_or(content.len(), |&(at, ..)| at - (answer.bytes.len() - rest.len()));
                let (bytes, after) = rest.split_at(len);
                assert!(bytes == &content[..len], "{direct:?}: {name} is not what was indexed");
                (rest, received) = (after, received + usize::from(failed.is_none()));
            }
            assert!(rest.is_empty());
        }
        assert!(swapping.rounds.load(Ordering::Relaxed) > 20 && received > 60, "{received} files were sent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_client_gets_nothing_outside_the_root_while_names_are_exchanged() {
    let (fixture, files) = fixture();
    let server = fixture.serve().await;
    let swapping = Swapping::start(pairs(&fixture));
    for round in 0..12 {
        let dest = dest(&fixture).join(round.to_string());
        std::fs::create_dir_all(&dest).unwrap();
        let ran = rsync(&server, &["-a"], "repo/", Some(&dest)).await;
        assert!(matches!(ran.code, Some(0 | 23 | 24)), "{ran:?}");
        for (name, content) in &files {
            check(&dest.join(name), content);
        }
    }
    assert!(swapping.rounds.load(Ordering::Relaxed) > 20);
}

/// Expects that a file exists with its indexed content, or not at all.
#[track_caller]
fn check(file: &Path, content: &[u8]) {
    match std::fs::read(file) {
        Ok(found) => assert!(found == content, "{} is not what was indexed", file.display()),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    }
}
