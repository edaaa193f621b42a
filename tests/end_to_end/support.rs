//! Trees, commands and servers for tests.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Returns the binary under test: the one of this build, or `STILLMIRROR_BINARY`.
fn binary() -> OsString {
    std::env::var_os("STILLMIRROR_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_stillmirror").into())
}

/// The trees and stores of a publisher and of a downstream, in one temporary directory.
pub(crate) struct World {
    dir: TempDir,
}

impl World {
    /// Creates a world with an empty directory `src`.
    pub(crate) fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        std::fs::create_dir(world.src()).expect("src");
        world
    }

    /// Creates a world whose tree has directories, files of many sizes, hard links, symlinks and unusual names.
    pub(crate) fn with_tree() -> Self {
        let world = Self::new();
        let src = world.src();
        for (path, len) in [
            ("README", 100),
            ("empty", 0),
            ("pool/a/alpha_1.0.deb", 70_000),
            ("pool/a/alpha_1.1.deb", 70_001),
            ("pool/b/beta.tar", 1_500_000),
            ("dists/stable/Release", 3_000),
            ("dists/stable/main/Packages", 200_000),
        ] {
            write(&src.join(path), &noise(len, path.len() as u64 + len as u64));
        }
        for name in [&b"sp ace"[..], b"new\nline", b"-dash", b".hidden", b"high\xff\xfe", b"caf\xc3\xa9"] {
            write(&src.join("odd").join(std::ffi::OsStr::from_bytes(name)), name);
        }
        std::fs::create_dir_all(src.join("nothing/in/here")).expect("directories");
        std::fs::hard_link(src.join("pool/b/beta.tar"), src.join("pool/a/same.tar")).expect("a hard link");
        std::os::unix::fs::symlink("stable", src.join("dists/current")).expect("a symlink");
        std::os::unix::fs::symlink("/nowhere at all", src.join("dangling")).expect("a symlink");
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn src(&self) -> PathBuf {
        self.path("src")
    }

    pub(crate) fn dest(&self) -> PathBuf {
        self.path("dest")
    }

    /// Indexes the tree, which must succeed. Returns the report.
    pub(crate) fn index(&self) -> Value {
        json(&self.index_command().output().expect("index runs"))
    }

    pub(crate) fn index_command(&self) -> Command {
        let mut command = stillmirror(&["index", "--json", "--name", "repo"]);
        command.arg("--root").arg(self.src()).arg("--store").arg(self.path("store"));
        command
    }

    /// Serves the tree as the repository `repo`.
    pub(crate) fn serve(&self) -> Server {
        Server::start(&self.src(), &self.path("store"))
    }

    pub(crate) fn pull_command(&self, server: &Server) -> Command {
        let mut command = stillmirror(&["pull", "--json"]);
        command.arg(server.url("repo")).arg(self.dest()).arg("--store").arg(self.path("dest-store"));
        command
    }

    /// Pulls with `--delete`, which must succeed. Returns the report.
    pub(crate) fn pull(&self, server: &Server) -> Value {
        json(&self.pull_command(server).arg("--delete").output().expect("pull runs"))
    }
}

/// A daemon on a free loopback port. Dropping it ends it.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    /// The lines that it logs once it listens.
    log: std::sync::mpsc::Receiver<String>,
}

impl Server {
    /// Serves a tree as the repository `repo`.
    pub(crate) fn start(root: &Path, store: &Path) -> Self {
        Self::start_as("repo", root, store)
    }

    /// Serves a tree under a name.
    pub(crate) fn start_as(name: &str, root: &Path, store: &Path) -> Self {
        // The tests may run as root, and files of their trees may be private.
        let mut command = stillmirror(&["serve", "--listen", "127.0.0.1:0", "--name", name, "--serve-private"]);
        command.arg("--root").arg(root).arg("--store").arg(store);
        Self::spawn(command)
    }

    pub(crate) fn spawn(command: Command) -> Self {
        Self::spawn_on(command, "listening on ")
    }

    /// Like [`Server::spawn`], with the address that it logs behind `port`.
    pub(crate) fn spawn_on(mut command: Command, port: &str) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("serve starts");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once(port)?.1.trim().to_owned()))
            .expect("serve says where it listens");
        // Keep reading, so that the daemon never blocks on a full pipe.
        let (to_log, log) = std::sync::mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| to_log.send(line).unwrap_or_default()));
        Self { child, address, log }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("stillmirror://{}/{path}", self.address)
    }

    /// Waits for the next line of the log that contains `word`, and returns it.
    pub(crate) fn logged(&self, word: &str) -> String {
        let next = || self.log.recv_timeout(std::time::Duration::from_secs(20)).expect("it logs something");
        std::iter::repeat_with(next).find(|line| line.contains(word)).expect("endless")
    }

    /// Returns the log lines that were not returned before.
    pub(crate) fn logged_so_far(&self) -> String {
        self.log.try_iter().collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the daemon to end. Returns its exit code, or `None` after 20 seconds.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        wait_for(&mut self.child)
    }
}

/// Waits for a process to end. Returns its exit code, or `None` after 20 seconds.
pub(crate) fn wait_for(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("wait") {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a command that runs the binary, independent of the caller's environment.
pub(crate) fn stillmirror(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).env_remove("STILLMIRROR_LOG").stdin(Stdio::null());
    // The directory of default stores.
    command.env("XDG_STATE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Returns the report of a command that must have succeeded.
#[track_caller]
pub(crate) fn json(output: &Output) -> Value {
    assert_exit(output, 0);
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[track_caller]
pub(crate) fn assert_exit(output: &Output, code: i32) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// Asserts that a command ended with `code` and that its errors contain all of `words`.
#[track_caller]
pub(crate) fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    assert_exit(output, code);
    let message = String::from_utf8_lossy(&output.stderr);
    for word in words {
        assert!(message.contains(word), "'{word}' is not in: {message}");
    }
}

/// Asserts that two trees are equal, as the real rsync sees it: contents, types, modes, times, owners and hard links.
/// rsync prints nothing if they are.
#[track_caller]
pub(crate) fn assert_same_tree(a: &Path, b: &Path) {
    let slashed = |path: &Path| [path.as_os_str().as_bytes(), b"/"].concat();
    let output = Command::new("rsync")
        .args(["-naiHc", "--delete", "--specials", "--devices"])
        .arg(std::ffi::OsStr::from_bytes(&slashed(a)))
        .arg(std::ffi::OsStr::from_bytes(&slashed(b)))
        .output()
        .expect("rsync is the judge of these tests: install it (tests/prepare)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "rsync sees differences");
}

/// Writes a file, and creates the directories above it.
pub(crate) fn write(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    std::fs::write(path, content).expect("a file");
}

/// Returns incompressible bytes, the same for the same seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Returns all regular files below `dir`, by path, with their contents.
pub(crate) fn files(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(at) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&at) else { continue };
        for entry in entries.flatten() {
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() {
                let name = entry.path().strip_prefix(dir).expect("below").to_owned();
                found.insert(name, std::fs::read(entry.path()).expect("readable"));
            }
        }
    }
    found
}
