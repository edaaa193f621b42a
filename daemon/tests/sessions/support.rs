//! Test helpers: a repository with a store, a daemon on loopback, and a minimal native client.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stillmirror_daemon::{Config, Daemon, DaemonError, Listeners, Port, Reload, RepositoryConfig};
use stillmirror_protocol::changes::{self, Changes, Source};
use stillmirror_protocol::entry::{Digest, Digests, Entry, Kind, Owner, Time};
use stillmirror_protocol::head::{Counts, Head};
use stillmirror_protocol::local::{Identity, LocalTable, Pooled, RelativeDevice};
use stillmirror_protocol::wire::{
    ClientHello, ErrorCode, FRAME_HEADER_BYTES, FrameHeader, HELLO_BYTES, Item, ItemFailure, ListForm, Reply, Request,
    ServerHello, frame, kind,
};
use stillmirror_protocol::{limits, list, path};
use stillmirror_store::{ContentPool, Generation, PoolName, PoolPlace, Record, Store};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A tree and its store. Both are removed when this is dropped.
pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
}

impl Fixture {
    /// Creates an empty tree that is not indexed.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("stillmirror-daemon").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        Self { dir }
    }

    /// Creates and indexes a tree with these files.
    pub(crate) fn with(files: &[(&str, &[u8])]) -> Self {
        let fixture = Self::new();
        files.iter().for_each(|(name, content)| fixture.write(name, content));
        fixture.index();
        fixture
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        let file = self.root().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }

    /// Indexes the tree as it is. Returns the number of the new generation.
    pub(crate) fn index(&self) -> u64 {
        index(&self.root(), &self.store(), 0)
    }

    /// Like [`Fixture::index`], but the store also keeps the contents of files up to 16 KiB.
    pub(crate) fn index_with_contents(&self) -> u64 {
        index(&self.root(), &self.store(), stillmirror_store::KEEP_CONTENTS)
    }

    /// Flips a bit of the store's file `name` at every offset that `is_hit` picks. The change is in place, so it reaches
    /// a process that has the file mapped.
    pub(crate) fn rot(&self, name: &str, is_hit: impl Fn(usize) -> bool) {
        use std::os::unix::fs::FileExt;
        let path = self.store().join(name);
        let bytes = std::fs::read(&path).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        for at in (0..bytes.len()).filter(|&at| is_hit(at)) {
            file.write_all_at(&[bytes[at] ^ 1 << (at % 8)], at as u64).unwrap();
        }
    }

    pub(crate) fn current(&self) -> Generation {
        Store::open(&self.store()).unwrap().current().unwrap().unwrap()
    }

    /// Returns the row of a path in the current generation.
    pub(crate) fn row(&self, path: &str) -> u32 {
        self.current().list().find(path.as_bytes()).unwrap().number()
    }

    pub(crate) fn whole(&self, path: &str) -> Item {
        let generation = self.current();
        let row = generation.list().find(path.as_bytes()).unwrap();
        Item { row: row.number(), offset: 0, len: row.size() }
    }

    /// Returns a configuration that serves the tree as `repo`, with default settings that `change` may change.
    pub(crate) fn config(&self, change: impl FnOnce(&mut Config)) -> Config {
        let mut config = Config {
            repositories: vec![RepositoryConfig {
                comment: "a test".to_owned(),
                ..RepositoryConfig::new("repo", self.root(), self.store())
            }],
            // Files need not be readable for everybody, whatever the umask of the user who runs the tests.
            serve_private: true,
            ..Config::default()
        };
        change(&mut config);
        config
    }

    pub(crate) async fn serve(&self) -> Server {
        Server::start(self.config(|_| {})).await
    }
}

/// Makes a generation of a tree, in place of the real indexer. A file's digest is real, and its block checksum record is
/// its path. The contents of files up to `keep` bytes are kept in the store. Returns the number of the new generation.
pub(crate) fn index(root: &Path, store: &Path, keep: u64) -> u64 {
    index_keeping(root, store, keep, |content| content)
}

/// Like [`index`], but the store keeps `kept(content)` in place of each content.
pub(crate) fn index_keeping(root: &Path, store: &Path, keep: u64, kept: impl Fn(Vec<u8>) -> Vec<u8>) -> u64 {
    index_as("repo", root, store, keep, kept)
}

/// Like [`index_keeping`], but `change` may change the entry of each path.
pub(crate) fn index_changing(
    root: &Path,
    store: &Path,
    keep: u64,
    kept: impl Fn(Vec<u8>) -> Vec<u8>,
    change: &dyn Fn(&[u8], &mut Entry),
) -> u64 {
    index_all("repo", root, store, keep, kept, change, None)
}

/// Like [`index_keeping`], for a repository of that name.
pub(crate) fn index_as(
    repository: &str,
    root: &Path,
    store: &Path,
    keep: u64,
    kept: impl Fn(Vec<u8>) -> Vec<u8>,
) -> u64 {
    index_all(repository, root, store, keep, kept, &|_, _| {}, None)
}

/// Like [`index`], and puts the contents of all files into a pool: as copies or as hard links. Hard links work everywhere,
/// and copies only where [`has_reflinks`].
pub(crate) fn index_pinned(root: &Path, store: &Path, keep: u64, pooled: Pooled) -> u64 {
    // The links in the pool are no names in the tree.
    index_all("repo", root, store, keep, |content| content, &|_, entry| entry.link = None, Some(pooled))
}

/// Returns whether the file system of temporary directories shares blocks between files.
pub(crate) fn has_reflinks() -> bool {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), "a").unwrap();
    let from = std::fs::File::open(dir.path().join("a")).unwrap();
    rustix::fs::ioctl_ficlone(std::fs::File::create(dir.path().join("b")).unwrap(), from).is_ok()
}

/// Puts the contents of all files below a directory into the pool of a store.
fn fill_pool(dir: &Path, pool: &ContentPool, pooled: Pooled) {
    for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            fill_pool(&path, pool, pooled);
            continue;
        }
        let (file, meta) = (std::fs::File::open(&path).unwrap(), path.metadata().unwrap());
        let mtime = Time { sec: meta.mtime(), nsec: meta.mtime_nsec() as u32 };
        // As for the list: the root is a directory that not everybody may enter, or that everybody may.
        for is_public in [false, true] {
            match pooled {
                Pooled::Copy => {
                    let digest = list::digest(&std::fs::read(&path).unwrap());
                    let draft = pool.copy(&file).unwrap().expect("reflinks");
                    draft.keep(&PoolName::of_copy(digest, is_public)).unwrap();
                }
                Pooled::Link => {
                    let name = PoolName::of_link(meta.ino(), mtime, meta.size(), is_public);
                    pool.link(&file, &name).unwrap().expect("hard links");
                }
                Pooled::No => {}
            }
        }
    }
}

fn index_all(
    repository: &str,
    root: &Path,
    store: &Path,
    keep: u64,
    kept: impl Fn(Vec<u8>) -> Vec<u8>,
    change: &dyn Fn(&[u8], &mut Entry),
    pooled: Option<Pooled>,
) -> u64 {
    let store = Store::create(store, repository).unwrap();
    if let Some(pooled) = pooled {
        let path = PoolPlace::Store.path(store.dir(), root);
        fill_pool(root, &ContentPool::create(&path, repository).unwrap().0, pooled);
    }
    let mut changes = Changes::default();
    let mut facts = HashMap::new();
    walk(root, b"", &mut changes, &mut facts, change);
    let new = changes::apply(None, &changes).unwrap();
    assert!(new.sources.iter().all(|source| matches!(source, Source::Put(_))));
    let encoded = new.list.encode();
    let list = list::open(&encoded).unwrap();

    let lock = store.lock().unwrap();
    let draft = store.begin(&lock).unwrap();
    let mut local = LocalTable::default();
    for number in 0..list.len() {
        let (path, row) = (list.path(number), list.row(number));
        let keeps = row.is_file() && row.size() <= keep;
        let read = || std::fs::read(root.join(OsStr::from_bytes(&path))).unwrap();
        let content = if keeps { kept(read()) } else { Vec::new() };
        let append = || draft.append(row.sha256(), Record { sums: &path, content: &content }).unwrap();
        let record = row.is_file().then(append);
        local.push(facts[&path], None, record);
        local.mark_pooled(pooled.unwrap_or_default());
    }
    let digest = list::digest(&encoded);
    let before = store.current().unwrap();
    let previous = before.as_ref().map_or(Digest::NONE, |before| before.head().list_digest);
    draft.write_list(&encoded).unwrap();
    draft.write_local(&local.encode(digest)).unwrap();
    if let Some(before) = &before {
        draft.write_delta(&changes::diff(before.list(), list).encode(previous, digest)).unwrap();
    }
    let head = Head {
        repository: repository.to_owned(),
        generation: draft.number(),
        created: Time { sec: 1, nsec: 0 },
        list_digest: digest,
        list_len: encoded.len() as u64,
        previous,
        counts: Counts::of(list),
        expires: None,
        slice: None,
    };
    draft.write_head(&head.encode()).unwrap();
    if pooled.is_some() {
        draft.write_pool(&PoolPlace::Store, before.as_ref()).unwrap();
    }
    draft.publish().unwrap()
}

fn walk(
    root: &Path,
    dir: &[u8],
    changes: &mut Changes,
    facts: &mut HashMap<Vec<u8>, Identity>,
    change: &dyn Fn(&[u8], &mut Entry),
) {
    let disk = |path: &[u8]| root.join(OsStr::from_bytes(path));
    let mut entry = |path: &[u8]| {
        // The root itself may be a symlink to the tree's top directory.
        let look = if path.is_empty() { std::fs::metadata } else { std::fs::symlink_metadata::<PathBuf> };
        let meta = look(disk(path)).unwrap();
        let ctime = Time { sec: meta.ctime(), nsec: meta.ctime_nsec() as u32 };
        facts.insert(path.to_vec(), Identity { device: RelativeDevice::Roots, inode: meta.ino(), ctime });
        let kind = if meta.is_dir() {
            Kind::Directory
        } else if meta.is_symlink() {
            Kind::Symlink { target: std::fs::read_link(disk(path)).unwrap().as_os_str().as_bytes().to_vec() }
        } else {
            // Large files are not hashed, since nothing in this crate reads their digest.
            let sha256 =
                if meta.len() > 64 << 20 { Digest([1; 32]) } else { list::digest(&std::fs::read(disk(path)).unwrap()) };
            Kind::File { size: meta.len(), digests: Digests { sha256, ..Digests::default() } }
        };
        let mut entry = Entry {
            mode: (meta.mode() & 0o7777) as u16,
            mtime: Time { sec: meta.mtime(), nsec: meta.mtime_nsec() as u32 },
            owner: Owner { uid: meta.uid(), gid: meta.gid(), ..Owner::default() },
            link: (!meta.is_dir() && meta.nlink() > 1).then(|| meta.ino()),
            kind,
        };
        change(path, &mut entry);
        entry
    };
    if dir.is_empty() {
        changes.root = Some(changes::Put { entry: entry(dir), tag: 0 });
    }
    let mut below = Vec::new();
    for found in std::fs::read_dir(disk(dir)).unwrap() {
        let name = found.unwrap().file_name();
        let path = path::join(dir, name.as_bytes());
        let entry = entry(&path);
        if entry.kind.is_dir() {
            below.push(path);
        }
        changes.put(dir, name.as_bytes(), entry, 0);
    }
    below.iter().for_each(|dir| walk(root, dir, changes, facts, change));
}

/// A running daemon.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    /// The addresses of all ports, of which `addr` is the first.
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) reload: Reload,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) running: JoinHandle<Result<(), DaemonError>>,
}

impl Server {
    pub(crate) async fn start(config: Config) -> Self {
        Self::start_on(config, &[Port::All]).await
    }

    /// Starts a daemon with these ports.
    pub(crate) async fn start_on(config: Config, ports: &[Port]) -> Self {
        let (mut listeners, mut addrs) = (Listeners::default(), Vec::new());
        for port in ports {
            let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addrs.push(socket.local_addr().unwrap());
            listeners.add(socket, *port);
        }
        let daemon = Daemon::open(config).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let reload = daemon.reload_handle();
        let running = tokio::spawn(daemon.run(listeners, async move { drop(stopped.await) }));
        Self { addr: addrs[0], addrs, reload, stop: Some(stop), running }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.addr).await
    }

    /// Requests the shutdown of the daemon.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }
}

/// One complete answer.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) pinned: Option<(u32, Vec<u8>)>,
    pub(crate) signature: Option<Vec<u8>>,
    /// The spread in milliseconds, and the head.
    pub(crate) news: Option<(u32, Vec<u8>)>,
    pub(crate) form: Option<ListForm>,
    /// Failed items, each with the number of the answer's bytes before it.
    pub(crate) failures: Vec<(usize, u32, ItemFailure)>,
    pub(crate) error: Option<(ErrorCode, String)>,
}

/// A native client, after the exchange of hellos.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) socket: S,
    pub(crate) hello: ServerHello,
    answers: HashMap<u32, Answer>,
    next: u32,
}

impl Client {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self::connect_as(addr, ClientHello::OURS).await
    }

    pub(crate) async fn connect_as(addr: SocketAddr, hello: ClientHello) -> Self {
        Self::begin(TcpStream::connect(addr).await.unwrap(), hello).await
    }

    /// Returns a client for a connection on which the hellos and two requests were exchanged already.
    pub(crate) fn resume(socket: TcpStream) -> Self {
        let hello = ServerHello { version: 1, requests: 0, capabilities: 0, reply_payload: 0 };
        Self { socket, hello, answers: HashMap::new(), next: 3 }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Exchanges the hellos.
    pub(crate) async fn begin(mut socket: S, hello: ClientHello) -> Self {
        socket.write_all(&hello.encode()).await.unwrap();
        socket.flush().await.unwrap();
        let mut hello = [0; HELLO_BYTES];
        socket.read_exact(&mut hello).await.unwrap();
        let hello = ServerHello::decode(&hello).unwrap();
        Self { socket, hello, answers: HashMap::new(), next: 1 }
    }

    /// Sends a request and returns its number.
    pub(crate) async fn send(&mut self, request: &Request) -> u32 {
        let number = self.next;
        self.next += 1;
        self.socket.write_all(&frame(number, request.kind(), &request.encode())).await.unwrap();
        self.socket.flush().await.unwrap();
        number
    }

    /// Reads the next frame. `None` if the connection is closed.
    pub(crate) async fn frame(&mut self) -> Option<(FrameHeader, Vec<u8>)> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.socket.read_exact(&mut header).await.ok()?;
        let header = FrameHeader::decode(&header, limits::REPLY_PAYLOAD).unwrap();
        let mut payload = vec![0; header.len as usize];
        self.socket.read_exact(&mut payload).await.ok()?;
        Some((header, payload))
    }

    /// Reads until the answer to that request is complete. Parts of other answers are kept for later.
    pub(crate) async fn answer(&mut self, number: u32) -> Answer {
        loop {
            let (header, payload) = self.frame().await.expect("the daemon closed before the answer was complete");
            let answer = self.answers.entry(header.request).or_default();
            let is_complete = add(answer, &header, payload);
            if is_complete && header.request == number {
                return self.answers.remove(&number).unwrap();
            }
        }
    }

    pub(crate) async fn ask(&mut self, request: &Request) -> Answer {
        let number = self.send(request).await;
        if let Some(answer) = self.answers.remove(&number) {
            return answer;
        }
        self.answer(number).await
    }

    /// Pins the current generation of `repo`.
    pub(crate) async fn pin(&mut self) -> (u32, Head) {
        let answer = self.ask(&Request::Head { repository: "repo".to_owned() }).await;
        let (handle, head) = answer.pinned.unwrap_or_else(|| panic!("no head: {:?}", answer.error));
        (handle, Head::decode(&head).unwrap())
    }

    pub(crate) async fn data(&mut self, handle: u32, items: Vec<Item>) -> Answer {
        self.ask(&Request::Data { handle, items }).await
    }
}

/// Adds a frame to an answer. Returns whether the answer is now complete.
fn add(answer: &mut Answer, header: &FrameHeader, payload: Vec<u8>) -> bool {
    if header.kind == kind::BYTES {
        answer.bytes.extend_from_slice(&payload);
        return false;
    }
    match Reply::decode(header.kind, &payload).unwrap() {
        Reply::Pinned { handle, head } => answer.pinned = Some((handle, head)),
        Reply::News { spread, head } => answer.news = Some((spread, head)),
        Reply::Signature(signature) => answer.signature = Some(signature),
        Reply::ListForm(form) => answer.form = Some(form),
        Reply::ItemFailed { item, reason } => answer.failures.push((answer.bytes.len(), item, reason)),
        Reply::Error { code, message } => answer.error = Some((code, message)),
        Reply::Queued { .. } | Reply::End => {}
    }
    matches!(header.kind, kind::END | kind::ERROR)
}

/// Returns pseudo-random bytes, in which no part equals another.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| step()).collect();
    bytes.truncate(len);
    bytes
}

/// Awaits a future with a timeout, so that a test fails instead of hanging.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("timeout: this should have happened by now")
}
