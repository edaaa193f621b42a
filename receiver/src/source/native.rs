//! A connection to a daemon over TCP. One task writes and one reads; requests and answers are matched by
//! number.
//!
//! Memory is bounded in two ways: a sender cannot put more bytes into an answer than were requested, and the
//! socket is not read while [`UNREAD_BYTES`] bytes wait for their readers.

mod buffer;
mod encrypt;
mod pace;
mod reader;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stillmirror_protocol::limits;
use stillmirror_protocol::wire::{Capabilities, ClientHello, FOLLOWING, Request, frame};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{Answer, Delivery, Renewing, Source, SourceOptions, Traffic};
use crate::address::Address;
use crate::error::PullError;
use crate::tls::Authorities;

use buffer::Buffer;
use pace::Pace;
use reader::Reader;

/// A connection to a daemon.
pub struct NativeSource {
    shared: Arc<Shared>,
    options: SourceOptions,
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    closing: CancellationToken,
}

impl NativeSource {
    /// Connects. The hello goes out with the first request, without waiting for the sender's hello.
    pub async fn connect(address: &Address, options: SourceOptions) -> Result<Self, PullError> {
        Self::connect_counting(address, options, Arc::default()).await
    }

    /// Connects to follow, and waits for the sender's hello. Returns whether the sender tells what becomes current;
    /// otherwise the connection is an ordinary one.
    pub(crate) async fn connect_following(
        address: &Address,
        options: SourceOptions,
    ) -> Result<(Self, bool), PullError> {
        let patience = options.timeout;
        let connection = Self::open(address, options, Arc::default(), ClientHello::FOLLOWER).await?;
        // The hello goes out without a request.
        let _ = connection.outgoing.send(Vec::new());
        match timeout(patience, connection.capabilities()).await {
            Ok(capabilities) => Ok((connection, capabilities? & FOLLOWING != 0)),
            Err(_) => Err(PullError::Timeout { address: address.to_string(), silence: patience }),
        }
    }

    /// Returns the sender's capabilities once its hello has arrived.
    async fn capabilities(&self) -> Result<Capabilities, PullError> {
        let mut hello = self.shared.hello.subscribe();
        let arrived = tokio::select! {
            arrived = hello.wait_for(Option::is_some) => arrived.ok().and_then(|known| *known),
            () = self.closing.cancelled() => None,
        };
        arrived.ok_or_else(|| self.shared.session().failure.clone().unwrap_or(PullError::Interrupted))
    }

    pub(super) async fn connect_counting(
        address: &Address,
        options: SourceOptions,
        counters: Arc<Counters>,
    ) -> Result<Self, PullError> {
        Self::open(address, options, counters, ClientHello::OURS).await
    }

    async fn open(
        address: &Address,
        options: SourceOptions,
        counters: Arc<Counters>,
        hello: ClientHello,
    ) -> Result<Self, PullError> {
        let failed = |reason: io::Error| PullError::Connect { address: address.to_string(), reason: Arc::new(reason) };
        let connecting = timeout(options.connect_timeout, connect(address, &options.authorities));
        let (reading, writing) = tokio::select! {
            () = options.cancel.cancelled() => return Err(PullError::Interrupted),
            connected = connecting => connected.map_err(|_| failed(io::ErrorKind::TimedOut.into()))??,
        };
        let shared = Arc::new(Shared::new(address, counters));
        let (outgoing, requests) = mpsc::unbounded_channel();
        let closing = options.cancel.child_token();
        tokio::spawn(write_requests(hello, writing, requests, shared.clone(), closing.clone()));
        let reader = Reader {
            shared: shared.clone(),
            socket: reading,
            buffer: Buffer::default(),
            pace: options.bandwidth.map(Pace::new),
            closing: closing.clone(),
            keepalive: outgoing.clone(),
            options: options.clone(),
        };
        tokio::spawn(reader.run());
        Ok(Self { shared, options, outgoing, closing })
    }
}

/// The halves of a connection, in the clear or encrypted.
type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

async fn connect(address: &Address, authorities: &Authorities) -> Result<Halves, PullError> {
    let failed = |reason: io::Error| PullError::Connect { address: address.to_string(), reason: Arc::new(reason) };
    let socket = TcpStream::connect(&address.host_port).await.map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    if address.tls {
        let (reading, writing) = tokio::io::split(encrypt::encrypt(socket, address, authorities).await?);
        return Ok((Box::new(reading), Box::new(writing)));
    }
    let (reading, writing) = socket.into_split();
    Ok((Box::new(reading), Box::new(writing)))
}

impl Source for NativeSource {
    fn ask(&self, request: Request) -> Result<Answer, PullError> {
        let (events, answer) = mpsc::unbounded_channel();
        let number = self.shared.register(&request, Some(events))?;
        let framed = frame(number, request.kind(), &request.encode());
        // Sending fails when the writer has ended. The reader is then about to report why.
        let _ = self.outgoing.send(framed);
        Ok(Answer::new(answer))
    }

    fn traffic(&self) -> Traffic {
        self.shared.counters.traffic()
    }

    fn close(&self) {
        self.closing.cancel();
    }

    fn renew(&self) -> Renewing<'_> {
        Box::pin(async {
            let counters = self.shared.counters.clone();
            let renewed = Self::connect_counting(&self.shared.address, self.options.clone(), counters).await?;
            Ok(Arc::new(renewed) as Arc<dyn Source>)
        })
    }
}

impl Drop for NativeSource {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// State that the connection's tasks share with the callers.
#[derive(Debug)]
struct Shared {
    address: Address,
    /// Shared with the connections that this one renewed, or that renewed it.
    counters: Arc<Counters>,
    /// One permit for each byte that may be received and not read yet.
    unread: Arc<Semaphore>,
    /// The sender's capabilities, once they are known.
    hello: watch::Sender<Option<Capabilities>>,
    session: Mutex<Session>,
}

/// Counters of the traffic with one sender.
#[derive(Debug, Default)]
pub(super) struct Counters {
    received: AtomicU64,
    sent: AtomicU64,
    round_trips: AtomicU64,
}

impl Counters {
    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            round_trips: self.round_trips.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug)]
struct Session {
    last_number: u32,
    in_flight: HashMap<u32, InFlight>,
    /// Why the session ended.
    failure: Option<PullError>,
    /// A pinned generation, used to keep the session alive.
    handle: Option<u32>,
    /// When bytes last arrived, or when a request was sent with none in flight.
    active: Instant,
}

/// A request whose answer is not complete.
#[derive(Debug)]
struct InFlight {
    kind: u8,
    /// Number of bytes that may still arrive.
    allowed: u64,
    /// Number of structured replies that may still arrive before the last one.
    replies: usize,
    /// `None` if nobody wants the answer.
    events: Option<mpsc::UnboundedSender<Delivery>>,
}

impl Shared {
    fn new(address: &Address, counters: Arc<Counters>) -> Self {
        let session =
            Session { last_number: 0, in_flight: HashMap::new(), failure: None, handle: None, active: Instant::now() };
        Self {
            address: address.clone(),
            counters,
            unread: Arc::new(Semaphore::new(UNREAD_BYTES)),
            hello: watch::Sender::default(),
            session: Mutex::new(session),
        }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers a request and registers it, so that its answer is accepted.
    fn register(&self, request: &Request, events: Option<mpsc::UnboundedSender<Delivery>>) -> Result<u32, PullError> {
        let mut session = self.session();
        if let Some(failure) = &session.failure {
            return Err(failure.clone());
        }
        if session.in_flight.is_empty() && events.is_some() {
            session.active = Instant::now();
            // Callers that still have answers to read do not wait for this one.
            if self.unread.available_permits() == UNREAD_BYTES {
                self.counters.round_trips.fetch_add(1, Ordering::Relaxed);
            }
        }
        // Number 0 is the session itself. A number is reused after four billion requests.
        session.last_number = session.last_number.checked_add(1).unwrap_or(1);
        let number = session.last_number;
        session.in_flight.insert(
            number,
            InFlight {
                kind: request.kind(),
                allowed: allowed_bytes(request),
                replies: allowed_replies(request),
                events,
            },
        );
        Ok(number)
    }

    /// Ends the session. Every request in flight learns why.
    fn fail(&self, failure: PullError) {
        let mut session = self.session();
        for (_, request) in session.in_flight.drain() {
            if let Some(events) = request.events {
                let _ = events.send(Delivery { event: Err(failure.clone()), _permit: None });
            }
        }
        session.failure.get_or_insert(failure);
    }
}

/// Returns the maximum number of bytes in a valid answer. For a list, this is known once its form is.
fn allowed_bytes(request: &Request) -> u64 {
    match request {
        Request::Repositories => REPOSITORIES_BYTES,
        Request::Head { .. } | Request::List { .. } | Request::Follow { .. } => 0,
        Request::Dir { .. } => DIR_BYTES,
        Request::Sums { items, .. } => items.iter().map(|item| item.len.saturating_add(4)).fold(0, u64::saturating_add),
        Request::Data { items, .. } => items.iter().map(|item| item.len).fold(0, u64::saturating_add),
    }
}

/// Returns the maximum number of structured replies in a valid answer, not counting the last one.
fn allowed_replies(request: &Request) -> usize {
    match request {
        Request::Head { .. } | Request::Follow { .. } => 2,
        Request::List { .. } => 1,
        Request::Data { items, .. } => items.len(),
        Request::Repositories | Request::Dir { .. } | Request::Sums { .. } => 0,
    }
}

/// Writes requests as they are made. Requests that are waiting go out in one write.
async fn write_requests(
    hello: ClientHello,
    mut socket: Box<dyn AsyncWrite + Send + Unpin>,
    mut requests: mpsc::UnboundedReceiver<Vec<u8>>,
    shared: Arc<Shared>,
    closing: CancellationToken,
) {
    let mut batch = hello.encode().to_vec();
    while let Some(request) = tokio::select! {
        () = closing.cancelled() => None,
        request = requests.recv() => request,
    } {
        batch.extend_from_slice(&request);
        while batch.len() < WRITE_BYTES {
            let Ok(request) = requests.try_recv() else { break };
            batch.extend_from_slice(&request);
        }
        let written = tokio::select! {
            () = closing.cancelled() => return,
            written = write(&mut socket, &batch) => written,
        };
        if written.is_err() {
            // The reader notices the end too, and may find the sender's reason before it.
            return;
        }
        shared.counters.sent.fetch_add(batch.len() as u64, Ordering::Relaxed);
        batch.clear();
    }
}

async fn write(socket: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    socket.write_all(bytes).await?;
    // Encrypted bytes may wait.
    socket.flush().await
}

/// Maximum number of bytes received and not read yet. This is more than all data requests in flight can ask
/// for.
const UNREAD_BYTES: usize = 64 << 20;
/// Maximum number of bytes in an answer about all repositories, if each is at its limits.
const REPOSITORIES_BYTES: u64 =
    (limits::REPOSITORIES * (limits::REPOSITORY_NAME + limits::MESSAGE + limits::HEAD + 8)) as u64;
/// Maximum number of bytes in an answer about one directory: about two million children.
const DIR_BYTES: u64 = 256 << 20;
/// Number of bytes after which a write goes out.
const WRITE_BYTES: usize = 256 << 10;
