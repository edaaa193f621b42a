//! An encrypted connection whose handshake is done.
//!
//! The session encrypts straight from the memory that is sent, on the thread that sends it, and keeps at most
//! [`SEND_BUFFER`] bytes that the socket has not taken.

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::Shutdown;
use rustls::ServerConnection;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Maximum number of encrypted bytes that wait for the socket: eight records.
const SEND_BUFFER: usize = 128 << 10;
/// How long the socket may take the last bytes before its sending half is closed.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// A socket, and the TLS session on it.
pub(crate) struct TlsSocket {
    socket: TcpStream,
    state: Mutex<State>,
}

struct State {
    session: ServerConnection,
    /// Encrypted bytes that the socket has taken.
    given: u64,
}

impl TlsSocket {
    pub(super) fn new(socket: TcpStream, mut session: ServerConnection) -> Self {
        session.set_buffer_limit(Some(SEND_BUFFER));
        Self { socket, state: Mutex::new(State { session, given: 0 }) }
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many encrypted bytes the socket has taken.
    pub(super) fn given(&self) -> u64 {
        self.state().given
    }

    pub(super) fn poll_read(&self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = ready!(self.poll_plain(context, |plain| plain.read(buffer.initialize_unfilled())))?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }

    /// Returns whether the peer has sent something, or sends no more, once one of the two is known.
    pub(super) fn poll_peek(&self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.poll_plain(context, |plain| plain.fill_buf().map(<[u8]>::len)).map_ok(|len| len > 0)
    }

    /// Receives until `take` finds decrypted bytes. Returns 0 if the peer sends no more.
    fn poll_plain(
        &self,
        context: &mut Context<'_>,
        mut take: impl FnMut(&mut rustls::Reader<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.state().receive(&self.socket, &mut take) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Both dialects know by themselves whether all has arrived, so an end that is not announced is an end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(0)),
                received => return Poll::Ready(received),
            }
            ready!(self.socket.poll_read_ready(context))?;
        }
    }

    /// Encrypts a part of the slices, and returns its length. Fails with `WouldBlock` if the socket has not taken what
    /// was encrypted before.
    pub(super) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state();
        if !state.flush(&self.socket)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = state.session.writer().write_vectored(slices)?;
        state.flush(&self.socket)?;
        Ok(taken)
    }

    /// Gives the socket what is encrypted. Returns whether it has all of it.
    pub(super) fn try_flush(&self) -> io::Result<bool> {
        self.state().flush(&self.socket)
    }

    pub(super) async fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(&[IoSlice::new(bytes)]) {
                Ok(taken) => bytes = &bytes[taken..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.writable().await?,
                Err(error) => return Err(error),
            }
        }
        self.flush().await
    }

    async fn flush(&self) -> io::Result<()> {
        while !self.try_flush()? {
            self.socket.writable().await?;
        }
        Ok(())
    }

    /// Announces the end, and closes the sending half of the socket.
    pub(super) async fn shutdown(&self) -> io::Result<()> {
        self.state().session.send_close_notify();
        let flushed = timeout(LAST_BYTES, self.flush()).await;
        rustix::net::shutdown(&self.socket, Shutdown::Write)?;
        flushed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl State {
    /// Takes decrypted bytes. Receives more if there are none, and fails with `WouldBlock` if none have arrived.
    fn receive(
        &mut self,
        socket: &TcpStream,
        mut take: impl FnMut(&mut rustls::Reader<'_>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match take(&mut self.session.reader()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                taken => return taken,
            }
            self.session.read_tls(&mut Raw(socket))?;
            let processed = self.session.process_new_packets();
            // Answers to the peer's messages, or the reason why they are refused.
            let flushed = self.flush(socket);
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            flushed?;
        }
    }

    fn flush(&mut self, socket: &TcpStream) -> io::Result<bool> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Raw(socket)) {
                Ok(written) => self.given += written as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Reads from a socket and writes to it, without waiting.
struct Raw<'a>(&'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
