//! Test helpers: runs of the real `rsync`, and hand-made input of a client.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Fixture, Server, soon};

/// The result of a run of the real `rsync`.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs `rsync ARGUMENTS rsync://…/PATH [DEST]`.
pub(crate) async fn rsync(server: &Server, arguments: &[&str], path: &str, dest: Option<&Path>) -> Ran {
    rsync_with(server, arguments, path, dest, |_| {}).await
}

/// Like [`rsync`], but `change` may change the command.
pub(crate) async fn rsync_with(
    server: &Server,
    arguments: &[&str],
    path: &str,
    dest: Option<&Path>,
    change: impl FnOnce(&mut Command),
) -> Ran {
    let mut command = Command::new("rsync");
    command.args(arguments).arg(format!("rsync://{}/{path}", server.addr)).args(dest);
    change(&mut command);
    let output =
        soon(tokio::task::spawn_blocking(move || command.output())).await.unwrap().expect("rsync is installed");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

impl Ran {
    /// Expects this exit code.
    #[track_caller]
    pub(crate) fn exits(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        self
    }

    /// Expects this text in the output.
    #[track_caller]
    pub(crate) fn says(&self, text: &str) -> &Self {
        assert!(self.out.contains(text) || self.err.contains(text), "'{text}' is not in {}{}", self.out, self.err);
        self
    }
}

/// Indexes the tree after setting its directories' times to a date in the past. A client leaves a directory's time alone
/// if it is right to the second, so a directory that the client makes must not have that time by chance.
pub(crate) fn index_aged(fixture: &Fixture) {
    let mut dirs = vec![fixture.root()];
    while let Some(dir) = dirs.pop() {
        let below = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        dirs.extend(below.filter(|path| path.is_dir() && !path.is_symlink()));
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_600_000_000, 123_456_789);
        std::fs::File::open(dir).unwrap().set_modified(time).unwrap();
    }
    fixture.index();
}

/// Returns the destination directory for a client.
pub(crate) fn dest(fixture: &Fixture) -> PathBuf {
    fixture.dir.path().join("dest")
}

/// The properties of an entry that must be equal on both sides.
#[derive(PartialEq)]
pub(crate) struct Entry {
    mode: u32,
    /// Seconds and nanoseconds.
    mtime: (i64, i64),
    /// The content of a file, or the target of a symlink.
    content: Vec<u8>,
    /// The first path of the same inode.
    leader: Vec<u8>,
}

impl Entry {
    /// Clears the nanoseconds, which older protocols do not transfer.
    pub(crate) fn without_nanoseconds(&mut self) {
        self.mtime.1 = 0;
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { mode, mtime: (sec, nsec), content, leader } = self;
        write!(f, "{mode:o} {sec}.{nsec:09} {} bytes, {}", content.len(), leader.escape_ascii())
    }
}

/// Returns all entries of a tree by path.
pub(crate) fn tree(root: &Path) -> BTreeMap<Vec<u8>, Entry> {
    let (mut found, mut leaders) = (BTreeMap::new(), BTreeMap::new());
    let mut dirs = vec![root.to_owned()];
    let mut paths = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                dirs.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let content = if meta.is_symlink() {
            std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else if meta.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        // A client leaves a symlink's time alone if it is right to the second.
        let mtime = if meta.is_symlink() { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
        let leader = leaders.entry(meta.ino()).or_insert_with(|| name.clone()).clone();
        found.insert(name, Entry { mode: meta.mode(), mtime, content, leader });
    }
    found
}

/// Sends a client's half at once, and returns everything that the daemon sends until it closes the connection.
pub(crate) async fn exchange(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    // The daemon may close the connection before it has read everything.
    let _ = socket.write_all(bytes).await;
    let _ = socket.shutdown().await;
    let mut answer = Vec::new();
    let _ = soon(socket.read_to_end(&mut answer)).await;
    answer
}

/// Returns a client's half of protocol 29 up to the end of its rules. None of it is framed.
pub(crate) fn begin_29(options: &str) -> Vec<u8> {
    let text = format!("@RSYNCD: 29\nrepo\n--server\n--sender\n{options}\n.\nrepo/\n\n");
    [text.as_bytes(), &[0; 4]].concat()
}

/// Returns a client's half of any protocol up to the end of its rules, with the greeting of that protocol. The
/// capabilities request no negotiation.
pub(crate) fn begin(protocol: u32, options: &str, path: &str) -> Vec<u8> {
    let (sub, capabilities, end) = match protocol {
        ..30 => ("", "", "\n"),
        30..32 => (".0", "e.iLsfxC", "\0"),
        _ => (".0 md5", "e.iLsfxC", "\0"),
    };
    let lines = format!("@RSYNCD: {protocol}{sub}\nrepo\n");
    let arguments = ["--server", "--sender", &format!("{options}{capabilities}"), ".", path, ""];
    let arguments: String = arguments.iter().map(|argument| format!("{argument}{end}")).collect();
    let no_rules: &[u8] = if protocol < 30 { &[0; 4] } else { &[4, 0, 0, 7, 0, 0, 0, 0] };
    [lines.as_bytes(), arguments.as_bytes(), no_rules].concat()
}

/// Returns whether the bytes contain this text.
pub(crate) fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Expects the same tree on both sides.
#[track_caller]
pub(crate) fn assert_same(ours: &Path, theirs: &Path) {
    let (ours, theirs) = (tree(ours), tree(theirs));
    let differs = |(path, entry): &(&Vec<u8>, &_)| theirs.get(*path) != Some(entry);
    if let Some((path, entry)) = ours.iter().find(differs) {
        panic!("{}: {entry:?} here, {:?} there", path.escape_ascii(), theirs.get(path));
    }
    assert_eq!(ours.len(), theirs.len(), "the destination has extra entries");
}
