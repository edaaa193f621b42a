//! Where a generation comes from: something that answers the protocol's requests.
//!
//! The one interface of the receiver to the outside. [`NativeSource`] asks a daemon; a source that reads
//! the same generation as plain files from an HTTP server would answer the same [`Request`]s.

mod native;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::wire::{Reply, Request};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use crate::error::PullError;
use crate::report::{Progress, Silent};

pub use native::NativeSource;

/// Answers requests. Any thread may ask; answers to several requests come side by side.
pub trait Source: Send + Sync {
    /// Sends a request. Does not wait for its answer, nor for it to be written.
    fn ask(&self, request: Request) -> Result<Answer, PullError>;

    /// What went over the wire so far.
    fn traffic(&self) -> Traffic;

    /// Ends the connection. Requests under way fail.
    fn close(&self);

    /// Makes another connection, to go on with when this one broke: nothing is pinned on it yet. What goes
    /// over it counts in the [`Source::traffic`] of both.
    fn renew(&self) -> Renewing<'_>;
}

/// A connection that is being made.
pub type Renewing<'a> = Pin<Box<dyn Future<Output = Result<Arc<dyn Source>, PullError>> + Send + 'a>>;

/// Counters of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes read.
    pub received: u64,
    /// Bytes written.
    pub sent: u64,
    /// Requests that were sent while nothing was under way: so often the receiver had to wait.
    pub round_trips: u64,
}

/// How to talk to a sender.
#[derive(Clone)]
pub struct SourceOptions {
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long the sender may be silent while it owes an answer.
    pub timeout: Duration,
    /// Most bytes a second to receive.
    pub bandwidth: Option<u64>,
    /// Ends the connection and every request under way.
    pub cancel: CancellationToken,
    /// Told the place in the sender's queue, when there is one.
    pub progress: Arc<dyn Progress>,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(300),
            bandwidth: None,
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
    /// Anything that has structure; [`Reply::End`] is the last one.
    Reply(Reply),
}

/// The answer to one request, as it comes in. Dropped early, the rest of it is received and ignored.
#[derive(Debug)]
pub struct Answer {
    events: mpsc::UnboundedReceiver<Delivery>,
}

/// An event and the memory that it holds of what the connection may hold.
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
    /// The next event. Nothing comes after [`Reply::End`] or an error.
    pub async fn next(&mut self) -> Result<Event, PullError> {
        Self::delivered(self.events.recv().await)
    }

    /// As [`Answer::next`], for a thread outside of the runtime.
    pub fn wait(&mut self) -> Result<Event, PullError> {
        Self::delivered(self.events.blocking_recv())
    }

    fn delivered(delivery: Option<Delivery>) -> Result<Event, PullError> {
        delivery.map_or_else(|| Err(PullError::offence("an answer was read past its end")), |delivery| delivery.event)
    }

    /// All bytes of an answer that is nothing but bytes. The source bounds them.
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

/// A generation that the sender keeps for this session.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// Its name in further requests.
    pub handle: u32,
    /// Its head.
    pub head: Head,
    /// The head as it came.
    pub head_bytes: Vec<u8>,
}

/// Asks for a repository's head, and pins the generation.
pub(crate) async fn head(source: &dyn Source, repository: &str) -> Result<Pinned, PullError> {
    let mut answer = source.ask(Request::Head { repository: repository.to_owned() })?;
    let Event::Reply(Reply::Pinned { handle, head: head_bytes }) = answer.next().await? else {
        return Err(PullError::offence("no head where one was asked for"));
    };
    let head = Head::decode(&head_bytes)?;
    if head.repository != repository {
        return Err(PullError::offence(format!("the head of '{}' for '{repository}'", head.repository)));
    }
    while !matches!(answer.next().await?, Event::Reply(Reply::End)) {}
    Ok(Pinned { handle, head, head_bytes })
}
