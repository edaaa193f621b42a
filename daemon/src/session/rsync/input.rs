//! The client's half of a connection.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::sockopt;
use stillmirror_protocol::rsync::mux::tag;
use stillmirror_protocol::rsync::requests::{Event, Request, Requests};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};

use crate::admission::Patience;
use crate::ended::Ended;

/// Bytes read at a time.
const READ: usize = 16 << 10;
/// How long more ends of sub-lists are waited for, for each that is open: clients are through with several thousand lists
/// a second, so that they are still busy with what they have. And at the least and at the most.
const GATHER: Duration = Duration::from_micros(30);
const GATHER_LEAST: Duration = Duration::from_millis(5);
const GATHER_MOST: Duration = Duration::from_millis(30);
/// How long a client that was told that its session ends is listened to, while it still sends.
const HEARING: Duration = Duration::from_secs(30);
/// How long such a client is silent when it has nothing more to send: longer than a packet takes that was lost.
const QUIET: Duration = Duration::from_secs(1);
/// How a client of protocol 31 and later answers the end: it waits for nothing but that.
const END_SEEN: [u8; 4] = [0, 0, 0, 7 + tag::ERROR_EXIT];
/// Sub-lists that are open when it does not pay any more.
const MANY: u32 = 8;
/// Bytes in names of bases, of requests that wait to be answered. Ordinary clients name few bases.
const NAMES: usize = 1 << 20;

/// What the client sends, from its first byte on.
pub(super) struct Input {
    socket: OwnedReadHalf,
    /// Read and not used yet.
    unused: Vec<u8>,
    received: Arc<AtomicU64>,
    requests: Option<Requests>,
    /// How long the client may be silent in the midst of its requests.
    patience: Option<Patience>,
}

/// What the lane tells of itself to who reads for it.
#[derive(Default)]
pub(super) struct LaneState {
    /// Sub-lists that the client is not through with.
    pub(super) open_lists: AtomicU32,
    /// It has nothing to do until the client says more.
    pub(super) waits: AtomicBool,
}

/// A part of what a client asks for, for the lane that answers.
#[derive(Debug)]
pub(super) enum Asked {
    /// With what its name takes of [`NAMES`].
    Request(Request, Option<OwnedSemaphorePermit>),
    /// So many ends of sub-lists or phases.
    Done(u32),
    Deleted([i32; 5]),
    /// The client ends, with this exit code.
    Exit(Option<i32>),
    /// Nothing more comes, because of this.
    Failed(Ended),
}

impl Input {
    /// After these first bytes.
    pub(super) fn new(socket: OwnedReadHalf, begun: &[u8]) -> Self {
        let received = Arc::new(AtomicU64::new(begun.len() as u64));
        Self { socket, unused: begun.to_vec(), received, requests: None, patience: None }
    }

    /// Where the bytes received so far are counted.
    pub(super) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    /// The socket.
    pub(super) fn into_socket(self) -> OwnedReadHalf {
        self.socket
    }

    /// Takes what was read and not used yet.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.unused)
    }

    /// Gives back what was taken and is for who comes next.
    pub(super) fn put_back(&mut self, bytes: Vec<u8>) {
        self.unused = bytes;
    }

    /// Waits for at least one byte more.
    pub(super) async fn read(&mut self) -> Result<(), Ended> {
        self.read_unhurried().await?;
        // Clients send in small writes, each of which waits for the acknowledgement of the one before.
        let _ = sockopt::set_tcp_quickack(self.socket.as_ref(), true);
        Ok(())
    }

    /// The same of what is answered in any case: the answer acknowledges it.
    async fn read_unhurried(&mut self) -> Result<(), Ended> {
        self.unused.reserve(READ);
        match self.socket.read_buf(&mut self.unused).await? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            read => {
                self.received.fetch_add(read as u64, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Reads and drops what a client still sends that was told that its session ends. A client takes what it was told
    /// for lost when the connection is closed before all that it has to say is out.
    pub(super) async fn hear_out(&mut self) {
        let all = async {
            let mut scrap = vec![0; READ];
            while let Ok(Ok(read @ 1..)) = timeout(QUIET, self.socket.read(&mut scrap)).await {
                if scrap[..read].ends_with(&END_SEEN) {
                    break;
                }
            }
        };
        let _ = timeout(HEARING, all).await;
    }

    /// From here on the client sends frames, and is not silent for longer than `patience`.
    pub(super) fn begin_requests(&mut self, requests: Requests, patience: Patience) {
        self.requests = Some(requests);
        self.patience = Some(patience);
    }

    /// Takes the parser of requests, with all that was read in it.
    pub(super) fn take_requests(&mut self) -> Result<Requests, Ended> {
        let mut requests = self.requests.take().ok_or(Ended::Panicked)?;
        requests.receive(&std::mem::take(&mut self.unused));
        Ok(requests)
    }

    /// Gives the parser back.
    pub(super) fn put_requests(&mut self, requests: Requests) {
        self.requests = Some(requests);
    }

    /// Reads within the client's time.
    pub(super) async fn read_in_time(&mut self) -> Result<(), Ended> {
        let patience = self.patience.clone();
        in_time(patience.as_ref(), self.read()).await
    }

    /// Reads more within the client's time; more at once, when the client was only ending sub-lists, and has many.
    async fn read_on(&mut self, only_ends: bool, lane: &LaneState) -> Result<(), Ended> {
        let open = lane.open_lists.load(Ordering::Relaxed);
        if !only_ends || open <= MANY {
            return self.read_in_time().await;
        }
        sleep(GATHER.saturating_mul(open).clamp(GATHER_LEAST, GATHER_MOST)).await;
        let patience = self.patience.clone();
        in_time(patience.as_ref(), self.read_unhurried()).await
    }

    /// The next event.
    pub(super) async fn event(&mut self) -> Result<Event, Ended> {
        loop {
            match self.event_at_hand()? {
                Some(event) => return Ok(event),
                None => self.read_in_time().await?,
            }
        }
    }

    /// The next event, if all of it was read.
    fn event_at_hand(&mut self) -> Result<Option<Event>, Ended> {
        let requests = self.requests.as_mut().ok_or(Ended::Panicked)?;
        if !self.unused.is_empty() {
            requests.receive(&self.unused);
            self.unused.clear();
        }
        Ok(requests.next()?)
    }

    /// Passes on what the client asks for, until it ends. Gives a reason when the client waits for the end.
    pub(super) async fn pass_on(&mut self, to_lane: mpsc::Sender<Asked>, lane: &LaneState) -> Option<Ended> {
        // A client ends sub-list after sub-list, each in a packet of its own, and waits for none of the
        // answers: a thousand times less work when they are taken together.
        let (mut ends, mut only_ends) = (0, false);
        let names = Arc::new(Semaphore::new(NAMES));
        loop {
            let event = self.event_at_hand();
            if matches!(event, Ok(Some(Event::Done))) {
                ends += 1;
                continue;
            }
            if ends > 0 {
                // A lane that is gone has ended the session already.
                to_lane.send(Asked::Done(std::mem::take(&mut ends))).await.ok()?;
                only_ends = true;
            }
            let asked = match event {
                Ok(Some(event)) => asked(event),
                Ok(None) => match self.read_on(std::mem::take(&mut only_ends), lane).await {
                    Ok(()) => None,
                    // A client to which something is sent need not say anything.
                    Err(Ended::Idle) if !lane.waits.load(Ordering::Relaxed) => None,
                    Err(ended) => Some(Asked::Failed(ended)),
                },
                Err(ended) => Some(Asked::Failed(ended)),
            };
            let Some(mut asked) = asked else { continue };
            only_ends = false;
            if let Asked::Request(Request { name: Some(name), .. }, held) = &mut asked {
                *held = Arc::clone(&names).acquire_many_owned(name.len() as u32).await.ok();
            }
            let ended = match &asked {
                Asked::Exit(code) => Some(Some(Ended::ClientExit(*code))),
                Asked::Failed(_) => Some(None),
                _ => None,
            };
            to_lane.send(asked).await.ok()?;
            if let Some(ended) = ended {
                return ended;
            }
        }
    }
}

/// Something that the client is waited for with patience.
async fn in_time(patience: Option<&Patience>, read: impl Future<Output = Result<(), Ended>>) -> Result<(), Ended> {
    let Some(patience) = patience else { return read.await };
    tokio::select! {
        biased;
        read = read => read,
        () = patience.over() => Err(Ended::Idle),
    }
}

/// What is to be answered of an event, if anything is.
fn asked(event: Event) -> Option<Asked> {
    match event {
        Event::Request(request) => Some(Asked::Request(request, None)),
        Event::Deleted(counts) => Some(Asked::Deleted(counts)),
        Event::Exit(code) => Some(Asked::Exit(code)),
        Event::Text(text) => {
            tracing::debug!(text = %text.escape_ascii(), "a client says");
            None
        }
        // Ends are counted, and answered together.
        Event::KeepAlive | Event::Success(_) | Event::Done => None,
        // Rules and names are over: the parser gives none any more.
        Event::Rule(_) | Event::RulesEnd | Event::Name(_) | Event::NamesEnd => None,
    }
}
