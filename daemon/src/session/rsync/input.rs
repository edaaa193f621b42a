//! The client's half of a connection.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use stillmirror_protocol::rsync::requests::{Event, Request, Requests};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::session::Ended;

/// Bytes read at a time.
const READ: usize = 16 << 10;

/// What the client sends, from its first byte on.
pub(super) struct Input {
    socket: OwnedReadHalf,
    /// Read and not used yet.
    unused: Vec<u8>,
    received: u64,
    requests: Option<Requests>,
    /// How long the client may be silent in the midst of its requests.
    patience: Duration,
}

/// A part of what a client asks for, for the lane that answers.
#[derive(Debug)]
pub(super) enum Asked {
    Request(Request),
    Done,
    Deleted([i32; 5]),
    /// The client ends, with this exit code.
    Exit(Option<i32>),
    /// Nothing more comes, because of this.
    Failed(Ended),
}

impl Input {
    /// After these first bytes.
    pub(super) fn new(socket: OwnedReadHalf, begun: &[u8]) -> Self {
        let received = begun.len() as u64;
        Self { socket, unused: begun.to_vec(), received, requests: None, patience: Duration::MAX }
    }

    /// Bytes received so far.
    pub(super) fn received(&self) -> u64 {
        self.received
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
        let start = self.unused.len();
        self.unused.resize(start + READ, 0);
        let read = self.socket.read(&mut self.unused[start..]).await;
        // Clients send in small writes, each of which waits for the acknowledgement of the one before.
        let _ = sockopt::set_tcp_quickack(self.socket.as_ref(), true);
        self.unused.truncate(start + read.as_ref().map_or(0, |&read| read));
        match read? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            read => {
                self.received += read as u64;
                Ok(())
            }
        }
    }

    /// From here on the client sends frames, and is not silent for longer than `patience`.
    pub(super) fn begin_requests(&mut self, requests: Requests, patience: Duration) {
        self.requests = Some(requests);
        self.patience = patience;
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
        timeout(self.patience, self.read()).await.map_err(|_| Ended::Idle)?
    }

    /// The next event.
    pub(super) async fn event(&mut self) -> Result<Event, Ended> {
        loop {
            let requests = self.requests.as_mut().ok_or(Ended::Panicked)?;
            requests.receive(&std::mem::take(&mut self.unused));
            match requests.next()? {
                Some(event) => return Ok(event),
                None => self.read_in_time().await?,
            }
        }
    }

    /// Passes on what the client asks for, until it ends. Gives a reason when the client waits for the end.
    pub(super) async fn pass_on(&mut self, to_lane: mpsc::Sender<Asked>) -> Option<Ended> {
        loop {
            let asked = match self.event().await {
                Ok(Event::Request(request)) => Asked::Request(request),
                Ok(Event::Done) => Asked::Done,
                Ok(Event::Deleted(counts)) => Asked::Deleted(counts),
                Ok(Event::Exit(code)) => Asked::Exit(code),
                Ok(Event::Text(text)) => {
                    tracing::debug!(text = %text.escape_ascii(), "a client says");
                    continue;
                }
                Ok(Event::KeepAlive | Event::Success(_)) => continue,
                // Rules and names are over: the parser gives none any more.
                Ok(Event::Rule(_) | Event::RulesEnd | Event::Name(_) | Event::NamesEnd) => continue,
                Err(ended) => Asked::Failed(ended),
            };
            let ended = match &asked {
                Asked::Exit(code) => Some(Some(Ended::ClientExit(*code))),
                Asked::Failed(_) => Some(None),
                _ => None,
            };
            // A lane that is gone has ended the session already.
            if to_lane.send(asked).await.is_err() {
                return None;
            }
            if let Some(ended) = ended {
                return ended;
            }
        }
    }
}
