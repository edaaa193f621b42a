//! Followers: connections that wait until a repository has another head than the one that they know.
//!
//! A follower takes no session, holds no edition and keeps no buffers. It may stay for months, so the settings in force are
//! asked anew for each request. It asks again and again, and each request is answered
//! after [`Limits::follow`](crate::Limits::follow) at the latest, so that both ends notice if the other is gone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use stillmirror_protocol::codec::DecodeError;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::limits;
use stillmirror_protocol::wire::{
    ClientHello, ErrorCode, FOLLOWING, FRAME_HEADER_BYTES, FrameHeader, Reply, Request, SIGNED_HEADS, WireError,
};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep_until, timeout};

use super::native;
use crate::cause::Cause;
use crate::dialect::Dialect;
use crate::ended::Ended;
use crate::metrics::Meter;
use crate::repository::Repository;
use crate::shared::ServerState;
use crate::transport::Transport;
use crate::visible::Visible;

/// The time over which the pulls of followers are spread, for each of them.
const SPREAD_EACH: Duration = Duration::from_millis(5);
/// The maximum of this time for all of them.
const MAX_SPREAD: Duration = Duration::from_secs(60);

/// Returns whether a connection with this hello only follows.
pub(crate) fn is_wanted(shared: &ServerState, hello: &ClientHello) -> bool {
    hello.capabilities & (FOLLOWING | SIGNED_HEADS) == FOLLOWING | SIGNED_HEADS
        && shared.settings().limits().followers > 0
}

/// Serves a follower whose hello has arrived. Closes the sending half of the connection at the end.
pub(crate) async fn serve(shared: &ServerState, socket: &mut Transport, peer: SocketAddr, hello: ClientHello) {
    let _ = socket.socket().set_nodelay(true);
    let meter = shared.metrics.nameless(Dialect::Follower);
    let mut follower = Follower { shared, socket, peer, meter };
    match follower.run(hello).await {
        Ok(()) => shared.metrics.count(Dialect::Follower, Cause::Done),
        Err(ended) => {
            shared.metrics.count(Dialect::Follower, ended.cause());
            let code = match ended {
                Ended::Malformed(_) => Some(ErrorCode::Malformed),
                Ended::Idle | Ended::HalfRequest | Ended::Refused(..) => Some(ErrorCode::Refused),
                Ended::Stopping => Some(ErrorCode::ShuttingDown),
                _ => None,
            };
            tracing::debug!(%peer, %ended, "a follower has left");
            if let Some(code) = code {
                let error = Reply::Error { code, message: ended.to_string() };
                let _ = follower.send(&error.frame(0)).await;
            }
        }
    }
    let _ = socket.shutdown().await;
}

struct Follower<'a> {
    shared: &'a ServerState,
    socket: &'a mut Transport,
    peer: SocketAddr,
    meter: Arc<Meter>,
}

/// A request of a follower.
struct Question {
    number: u32,
    repository: String,
    known: Digest,
}

impl Follower<'_> {
    async fn run(&mut self, hello: ClientHello) -> Result<(), Ended> {
        let version = hello.negotiate();
        let ours = native::answer_hello(&self.shared.settings(), version.as_ref().copied().unwrap_or(0));
        self.send(&ours.encode()).await?;
        version?;
        let Ok(_place) = self.shared.followers.semaphore().try_acquire() else {
            let text = "too many followers: ask for the head from time to time instead".to_owned();
            return Err(Ended::Refused(Cause::FollowersFull, text));
        };
        let _running = self.meter.run();
        while let Some(question) = self.read().await? {
            let answer = self.answer(&question).await?;
            self.send(&answer).await?;
        }
        Ok(())
    }

    /// Reads the next request, which is due now. `None` if the peer sends no more.
    async fn read(&mut self) -> Result<Option<Question>, Ended> {
        let due = self.shared.settings().limits().handshake;
        let mut header = [0; FRAME_HEADER_BYTES];
        let first = tokio::select! {
            first = timeout(due, self.socket.read(&mut header)) => first.map_err(|_| Ended::Idle)??,
            () = self.shared.leaving.cancelled() => return Err(Ended::Stopping),
        };
        if first == 0 {
            return Ok(None);
        }
        let rest = async {
            self.socket.read_exact(&mut header[first..]).await?;
            let header = FrameHeader::decode(&header, limits::FOLLOW_PAYLOAD)?;
            let mut payload = vec![0; header.len as usize];
            self.socket.read_exact(&mut payload).await?;
            Ok::<_, Ended>((header, payload))
        };
        let (header, payload) = timeout(due, rest).await.map_err(|_| Ended::HalfRequest)??;
        if header.request == 0 {
            return Err(WireError::from(DecodeError::Invalid("request number")).into());
        }
        match Request::decode(header.kind, &payload)? {
            Request::Follow { repository, known } => Ok(Some(Question { number: header.request, repository, known })),
            other => Err(WireError::Kind(other.kind()).into()),
        }
    }

    /// Waits until there is an answer, and returns its frames.
    async fn answer(&mut self, question: &Question) -> Result<Vec<u8>, Ended> {
        let until = Instant::now() + self.shared.settings().limits().follow;
        loop {
            let repository = match self.find(question) {
                Ok(repository) => repository,
                Err(refusal) => return Ok(refusal),
            };
            // Before the look, so that nothing is missed.
            let mut news = repository.news();
            if let Some(answer) = told(&repository, question) {
                return Ok(answer);
            }
            tokio::select! {
                _ = news.changed() => {}
                () = sleep_until(until) => return Ok(Reply::End.frame(question.number)),
                () = self.shared.leaving.cancelled() => return Err(Ended::Stopping),
                early = self.socket.peek() => {
                    let is_gone = !early?;
                    let early = WireError::from(DecodeError::Invalid("request before the answer to the last one"));
                    return Err(if is_gone { Ended::ClientExit(None) } else { early.into() });
                }
            }
        }
    }

    /// Returns the repository, or the frame that refuses it.
    fn find(&self, question: &Question) -> Result<Arc<Repository>, Vec<u8>> {
        let settings = self.shared.settings();
        let found = Visible::new(&settings.registry, self.peer.ip()).find_native(&question.repository);
        found.cloned().map_err(|why| {
            let (code, message) = why.refusal(&question.repository);
            Reply::Error { code, message }.frame(question.number)
        })
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let sent = timeout(self.shared.settings().limits().handshake, self.socket.send(bytes)).await;
        sent.map_err(|_| Ended::TooSlow)??;
        self.meter.sent.inc_by(bytes.len() as u64);
        Ok(())
    }
}

/// Returns the frames that tell what is current, if that is not what the follower knows.
fn told(repository: &Repository, question: &Question) -> Option<Vec<u8>> {
    let edition = repository.current().filter(|edition| edition.fingerprint != question.known)?;
    let spread = SPREAD_EACH.saturating_mul(repository.woken().try_into().unwrap_or(u32::MAX)).min(MAX_SPREAD);
    let news = Reply::News { spread: spread.as_millis() as u32, head: edition.generation.head_bytes().to_vec() };
    let signature = edition.generation.signature().map(|bytes| Reply::Signature(bytes.to_vec()));
    let frames = std::iter::once(news).chain(signature).chain([Reply::End]).map(|reply| reply.frame(question.number));
    Some(frames.collect::<Vec<_>>().concat())
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::{Config, Daemon};

    #[tokio::test]
    async fn a_follower_keeps_little() {
        let daemon = Daemon::open(Config::default()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let mut socket = Transport::Tcp(TcpStream::connect(peer).await.unwrap());
        let serving = serve(&daemon.shared, &mut socket, peer, ClientHello::FOLLOWER);
        let size = size_of_val(&serving);
        assert!(size <= 1536, "{size}");
    }
}
