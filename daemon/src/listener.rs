//! Accepts connections, and brings each as far as its session.
//!
//! ```text
//! proxy      the header in which a trusted proxy names its client
//! handshake  TLS
//! detect     the protocol that the client's first bytes belong to
//! ```
//!
//! Up to there the client is a stranger, and has [`Limits::handshake`](crate::Limits::handshake) for all of it.

mod detect;
mod handshake;
mod proxy;

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use stillmirror_protocol::rsync::greeting;
use stillmirror_protocol::rsync::version::Version;
use stillmirror_protocol::wire::{ClientHello, ErrorCode, Reply};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use crate::cause::Cause;
use crate::descriptors;
use crate::dialect::Dialect;
use crate::error::DaemonError;
use crate::networks::Connection;
use crate::session;
use crate::settings::Settings;
use crate::shared::ServerState;
use crate::status::{Observed, Ports};
use crate::strangers::Stranger;
use crate::transport::Transport;
use detect::Spoken;

/// The pause after a failed accept. What is short then (descriptors, memory) becomes free with time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a closing connection may take to read its last frame.
const LINGER: Duration = Duration::from_secs(2);

/// What the clients of a listening socket are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Clients of every dialect.
    All,
    /// Stock rsync clients only. The server greets them without waiting for their first bytes.
    Rsync,
    /// Clients of every dialect, within TLS. Needs [`Config::tls`](crate::Config::tls).
    Tls,
}

/// The sockets that a daemon listens on, each with its kind of clients.
#[derive(Debug, Default)]
pub struct Listeners {
    all: Vec<(TcpListener, Port)>,
    observed: Observed,
    /// The socket whose turn it is.
    turn: usize,
}

impl Listeners {
    /// Adds a socket.
    pub fn add(&mut self, socket: TcpListener, port: Port) {
        self.all.push((socket, port));
    }

    /// Adds a socket for metrics and status, over HTTP. Whoever can connect to it sees the listed repositories, and all
    /// metrics.
    pub fn add_metrics(&mut self, socket: TcpListener) {
        self.observed.metrics.push(socket);
    }

    /// Adds a socket for the operator, over HTTP, too. Its status has unlisted repositories, and errors.
    pub fn add_status(&mut self, socket: UnixListener) {
        self.observed.status.push(socket);
    }

    /// Takes the sockets for metrics and status.
    pub(crate) fn take_observed(&mut self) -> Observed {
        std::mem::take(&mut self.observed)
    }

    /// Returns the ports for clients.
    pub(crate) fn ports(&self) -> Ports {
        let of = |kind| {
            let (socket, _) = self.all.iter().find(|(_, port)| *port == kind)?;
            socket.local_addr().ok().map(|address| address.port())
        };
        Ports { native: of(Port::All), rsync: of(Port::Rsync) }
    }

    /// Accepts the next connection. The sockets take turns.
    async fn accept(&mut self) -> io::Result<Accepted> {
        poll_fn(|context| self.poll_accept(context)).await
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        for number in (self.turn..self.all.len()).chain(0..self.turn) {
            let (socket, port) = &self.all[number];
            if let Poll::Ready(accepted) = socket.poll_accept(context) {
                self.turn = number + 1;
                return Poll::Ready(accepted.map(|(socket, peer)| Accepted { socket, peer, port: *port }));
            }
        }
        Poll::Pending
    }
}

impl From<TcpListener> for Listeners {
    fn from(socket: TcpListener) -> Self {
        let mut listeners = Self::default();
        listeners.add(socket, Port::All);
        listeners
    }
}

/// A connection that was accepted.
struct Accepted {
    socket: TcpStream,
    peer: SocketAddr,
    /// The kind of the socket that it came through.
    port: Port,
}

/// Accepts connections until dropped.
pub(crate) async fn accept(
    mut listeners: Listeners,
    shared: &Arc<ServerState>,
    sessions: &TaskTracker,
) -> Result<(), DaemonError> {
    for (socket, port) in &listeners.all {
        socket.local_addr().map_err(DaemonError::Listener)?;
        if *port == Port::Tls && shared.settings().tls.is_none() {
            return Err(DaemonError::NoCertificate);
        }
    }
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(shared.sockets.semaphore()).acquire_many_owned(descriptors::CONNECTION).await else {
            continue;
        };
        match listeners.accept().await {
            Ok(accepted) => {
                // A proxy's connection counts for its client.
                let is_proxy = shared.settings().is_proxy(accepted.peer.ip());
                let entered = if is_proxy { None } else { shared.networks.enter(accepted.peer.ip()) };
                if entered.is_none() && !is_proxy {
                    shared.metrics.count(Dialect::Unknown, Cause::AddressLimit);
                    continue;
                }
                let shared = Arc::clone(shared);
                let tasks = sessions.clone();
                sessions.spawn(async move {
                    tokio::select! {
                        () = grace_period_over(&shared) => {}
                        () = connection(&shared, &tasks, accepted, entered, place) => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Waits until the daemon cuts off its sessions, and then for as long as they may take to tell their clients.
async fn grace_period_over(shared: &ServerState) {
    shared.ending.cancelled().await;
    sleep(session::FRAME_GRACE + LINGER).await;
}

/// What a connection holds until it ends: its place in its network, and its descriptors.
type Held = (Connection, OwnedSemaphorePermit);

/// A client that has shown which protocol it speaks.
struct Arrival {
    socket: Transport,
    peer: SocketAddr,
    spoken: Spoken,
    entered: Connection,
    stranger: Stranger,
}

/// The reason why a connection ends before its client is known.
#[derive(Debug, Error)]
enum Lost {
    #[error("there are too many strangers, and this one was the oldest of its network")]
    Evicted,
    #[error("the daemon stops")]
    Stopping,
    #[error("the client took too long")]
    Late,
    #[error("too many connections from the client's address")]
    TooMany,
    #[error("{0}")]
    Header(#[from] proxy::HeaderError),
    #[error("there is no certificate for TLS")]
    NoCertificate,
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[source] io::Error),
    #[error("the client disconnected before its hello: {0}")]
    Hello(#[source] io::Error),
}

impl Lost {
    fn cause(&self) -> Cause {
        match self {
            Self::Evicted => Cause::Evicted,
            Self::Stopping => Cause::Shutdown,
            Self::Late => Cause::RequestTimeout,
            Self::TooMany => Cause::AddressLimit,
            Self::Header(proxy::HeaderError::Ended | proxy::HeaderError::Io(_)) | Self::Hello(_) => Cause::Disconnected,
            Self::Header(_) => Cause::ProxyHeader,
            Self::NoCertificate | Self::Handshake(_) => Cause::TlsFailed,
        }
    }
}

async fn connection(
    shared: &Arc<ServerState>,
    tasks: &TaskTracker,
    accepted: Accepted,
    entered: Option<Connection>,
    place: OwnedSemaphorePermit,
) {
    let (peer, settings) = (accepted.peer, shared.settings());
    match arrive(shared, &settings, accepted, entered).await {
        Ok(arrival) => serve(shared, settings, tasks, arrival, place).await,
        Err(lost) => {
            tracing::debug!(%peer, %lost, "a connection ended before its client was known");
            shared.metrics.count(Dialect::Unknown, lost.cause());
        }
    }
}

/// Brings a connection as far as its client's protocol. `entered` is `None` if the connection is a proxy's.
async fn arrive(
    shared: &Arc<ServerState>,
    settings: &Settings,
    Accepted { mut socket, mut peer, port }: Accepted,
    entered: Option<Connection>,
) -> Result<Arrival, Lost> {
    let deadline = Instant::now() + settings.limits().handshake;
    let mut stranger = shared.strangers.add(shared.networks.of(peer.ip()));
    let entered = match entered {
        Some(entered) => entered,
        None => {
            let header = in_time(shared, &stranger, deadline, proxy::read(&mut socket)).await??;
            peer = header.unwrap_or(peer);
            stranger = shared.strangers.add(shared.networks.of(peer.ip()));
            shared.networks.enter(peer.ip()).ok_or(Lost::TooMany)?
        }
    };
    let known = in_time(shared, &stranger, deadline, async {
        let mut socket = if port == Port::Tls {
            let tls = settings.tls.as_ref().ok_or(Lost::NoCertificate)?;
            let accepting = handshake::accept(socket, Arc::clone(tls), &shared.signatures, entered.network);
            accepting.await.map_err(Lost::Handshake)?
        } else {
            Transport::Tcp(socket)
        };
        let spoken = match port {
            Port::Rsync => Spoken::Rsync { begun: Vec::new(), greeted: false },
            Port::All | Port::Tls => {
                detect::detect(&mut socket, settings.rsync().enabled).await.map_err(Lost::Hello)?
            }
        };
        Ok::<_, Lost>((socket, spoken))
    });
    let (socket, spoken) = known.await??;
    Ok(Arrival { socket, peer, spoken, entered, stranger })
}

/// Waits for a stranger to go on.
async fn in_time<T>(
    shared: &ServerState,
    stranger: &Stranger,
    deadline: Instant,
    next: impl Future<Output = T>,
) -> Result<T, Lost> {
    tokio::select! {
        next = timeout_at(deadline, next) => next.map_err(|_| Lost::Late),
        () = stranger.evicted() => Err(Lost::Evicted),
        () = shared.stopping.cancelled() => Err(Lost::Stopping),
    }
}

/// Serves a client in its dialect, or tells it why not.
async fn serve(
    shared: &Arc<ServerState>,
    settings: Arc<Settings>,
    tasks: &TaskTracker,
    arrival: Arrival,
    mut place: OwnedSemaphorePermit,
) {
    let Arrival { mut socket, peer, spoken, entered, stranger } = arrival;
    let count = |dialect, cause| shared.metrics.count(dialect, cause);
    match spoken {
        spoken if entered.is_over() => {
            count(spoken.dialect(), Cause::AddressLimit);
            let _ = socket.send(&too_many(shared, &settings, &spoken)).await;
        }
        Spoken::Native(hello) if session::follow::is_wanted(shared, &hello) => {
            // It needs fewer descriptors, and a task of its own: this one has room for any session.
            let Some(place) = place.split(descriptors::FOLLOWER as usize) else { return };
            tasks.spawn(follow(Arc::clone(shared), socket, peer, hello, (entered, place)));
            return;
        }
        Spoken::Native(hello) => {
            drop(stranger);
            let input = session::native::serve(shared, settings, socket, peer, hello).await;
            return drain(input).await;
        }
        Spoken::Rsync { begun, greeted } if settings.rsync().enabled => {
            let input = session::rsync::serve(shared, settings, socket, peer, &begun, greeted, stranger).await;
            return drain(input).await;
        }
        Spoken::Rsync { .. } => {
            count(Dialect::Rsync, Cause::UnknownProtocol);
            let _ = socket.send(b"@ERROR: this port speaks only the native protocol\n").await;
        }
        Spoken::Unknown => {
            tracing::debug!(%peer, "the peer speaks no known protocol");
            count(Dialect::Unknown, Cause::UnknownProtocol);
            let message = "expected the hello of the native protocol".to_owned();
            let reply = Reply::Error { code: ErrorCode::Malformed, message };
            let _ = socket.send(&reply.frame(0)).await;
        }
    }
    let _ = socket.shutdown().await;
    drain(socket).await;
}

/// Serves a follower.
async fn follow(shared: Arc<ServerState>, mut socket: Transport, peer: SocketAddr, hello: ClientHello, _held: Held) {
    session::follow::serve(&shared, &mut socket, peer, hello).await;
    drain(socket).await;
}

/// Returns the error for a client whose address has too many connections.
fn too_many(shared: &ServerState, settings: &Settings, spoken: &Spoken) -> Vec<u8> {
    let limit = shared.networks.limit();
    match spoken {
        Spoken::Rsync { greeted, .. } => {
            let mut reply = if *greeted { Vec::new() } else { greeting::hello(Version::NEWEST) };
            reply.extend(format!("@ERROR: max connections ({limit}) reached -- try again later\n").into_bytes());
            reply
        }
        Spoken::Native(hello) => {
            let hello = session::native::answer_hello(settings, hello.negotiate().unwrap_or(0));
            let message = format!("too many connections from this address: the limit is {limit}");
            [&hello.encode()[..], &Reply::Error { code: ErrorCode::Refused, message }.frame(0)].concat()
        }
        Spoken::Unknown => Vec::new(),
    }
}

/// Reads what the peer still sends, for a while. If a socket is closed with unread bytes, the connection is
/// reset, and the peer loses what was sent to it last.
async fn drain(mut input: impl AsyncRead + Unpin) {
    let all = async {
        let mut discarded = [0; 1024];
        while input.read(&mut discarded).await.is_ok_and(|read| read > 0) {}
    };
    let _ = timeout(LINGER, all).await;
}
