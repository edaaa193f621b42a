//! A stock daemon and ours with the same tree, their clients, and the judge that compares the results.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;

use super::tree;
use crate::support::*;

/// A tree that both daemons serve.
pub(super) struct Pair {
    pub(super) world: World,
    pub(super) stock: Stock,
    pub(super) ours: Server,
    gaps: Vec<Gap>,
    runs: AtomicUsize,
}

impl Pair {
    /// Creates the tree of [`tree::make`] and serves it, with all digests that stock clients request.
    pub(super) fn new() -> Self {
        let world = World::new();
        tree::make(&world.src());
        Self::of(world)
    }

    /// Serves the tree of `world`.
    pub(super) fn of(world: World) -> Self {
        Self::with(world, "")
    }

    /// Like [`Pair::of`], with a stock daemon that uses chroot, so that symlinks do not leave the tree. Needs root.
    pub(super) fn of_root(world: World) -> Self {
        Self::with(world, "use chroot = yes")
    }

    fn with(world: World, lines: &str) -> Self {
        index(&world);
        let (stock, ours) = (Stock::start(&world.src(), lines), world.serve());
        Self { world, stock, ours, gaps: gaps(), runs: AtomicUsize::new(0) }
    }

    /// Asserts that both clients get the same, starting from nothing. In `words`, `{M}` is the module's URL, `{H}` the
    /// host's URL and `{D}` the destination.
    #[track_caller]
    pub(super) fn same(&self, case: &str, protocol: u8, words: &[&str]) -> Pulled {
        self.compare(case, protocol, words, None)
    }

    /// Like [`Pair::same`], with a copy of `old` as the destination.
    #[track_caller]
    pub(super) fn same_over(&self, old: &Path, case: &str, protocol: u8, words: &[&str]) -> Pulled {
        self.compare(case, protocol, words, Some(old))
    }

    #[track_caller]
    fn compare(&self, case: &str, protocol: u8, words: &[&str], old: Option<&Path>) -> Pulled {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let version = format!("--protocol={protocol}");
        let words = [&[version.as_str()], words].concat();
        let [stock, ours] = [("stock", &self.stock.address), ("ours", &self.ours.address)].map(|(name, address)| {
            let dest = self.world.path(&format!("dest-{run}-{name}"));
            if let Some(old) = old {
                copy(old, &dest);
            }
            pull(address, &words, &dest)
        });
        let unexplained: Vec<_> = differences(&stock, &ours)
            .into_iter()
            .filter(|difference| !self.gaps.iter().any(|gap| gap.explains(case, protocol, &stock, difference)))
            .collect();
        let shown: Vec<_> = unexplained.iter().take(10).map(|(facet, text)| format!("{facet}: {text}")).collect();
        assert!(
            unexplained.is_empty(),
            "{case} at {protocol}, {words:?}, stock and ours:\n{}\n{}",
            shown.join("\n"),
            ours.errors
        );
        ours
    }
}

/// Indexes a tree with all digests.
pub(super) fn index(world: &World) {
    assert_exit(&world.index_command().args(["--xxh128", "--md5"]).output().expect("index runs"), 0);
}

/// Copies a tree with times, links and devices.
pub(super) fn copy(source: &Path, dest: &Path) {
    assert!(Command::new("cp").arg("-a").args([source, dest]).status().expect("cp runs").success());
}

/// A stock daemon. Dropping it ends it.
pub(crate) struct Stock {
    child: Child,
    pub(crate) address: String,
    _config: tempfile::TempDir,
}

impl Stock {
    /// Starts the daemon with the read-only module `repo`. `more` has further lines of the module, and further modules.
    pub(super) fn start(root: &Path, more: &str) -> Self {
        let owner = if am_root() { "uid = root\ngid = root\n" } else { "" };
        Self::with_config(&format!(
            "use chroot = no\nmunge symlinks = no\nreverse lookup = no\n{owner}[repo]\npath = {}\nread only = yes\n{more}\n",
            root.display()
        ))
    }

    /// Starts the daemon with the text of an rsyncd.conf, and with a lock file and a log of its own.
    pub(crate) fn with_config(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let config = dir.path().join("rsyncd.conf");
        let text = format!("lock file = {0}/lock\nlog file = {0}/log\n{text}", dir.path().display());
        std::fs::write(&config, text).expect("rsyncd.conf");
        let mut child = Command::new("rsync");
        child.args(["--daemon", "--no-detach", "--address=127.0.0.1"]);
        child.arg(format!("--port={port}")).arg(format!("--config={}", config.display()));
        let child = child
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("rsync is installed (tests/prepare)");
        let address = format!("127.0.0.1:{port}");
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&address).is_err() {
            assert!(Instant::now() < deadline, "the stock daemon does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, address, _config: dir }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// How a client ended, and the resulting tree.
pub(super) struct Pulled {
    pub(super) code: Option<i32>,
    pub(super) out: Vec<Vec<u8>>,
    pub(super) errors: String,
    pub(super) tree: BTreeMap<PathBuf, Entry>,
}

/// The time limit of a client, in seconds.
const TIME_LIMIT: &str = "30";
/// The exit code of a client that exceeds the limit.
pub(super) const HANGS: i32 = 124;

/// Runs a stock client. Returns a snapshot of its destination.
pub(super) fn pull(address: &str, words: &[&str], dest: &Path) -> Pulled {
    pull_and_look(address, words, dest, dest)
}

/// Runs a stock client. Returns a snapshot of `place`.
pub(super) fn pull_and_look(address: &str, words: &[&str], dest: &Path, place: &Path) -> Pulled {
    // File systems round times down to a clock tick.
    let start = SystemTime::now() - Duration::from_millis(20);
    let fill = |word: &&str| {
        let word = word.replace("{M}", &format!("rsync://{address}/repo"));
        word.replace("{H}", &format!("rsync://{address}")).replace("{D}", &dest.to_string_lossy())
    };
    let mut command = Command::new("timeout");
    command.args([TIME_LIMIT, "rsync"]).args(words.iter().map(fill)).stdin(Stdio::null());
    command.env("LC_ALL", "C").env_remove("RSYNC_PASSWORD");
    let output = command.output().expect("rsync is installed (tests/prepare)");
    Pulled {
        code: output.status.code(),
        out: stable_lines(&output.stdout, dest),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        tree: snapshot(place, start),
    }
}

/// Returns the lines that do not depend on the session, sorted. Left out are times, everything that depends on how much of
/// a file or of the list is sent, and the sizes of directories, which depend on the file system.
fn stable_lines(out: &[u8], dest: &Path) -> Vec<Vec<u8>> {
    let created = [b"created directory ", dest.as_os_str().as_bytes()].concat();
    let volatile: [&[u8]; 7] =
        [&created, b"sent ", b"receiving ", b"Total bytes ", b"Literal ", b"Matched ", b"File list "];
    let mut lines: Vec<_> = out
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty() && !volatile.iter().any(|start| line.starts_with(start)))
        .map(|line| match line {
            _ if line.starts_with(b"total size is ") => without_speedup(line),
            _ if line.ends_with(b"\" (in repo)") => without_root(line),
            _ => without_size(line),
        })
        .collect();
    lines.sort();
    lines
}

/// Removes the speedup, which depends on the bytes that were sent, from `total size is 1,234  speedup is 5.67`.
fn without_speedup(line: &[u8]) -> Vec<u8> {
    let end = line.windows(2).position(|pair| pair == b"  ").unwrap_or(line.len());
    line[..end].to_vec()
}

/// Removes the slash from `file has vanished: "/a" (in repo)`, which a stock daemon only prints with `use chroot`.
fn without_root(line: &[u8]) -> Vec<u8> {
    let slash = line.windows(2).position(|pair| pair == b"\"/").map_or(line.len(), |quote| quote + 1);
    line.iter().enumerate().filter(|(at, _)| *at != slash).map(|(_, byte)| *byte).collect()
}

/// Removes the size from the line of a listed directory: `drwxr-xr-x          4,096 2017/…`.
fn without_size(line: &[u8]) -> Vec<u8> {
    let mut words = line.splitn(2, |&byte| byte == b' ');
    match (words.next(), words.next()) {
        (Some(mode), Some(rest)) if mode.len() == 10 && mode[0] == b'd' => {
            let rest = rest.trim_ascii_start();
            let size = rest.iter().take_while(|byte| byte.is_ascii_digit() || **byte == b',').count();
            [mode, b" SIZE", &rest[size..]].concat()
        }
        _ => line.to_vec(),
    }
}

/// Everything about a name that must be the same.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    kind: char,
    pub(super) mode: u32,
    owner: [u32; 2],
    /// Seconds and nanoseconds. `None` if the client's clock set the time.
    pub(super) mtime: Option<(i64, i64)>,
    /// The content of a regular file, or the target of a symlink.
    pub(super) content: Vec<u8>,
    rdev: u64,
    /// All names of the inode.
    links: BTreeSet<PathBuf>,
}

/// Returns everything at and below `root`. Times between `start` and the next day count as set by the client's clock.
pub(super) fn snapshot(root: &Path, start: SystemTime) -> BTreeMap<PathBuf, Entry> {
    let (mut found, mut inodes) = (BTreeMap::new(), BTreeMap::<u64, BTreeSet<PathBuf>>::new());
    let start = start.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let mut stack = vec![root.to_owned()];
    while let Some(path) = stack.pop() {
        let Ok(facts) = path.symlink_metadata() else { continue };
        let name = path.strip_prefix(root).expect("below").to_owned();
        let file_type = facts.file_type();
        let mut entry = Entry {
            kind: 'd',
            mode: facts.mode() & 0o7777,
            owner: [facts.uid(), facts.gid()],
            mtime: is_older(&facts, start).then(|| (facts.mtime(), facts.mtime_nsec())),
            content: Vec::new(),
            rdev: 0,
            links: BTreeSet::new(),
        };
        if file_type.is_dir() {
            stack.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if file_type.is_symlink() {
            entry.kind = 'l';
            entry.content = std::fs::read_link(&path).expect("a target").as_os_str().as_bytes().to_vec();
        } else if file_type.is_file() {
            entry.kind = 'f';
            entry.content = std::fs::read(&path).unwrap_or_default();
        } else {
            entry.kind = if file_type.is_fifo() {
                'p'
            } else if file_type.is_socket() {
                's'
            } else {
                'D'
            };
            entry.rdev = facts.rdev();
        }
        if !file_type.is_dir() && facts.nlink() > 1 {
            inodes.entry(facts.ino()).or_default().insert(name.clone());
        }
        found.insert(name, entry);
    }
    for group in inodes.values() {
        for name in group {
            found.get_mut(name).expect("it was found").links.clone_from(group);
        }
    }
    found
}

/// Returns whether a time is before the run, or more than a day after its start.
fn is_older(facts: &std::fs::Metadata, start: u128) -> bool {
    let time = i128::from(facts.mtime()) * 1_000_000_000 + i128::from(facts.mtime_nsec());
    let start = i128::try_from(start).unwrap_or(i128::MAX);
    time < start || time > start + 86_400 * 1_000_000_000
}

/// The name of a facet, as in `known_gaps.toml`, and the difference.
pub(super) type Difference = (String, String);

pub(super) fn differences(stock: &Pulled, ours: &Pulled) -> Vec<Difference> {
    let mut found = Vec::new();
    if stock.code != ours.code {
        found.push(("exit".into(), format!("{:?} {:?}", stock.code, ours.code)));
    }
    for facet in ["stdout", "totals", "notes"] {
        let lines = |pulled: &Pulled| -> Vec<String> {
            let lines = pulled.out.iter().filter(|line| facet_of(line) == facet);
            lines.map(|line| line.escape_ascii().to_string()).collect()
        };
        let (here, there) = (lines(stock), lines(ours));
        if here != there {
            let only =
                |a: &[String], b: &[String]| a.iter().filter(|&line| !b.contains(line)).take(3).cloned().collect();
            let [here, there]: [Vec<String>; 2] = [only(&here, &there), only(&there, &here)];
            found.push((facet.into(), format!("{here:?} {there:?}")));
        }
    }
    let names: BTreeSet<_> = stock.tree.keys().chain(ours.tree.keys()).collect();
    for name in names {
        match (stock.tree.get(name), ours.tree.get(name)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => {
                found.extend(a.facets(b).map(|(facet, text)| (facet, format!("{}: {text}", name.display()))));
            }
            (Some(_), None) => found.push(("missing".into(), name.display().to_string())),
            (None, _) => found.push(("extra".into(), name.display().to_string())),
        }
    }
    found
}

/// Returns the facet of an output line.
fn facet_of(line: &[u8]) -> &'static str {
    let begins = |words: &[&str]| words.iter().any(|word| line.starts_with(word.as_bytes()));
    if begins(&["Number of files: ", "Total file size: ", "total size is "]) {
        "totals"
    } else if begins(&["copying unsafe symlink "]) || line == b"done" {
        // A note interrupts the line "receiving file list ... done".
        "notes"
    } else {
        "stdout"
    }
}

impl Entry {
    fn facets(&self, other: &Self) -> impl Iterator<Item = Difference> {
        let facet = |name: &str, differs: bool, text: String| differs.then(|| (name.to_owned(), text));
        [
            facet("type", self.kind != other.kind, format!("{} {}", self.kind, other.kind)),
            facet("mode", self.mode != other.mode, format!("{:o} {:o}", self.mode, other.mode)),
            facet("uid", self.owner[0] != other.owner[0], format!("{:?} {:?}", self.owner, other.owner)),
            facet("gid", self.owner[1] != other.owner[1], format!("{:?} {:?}", self.owner, other.owner)),
            facet("mtime", self.mtime != other.mtime, format!("{:?} {:?}", self.mtime, other.mtime)),
            facet(
                "content",
                self.content != other.content,
                format!("{} {} bytes", self.content.len(), other.content.len()),
            ),
            facet("rdev", self.rdev != other.rdev, format!("{} {}", self.rdev, other.rdev)),
            facet("links", self.links != other.links, format!("{:?} {:?}", self.links, other.links)),
        ]
        .into_iter()
        .flatten()
    }
}

/// One entry of `tests/known_gaps.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gap {
    #[serde(default = "anything")]
    script: Vec<String>,
    #[serde(default = "anything")]
    case: Vec<String>,
    #[serde(default)]
    protocol: Vec<u8>,
    #[serde(default = "anything")]
    client: Vec<String>,
    pub(super) facet: Vec<String>,
    /// Applies only if the errors of the stock daemon's client match.
    #[serde(default = "anything")]
    stock: Vec<String>,
    #[serde(default = "anything")]
    path: Vec<String>,
    pub(super) reason: String,
}

fn anything() -> Vec<String> {
    vec!["*".into()]
}

/// Returns the entries of `tests/known_gaps.toml`.
pub(super) fn gaps() -> Vec<Gap> {
    #[derive(Deserialize)]
    struct Gaps {
        #[serde(default)]
        gap: Vec<Gap>,
    }
    let text = include_str!("../../known_gaps.toml");
    toml::from_str::<Gaps>(text).unwrap_or_else(|error| panic!("tests/known_gaps.toml: {error}")).gap
}

impl Gap {
    pub(super) fn explains(&self, case: &str, protocol: u8, stock: &Pulled, (facet, text): &Difference) -> bool {
        let path = text.split(": ").next().unwrap_or_default();
        let fits =
            |patterns: &[String], word: &str| patterns.iter().any(|pattern| fits(pattern.as_bytes(), word.as_bytes()));
        fits(&self.script, "end-to-end")
            && fits(&self.case, case)
            && (self.protocol.is_empty() || self.protocol.contains(&protocol))
            && fits(&self.client, stock_version())
            && fits(&self.facet, facet)
            && fits(&self.path, path)
            && fits(&self.stock, &stock.errors)
    }
}

/// Returns the version of the installed rsync, which is the client and the stock daemon, such as `3.2.7`.
pub(super) fn stock_version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let output = Command::new("rsync").arg("--version").output().expect("rsync runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().nth(2).expect("a version").to_owned()
    })
}

/// Returns whether a word matches a pattern, in which `*` stands for anything.
fn fits(pattern: &[u8], word: &[u8]) -> bool {
    match pattern.split_first() {
        None => word.is_empty(),
        Some((b'*', rest)) => (0..=word.len()).any(|at| fits(rest, &word[at..])),
        Some((byte, rest)) => word.first() == Some(byte) && fits(rest, &word[1..]),
    }
}

#[test]
fn every_known_gap_has_a_reason_and_a_facet() {
    for gap in gaps() {
        assert!(gap.reason.len() > 20, "a gap without a reason: {:?}", gap.case);
        assert!(!gap.facet.is_empty(), "a gap without a facet: {:?}", gap.case);
    }
}

#[test]
fn the_judge_finds_every_difference() {
    let world = World::new();
    let (src, other) = (world.src(), world.path("other"));
    tree::make(&src);
    let before = SystemTime::UNIX_EPOCH;
    copy(&src, &other);
    let differ = |what: &str| {
        let seen =
            |root| Pulled { code: Some(0), out: Vec::new(), errors: String::new(), tree: snapshot(root, before) };
        let facets: BTreeSet<_> = differences(&seen(&src), &seen(&other)).into_iter().map(|(facet, _)| facet).collect();
        assert_eq!(
            facets.iter().map(String::as_str).collect::<Vec<_>>(),
            what.split_terminator(' ').collect::<Vec<_>>()
        );
    };
    differ("");
    std::fs::write(other.join("README"), b"README but other").unwrap();
    differ("content mtime");
    write(&other.join("more"), b"");
    differ("content extra mtime");
    std::fs::remove_file(other.join("links/second")).unwrap();
    differ("content extra links missing mtime");
}
