//! The reading half of a connection: reads frames from the socket, checks them against the requests in
//! flight, and passes them to the callers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BufMut as _;
use stillmirror_protocol::limits;
use stillmirror_protocol::rsync::greeting;
use stillmirror_protocol::wire::{
    ErrorCode, FRAME_HEADER_BYTES, FrameHeader, HELLO_BYTES, ListForm, MAGIC, Reply, Request, ServerHello, WireError,
    frame, kind,
};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::{Delivery, Event, SourceOptions};
use super::Shared;
use super::buffer::Buffer;
use super::pace::Pace;
use crate::address::Address;
use crate::error::PullError;
use crate::report::Phase;

/// Reads frames and passes them to the callers.
pub(super) struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) socket: Box<dyn AsyncRead + Send + Unpin>,
    pub(super) buffer: Buffer,
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
            let header = self.buffer.take(FRAME_HEADER_BYTES);
            let header = header.as_ref().try_into().map_err(|_| PullError::protocol("a short frame header"))?;
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
                let payload = self.buffer.take(header.len as usize);
                self.reply(header.request, Reply::decode(header.kind, &payload)?)?;
            }
        }
    }

    /// Reads the hello. A peer that does not speak this protocol is recognized by its first bytes.
    async fn read_hello(&mut self) -> Result<(), PullError> {
        self.skip_greeting().await?;
        let invalid = |reason, address: &Address| PullError::Handshake { address: address.to_string(), reason };
        while self.buffer.bytes().len() < HELLO_BYTES {
            let seen = self.buffer.bytes().len().min(MAGIC.len());
            if self.buffer.bytes()[..seen] != MAGIC[..seen] {
                return Err(invalid(WireError::Magic, &self.shared.address));
            }
            self.fill(self.buffer.bytes().len() + 1, true).await?;
        }
        let hello = self.buffer.take(HELLO_BYTES);
        let hello = hello.as_ref().try_into().map_err(|_| PullError::protocol("a short hello"))?;
        let hello = ServerHello::decode(hello).map_err(|reason| invalid(reason, &self.shared.address))?;
        self.shared.hello.send_replace(Some(hello.capabilities));
        Ok(())
    }

    /// Skips the greeting for rsync clients. A sender that serves these too sends it if our hello arrives
    /// late.
    async fn skip_greeting(&mut self) -> Result<(), PullError> {
        while self.buffer.bytes().len() <= limits::RSYNC_LINE {
            let seen = self.buffer.bytes().len().min(greeting::MAGIC.len());
            if self.buffer.bytes()[..seen] != greeting::MAGIC[..seen] {
                break;
            }
            if let Some(end) = self.buffer.bytes().iter().position(|&byte| byte == b'\n') {
                self.buffer.skip(end + 1);
                break;
            }
            self.fill(self.buffer.bytes().len() + 1, true).await?;
        }
        Ok(())
    }

    /// Reads a frame of the session itself and returns the position in the queue. Fails if the frame ends the
    /// session.
    async fn session_frame(&mut self, header: FrameHeader) -> Result<u64, PullError> {
        if header.kind == kind::BYTES {
            return Err(PullError::protocol("bytes in a frame of the session itself (request 0)"));
        }
        self.fill(header.len as usize, true).await?;
        let payload = self.buffer.take(header.len as usize);
        match Reply::decode(header.kind, &payload)? {
            Reply::Queued { place } => Ok(place),
            Reply::Error { code, message } => Err(refusal(&self.shared.address, code, message)),
            _ => Err(PullError::protocol("an unexpected reply in a frame of the session itself (request 0)")),
        }
    }

    /// Passes on the bytes of a frame as they arrive.
    async fn bytes_frame(&mut self, header: FrameHeader) -> Result<(), PullError> {
        let mut left = header.len as usize;
        let events = self.allow(header.request, left as u64)?;
        while left > 0 {
            if self.buffer.bytes().is_empty() {
                self.fill(1, true).await?;
            }
            let bytes = self.buffer.take(left.min(self.buffer.bytes().len())).freeze();
            left -= bytes.len();
            let Some(events) = &events else { continue };
            let permit = tokio::select! {
                () = self.closing.cancelled() => return Err(PullError::Interrupted),
                permit = self.shared.unread.clone().acquire_many_owned(bytes.len() as u32) => permit.ok(),
            };
            // The caller may have dropped its answer.
            let _ = events.send(Delivery { event: Ok(Event::Bytes(bytes)), _permit: permit });
        }
        Ok(())
    }

    /// Subtracts `len` from the bytes that may still arrive for a request.
    fn allow(&self, request: u32, len: u64) -> Result<Option<mpsc::UnboundedSender<Delivery>>, PullError> {
        let mut session = self.shared.session();
        let Some(in_flight) = session.in_flight.get_mut(&request) else {
            return Err(PullError::protocol(format!("bytes for request {request}, which is not in flight")));
        };
        in_flight.allowed = in_flight.allowed.checked_sub(len).ok_or_else(|| {
            PullError::protocol(format!("more bytes than requested in the answer to request {request}"))
        })?;
        Ok(in_flight.events.clone())
    }

    /// Passes on a structured reply.
    fn reply(&self, request: u32, reply: Reply) -> Result<(), PullError> {
        let mut session = self.shared.session();
        let Some(in_flight) = session.in_flight.get_mut(&request) else {
            return Err(PullError::protocol(format!("a reply to request {request}, which is not in flight")));
        };
        let ends = matches!(reply, Reply::End | Reply::Error { .. });
        if !ends {
            in_flight.replies = in_flight
                .replies
                .checked_sub(1)
                .ok_or_else(|| PullError::protocol(format!("too many replies to request {request}")))?;
        }
        match (&reply, in_flight.kind) {
            (Reply::End | Reply::Error { .. }, _) | (Reply::ItemFailed { .. }, kind::DATA) => {}
            (Reply::Pinned { .. } | Reply::Signature(_), kind::HEAD) => {}
            (Reply::News { .. } | Reply::Signature(_), kind::FOLLOW) => {}
            (Reply::ListForm(form), kind::LIST) => in_flight.allowed = list_bytes(form),
            _ => {
                return Err(PullError::protocol(format!(
                    "a reply of kind {} to a request of kind {}",
                    reply.kind(),
                    in_flight.kind
                )));
            }
        }
        let pinned = if let Reply::Pinned { handle, .. } = &reply { Some(*handle) } else { None };
        let event = match reply {
            Reply::Error { code, message } => Err(refusal(&self.shared.address, code, message)),
            reply => Ok(Event::Reply(reply)),
        };
        if let Some(events) = &in_flight.events {
            let _ = events.send(Delivery { event, _permit: None });
        }
        if ends {
            session.in_flight.remove(&request);
        }
        session.handle = pinned.or(session.handle);
        Ok(())
    }

    /// Reads until the buffer holds `len` bytes. If `impatient`, a long silence of the sender is an error.
    async fn fill(&mut self, len: usize, impatient: bool) -> Result<(), PullError> {
        while self.buffer.bytes().len() < len {
            self.read_some(impatient).await?;
        }
        Ok(())
    }

    async fn read_some(&mut self, impatient: bool) -> Result<(), PullError> {
        let chunk = self.pace.as_ref().map_or(READ_BYTES, |pace| pace.chunk(READ_BYTES));
        loop {
            let mut room = self.buffer.room(chunk.min(SMALL_READ)).limit(chunk);
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
                address: self.shared.address.to_string(),
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

    /// Called when nothing has arrived for a while. Fails after the timeout if an answer is due; if none is,
    /// sends a keepalive request from time to time.
    fn tick(&self, impatient: bool) -> Result<(), PullError> {
        let mut session = self.shared.session();
        let silence = session.active.elapsed();
        if !session.in_flight.is_empty() {
            if impatient && silence >= self.options.timeout {
                return Err(PullError::Timeout { address: self.shared.address.to_string(), silence });
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

/// Returns the maximum number of bytes that a list in this form takes. zstd adds little to data that it
/// cannot compress.
fn list_bytes(form: &ListForm) -> u64 {
    match form {
        ListForm::Unchanged => 0,
        ListForm::Deltas(lens) => lens.iter().sum(),
        ListForm::Whole { list_len } => list_len + list_len / 128 + 4096,
    }
}

fn refusal(address: &Address, code: ErrorCode, message: String) -> PullError {
    PullError::Refused { address: address.to_string(), code, message }
}

/// The time spent waiting in the sender's queue, which has limits.
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
            return Err(PullError::protocol("a position in the queue after the first answer"));
        }
        self.waiting = place > 0;
        self.frames += 1;
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.frames > QUEUED_FRAMES || since.elapsed() > QUEUED_TIME {
            return Err(PullError::protocol("the wait in its queue exceeds the limit"));
        }
        Ok(())
    }

    fn served(&mut self) {
        self.waiting = false;
        self.over = true;
    }
}

/// Maximum number of bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// Number of bytes that there is always room to read.
const SMALL_READ: usize = 64 << 10;
/// Interval at which silence is checked.
const TICK: Duration = Duration::from_secs(5);
/// The receiver sends a keepalive request after the connection was idle for this long.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Maximum time in the queue.
const QUEUED_TIME: Duration = Duration::from_secs(6 * 3600);
/// Maximum number of messages about the position in the queue.
const QUEUED_FRAMES: u32 = 100_000;
