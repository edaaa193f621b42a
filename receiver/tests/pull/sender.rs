//! A scripted sender that serves trees from memory over the real protocol, honestly or not.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rkyv::util::AlignedVec;
use stillmirror_protocol::changes::diff;
use stillmirror_protocol::entry::{Digest, Time};
use stillmirror_protocol::head::{Counts, Head};
use stillmirror_protocol::limits;
use stillmirror_protocol::list;
use stillmirror_protocol::sums::{Scheme, SumsBuilder, SumsPolicy};
use stillmirror_protocol::wire::{
    ErrorCode, FOLLOWING, FRAME_HEADER_BYTES, FrameHeader, HELLO_BYTES, ItemFailure, ListForm, Reply, Request,
    SIGNED_HEADS, SLICE_HEADS, ServerHello, fingerprint, frame, kind,
};

use crate::tree::Tree;

pub(crate) const REPOSITORY: &str = "demo";

/// A published generation.
#[derive(Clone)]
pub(crate) struct Generation {
    pub(crate) encoded: AlignedVec,
    pub(crate) head: Head,
    pub(crate) signature: Option<Vec<u8>>,
    delta: Option<Vec<u8>>,
    contents: HashMap<Vec<u8>, Vec<u8>>,
    /// Files that differ on disk, so that the sender does not send them, and the reason it gives.
    failing: HashMap<Vec<u8>, ItemFailure>,
}

/// Replaces the honest frames of an answer. Gets the request's number, the request and those frames.
pub(crate) type Tamper = Arc<dyn Fn(u32, &Request, Vec<Vec<u8>>) -> Vec<Vec<u8>> + Send + Sync>;

#[derive(Clone, Default)]
pub(crate) struct Behaviour {
    /// The delay of each reply.
    pub(crate) latency: Duration,
    pub(crate) tamper: Option<Tamper>,
    /// Bytes to send instead of the hello.
    pub(crate) hello: Option<Vec<u8>>,
    /// Number of bytes after which the connection is cut.
    pub(crate) cut: Option<usize>,
    /// Whether to answer nothing.
    pub(crate) mute: bool,
    /// Whether it is a sender that knows no signatures.
    pub(crate) is_old: bool,
    /// Whether it tells nobody what becomes current.
    pub(crate) tells_nobody: bool,
}

/// What a sender received.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) requests: Vec<Request>,
}

#[derive(Clone)]
pub(crate) struct Sender {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    generations: Vec<Arc<Generation>>,
    behaviour: Behaviour,
    log: Log,
    /// How often all followers were disconnected.
    disconnected: usize,
}

impl Sender {
    pub(crate) fn of(tree: &Tree) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let served = state.clone();
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let served = served.clone();
                thread::spawn(move || drop(serve(socket, &served)));
            }
        });
        let sender = Self { address, state };
        sender.publish(tree);
        sender
    }

    /// Publishes the next generation.
    pub(crate) fn publish(&self, tree: &Tree) {
        self.publish_encoded(tree.encode(), tree);
    }

    /// Publishes any bytes as a list.
    pub(crate) fn publish_encoded(&self, encoded: AlignedVec, tree: &Tree) {
        let mut state = self.state.lock().unwrap();
        let before = state.generations.last();
        let digest = list::digest(&encoded);
        let head = Head {
            repository: REPOSITORY.to_owned(),
            generation: state.generations.len() as u64 + 1,
            created: Time { sec: 1_700_000_000, nsec: 0 },
            list_digest: digest,
            list_len: encoded.len() as u64,
            previous: before.map_or(Digest::NONE, |before| before.head.list_digest),
            counts: counts(&encoded),
            expires: None,
            slice: None,
        };
        let delta = before.and_then(|before| {
            let (old, new) = (list::open(&before.encoded).ok()?, list::open(&encoded).ok()?);
            Some(diff(old, new).encode(before.head.list_digest, digest))
        });
        let generation =
            Generation { encoded, head, signature: None, delta, contents: tree.contents(), failing: HashMap::new() };
        state.generations.push(Arc::new(generation));
    }

    /// Publishes a tree of which some files have changed since they were indexed.
    pub(crate) fn publish_failing(&self, tree: &Tree, failing: &[(&str, ItemFailure)]) {
        self.publish(tree);
        self.fail(failing);
    }

    /// Gives the current generation another number and time.
    pub(crate) fn renumber(&self, generation: u64, created: i64) {
        let mut state = self.state.lock().unwrap();
        let last = state.generations.pop().unwrap();
        let mut head = last.head.clone();
        (head.generation, head.created.sec) = (generation, created);
        // A session may still have the old one.
        let Generation { encoded, delta, contents, failing, .. } = &*last;
        let (encoded, delta) = (encoded.clone(), delta.clone());
        let (contents, failing) = (contents.clone(), failing.clone());
        state.generations.push(Arc::new(Generation { encoded, head, signature: None, delta, contents, failing }));
    }

    /// Makes some files of the current tree fail.
    pub(crate) fn fail(&self, failing: &[(&str, ItemFailure)]) {
        self.amend(|last| {
            last.failing = failing.iter().map(|(path, why)| (path.as_bytes().to_vec(), *why)).collect();
        });
    }

    /// Changes a byte of a file of the current tree, which nobody notices at the sender.
    pub(crate) fn rot(&self, path: &str) {
        self.amend(|last| last.contents.get_mut(path.as_bytes()).unwrap()[0] ^= 1);
    }

    /// Changes the current generation in place.
    pub(crate) fn amend(&self, change: impl FnOnce(&mut Generation)) {
        let mut state = self.state.lock().unwrap();
        let last = state.generations.last_mut().unwrap();
        let mut changed = Generation::clone(last);
        change(&mut changed);
        *last = Arc::new(changed);
    }

    /// Publishes the current list with the next number, as a renewed signature does.
    pub(crate) fn publish_again(&self) {
        let mut state = self.state.lock().unwrap();
        let mut next = Generation::clone(state.generations.last().unwrap());
        next.head.generation += 1;
        state.generations.push(Arc::new(next));
    }

    /// Goes back by one generation.
    pub(crate) fn go_back(&self) {
        self.state.lock().unwrap().generations.pop();
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        self.state.lock().unwrap().behaviour = behaviour;
    }

    pub(crate) fn tamper(&self, tamper: impl Fn(u32, &Request, Vec<Vec<u8>>) -> Vec<Vec<u8>> + Send + Sync + 'static) {
        self.behave(Behaviour { tamper: Some(Arc::new(tamper)), ..Behaviour::default() });
    }

    /// Closes the connections of all followers.
    pub(crate) fn disconnect_followers(&self) {
        self.state.lock().unwrap().disconnected += 1;
    }

    /// Waits until somebody asks for something that `is_it`.
    pub(crate) fn wait_for(&self, is_it: impl Fn(&Request) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.state.lock().unwrap().log.requests.iter().any(&is_it) {
            assert!(Instant::now() < deadline, "nobody asks");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().log.requests)
    }

    pub(crate) fn current(&self) -> Arc<Generation> {
        self.state.lock().unwrap().generations.last().unwrap().clone()
    }
}

/// Counts the entries of a list. An invalid list has no counts, and no test compares them.
fn counts(encoded: &[u8]) -> Counts {
    list::open(encoded).map_or_else(|_| Counts::default(), Counts::of)
}

fn serve(mut socket: TcpStream, state: &Arc<Mutex<State>>) -> std::io::Result<()> {
    let (behaviour, disconnected) = {
        let state = state.lock().unwrap();
        (state.behaviour.clone(), state.disconnected)
    };
    socket.set_nodelay(true)?;
    let hello = ServerHello {
        version: 1,
        requests: limits::REQUESTS_UNDER_WAY as u16,
        capabilities: match (behaviour.is_old, behaviour.tells_nobody) {
            (true, _) => 0,
            (false, true) => SIGNED_HEADS | SLICE_HEADS,
            (false, false) => SIGNED_HEADS | SLICE_HEADS | FOLLOWING,
        },
        reply_payload: limits::REPLY_PAYLOAD as u32,
    };
    let mut writer = socket.try_clone()?;
    let (replies, due) = mpsc::channel::<(Instant, Vec<u8>)>();
    let cut = behaviour.cut;
    let writing = thread::spawn(move || {
        let mut left = cut.unwrap_or(usize::MAX);
        for (at, bytes) in due {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            let part = &bytes[..bytes.len().min(left)];
            left -= part.len();
            if writer.write_all(part).is_err() || left == 0 {
                let _ = writer.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    });
    let say = |bytes: Vec<u8>| replies.send((Instant::now() + behaviour.latency, bytes)).is_ok();
    let mut theirs = [0; HELLO_BYTES];
    socket.read_exact(&mut theirs)?;
    if !behaviour.mute {
        say(behaviour.hello.clone().unwrap_or_else(|| hello.encode().to_vec()));
    }
    let mut pinned = Vec::new();
    loop {
        let mut header = [0; FRAME_HEADER_BYTES];
        if socket.read_exact(&mut header).is_err() {
            break;
        }
        let header = FrameHeader::decode(&header, limits::REQUEST_PAYLOAD).expect("a receiver's frames are valid");
        let mut payload = vec![0; header.len as usize];
        socket.read_exact(&mut payload)?;
        let request = Request::decode(header.kind, &payload).expect("a receiver's requests are valid");
        let generations = {
            let mut state = state.lock().unwrap();
            state.log.requests.push(request.clone());
            state.generations.clone()
        };
        if matches!(request, Request::Head { .. }) {
            pinned = generations;
        }
        let mut frames = match &request {
            Request::Follow { known, .. } => match told(state, disconnected, header.request, *known) {
                Some(frames) => frames,
                None => break,
            },
            request => answer(&pinned, header.request, request, behaviour.is_old),
        };
        if let Some(tamper) = &behaviour.tamper {
            frames = tamper(header.request, &request, frames);
        }
        if behaviour.mute {
            continue;
        }
        if !frames.into_iter().all(&say) {
            break;
        }
    }
    drop(replies);
    let _ = writing.join();
    Ok(())
}

/// Waits until another head than the known one is current. Returns the answer to a follower, or `None` if the connection
/// is to be closed.
fn told(state: &Mutex<State>, disconnected: usize, number: u32, known: Digest) -> Option<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    // Shorter than the time after which a receiver gives up.
    let until = Instant::now() + Duration::from_secs(2);
    while frames.is_empty() && Instant::now() < until {
        {
            let state = state.lock().unwrap();
            if state.disconnected != disconnected {
                return None;
            }
            let current = state.generations.last()?;
            let head = current.head.encode();
            if fingerprint(&head, current.signature.as_deref()) != known {
                frames.push(Reply::News { spread: 10, head }.frame(number));
                frames.extend(current.signature.iter().map(|bytes| Reply::Signature(bytes.clone()).frame(number)));
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    frames.push(Reply::End.frame(number));
    Some(frames)
}

/// Returns the honest answer, frame by frame.
fn answer(generations: &[Arc<Generation>], number: u32, request: &Request, is_old: bool) -> Vec<Vec<u8>> {
    let Some(current) = generations.last() else { return vec![refuse(number)] };
    let mut frames = match request {
        Request::Head { repository } if repository == REPOSITORY => {
            if is_old {
                let head = Head { expires: None, slice: None, ..current.head.clone() }.encode();
                vec![Reply::Pinned { handle: 3, head }.frame(number)]
            } else {
                let signature = current.signature.iter().map(|bytes| Reply::Signature(bytes.clone()).frame(number));
                let head = current.head.encode();
                std::iter::once(Reply::Pinned { handle: 3, head }.frame(number)).chain(signature).collect()
            }
        }
        Request::List { handle: 3, have } => list_frames(generations, current, number, *have),
        Request::Sums { handle: 3, items } => {
            let mut bytes = Vec::new();
            for item in items {
                let record = record(&current.contents[&path_of(current, item.row)]);
                let start = (item.offset as usize).min(record.len());
                let end = (start + item.len as usize).min(record.len());
                bytes.extend_from_slice(&((end - start) as u32).to_le_bytes());
                bytes.extend_from_slice(&record[start..end]);
            }
            in_frames(number, &bytes)
        }
        Request::Data { handle: 3, items } => {
            let mut frames = Vec::new();
            for (place, item) in items.iter().enumerate() {
                let path = path_of(current, item.row);
                if let Some(&reason) = current.failing.get(&path) {
                    // A sender may have sent a part of the file before it notices.
                    let sent = (item.len / 2) as usize;
                    frames.extend(in_frames(number, &vec![b'?'; sent]));
                    frames.push(Reply::ItemFailed { item: place as u32, reason }.frame(number));
                } else {
                    let range = item.offset as usize..(item.offset + item.len) as usize;
                    frames.extend(in_frames(number, &current.contents[&path][range]));
                }
            }
            frames
        }
        _ => return vec![refuse(number)],
    };
    frames.push(Reply::End.frame(number));
    frames
}

fn list_frames(generations: &[Arc<Generation>], current: &Generation, number: u32, have: Digest) -> Vec<Vec<u8>> {
    let form = |form| Reply::ListForm(form).frame(number);
    if have == current.head.list_digest {
        return vec![form(ListForm::Unchanged)];
    }
    let held = generations.iter().position(|generation| generation.head.list_digest == have);
    let deltas =
        held.map(|held| generations[held + 1..].iter().map(|next| next.delta.clone()).collect::<Option<Vec<_>>>());
    if let Some(Some(deltas)) = deltas {
        let mut frames = vec![form(ListForm::Deltas(deltas.iter().map(|delta| delta.len() as u64).collect()))];
        frames.extend(in_frames(number, &deltas.concat()));
        return frames;
    }
    let mut frames = vec![form(ListForm::Whole { list_len: current.encoded.len() as u64 })];
    frames.extend(in_frames(number, &zstd::bulk::compress(&current.encoded, 1).unwrap()));
    frames
}

pub(crate) fn in_frames(number: u32, bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.chunks(100_000).map(|chunk| frame(number, kind::BYTES, chunk)).collect()
}

fn refuse(number: u32) -> Vec<u8> {
    Reply::Error { code: ErrorCode::UnknownRepository, message: "there is none".to_owned() }.frame(number)
}

fn path_of(generation: &Generation, row: u32) -> Vec<u8> {
    list::open(&generation.encoded).expect("only valid lists are requested").path(row)
}

/// Returns the block checksum record that an indexer would write.
pub(crate) fn record(content: &[u8]) -> Vec<u8> {
    let scheme = Scheme::for_size(content.len() as u64, &SumsPolicy::default());
    if scheme.is_empty() {
        return Vec::new();
    }
    let mut builder = SumsBuilder::new(scheme, content.len() as u64);
    builder.update(content);
    builder.finish()
}
