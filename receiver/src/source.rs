//! The sources of a generation: anything that answers the protocol's requests.
//!
//! [`Source`] is the receiver's only interface to the outside. [`NativeSource`] asks a daemon, and [`SeveralSources`] one of
//! several daemons at a time. A source that
//! reads the same generation as plain files from an HTTP server would answer the same [`Request`]s.
//!
//! Call [`Source::ask`] for each request, then read its [`Answer`] until it ends. Several requests may be in
//! flight at once.

mod native;
mod several;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::wire::{Reply, Request, fingerprint};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use crate::error::PullError;
use crate::report::{Progress, Served, Silent};
use crate::tls::Authorities;

pub use native::NativeSource;
pub use several::{Accept, SeveralSources};

/// A connection that answers requests. Any thread may ask; answers to several requests arrive concurrently.
pub trait Source: Send + Sync {
    /// Sends a request. Returns before the request is written and before its answer arrives.
    fn ask(&self, request: Request) -> Result<Answer, PullError>;

    /// Returns the traffic so far.
    fn traffic(&self) -> Traffic;

    /// Closes the connection. Requests in flight fail.
    fn close(&self);

    /// Makes another connection to continue on after this one broke. Nothing is pinned on it yet. Its traffic
    /// is included in the [`Source::traffic`] of both.
    fn renew(&self) -> Renewing<'_>;

    /// Notes why the sender failed, and the number of the generation of which it lacks files, if that is the reason.
    /// Returns whether a renewed connection may help, because there are several senders.
    fn leave(&self, why: &str, incomplete: Option<u64>) -> bool {
        let _ = (why, incomplete);
        false
    }

    /// Makes a connection to a sender of an older generation than this one. `None` if there is none, or if another sender
    /// than the present one may deliver this generation.
    fn older(&self, generation: u64) -> Option<Renewing<'_>> {
        let _ = generation;
        None
    }

    /// Returns what each sender did, if there are several.
    fn served(&self) -> Vec<Served> {
        Vec::new()
    }
}

/// A new connection in the making.
pub type Renewing<'a> = Pin<Box<dyn Future<Output = Result<Arc<dyn Source>, PullError>> + Send + 'a>>;

/// Traffic counters of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes read.
    pub received: u64,
    /// Bytes written.
    pub sent: u64,
    /// Number of requests sent while none was in flight, which is how often the receiver had to wait.
    pub round_trips: u64,
}

/// Options of a connection to a sender.
#[derive(Clone)]
pub struct SourceOptions {
    /// Timeout for connecting.
    pub connect_timeout: Duration,
    /// Timeout for a silent sender that owes an answer.
    pub timeout: Duration,
    /// Maximum number of bytes to receive per second.
    pub bandwidth: Option<u64>,
    /// Whom encrypted connections trust.
    pub authorities: Arc<Authorities>,
    /// Ends the connection and every request in flight.
    pub cancel: CancellationToken,
    /// Receives this client's position in the sender's queue, if the sender queues it.
    pub progress: Arc<dyn Progress>,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(300),
            bandwidth: None,
            authorities: Arc::default(),
            cancel: CancellationToken::new(),
            progress: Arc::new(Silent),
        }
    }
}

/// One step of an answer.
#[derive(Debug)]
pub enum Event {
    /// The next bytes.
    Bytes(Bytes),
    /// A structured reply. [`Reply::End`] is the last one.
    Reply(Reply),
}

/// The answer to one request, as it arrives. If it is dropped early, the rest is received and ignored.
#[derive(Debug)]
pub struct Answer {
    events: mpsc::UnboundedReceiver<Delivery>,
    /// A copy of the bytes that were read, if it is wanted.
    copy: Option<Vec<u8>>,
}

/// An event, and its share of the memory for bytes that are not read yet.
pub(crate) struct Delivery {
    event: Result<Event, PullError>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.event.fmt(f)
    }
}

impl Answer {
    pub(crate) fn new(events: mpsc::UnboundedReceiver<Delivery>) -> Self {
        Self { events, copy: None }
    }

    /// Creates an answer that was received before.
    pub(crate) fn replay(first: Reply, bytes: Vec<u8>) -> Self {
        let (deliveries, events) = mpsc::unbounded_channel();
        for event in [Event::Reply(first), Event::Bytes(bytes.into()), Event::Reply(Reply::End)] {
            // The receiver exists, so this does not fail.
            let _ = deliveries.send(Delivery { event: Ok(event), _permit: None });
        }
        Self::new(events)
    }

    /// Begins a copy of the bytes that are read from now on.
    pub(crate) fn copy(&mut self) {
        self.copy = Some(Vec::new());
    }

    /// Returns the copy.
    pub(crate) fn into_copy(self) -> Vec<u8> {
        self.copy.unwrap_or_default()
    }

    /// Returns the next event. Nothing follows [`Reply::End`] or an error.
    pub async fn next(&mut self) -> Result<Event, PullError> {
        let event = Self::delivered(self.events.recv().await)?;
        if let (Event::Bytes(bytes), Some(copy)) = (&event, &mut self.copy) {
            copy.extend_from_slice(bytes);
        }
        Ok(event)
    }

    /// Like [`Answer::next`], for a thread outside the runtime.
    pub fn wait(&mut self) -> Result<Event, PullError> {
        Self::delivered(self.events.blocking_recv())
    }

    fn delivered(delivery: Option<Delivery>) -> Result<Event, PullError> {
        delivery.map_or_else(|| Err(PullError::protocol("an answer was read past its end")), |delivery| delivery.event)
    }

    /// Reads an answer that consists only of bytes. The source limits their number.
    pub async fn bytes(mut self) -> Result<Vec<u8>, PullError> {
        let mut all = Vec::new();
        loop {
            match self.next().await? {
                Event::Bytes(bytes) => all.extend_from_slice(&bytes),
                Event::Reply(_) => return Ok(all),
            }
        }
    }
}

/// A generation that the sender keeps available for this session.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// The handle that names the generation in further requests.
    pub handle: u32,
    /// The decoded head.
    pub head: Head,
    /// The head as received.
    pub head_bytes: Vec<u8>,
    /// The signature of the head as received, if the sender has one. It is not verified.
    pub signature: Option<Vec<u8>>,
}

impl Pinned {
    /// Returns the digest by which a follower names this head.
    pub(crate) fn fingerprint(&self) -> Digest {
        fingerprint(&self.head_bytes, self.signature.as_deref())
    }
}

/// What a sender told a follower. Nothing of it is verified.
#[derive(Debug, Clone)]
pub(crate) struct News {
    /// The head that is current.
    pub(crate) head: Head,
    /// The digest by which a follower names this head.
    pub(crate) fingerprint: Digest,
    /// The time over which followers spread their pulls.
    pub(crate) spread: Duration,
}

/// Waits until the sender has another head than the known one. `None` if there was no news for a while.
pub(crate) async fn follow(source: &dyn Source, repository: &str, known: Digest) -> Result<Option<News>, PullError> {
    let mut answer = source.ask(Request::Follow { repository: repository.to_owned(), known })?;
    let (spread, head_bytes) = match answer.next().await? {
        Event::Reply(Reply::News { spread, head }) => (Duration::from_millis(spread.into()), head),
        Event::Reply(Reply::End) => return Ok(None),
        _ => return Err(PullError::protocol("the answer to a follower begins with something else than news")),
    };
    let (signature, end) = signature(&mut answer).await?;
    if !matches!(end, Event::Reply(Reply::End)) {
        return Err(PullError::protocol("the answer to a follower has more than a head and its signature"));
    }
    let head = decode_head(&head_bytes, repository)?;
    let fingerprint = fingerprint(&head_bytes, signature.as_deref());
    Ok(Some(News { head, fingerprint, spread }))
}

/// Returns the signature, if it is next in an answer, and the event after it.
async fn signature(answer: &mut Answer) -> Result<(Option<Vec<u8>>, Event), PullError> {
    match answer.next().await? {
        Event::Reply(Reply::Signature(signature)) => Ok((Some(signature), answer.next().await?)),
        end => Ok((None, end)),
    }
}

fn decode_head(bytes: &[u8], repository: &str) -> Result<Head, PullError> {
    let head = Head::decode(bytes)?;
    if head.repository != repository {
        return Err(PullError::protocol(format!(
            "the head of '{}' instead of that of '{repository}'",
            head.repository
        )));
    }
    Ok(head)
}

/// Requests a repository's head, which pins the generation.
pub(crate) async fn head(source: &dyn Source, repository: &str) -> Result<Pinned, PullError> {
    let mut answer = source.ask(Request::Head { repository: repository.to_owned() })?;
    let Event::Reply(Reply::Pinned { handle, head: head_bytes }) = answer.next().await? else {
        return Err(PullError::protocol("the answer to a head request is not a head"));
    };
    let head = decode_head(&head_bytes, repository)?;
    let (signature, end) = signature(&mut answer).await?;
    if !matches!(end, Event::Reply(Reply::End)) {
        return Err(PullError::protocol("the answer to a head request has more than a head and its signature"));
    }
    Ok(Pinned { handle, head, head_bytes, signature })
}
