//! The reading half of a connection: frames come off the socket, are held against what was asked for, and
//! go to those who asked.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, BytesMut};
use stillmirror_protocol::limits;
use stillmirror_protocol::rsync::greeting;
use stillmirror_protocol::wire::{
    ErrorCode, FRAME_HEADER_BYTES, FrameHeader, HELLO_BYTES, ListForm, MAGIC, Reply, Request, ServerHello, WireError,
    frame, kind,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::{Delivery, Event, SourceOptions};
use super::Shared;
use crate::error::PullError;
use crate::report::Phase;

/// Reads frames and hands them to those who asked.
pub(super) struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) socket: OwnedReadHalf,
    pub(super) buffer: BytesMut,
    pub(super) pace: Option<Pace>,
    pub(super) closing: CancellationToken,
    pub(super) keepalive: mpsc::UnboundedSender<Vec<u8>>,
    pub(super) options: SourceOptions,
}

impl Reader {
    pub(super) async fn run(mut self) {
        let failure = match self.read_all().await {
            Err(failure) => failure,
            Ok(never) => match never {},
        };
        self.shared.fail(failure);
        self.closing.cancel();
    }

    async fn read_all(&mut self) -> Result<std::convert::Infallible, PullError> {
        self.read_hello().await?;
        let mut queue = Queue::default();
        loop {
            self.fill(FRAME_HEADER_BYTES, !queue.waiting).await?;
            let header = self.buffer.split_to(FRAME_HEADER_BYTES);
            let header = header.as_ref().try_into().map_err(|_| self.shared.offends("a short header"))?;
            let header = FrameHeader::decode(header, limits::REPLY_PAYLOAD)?;
            if header.request == 0 {
                let place = self.session_frame(header).await?;
                queue.note(place)?;
                self.options.progress.phase(Phase::Queued(place), 0, 0);
                continue;
            }
            queue.served();
            if header.kind == kind::BYTES {
                self.bytes_frame(header).await?;
            } else {
                self.fill(header.len as usize, true).await?;
                let payload = self.buffer.split_to(header.len as usize);
                self.reply(header.request, Reply::decode(header.kind, &payload)?)?;
            }
        }
    }

    /// Reads the hello, and knows a stranger by its first bytes.
    async fn read_hello(&mut self) -> Result<(), PullError> {
        self.skip_greeting().await?;
        let offends = |offence, address: &str| PullError::Handshake { address: address.to_owned(), offence };
        while self.buffer.len() < HELLO_BYTES {
            let seen = self.buffer.len().min(MAGIC.len());
            if self.buffer[..seen] != MAGIC[..seen] {
                return Err(offends(WireError::Magic, &self.shared.address));
            }
            self.fill(self.buffer.len() + 1, true).await?;
        }
        let hello = self.buffer.split_to(HELLO_BYTES);
        let hello = hello.as_ref().try_into().map_err(|_| self.shared.offends("a short hello"))?;
        ServerHello::decode(hello).map(drop).map_err(|offence| offends(offence, &self.shared.address))
    }

    /// Skips the greeting for rsync clients. A sender that serves these too says it when our hello comes late.
    async fn skip_greeting(&mut self) -> Result<(), PullError> {
        while self.buffer.len() <= limits::RSYNC_LINE {
            let seen = self.buffer.len().min(greeting::MAGIC.len());
            if self.buffer[..seen] != greeting::MAGIC[..seen] {
                break;
            }
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                self.buffer.advance(end + 1);
                break;
            }
            self.fill(self.buffer.len() + 1, true).await?;
        }
        Ok(())
    }

    /// A frame of the session itself: the place in the queue, or the end.
    async fn session_frame(&mut self, header: FrameHeader) -> Result<u64, PullError> {
        if header.kind == kind::BYTES {
            return Err(self.shared.offends("bytes that belong to no request"));
        }
        self.fill(header.len as usize, true).await?;
        let payload = self.buffer.split_to(header.len as usize);
        match Reply::decode(header.kind, &payload)? {
            Reply::Queued { place } => Ok(place),
            Reply::Error { code, message } => Err(refusal(&self.shared.address, code, message)),
            _ => Err(self.shared.offends("an answer that belongs to no request")),
        }
    }

    /// Hands on a frame of bytes as they come.
    async fn bytes_frame(&mut self, header: FrameHeader) -> Result<(), PullError> {
        let mut left = header.len as usize;
        let events = self.allow(header.request, left as u64)?;
        while left > 0 {
            if self.buffer.is_empty() {
                self.fill(1, true).await?;
            }
            let bytes = self.buffer.split_to(left.min(self.buffer.len())).freeze();
            left -= bytes.len();
            let Some(events) = &events else { continue };
            let permit = tokio::select! {
                () = self.closing.cancelled() => return Err(PullError::Interrupted),
                permit = self.shared.unread.clone().acquire_many_owned(bytes.len() as u32) => permit.ok(),
            };
            // Nobody may want it any more.
            let _ = events.send(Delivery { event: Ok(Event::Bytes(bytes)), _permit: permit });
        }
        Ok(())
    }

    /// Takes `len` bytes off what may come in answer to a request.
    fn allow(&self, request: u32, len: u64) -> Result<Option<mpsc::UnboundedSender<Delivery>>, PullError> {
        let mut session = self.shared.session();
        let Some(under_way) = session.under_way.get_mut(&request) else {
            return Err(self.shared.offends(format!("bytes for request {request}, which is not under way")));
        };
        under_way.allowed = under_way.allowed.checked_sub(len).ok_or_else(|| {
            self.shared.offends(format!("more bytes than were asked for, in answer to request {request}"))
        })?;
        Ok(under_way.events.clone())
    }

    /// Hands on a reply that has structure.
    fn reply(&self, request: u32, reply: Reply) -> Result<(), PullError> {
        let mut session = self.shared.session();
        let Some(under_way) = session.under_way.get_mut(&request) else {
            return Err(self.shared.offends(format!("a reply to request {request}, which is not under way")));
        };
        let ends = matches!(reply, Reply::End | Reply::Error { .. });
        if !ends {
            under_way.replies = under_way
                .replies
                .checked_sub(1)
                .ok_or_else(|| self.shared.offends(format!("too many replies to request {request}")))?;
        }
        match (&reply, under_way.kind) {
            (Reply::End | Reply::Error { .. }, _) | (Reply::ItemFailed { .. }, kind::DATA) => {}
            (Reply::Pinned { .. }, kind::HEAD) => {}
            (Reply::ListForm(form), kind::LIST) => under_way.allowed = list_bytes(form),
            _ => {
                return Err(self.shared.offends(format!(
                    "a reply of kind {} to a request of kind {}",
                    reply.kind(),
                    under_way.kind
                )));
            }
        }
        let pinned = if let Reply::Pinned { handle, .. } = &reply { Some(*handle) } else { None };
        let event = match reply {
            Reply::Error { code, message } => Err(refusal(&self.shared.address, code, message)),
            reply => Ok(Event::Reply(reply)),
        };
        if let Some(events) = &under_way.events {
            let _ = events.send(Delivery { event, _permit: None });
        }
        if ends {
            session.under_way.remove(&request);
        }
        session.handle = pinned.or(session.handle);
        Ok(())
    }

    /// Reads until the buffer holds `len` bytes.
    async fn fill(&mut self, len: usize, impatient: bool) -> Result<(), PullError> {
        while self.buffer.len() < len {
            self.read_some(impatient).await?;
        }
        Ok(())
    }

    async fn read_some(&mut self, impatient: bool) -> Result<(), PullError> {
        let chunk = self.pace.as_ref().map_or(READ_BYTES, Pace::chunk);
        loop {
            self.buffer.reserve(chunk);
            let mut room = (&mut self.buffer).limit(chunk);
            let read = tokio::select! {
                biased;
                () = self.closing.cancelled() => return Err(PullError::Interrupted),
                read = self.socket.read_buf(&mut room) => read,
                () = sleep(TICK.min(self.options.timeout)) => {
                    self.tick(impatient)?;
                    continue;
                }
            };
            let read = match read {
                Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the sender")),
                read => read,
            };
            let read = read.map_err(|reason| PullError::Socket {
                address: self.shared.address.clone(),
                reason: Arc::new(reason),
            })?;
            self.shared.counters.received.fetch_add(read as u64, Ordering::Relaxed);
            if let Some(pace) = &mut self.pace {
                let until = pace.after(read);
                tokio::select! {
                    () = self.closing.cancelled() => return Err(PullError::Interrupted),
                    () = sleep_until(until) => {}
                }
            }
            self.shared.session().active = Instant::now();
            return Ok(());
        }
    }

    /// Nothing came for a while: too long, when something is owed; else a sign of life keeps the session.
    fn tick(&self, impatient: bool) -> Result<(), PullError> {
        let mut session = self.shared.session();
        let silence = session.active.elapsed();
        if !session.under_way.is_empty() {
            if impatient && silence >= self.options.timeout {
                return Err(PullError::Timeout { address: self.shared.address.clone(), silence });
            }
            return Ok(());
        }
        let Some(handle) = session.handle.filter(|_| silence >= KEEPALIVE) else { return Ok(()) };
        session.active = Instant::now();
        drop(session);
        let request = Request::Data { handle, items: Vec::new() };
        let number = self.shared.register(&request, None)?;
        let _ = self.keepalive.send(frame(number, request.kind(), &request.encode()));
        Ok(())
    }
}

/// The most bytes that a list of that form takes; zstd adds little to what it cannot compress.
fn list_bytes(form: &ListForm) -> u64 {
    match form {
        ListForm::Unchanged => 0,
        ListForm::Deltas(lens) => lens.iter().sum(),
        ListForm::Whole { list_len } => list_len + list_len / 128 + 4096,
    }
}

fn refusal(address: &str, code: ErrorCode, message: String) -> PullError {
    PullError::Refused { address: address.to_owned(), code, message }
}

/// Waiting for one's turn, which a sender cannot draw out for ever.
#[derive(Default)]
struct Queue {
    waiting: bool,
    over: bool,
    since: Option<Instant>,
    frames: u32,
}

impl Queue {
    fn note(&mut self, place: u64) -> Result<(), PullError> {
        if self.over {
            return Err(PullError::offence("a place in the queue after the first answer"));
        }
        self.waiting = place > 0;
        self.frames += 1;
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.frames > QUEUED_FRAMES || since.elapsed() > QUEUED_TIME {
            return Err(PullError::offence("an endless queue"));
        }
        Ok(())
    }

    fn served(&mut self) {
        self.waiting = false;
        self.over = true;
    }
}

/// Keeps reading at a rate.
pub(super) struct Pace {
    rate: f64,
    free: Instant,
}

impl Pace {
    pub(super) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1) as f64, free: Instant::now() }
    }

    /// Bytes to read at once: an eighth of a second's worth.
    fn chunk(&self) -> usize {
        (self.rate / 8.0).clamp(1024.0, READ_BYTES as f64) as usize
    }

    /// When to read on, so many bytes having been read.
    fn after(&mut self, read: usize) -> Instant {
        self.free = self.free.max(Instant::now()) + Duration::from_secs_f64(read as f64 / self.rate);
        self.free
    }
}

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// How often silence is looked at.
const TICK: Duration = Duration::from_secs(5);
/// After so long a silence of the receiver it gives a sign of life.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Longest wait in a queue.
const QUEUED_TIME: Duration = Duration::from_secs(6 * 3600);
/// Most messages about it.
const QUEUED_FRAMES: u32 = 100_000;
