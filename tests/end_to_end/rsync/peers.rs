//! Both daemons beside each other, their clients, and the judge.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;

use super::tree;
use crate::support::*;

/// One tree, served by both.
pub(super) struct Pair {
    pub(super) world: World,
    pub(super) stock: Stock,
    pub(super) ours: Server,
    gaps: Vec<Gap>,
    runs: AtomicUsize,
}

impl Pair {
    /// With a tree of everything odd, published with the digests that stock clients ask for.
    pub(super) fn new() -> Self {
        let world = World::new();
        tree::make(&world.src());
        Self::of(world)
    }

    /// With the tree that is there.
    pub(super) fn of(world: World) -> Self {
        Self::with(world, "")
    }

    /// The same, beside a stock daemon whose root it is: symlinks lead nowhere else. Takes root.
    pub(super) fn of_root(world: World) -> Self {
        Self::with(world, "use chroot = yes")
    }

    fn with(world: World, lines: &str) -> Self {
        index(&world);
        let (stock, ours) = (Stock::start(&world.src(), lines), world.serve());
        Self { world, stock, ours, gaps: gaps(), runs: AtomicUsize::new(0) }
    }

    /// Both clients start from nothing. In `words`, `{M}` is the module's URL, `{H}` the host's, `{D}` the destination.
    #[track_caller]
    pub(super) fn same(&self, case: &str, protocol: u8, words: &[&str]) -> Pulled {
        self.compare(case, protocol, words, None)
    }

    /// Both clients have a copy of `old` as their destination.
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

/// Publishes a tree with all digests.
pub(super) fn index(world: &World) {
    assert_exit(&world.index_command().args(["--xxh128", "--md5"]).output().expect("index runs"), 0);
}

/// A copy with times, links and devices.
pub(super) fn copy(source: &Path, dest: &Path) {
    assert!(Command::new("cp").arg("-a").args([source, dest]).status().expect("cp runs").success());
}

/// A stock daemon with the read-only module `repo`; ended when dropped.
pub(super) struct Stock {
    child: Child,
    pub(super) address: String,
    _config: tempfile::TempDir,
}

impl Stock {
    /// `more` are lines of the module, and further modules.
    pub(super) fn start(root: &Path, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let owner = if am_root() { "uid = root\ngid = root\n" } else { "" };
        let config = dir.path().join("rsyncd.conf");
        let text = format!(
            "use chroot = no\nmunge symlinks = no\nreverse lookup = no\n{owner}lock file = {0}/lock\nlog file = {0}/log\n\
             [repo]\npath = {1}\nread only = yes\n{more}\n",
            dir.path().display(),
            root.display()
        );
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

pub(super) fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// How a client ended, and what it left.
pub(super) struct Pulled {
    pub(super) code: Option<i32>,
    pub(super) out: Vec<Vec<u8>>,
    pub(super) errors: String,
    pub(super) tree: BTreeMap<PathBuf, Entry>,
}

/// Seconds that a client may take.
const PATIENCE: &str = "30";
/// The exit code of one that takes longer.
pub(super) const HANGS: i32 = 124;

/// Runs a stock client, and looks at its destination.
pub(super) fn pull(address: &str, words: &[&str], dest: &Path) -> Pulled {
    pull_and_look(address, words, dest, dest)
}

/// Runs a stock client, and looks at all that is at and below `place`.
pub(super) fn pull_and_look(address: &str, words: &[&str], dest: &Path, place: &Path) -> Pulled {
    // A file system rounds the time down to its last tick.
    let start = SystemTime::now() - Duration::from_millis(20);
    let fill = |word: &&str| {
        let word = word.replace("{M}", &format!("rsync://{address}/repo"));
        word.replace("{H}", &format!("rsync://{address}")).replace("{D}", &dest.to_string_lossy())
    };
    let mut command = Command::new("timeout");
    command.args([PATIENCE, "rsync"]).args(words.iter().map(fill)).stdin(Stdio::null());
    command.env("LC_ALL", "C").env_remove("RSYNC_PASSWORD");
    let output = command.output().expect("rsync is installed (tests/prepare)");
    Pulled {
        code: output.status.code(),
        out: said(&output.stdout, dest),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        tree: snapshot(place, start),
    }
}

/// The lines that do not depend on the session: no times, nothing that depends on how much of a file is sent or on how
/// the list travels, and no sizes of directories, which are the file system's.
fn said(out: &[u8], dest: &Path) -> Vec<Vec<u8>> {
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

/// `total size is 1,234  speedup is 5.67`, without what depends on the bytes that were sent.
fn without_speedup(line: &[u8]) -> Vec<u8> {
    let end = line.windows(2).position(|pair| pair == b"  ").unwrap_or(line.len());
    line[..end].to_vec()
}

/// `file has vanished: "/a" (in repo)`: with `use chroot` a stock daemon says `/a`, without it `a`.
fn without_root(line: &[u8]) -> Vec<u8> {
    let slash = line.windows(2).position(|pair| pair == b"\"/").map_or(line.len(), |quote| quote + 1);
    line.iter().enumerate().filter(|(at, _)| *at != slash).map(|(_, byte)| *byte).collect()
}

/// A listed directory, `drwxr-xr-x          4,096 2017/…`, without its size.
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

/// All that a client can be held to about one name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    kind: char,
    pub(super) mode: u32,
    owner: [u32; 2],
    /// Seconds and nanoseconds; none for what the client set by its own clock.
    pub(super) mtime: Option<(i64, i64)>,
    /// A regular file's bytes, a symlink's target.
    pub(super) content: Vec<u8>,
    rdev: u64,
    /// The names of the same inode.
    links: BTreeSet<PathBuf>,
}

/// What is at and below `root`.
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

/// Before the run began, or in a future that no clock shows yet.
fn is_older(facts: &std::fs::Metadata, start: u128) -> bool {
    let time = i128::from(facts.mtime()) * 1_000_000_000 + i128::from(facts.mtime_nsec());
    let start = i128::try_from(start).unwrap_or(i128::MAX);
    time < start || time > start + 86_400 * 1_000_000_000
}

/// A facet's name in `known_gaps.toml`, and what differs in it.
pub(super) type Difference = (String, String);

pub(super) fn differences(stock: &Pulled, ours: &Pulled) -> Vec<Difference> {
    let mut found = Vec::new();
    if stock.code != ours.code {
        found.push(("exit".into(), format!("{:?} {:?}", stock.code, ours.code)));
    }
    for facet in ["stdout", "totals", "notes"] {
        let said = |pulled: &Pulled| -> Vec<String> {
            let lines = pulled.out.iter().filter(|line| facet_of(line) == facet);
            lines.map(|line| line.escape_ascii().to_string()).collect()
        };
        let (here, there) = (said(stock), said(ours));
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

/// Which facet of the output a line belongs to.
fn facet_of(line: &[u8]) -> &'static str {
    let begins = |words: &[&str]| words.iter().any(|word| line.starts_with(word.as_bytes()));
    if begins(&["Number of files: ", "Total file size: ", "total size is "]) {
        "totals"
    } else if begins(&["copying unsafe symlink "]) || line == b"done" {
        // A note comes in the midst of "receiving file list ... done".
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
    /// Only if the stock daemon's client complains so.
    #[serde(default = "anything")]
    stock: Vec<String>,
    #[serde(default = "anything")]
    path: Vec<String>,
    pub(super) reason: String,
}

fn anything() -> Vec<String> {
    vec!["*".into()]
}

/// All of them.
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
            && self.client.iter().any(|pattern| pattern == "*")
            && fits(&self.facet, facet)
            && fits(&self.path, path)
            && fits(&self.stock, &stock.errors)
    }
}

/// `*` stands for anything.
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
fn the_judge_sees_what_differs() {
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
