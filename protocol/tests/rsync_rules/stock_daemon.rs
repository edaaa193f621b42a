//! A stock daemon, and a client that sends it what a test specifies.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::generator::Tree;

/// A stock daemon on the loopback address, with a directory of its own.
pub(crate) struct StockDaemon {
    directory: tempfile::TempDir,
    daemon: Child,
    pub(crate) port: u16,
}

/// A module: its name and its lines in rsyncd.conf.
pub(crate) type Module = (String, Vec<u8>);

impl StockDaemon {
    /// Serves the tree, as empty files and directories, in each of the modules.
    pub(crate) fn serve(tree: &Tree, modules: &[Module]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("tree");
        std::fs::create_dir(&root).expect("the tree");
        for (path, &is_dir) in tree {
            let path = root.join(OsStr::from_bytes(path));
            if is_dir { std::fs::create_dir(path) } else { std::fs::write(path, b"") }.expect("an entry");
        }
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let conf = directory.path().join("rsyncd.conf");
        std::fs::write(&conf, configuration(directory.path(), port, modules)).expect("rsyncd.conf");
        let daemon = Command::new("rsync")
            .args(["--daemon", "--no-detach", "--config"])
            .arg(&conf)
            .env("HOME", directory.path())
            .env_remove("CVSIGNORE")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("rsync is installed (tests/prepare)");
        let stock_daemon = Self { directory, daemon, port };
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", stock_daemon.port)).is_ok() {
                return stock_daemon;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the stock daemon does not listen: {}", stock_daemon.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Returns the names that a client of this protocol (27 to 29) with these rules receives. `None` if the
    /// daemon ends the session. Directories end with a slash. The root, if listed, is `./`.
    pub(crate) fn names(&self, query: &Query<'_>) -> Option<BTreeSet<Vec<u8>>> {
        Session::open(self.port, query).and_then(|mut session| session.names()).ok()
    }
}

impl Drop for StockDaemon {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn configuration(directory: &Path, port: u16, modules: &[Module]) -> Vec<u8> {
    let at = directory.display();
    let mut conf =
        format!("port = {port}\naddress = 127.0.0.1\nuse chroot = no\nreverse lookup = no\nlog file = {at}/log\n");
    if std::fs::metadata(directory).expect("it is there").uid() == 0 {
        conf += "uid = 0\ngid = 0\n";
    }
    let mut conf = conf.into_bytes();
    for (name, lines) in modules {
        conf.extend_from_slice(format!("[{name}]\npath = {at}/tree\n").as_bytes());
        conf.extend_from_slice(lines);
    }
    conf
}

/// A client's request.
#[derive(Debug, Clone)]
pub(crate) struct Query<'a> {
    pub(crate) module: &'a str,
    pub(crate) protocol: u32,
    pub(crate) path: &'a [u8],
    pub(crate) cvs_exclude: bool,
    pub(crate) rules: &'a [Vec<u8>],
}

/// An old client's session up to the end of the list. The oldest encodings are the simplest to decode.
struct Session {
    from: BufReader<TcpStream>,
    protocol: u32,
    data: Vec<u8>,
}

impl Session {
    fn open(port: u16, query: &Query<'_>) -> io::Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        let mut from = BufReader::new(stream.try_clone()?);
        write!(stream, "@RSYNCD: {}\n{}\n", query.protocol, query.module)?;
        let mut line = String::new();
        while line != "@RSYNCD: OK\n" {
            line.clear();
            if from.read_line(&mut line)? == 0 || line.starts_with("@ERROR") {
                return Err(io::Error::other(line));
            }
        }
        let letters: &[u8] = if query.cvs_exclude { b"-rC" } else { b"-r" };
        let path = [query.module.as_bytes(), b"/", query.path].concat();
        let mut out = [&b"--server"[..], b"--sender", letters, b".", &path, b"", b""].join(&b'\n');
        for rule in query.rules {
            out.extend_from_slice(&(rule.len() as u32).to_le_bytes());
            out.extend_from_slice(rule);
        }
        out.extend_from_slice(&[0; 4]);
        stream.write_all(&out)?;
        let mut seed = [0; 4];
        from.read_exact(&mut seed)?;
        Ok(Self { from, protocol: query.protocol, data: Vec::new() })
    }

    fn names(&mut self) -> io::Result<BTreeSet<Vec<u8>>> {
        let mut names = BTreeSet::new();
        let (mut name, mut is_dir) = (Vec::new(), false);
        loop {
            let mut flags = u32::from(self.byte()?);
            if flags == 0 {
                return Ok(names);
            }
            if flags & 0x04 != 0 && self.protocol >= 28 {
                flags |= u32::from(self.byte()?) << 8;
            }
            let shared = if flags & 0x20 != 0 { usize::from(self.byte()?) } else { 0 };
            let suffix = if flags & 0x40 != 0 { self.int()? as usize } else { usize::from(self.byte()?) };
            name.truncate(shared);
            name.extend(self.take(suffix)?);
            if self.int()? == u32::MAX {
                self.take(8)?;
            }
            if flags & 0x80 == 0 {
                self.int()?;
            }
            if flags & 0x02 == 0 {
                is_dir = self.int()? & 0o170_000 == 0o040_000;
            }
            names.insert(if is_dir { [&name[..], b"/"].concat() } else { name.clone() });
        }
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn int(&mut self) -> io::Result<u32> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Takes `count` bytes of the list out of data frames. Other frames are messages and are ignored.
    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.data.len() < count {
            let mut head = [0; 4];
            self.from.read_exact(&mut head)?;
            let head = u32::from_le_bytes(head);
            let mut payload = vec![0; (head & 0xff_ffff) as usize];
            self.from.read_exact(&mut payload)?;
            if head >> 24 == 7 {
                self.data.extend(payload);
            }
        }
        Ok(self.data.drain(..count).collect())
    }
}
