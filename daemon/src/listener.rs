//! Accepts connections, detects which protocol the client speaks, and starts its session.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use stillmirror_protocol::rsync::greeting;
use stillmirror_protocol::rsync::version::Version;
use stillmirror_protocol::wire::{ClientHello, ErrorCode, HELLO_BYTES, MAGIC, Reply};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::cause::Cause;
use crate::descriptors;
use crate::dialect;
use crate::error::DaemonError;
use crate::networks::Connection;
use crate::session;
use crate::settings::Settings;
use crate::shared::ServerState;
use crate::status::{Observed, Ports};
use crate::strangers::Stranger;

/// The pause after a failed accept. What is short then (descriptors, memory) becomes free with time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may be silent before it gets the greeting for rsync clients. Some rsync clients wait for
/// it, and so do health checks. All others speak first.
const SILENCE: Duration = Duration::from_secs(1);
/// How long a closing connection may take to read its last frame.
const LINGER: Duration = Duration::from_secs(2);

/// What the clients of a listening socket are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Clients of every dialect.
    All,
    /// Stock rsync clients only. The server greets them without waiting for their first bytes.
    Rsync,
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
    for (socket, _) in &listeners.all {
        socket.local_addr().map_err(DaemonError::Listener)?;
    }
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(shared.sockets.semaphore()).acquire_many_owned(descriptors::CONNECTION).await else {
            continue;
        };
        match listeners.accept().await {
            Ok(Accepted { socket, peer, port }) => {
                let Some(entered) = shared.networks.enter(peer.ip()) else {
                    shared.metrics.count(dialect::Dialect::Unknown, Cause::AddressLimit);
                    continue;
                };
                let (shared, stranger) = (Arc::clone(shared), shared.strangers.add(entered.network));
                let tasks = sessions.clone();
                sessions.spawn(async move {
                    let held = Held { entered, place };
                    tokio::select! {
                        () = grace_period_over(&shared) => {}
                        () = connection(&shared, &tasks, socket, peer, port, held, stranger) => {}
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

/// What a connection holds until it ends.
struct Held {
    entered: Connection,
    /// Its descriptors.
    place: OwnedSemaphorePermit,
}

/// The protocol that a client speaks.
enum Dialect {
    /// The native protocol.
    Native(ClientHello),
    /// Stock rsync's daemon protocol.
    Rsync {
        /// The client's first bytes.
        begun: Vec<u8>,
        /// Whether the client was greeted already.
        greeted: bool,
    },
    /// Neither.
    Unknown,
}

impl Dialect {
    /// Returns the name for metrics.
    fn kind(&self) -> dialect::Dialect {
        match self {
            Self::Native(_) => dialect::Dialect::Native,
            Self::Rsync { .. } => dialect::Dialect::Rsync,
            Self::Unknown => dialect::Dialect::Unknown,
        }
    }
}

async fn connection(
    shared: &Arc<ServerState>,
    tasks: &TaskTracker,
    mut socket: TcpStream,
    peer: SocketAddr,
    port: Port,
    mut held: Held,
    stranger: Stranger,
) {
    let settings = shared.settings();
    let is_rsync = settings.rsync().enabled;
    let count = |kind, cause| shared.metrics.count(kind, cause);
    let dialect = tokio::select! {
        dialect = timeout(settings.limits().handshake, detect(is_rsync, &mut socket, port)) => dialect,
        () = stranger.evicted() => return count(dialect::Dialect::Unknown, Cause::Evicted),
        () = shared.stopping.cancelled() => return count(dialect::Dialect::Unknown, Cause::Shutdown),
    };
    match dialect {
        Ok(Ok(dialect)) if held.entered.is_over() => {
            count(dialect.kind(), Cause::AddressLimit);
            let _ = socket.write_all(&too_many(shared, &settings, &dialect)).await;
        }
        Ok(Ok(Dialect::Native(hello))) if session::follow::is_wanted(shared, &hello) => {
            // It needs fewer descriptors, and a task of its own: this one has room for any session.
            let Some(place) = held.place.split(descriptors::FOLLOWER as usize) else { return };
            tasks.spawn(follow(Arc::clone(shared), socket, peer, hello, Held { place, ..held }));
            return;
        }
        Ok(Ok(Dialect::Native(hello))) => {
            drop(stranger);
            let input = session::native::serve(shared, settings, socket, peer, hello).await;
            return drain(input).await;
        }
        Ok(Ok(Dialect::Rsync { begun, greeted })) if is_rsync => {
            let input = session::rsync::serve(shared, settings, socket, peer, &begun, greeted, stranger).await;
            return drain(input).await;
        }
        Ok(Ok(Dialect::Rsync { .. })) => {
            count(dialect::Dialect::Rsync, Cause::UnknownProtocol);
            let _ = socket.write_all(b"@ERROR: this port speaks only the native protocol\n").await;
        }
        Ok(Ok(Dialect::Unknown)) => {
            tracing::debug!(%peer, "the peer speaks no known protocol");
            count(dialect::Dialect::Unknown, Cause::UnknownProtocol);
            let message = "expected the hello of the native protocol".to_owned();
            let reply = Reply::Error { code: ErrorCode::Malformed, message };
            let _ = socket.write_all(&reply.frame(0)).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "the peer disconnected before its hello");
            return count(dialect::Dialect::Unknown, Cause::Disconnected);
        }
        Err(_) => {
            tracing::debug!(%peer, "the peer sent no hello in time");
            return count(dialect::Dialect::Unknown, Cause::RequestTimeout);
        }
    }
    let _ = socket.shutdown().await;
    drain(socket).await;
}

/// Serves a follower.
async fn follow(shared: Arc<ServerState>, mut socket: TcpStream, peer: SocketAddr, hello: ClientHello, _held: Held) {
    session::follow::serve(&shared, &mut socket, peer, hello).await;
    drain(socket).await;
}

/// Returns the error for a client whose address has too many connections.
fn too_many(shared: &ServerState, settings: &Settings, dialect: &Dialect) -> Vec<u8> {
    let limit = shared.networks.limit();
    match dialect {
        Dialect::Rsync { greeted, .. } => {
            let mut reply = if *greeted { Vec::new() } else { greeting::hello(Version::NEWEST) };
            reply.extend(format!("@ERROR: max connections ({limit}) reached -- try again later\n").into_bytes());
            reply
        }
        Dialect::Native(hello) => {
            let hello = session::native::answer_hello(settings, hello.negotiate().unwrap_or(0));
            let message = format!("too many connections from this address: the limit is {limit}");
            [&hello.encode()[..], &Reply::Error { code: ErrorCode::Refused, message }.frame(0)].concat()
        }
        Dialect::Unknown => Vec::new(),
    }
}

/// Detects the dialect. `is_rsync` tells whether stock clients are served.
async fn detect(is_rsync: bool, socket: &mut TcpStream, port: Port) -> std::io::Result<Dialect> {
    if port == Port::Rsync {
        return Ok(Dialect::Rsync { begun: Vec::new(), greeted: false });
    }
    let mut hello = [0; HELLO_BYTES];
    let (mut filled, mut greeted) = (0, false);
    while filled < HELLO_BYTES {
        let max_silence = if filled > 0 || greeted || !is_rsync { Duration::MAX } else { SILENCE };
        let Ok(read) = timeout(max_silence, socket.read(&mut hello[filled..])).await else {
            socket.write_all(&greeting::hello(Version::NEWEST)).await?;
            greeted = true;
            continue;
        };
        let read = read?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        let begun = &hello[..filled];
        if begun.starts_with(greeting::MAGIC) {
            return Ok(Dialect::Rsync { begun: begun.to_vec(), greeted });
        }
        let may_be = |magic: &[u8]| begun.iter().zip(magic).all(|(one, other)| one == other);
        if !may_be(&MAGIC) && !may_be(greeting::MAGIC) {
            // A client that was greeted gets its error in rsync's protocol.
            let begun = begun.to_vec();
            return Ok(if greeted { Dialect::Rsync { begun, greeted } } else { Dialect::Unknown });
        }
    }
    Ok(ClientHello::decode(&hello).map_or(Dialect::Unknown, Dialect::Native))
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
