//! The connection with a client: a TCP socket, in the clear or encrypted.
//!
//! A session reads one half and writes the other. Sending does not wait: [`WriteHalf::try_write`] takes what fits, and
//! the [`Writer`](crate::stream::Writer) waits for the socket. What is encrypted before the socket takes it is bounded, and
//! goes out with the next write, or with [`WriteHalf::try_flush`].

mod tls;

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::direct::unacknowledged;
use tls::TlsSocket;

/// A connection with a client.
pub(crate) enum Transport {
    /// In the clear.
    Tcp(TcpStream),
    /// Encrypted.
    Tls(Arc<TlsSocket>),
}

/// The half of a connection that receives.
pub(crate) enum ReadHalf {
    /// In the clear.
    Tcp(OwnedReadHalf),
    /// Encrypted.
    Tls(Arc<TlsSocket>),
}

/// The half of a connection that sends.
pub(crate) enum WriteHalf {
    /// In the clear.
    Tcp(OwnedWriteHalf),
    /// Encrypted.
    Tls(Arc<TlsSocket>),
}

impl Transport {
    /// Creates the transport of a connection whose TLS handshake is done.
    pub(crate) fn encrypted(socket: TcpStream, session: ServerConnection) -> Self {
        Self::Tls(Arc::new(TlsSocket::new(socket, session)))
    }

    /// Returns the socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Tcp(socket) => socket,
            Self::Tls(tls) => tls.socket(),
        }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Splits the connection into its halves.
    pub(crate) fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Tcp(socket) => {
                let (reading, writing) = socket.into_split();
                (ReadHalf::Tcp(reading), WriteHalf::Tcp(writing))
            }
            Self::Tls(tls) => (ReadHalf::Tls(Arc::clone(&tls)), WriteHalf::Tls(tls)),
        }
    }

    /// Waits until the peer has sent something, and leaves it there. Returns false if the peer sends no more.
    pub(crate) async fn peek(&mut self) -> io::Result<bool> {
        match self {
            Self::Tcp(socket) => socket.peek(&mut [0]).await.map(|peeked| peeked > 0),
            Self::Tls(tls) => poll_fn(|context| tls.poll_peek(context)).await,
        }
    }

    /// Sends all of `bytes`.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.write_all(bytes).await,
            Self::Tls(tls) => tls.send(bytes).await,
        }
    }

    /// Closes the sending half.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.shutdown().await,
            Self::Tls(tls) => tls.shutdown().await,
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(context, buffer),
            Self::Tls(tls) => tls.poll_read(context, buffer),
        }
    }
}

impl ReadHalf {
    /// Returns the socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Tcp(half) => half.as_ref(),
            Self::Tls(tls) => tls.socket(),
        }
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_read(context, buffer),
            Self::Tls(tls) => tls.poll_read(context, buffer),
        }
    }
}

impl WriteHalf {
    /// Returns the socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Tcp(half) => half.as_ref(),
            Self::Tls(tls) => tls.socket(),
        }
    }

    /// Takes a part of the slices without waiting, and returns its length. Fails with `WouldBlock` if it can take nothing
    /// now.
    pub(crate) fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.try_write_vectored(slices),
            Self::Tls(tls) => tls.try_write(slices),
        }
    }

    /// Gives the socket what was taken before. Returns whether it has all of it.
    pub(crate) fn try_flush(&mut self) -> io::Result<bool> {
        match self {
            Self::Tcp(_) => Ok(true),
            Self::Tls(tls) => tls.try_flush(),
        }
    }

    /// Returns how many bytes the peer has acknowledged, as they are on the wire. `taken` is the number of bytes that this
    /// half has taken.
    pub(crate) fn acknowledged(&self, taken: u64) -> u64 {
        let given = match self {
            Self::Tcp(_) => taken,
            Self::Tls(tls) => tls.given(),
        };
        given.saturating_sub(unacknowledged(self.socket()).unwrap_or(0))
    }

    /// Closes this half.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(half) => half.shutdown().await,
            Self::Tls(tls) => tls.shutdown().await,
        }
    }
}
