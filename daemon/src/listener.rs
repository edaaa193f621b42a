//! Accepting connections and telling what they speak.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stillmirror_protocol::rsync::greeting;
use stillmirror_protocol::rsync::version::Version;
use stillmirror_protocol::wire::{ClientHello, ErrorCode, HELLO_BYTES, MAGIC, Reply};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{DaemonError, Shared, session};

/// Connections that have not said hello. One more ends the oldest of them.
const STRANGERS: usize = 1024;
/// A pause after a failed accept: what is short then (descriptors, memory) comes back with time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may be silent before it gets the greeting for rsync clients: some of these, and what checks whether
/// a daemon is alive, wait for it. Others speak first.
const SILENCE: Duration = Duration::from_secs(1);
/// How long a closing connection may take to read its last frame.
const FAREWELL: Duration = Duration::from_secs(2);

/// Accepts until dropped.
pub(crate) async fn accept(
    listener: TcpListener,
    port: Port,
    shared: &Arc<Shared>,
    sessions: &TaskTracker,
) -> Result<(), DaemonError> {
    listener.local_addr().map_err(DaemonError::Listener)?;
    loop {
        let place = Arc::clone(&shared.sockets).acquire_owned().await;
        match listener.accept().await {
            Ok((socket, peer)) => {
                let (shared, stranger) = (Arc::clone(shared), shared.strangers.add());
                sessions.spawn(async move {
                    let _place = place;
                    tokio::select! {
                        () = too_late(&shared) => {}
                        () = connection(&shared, socket, peer, port, stranger) => {}
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

/// Once the daemon ends, sessions have a moment to say so.
async fn too_late(shared: &Shared) {
    shared.ending.cancelled().await;
    sleep(session::LAST_WORDS + FAREWELL).await;
}

/// A socket to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    /// Every dialect.
    Any,
    /// Stock rsync's alone: nobody need speak first.
    Rsync,
}

/// What a client speaks.
enum Dialect {
    /// The native protocol.
    Native(ClientHello),
    /// Stock rsync's daemon protocol.
    Rsync {
        /// The client's first bytes.
        begun: Vec<u8>,
        /// The client was greeted.
        greeted: bool,
    },
    /// Neither.
    Unknown,
}

async fn connection(shared: &Arc<Shared>, mut socket: TcpStream, peer: SocketAddr, port: Port, stranger: Stranger) {
    let dialect = tokio::select! {
        dialect = timeout(shared.limits.handshake, dialect(shared, &mut socket, port)) => dialect,
        () = stranger.evicted() => return,
        () = shared.stopping.cancelled() => return,
    };
    match dialect {
        Ok(Ok(Dialect::Native(hello))) => {
            drop(stranger);
            let input = session::native::serve(shared, socket, peer, hello).await;
            return read_out(input).await;
        }
        Ok(Ok(Dialect::Rsync { begun, greeted })) if shared.rsync.enabled => {
            let input = session::rsync::serve(shared, socket, peer, &begun, greeted, stranger).await;
            return read_out(input).await;
        }
        Ok(Ok(Dialect::Rsync { .. })) => {
            let _ = socket.write_all(b"@ERROR: this port speaks only the native protocol\n").await;
        }
        Ok(Ok(Dialect::Unknown)) => {
            tracing::debug!(%peer, "the peer speaks no known protocol");
            let message = "expected the hello of the native protocol".to_owned();
            let reply = Reply::Error { code: ErrorCode::Malformed, message };
            let _ = socket.write_all(&reply.frame(0)).await;
        }
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "the peer left before its hello"),
        Err(_) => return tracing::debug!(%peer, "no hello in time"),
    }
    let _ = socket.shutdown().await;
    read_out(socket).await;
}

async fn dialect(shared: &Shared, socket: &mut TcpStream, port: Port) -> std::io::Result<Dialect> {
    if port == Port::Rsync {
        return Ok(Dialect::Rsync { begun: Vec::new(), greeted: false });
    }
    let mut hello = [0; HELLO_BYTES];
    let (mut filled, mut greeted) = (0, false);
    while filled < HELLO_BYTES {
        let patience = if filled > 0 || greeted || !shared.rsync.enabled { Duration::MAX } else { SILENCE };
        let Ok(read) = timeout(patience, socket.read(&mut hello[filled..])).await else {
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
            // A client that was greeted hears of its fault in the same words.
            let begun = begun.to_vec();
            return Ok(if greeted { Dialect::Rsync { begun, greeted } } else { Dialect::Unknown });
        }
    }
    Ok(ClientHello::decode(&hello).map_or(Dialect::Unknown, Dialect::Native))
}

/// Reads what a peer still sends, for a while: a socket that is closed with unread bytes is reset, and
/// the peer loses what it was sent last.
async fn read_out(mut input: impl AsyncRead + Unpin) {
    let all = async {
        let mut scrap = [0; 1024];
        while input.read(&mut scrap).await.is_ok_and(|read| read > 0) {}
    };
    let _ = timeout(FAREWELL, all).await;
}

/// Connections that have not said hello yet.
#[derive(Default)]
pub(crate) struct Strangers {
    queue: Mutex<VecDeque<(u64, CancellationToken)>>,
}

/// One of them, until dropped.
pub(crate) struct Stranger {
    strangers: Arc<Strangers>,
    number: u64,
    evicted: CancellationToken,
}

impl Strangers {
    fn add(self: &Arc<Self>) -> Stranger {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= STRANGERS
            && let Some((_, oldest)) = queue.pop_front()
        {
            oldest.cancel();
        }
        let number = queue.back().map_or(0, |(number, _)| number + 1);
        let evicted = CancellationToken::new();
        queue.push_back((number, evicted.clone()));
        Stranger { strangers: Arc::clone(self), number, evicted }
    }
}

impl Stranger {
    /// Waits until it has to go, because so many came after it.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut queue = self.strangers.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|(number, _)| *number != self.number);
    }
}
