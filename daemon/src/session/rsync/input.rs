//! The client's half of a connection: reads what a stock client sends, and forwards its requests to the lane.
//!
//! An [`Input`] first serves the greeting and the setup as raw bytes. From [`Input::begin_requests`] on it returns
//! events, and [`Input::forward`] passes them to the lane that answers until the client ends.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::sockopt;
use stillmirror_protocol::rsync::mux::tag;
use stillmirror_protocol::rsync::requests::{Event, Request, Requests};
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};

use crate::admission::IdleTimeout;
use crate::ended::Ended;
use crate::transport::ReadHalf;

/// Bytes read at a time.
const READ_SIZE: usize = 16 << 10;
/// How long to wait for more ends of sub-lists, for each open sub-list. Clients process several thousand lists a second,
/// so they are still busy with what they have. The two limits bound the total.
const GATHER_PER_LIST: Duration = Duration::from_micros(30);
const MIN_GATHER: Duration = Duration::from_millis(5);
const MAX_GATHER: Duration = Duration::from_millis(30);
/// How long to read from a client that was told that its session ends, while it still sends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// After this much silence, such a client has nothing more to send. It is longer than the resend of a lost packet takes.
const DRAIN_QUIET: Duration = Duration::from_secs(1);
/// How a client of protocol 31 and later acknowledges the end. After this it only waits for the connection to close.
const END_SEEN: [u8; 4] = [0, 0, 0, 7 + tag::ERROR_EXIT];
/// Ends of sub-lists are gathered only if more sub-lists than this are open.
const MANY_LISTS: u32 = 8;
/// The maximum number of bytes in the basis names of queued requests. Ordinary clients name few basis files.
const NAME_BYTES: usize = 1 << 20;

/// The bytes and events that the client sends, from its first byte on.
pub(super) struct Input {
    socket: ReadHalf,
    /// Bytes that are read, but not used yet.
    unused: Vec<u8>,
    received: Arc<AtomicU64>,
    requests: Option<Requests>,
    /// How long the client may be silent once it sends requests.
    idle_timeout: Option<IdleTimeout>,
}

/// Lane state shared with the reader.
#[derive(Default)]
pub(super) struct LaneState {
    /// The number of sub-lists that the client has not ended.
    pub(super) open_lists: AtomicU32,
    /// Whether the lane has nothing to do until the client sends more.
    pub(super) is_idle: AtomicBool,
}

/// Input of the client for the lane that answers.
#[derive(Debug)]
pub(super) enum ClientInput {
    /// A request, with the part of [`NAME_BYTES`] that its name takes.
    Request(Request, Option<OwnedSemaphorePermit>),
    /// This many ends of sub-lists or phases.
    Done(u32),
    Deleted([i32; 5]),
    /// The client ends, with this exit code.
    Exit(Option<i32>),
    /// No more input follows, for this reason.
    Failed(Ended),
}

impl Input {
    /// Creates the input of a client whose first bytes are `begun`.
    pub(super) fn new(socket: ReadHalf, begun: &[u8]) -> Self {
        let received = Arc::new(AtomicU64::new(begun.len() as u64));
        Self { socket, unused: begun.to_vec(), received, requests: None, idle_timeout: None }
    }

    /// Returns the counter of the bytes received so far.
    pub(super) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    pub(super) fn into_socket(self) -> ReadHalf {
        self.socket
    }

    /// Takes the bytes that are read, but not used yet.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.unused)
    }

    /// Puts back bytes that were taken, but belong to the next stage.
    pub(super) fn put_back(&mut self, bytes: Vec<u8>) {
        self.unused = bytes;
    }

    /// Waits for at least one more byte.
    pub(super) async fn read(&mut self) -> Result<(), Ended> {
        self.read_without_ack().await?;
        // Clients send small writes, and each of them waits for the acknowledgement of the one before.
        let _ = sockopt::set_tcp_quickack(self.socket.socket(), true);
        Ok(())
    }

    /// Like [`Input::read`], but without an acknowledgement of its own: an answer follows, and acknowledges the data.
    async fn read_without_ack(&mut self) -> Result<(), Ended> {
        self.unused.reserve(READ_SIZE);
        match self.socket.read_buf(&mut self.unused).await? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            read => {
                self.received.fetch_add(read as u64, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Reads and drops what a client still sends after it was told that its session ends. If the connection were closed
    /// before the client has sent everything, the client would lose that message.
    pub(super) async fn drain(&mut self) {
        let all = async {
            let mut buffer = vec![0; READ_SIZE];
            while let Ok(Ok(read @ 1..)) = timeout(DRAIN_QUIET, self.socket.read(&mut buffer)).await {
                if buffer[..read].ends_with(&END_SEEN) {
                    break;
                }
            }
        };
        let _ = timeout(DRAIN_TIMEOUT, all).await;
    }

    /// Sets the request parser. From now on the client sends frames, and must not be silent for longer than
    /// `idle_timeout`.
    pub(super) fn begin_requests(&mut self, requests: Requests, idle_timeout: IdleTimeout) {
        self.requests = Some(requests);
        self.idle_timeout = Some(idle_timeout);
    }

    /// Takes the request parser, which then has all bytes read so far.
    pub(super) fn take_requests(&mut self) -> Result<Requests, Ended> {
        let mut requests = self.requests.take().ok_or(Ended::Panicked)?;
        requests.receive(&std::mem::take(&mut self.unused));
        Ok(requests)
    }

    /// Puts the request parser back.
    pub(super) fn put_requests(&mut self, requests: Requests) {
        self.requests = Some(requests);
    }

    /// Reads more. Fails if the client is silent for longer than its idle timeout.
    pub(super) async fn read_in_time(&mut self) -> Result<(), Ended> {
        let idle_timeout = self.idle_timeout.clone();
        in_time(idle_timeout.as_ref(), self.read()).await
    }

    /// Like [`Input::read_in_time`], but waits for more input to gather if the client only ends sub-lists and many of
    /// them are open.
    async fn read_on(&mut self, only_ends: bool, lane: &LaneState) -> Result<(), Ended> {
        let open = lane.open_lists.load(Ordering::Relaxed);
        if !only_ends || open <= MANY_LISTS {
            return self.read_in_time().await;
        }
        sleep(GATHER_PER_LIST.saturating_mul(open).clamp(MIN_GATHER, MAX_GATHER)).await;
        let idle_timeout = self.idle_timeout.clone();
        in_time(idle_timeout.as_ref(), self.read_without_ack()).await
    }

    /// Waits for the next event.
    pub(super) async fn event(&mut self) -> Result<Event, Ended> {
        loop {
            match self.buffered_event()? {
                Some(event) => return Ok(event),
                None => self.read_in_time().await?,
            }
        }
    }

    /// Returns the next event. `None` if it is not completely read yet.
    fn buffered_event(&mut self) -> Result<Option<Event>, Ended> {
        let requests = self.requests.as_mut().ok_or(Ended::Panicked)?;
        if !self.unused.is_empty() {
            requests.receive(&self.unused);
            self.unused.clear();
        }
        Ok(requests.next()?)
    }

    /// Forwards the client's input to the lane until the client ends. Returns a reason if the client then waits for the
    /// connection to close. `None` if the lane ends the session itself.
    pub(super) async fn forward(&mut self, to_lane: mpsc::Sender<ClientInput>, lane: &LaneState) -> Option<Ended> {
        // A client ends sub-list after sub-list, each in a packet of its own, and waits for none of the answers. Taking
        // the ends together is a thousand times less work.
        let (mut ends, mut only_ends) = (0, false);
        let names = Arc::new(Semaphore::new(NAME_BYTES));
        loop {
            let event = self.buffered_event();
            if matches!(event, Ok(Some(Event::Done))) {
                ends += 1;
                continue;
            }
            if ends > 0 {
                // If the lane is gone, it has ended the session already.
                to_lane.send(ClientInput::Done(std::mem::take(&mut ends))).await.ok()?;
                only_ends = true;
            }
            let input = match event {
                Ok(Some(event)) => to_input(event),
                Ok(None) => match self.read_on(std::mem::take(&mut only_ends), lane).await {
                    Ok(()) => None,
                    // A client may be silent while something is being sent to it.
                    Err(Ended::Idle) if !lane.is_idle.load(Ordering::Relaxed) => None,
                    Err(ended) => Some(ClientInput::Failed(ended)),
                },
                Err(ended) => Some(ClientInput::Failed(ended)),
            };
            let Some(mut input) = input else { continue };
            only_ends = false;
            if let ClientInput::Request(Request { name: Some(name), .. }, held) = &mut input {
                *held = Arc::clone(&names).acquire_many_owned(name.len() as u32).await.ok();
            }
            let ended = match &input {
                ClientInput::Exit(code) => Some(Some(Ended::ClientExit(*code))),
                ClientInput::Failed(_) => Some(None),
                _ => None,
            };
            to_lane.send(input).await.ok()?;
            if let Some(ended) = ended {
                return ended;
            }
        }
    }
}

/// Awaits `read`. Fails if that takes longer than the idle timeout.
async fn in_time(
    idle_timeout: Option<&IdleTimeout>,
    read: impl Future<Output = Result<(), Ended>>,
) -> Result<(), Ended> {
    let Some(idle_timeout) = idle_timeout else { return read.await };
    tokio::select! {
        biased;
        read = read => read,
        () = idle_timeout.expired() => Err(Ended::Idle),
    }
}

/// Converts an event for the lane. `None` if the event needs no answer.
fn to_input(event: Event) -> Option<ClientInput> {
    match event {
        Event::Request(request) => Some(ClientInput::Request(request, None)),
        Event::Deleted(counts) => Some(ClientInput::Deleted(counts)),
        Event::Exit(code) => Some(ClientInput::Exit(code)),
        Event::Text(text) => {
            tracing::debug!(text = %text.escape_ascii(), "message from a client");
            None
        }
        // The caller counts the ends.
        Event::KeepAlive | Event::Success(_) | Event::Done => None,
        // The parser returns no rules and names at this stage.
        Event::Rule(_) | Event::RulesEnd | Event::Name(_) | Event::NamesEnd => None,
    }
}
