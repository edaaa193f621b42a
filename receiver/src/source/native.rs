//! A daemon over TCP: one task writes, one reads, requests and answers are matched by number.
//!
//! Memory is bounded twice: a sender can put no more bytes into an answer than were asked for, and what
//! nobody has taken yet is at most [`UNREAD_BYTES`]; beyond that the socket is not read.

mod reader;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use stillmirror_protocol::limits;
use stillmirror_protocol::wire::{ClientHello, Request, frame};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{Answer, Delivery, Renewing, Source, SourceOptions, Traffic};
use crate::error::PullError;

use reader::{Pace, Reader};

/// A connection to a daemon.
pub struct NativeSource {
    shared: Arc<Shared>,
    options: SourceOptions,
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    closing: CancellationToken,
}

impl NativeSource {
    /// Connects. The hello goes out with the first request, and its answer is not waited for.
    pub async fn connect(address: &str, options: SourceOptions) -> Result<Self, PullError> {
        Self::connect_counting(address, options, Arc::default()).await
    }

    async fn connect_counting(
        address: &str,
        options: SourceOptions,
        counters: Arc<Counters>,
    ) -> Result<Self, PullError> {
        let failed = |reason: io::Error| PullError::Connect { address: address.to_owned(), reason: Arc::new(reason) };
        let connecting = timeout(options.connect_timeout, TcpStream::connect(address));
        let socket = tokio::select! {
            () = options.cancel.cancelled() => return Err(PullError::Interrupted),
            connected = connecting => connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        };
        let socket = socket.map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        let (reading, writing) = socket.into_split();
        let shared = Arc::new(Shared::new(address, counters));
        let (outgoing, requests) = mpsc::unbounded_channel();
        let closing = options.cancel.child_token();
        tokio::spawn(write_requests(writing, requests, shared.clone(), closing.clone()));
        let reader = Reader {
            shared: shared.clone(),
            socket: reading,
            buffer: BytesMut::new(),
            pace: options.bandwidth.map(Pace::new),
            closing: closing.clone(),
            keepalive: outgoing.clone(),
            options: options.clone(),
        };
        tokio::spawn(reader.run());
        Ok(Self { shared, options, outgoing, closing })
    }
}

impl Source for NativeSource {
    fn ask(&self, request: Request) -> Result<Answer, PullError> {
        let (events, answer) = mpsc::unbounded_channel();
        let number = self.shared.register(&request, Some(events))?;
        let framed = frame(number, request.kind(), &request.encode());
        // The writer has ended when this fails, and the reader is about to say why.
        let _ = self.outgoing.send(framed);
        Ok(Answer { events: answer })
    }

    fn traffic(&self) -> Traffic {
        let Counters { received, sent, round_trips } = &*self.shared.counters;
        Traffic {
            received: received.load(Ordering::Relaxed),
            sent: sent.load(Ordering::Relaxed),
            round_trips: round_trips.load(Ordering::Relaxed),
        }
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

/// What the tasks and the askers share.
#[derive(Debug)]
struct Shared {
    address: String,
    /// Of this connection and those that it renews.
    counters: Arc<Counters>,
    unread: Arc<Semaphore>,
    session: Mutex<Session>,
}

#[derive(Debug, Default)]
struct Counters {
    received: AtomicU64,
    sent: AtomicU64,
    round_trips: AtomicU64,
}

#[derive(Debug)]
struct Session {
    last_number: u32,
    under_way: HashMap<u32, UnderWay>,
    /// Why it ended.
    failure: Option<PullError>,
    /// A generation that is pinned, for keeping the session alive.
    handle: Option<u32>,
    /// When something last came, or was asked for with nothing under way.
    active: Instant,
}

/// A request that is not answered wholly.
#[derive(Debug)]
struct UnderWay {
    kind: u8,
    /// Bytes that may still come.
    allowed: u64,
    /// Replies with structure that may still come before the last one.
    replies: usize,
    /// None for one whose answer nobody wants.
    events: Option<mpsc::UnboundedSender<Delivery>>,
}

impl Shared {
    fn new(address: &str, counters: Arc<Counters>) -> Self {
        let session =
            Session { last_number: 0, under_way: HashMap::new(), failure: None, handle: None, active: Instant::now() };
        Self {
            address: address.to_owned(),
            counters,
            unread: Arc::new(Semaphore::new(UNREAD_BYTES)),
            session: Mutex::new(session),
        }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers a request and expects its answer.
    fn register(&self, request: &Request, events: Option<mpsc::UnboundedSender<Delivery>>) -> Result<u32, PullError> {
        let mut session = self.session();
        if let Some(failure) = &session.failure {
            return Err(failure.clone());
        }
        if session.under_way.is_empty() && events.is_some() {
            session.active = Instant::now();
            // With answers still to be taken, nobody waits for this one.
            if self.unread.available_permits() == UNREAD_BYTES {
                self.counters.round_trips.fetch_add(1, Ordering::Relaxed);
            }
        }
        // Zero is the session's own; a number comes round again after four billion requests.
        session.last_number = session.last_number.checked_add(1).unwrap_or(1);
        let number = session.last_number;
        session.under_way.insert(
            number,
            UnderWay {
                kind: request.kind(),
                allowed: allowed_bytes(request),
                replies: allowed_replies(request),
                events,
            },
        );
        Ok(number)
    }

    /// Ends the session: every request under way learns why.
    fn fail(&self, failure: PullError) {
        let mut session = self.session();
        for (_, request) in session.under_way.drain() {
            if let Some(events) = request.events {
                let _ = events.send(Delivery { event: Err(failure.clone()), _permit: None });
            }
        }
        session.failure.get_or_insert(failure);
    }

    fn offends(&self, offence: impl Into<String>) -> PullError {
        PullError::offence(offence)
    }
}

/// The most bytes that an honest answer has. That of a list is known when its form is.
fn allowed_bytes(request: &Request) -> u64 {
    match request {
        Request::Repositories => REPOSITORIES_BYTES,
        Request::Head { .. } | Request::List { .. } => 0,
        Request::Dir { .. } => DIR_BYTES,
        Request::Sums { items, .. } => items.iter().map(|item| item.len.saturating_add(4)).fold(0, u64::saturating_add),
        Request::Data { items, .. } => items.iter().map(|item| item.len).fold(0, u64::saturating_add),
    }
}

/// The most replies with structure that an honest answer has before its last one.
fn allowed_replies(request: &Request) -> usize {
    match request {
        Request::Head { .. } | Request::List { .. } => 1,
        Request::Data { items, .. } => items.len(),
        Request::Repositories | Request::Dir { .. } | Request::Sums { .. } => 0,
    }
}

/// Writes requests as they are asked, as many at once as there are.
async fn write_requests(
    mut socket: OwnedWriteHalf,
    mut requests: mpsc::UnboundedReceiver<Vec<u8>>,
    shared: Arc<Shared>,
    closing: CancellationToken,
) {
    let mut batch = ClientHello::OURS.encode().to_vec();
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
            written = socket.write_all(&batch) => written,
        };
        if written.is_err() {
            // The reader finds the end too, and perhaps the sender's reason before it.
            return;
        }
        shared.counters.sent.fetch_add(batch.len() as u64, Ordering::Relaxed);
        batch.clear();
    }
}

/// Bytes received that nobody has taken yet. More than all data requests under way can hold.
const UNREAD_BYTES: usize = 64 << 20;
/// Bytes in an answer about all repositories, each at its limits.
const REPOSITORIES_BYTES: u64 =
    (limits::REPOSITORIES * (limits::REPOSITORY_NAME + limits::MESSAGE + limits::HEAD + 8)) as u64;
/// Bytes in an answer about one directory: about two million children.
const DIR_BYTES: u64 = 256 << 20;
/// Bytes written at once.
const WRITE_BYTES: usize = 256 << 10;
