//! A native session: one reader of requests, two lanes that answer them, and one writer.
//!
//! The control lane answers requests for small things and for parts of the index. The data lane sends files. They take
//! turns at the writer frame by frame, so a head or a directory never waits behind gigabytes of file data.

mod control;
mod data;
mod reader;

use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stillmirror_protocol::limits;
use stillmirror_protocol::wire::{
    Capabilities, ClientHello, ErrorCode, FOLLOWING, FrameHeader, HELLO_BYTES, Reply, SIGNED_HEADS, SLICE_HEADS,
    ServerHello, kind,
};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;

use crate::admission::{Arrival, IdleTimeout, Slot, Ticket, Turn};
use crate::cause::Cause;
use crate::dialect::Dialect;
use crate::ended::Ended;
use crate::pool::EXTENT;
use crate::session::forced_shutdown;
use crate::session::record::Record;
use crate::settings::Settings;
use crate::shared::ServerState;
use crate::stream::{Client, Writer};
use crate::transport::{ReadHalf, Transport};

/// What this daemon can do.
const CAPABILITIES: Capabilities = SIGNED_HEADS | SLICE_HEADS;

/// How long a client may be idle once another process accepts the connections.
const IDLE_WHILE_LEAVING: Duration = Duration::from_secs(10);
/// The idle timeout is divided by this number while other clients wait for a slot.
const IN_DEMAND_DIVISOR: u32 = 4;

/// An in-flight request. Dropping this ends it.
struct InFlight {
    number: u32,
    _permit: OwnedSemaphorePermit,
}

/// Returns the daemon's hello.
pub(crate) fn answer_hello(settings: &Settings, version: u16) -> ServerHello {
    let requests = limits::REQUESTS_UNDER_WAY as u16;
    let following = if settings.limits().followers > 0 { FOLLOWING } else { 0 };
    ServerHello { version, requests, capabilities: CAPABILITIES | following, reply_payload: EXTENT as u32 }
}

/// The state that the parts of a session share.
struct Session {
    shared: Arc<ServerState>,
    settings: Arc<Settings>,
    peer: SocketAddr,
    client: Client,
    /// The capabilities in force: those of both sides.
    capabilities: Capabilities,
    writer: Arc<Mutex<Writer>>,
    request_permits: Arc<Semaphore>,
    record: std::sync::Mutex<Record>,
}

/// Serves a client whose hello has arrived. Returns the reading half of the connection; the other half is closed.
pub(crate) async fn serve(
    shared: &Arc<ServerState>,
    settings: Arc<Settings>,
    socket: Transport,
    peer: SocketAddr,
    hello: ClientHello,
) -> ReadHalf {
    let _ = socket.socket().set_nodelay(true);
    let client = Client { network: shared.networks.of(peer.ip()), is_encrypted: socket.is_encrypted() };
    let (mut input, output) = socket.into_split();
    let session = Arc::new(Session {
        shared: Arc::clone(shared),
        settings: Arc::clone(&settings),
        peer,
        client,
        capabilities: hello.capabilities & CAPABILITIES,
        writer: Arc::new(Mutex::new(Writer::new(output, &shared.metrics, &settings, Dialect::Native))),
        request_permits: Arc::new(Semaphore::new(limits::REQUESTS_UNDER_WAY)),
        record: std::sync::Mutex::new(Record::new(&shared.metrics, Dialect::Native, peer)),
    });
    let result = session.run(&mut input, hello).await;
    let mut writer = session.writer.lock().await;
    writer.close().await;
    session.record().finish(writer.sent(), result.as_ref().err());
    input
}

impl Session {
    async fn run(self: &Arc<Self>, input: &mut ReadHalf, hello: ClientHello) -> Result<(), Ended> {
        let version = hello.negotiate();
        self.record().received += HELLO_BYTES as u64;
        self.record().protocol = u32::from(version.as_ref().copied().unwrap_or(0));
        let ours = answer_hello(&self.settings, version.as_ref().copied().unwrap_or(0));
        self.writer.lock().await.send_bytes(&ours.encode()).await?;
        version?;
        let _place = self.admit().await?;
        self.record().admit();
        let (to_control, control) = mpsc::channel(limits::REQUESTS_UNDER_WAY);
        let (to_data, data) = mpsc::channel(limits::REQUESTS_UNDER_WAY);
        let lanes = reader::Lanes { control: to_control, data: to_data };
        let serve = async {
            tokio::try_join!(self.read(input, lanes), self.answer_control(control), self.answer_data(data)).map(drop)
        };
        let ended = tokio::select! {
            ended = serve => ended,
            ended = forced_shutdown(&self.shared, &self.writer) => Err(ended),
        };
        let is_told = match ended {
            Ok(()) => self.shared.stopping.is_cancelled(),
            Err(ref ended) => matches!(ended, Ended::Stopping),
        };
        if is_told {
            self.shut_down().await?;
            return Err(Ended::Stopping);
        }
        ended
    }

    /// Waits for a slot. A client that does not get one is told why.
    async fn admit(&self) -> Result<Slot, Ended> {
        let since = Instant::now();
        let place = match self.shared.admission.arrive(self.client.network) {
            Arrival::Admitted(place) => place,
            Arrival::Queued(ticket) => self.queue(ticket).await?,
            Arrival::Refused => return Err(self.turn_away().await?),
        };
        self.shared.metrics.waited(Dialect::Native, since);
        Ok(place)
    }

    /// Tells the client that the queue is full. Returns why its session ends.
    async fn turn_away(&self) -> Result<Ended, Ended> {
        let text = "too many connections, and the queue is full";
        self.end_with(ErrorCode::Refused, text).await?;
        Ok(Ended::Refused(Cause::QueueFull, text.to_owned()))
    }

    /// Tells the client that the daemon shuts down.
    async fn shut_down(&self) -> Result<(), Ended> {
        self.end_with(ErrorCode::ShuttingDown, "the daemon is shutting down").await
    }

    /// Waits until another process accepts the connections, and then for as long as the client may be idle.
    async fn should_leave(&self) {
        self.shared.leaving.cancelled().await;
        sleep(IDLE_WHILE_LEAVING).await;
    }

    /// Returns how long the client may go without a request.
    fn idle_timeout(&self) -> IdleTimeout {
        let most = self.settings.limits().idle;
        IdleTimeout { max: most, in_demand: most / IN_DEMAND_DIVISOR, admission: Arc::clone(&self.shared.admission) }
    }

    async fn queue(&self, mut ticket: Ticket) -> Result<Slot, Ended> {
        loop {
            match ticket.turn(&self.shared.stopping).await {
                Turn::Admitted(place) => return Ok(place),
                Turn::Displaced => return Err(self.turn_away().await?),
                Turn::Waiting(place) => self.reply(0, &Reply::Queued { place }).await?,
                Turn::Stopping => {
                    self.shut_down().await?;
                    return Err(Ended::Stopping);
                }
            }
        }
    }

    /// Sends one reply frame.
    async fn reply(&self, request: u32, reply: &Reply) -> Result<(), Ended> {
        self.writer.lock().await.send_bytes(&reply.frame(request)).await
    }

    /// Sends one `BYTES` frame of an answer.
    async fn send_answer(&self, request: u32, payload: &[IoSlice<'_>]) -> Result<(), Ended> {
        let len = payload.iter().map(|slice| slice.len()).sum::<usize>() as u32;
        let header = FrameHeader { len, request, kind: kind::BYTES }.encode();
        let mut slices = Vec::with_capacity(payload.len() + 1);
        slices.push(IoSlice::new(&header));
        slices.extend_from_slice(payload);
        self.writer.lock().await.send(&mut slices).await
    }

    /// Sends the error frame that ends a session.
    async fn end_with(&self, code: ErrorCode, message: &str) -> Result<(), Ended> {
        self.reply(0, &Reply::Error { code, message: message.to_owned() }).await
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
