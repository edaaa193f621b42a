//! The sending half of a connection: keeps to the bandwidth limits, and notices a peer that does not read.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::bandwidth::{Allowance, Bucket};
use crate::dialect::Dialect;
use crate::ended::Ended;
use crate::metrics::{Meter, Metrics};
use crate::pipe::Pipe;
use crate::settings::Settings;
use crate::transport::WriteHalf;

/// How often a writer that waits checks whether it should go on waiting.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The sending half of a connection.
///
/// It ends the session of a peer that takes less than the minimum rate while there is something to send. Only the time
/// spent waiting for the peer counts; a delay by a bandwidth limit does not.
pub(crate) struct Writer {
    socket: WriteHalf,
    minimum_rate: u64,
    window: Duration,
    allowance: Allowance,
    sent: u64,
    /// Counts what is sent.
    meter: Arc<Meter>,
    /// Time spent waiting for the peer in the current window.
    waited: Duration,
    /// Bytes that the peer had taken when the current window began.
    taken_before: u64,
}

/// Bytes to send, in memory or in a pipe.
pub(crate) trait Source {
    /// Returns whether all bytes are sent.
    fn is_empty(&self) -> bool;

    /// Returns the number of bytes that are left.
    fn len(&self) -> usize;

    /// Writes up to `limit` bytes without waiting, and removes them from the source. Returns their number.
    fn write_to(&mut self, socket: &mut WriteHalf, limit: usize) -> io::Result<usize>;
}

impl Source for &mut [IoSlice<'_>] {
    fn is_empty(&self) -> bool {
        <[_]>::is_empty(self)
    }

    fn len(&self) -> usize {
        self.iter().map(|slice| slice.len()).sum()
    }

    fn write_to(&mut self, socket: &mut WriteHalf, limit: usize) -> io::Result<usize> {
        let written = match limit {
            usize::MAX => socket.try_write(self),
            limit => socket.try_write(&prefix(self, limit)),
        }?;
        IoSlice::advance_slices(self, written);
        Ok(written)
    }
}

impl Source for Pipe {
    fn is_empty(&self) -> bool {
        Self::len(self) == 0
    }

    fn len(&self) -> usize {
        Self::len(self)
    }

    fn write_to(&mut self, socket: &mut WriteHalf, limit: usize) -> io::Result<usize> {
        // Pages in a pipe cannot be encrypted, so no lane of an encrypted connection fills one.
        let WriteHalf::Tcp(half) = socket else { return Err(io::ErrorKind::Unsupported.into()) };
        let socket: &TcpStream = half.as_ref();
        socket.try_io(Interest::WRITABLE, || self.pour(socket, limit))
    }
}

impl Writer {
    /// Creates a writer that keeps to the bandwidth limits of one connection and of all connections together.
    pub(crate) fn new(socket: WriteHalf, metrics: &Metrics, settings: &Settings, dialect: Dialect) -> Self {
        let limits = settings.limits();
        let mut writer = Self {
            socket,
            minimum_rate: limits.minimum_rate,
            window: limits.rate_window,
            allowance: Allowance::default(),
            sent: 0,
            meter: metrics.nameless(dialect),
            waited: Duration::ZERO,
            taken_before: 0,
        };
        writer.draw_on(Bucket::new(limits.bandwidth_per_connection).as_ref());
        writer.draw_on(settings.bandwidth.as_ref());
        writer
    }

    /// Adds another bandwidth limit, from now on.
    pub(crate) fn draw_on(&mut self, limit: Option<&Arc<Bucket>>) {
        if let Some(bucket) = limit {
            self.allowance.draw_on(bucket);
        }
    }

    /// Counts what is sent from now on for another repository.
    pub(crate) fn count_for(&mut self, meter: Arc<Meter>) {
        self.meter = meter;
    }

    /// Returns whether the peer has closed its sending half. Fails if the peer does not receive any more either.
    pub(crate) fn has_peer_left(&self) -> io::Result<bool> {
        let mut socket = [PollFd::new(self.socket.socket(), PollFlags::RDHUP)];
        poll(&mut socket, Some(&Timespec::default()))?;
        let state = socket[0].revents();
        if state.intersects(PollFlags::HUP | PollFlags::ERR) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(state.contains(PollFlags::RDHUP))
    }

    /// Returns the number of bytes sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends all of `bytes`.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.send(&mut [IoSlice::new(bytes)]).await
    }

    /// Sends all of the slices.
    pub(crate) async fn send(&mut self, mut slices: &mut [IoSlice<'_>]) -> Result<(), Ended> {
        self.send_while(&mut slices, || true).await?;
        self.flush().await
    }

    /// Waits until the socket has taken everything. What an encrypted connection has taken from a source may wait for that.
    pub(crate) async fn flush(&mut self) -> Result<(), Ended> {
        while !self.socket.try_flush()? {
            self.wait().await?;
        }
        Ok(())
    }

    /// Sends until all is sent or `patient` returns false. `patient` is called whenever the peer has taken nothing for a
    /// while, or a bandwidth limit delays the writer. Returns the number of bytes sent.
    pub(crate) async fn send_while<S: Source>(
        &mut self,
        source: &mut S,
        patient: impl Fn() -> bool,
    ) -> Result<usize, Ended> {
        let mut sent = 0;
        loop {
            sent += self.send_now(source)?;
            if source.is_empty() || (self.held_until().is_some() && !patient()) {
                return Ok(sent);
            }
            if !self.wait().await? && !patient() {
                return Ok(sent);
            }
        }
    }

    /// Sends what the limits allow and the socket takes without waiting, and removes it from the source. Returns the
    /// number of bytes sent.
    pub(crate) fn send_now<S: Source>(&mut self, source: &mut S) -> Result<usize, Ended> {
        let mut sent = 0;
        while !source.is_empty() {
            match self.write(source) {
                Ok(written) => {
                    sent += written;
                    self.allowance.spend(written);
                    self.sent += written as u64;
                    self.meter.sent.inc_by(written as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sent)
    }

    /// Writes once, if the limits allow that now. Fails with `WouldBlock` otherwise.
    fn write<S: Source>(&mut self, source: &mut S) -> io::Result<usize> {
        if self.allowance.is_unlimited() {
            return source.write_to(&mut self.socket, usize::MAX);
        }
        let wanted = source.len();
        match self.allowance.available(wanted, Instant::now().into_std()) {
            0 if wanted > 0 => Err(io::ErrorKind::WouldBlock.into()),
            limit => source.write_to(&mut self.socket, limit),
        }
    }

    /// Returns when more can be sent. `None` if no bandwidth limit delays the writer.
    fn held_until(&mut self) -> Option<Instant> {
        self.allowance.until(Instant::now().into_std()).map(Instant::from_std)
    }

    /// Closes the sending half of the connection.
    pub(crate) async fn close(&mut self) {
        let _ = self.socket.shutdown().await;
    }

    /// Waits until more can be sent.
    pub(crate) async fn writable(&mut self) -> Result<(), Ended> {
        while !self.wait().await? {}
        Ok(())
    }

    /// Waits for a while. Returns whether more can be sent. Fails if the peer is too slow.
    async fn wait(&mut self) -> Result<bool, Ended> {
        if let Some(until) = self.held_until() {
            sleep_until(until.min(Instant::now() + CHECK_INTERVAL)).await;
            return Ok(self.held_until().is_none());
        }
        let began = Instant::now();
        let ready = timeout(CHECK_INTERVAL.min(self.window), self.socket.socket().writable()).await;
        self.waited += began.elapsed();
        if self.waited >= self.window {
            self.check_rate()?;
        }
        match ready {
            Ok(result) => result.map(|()| true).map_err(Ended::from),
            Err(_) => Ok(false),
        }
    }

    /// Fails if the peer took less than the minimum rate in the current window; otherwise begins a new window. Bytes in
    /// the kernel's socket buffer do not count as taken, since a full buffer would hide a stalled peer.
    fn check_rate(&mut self) -> Result<(), Ended> {
        let taken = self.socket.acknowledged(self.sent);
        let required = (self.minimum_rate as f64 * self.waited.as_secs_f64()) as u64;
        if taken.saturating_sub(self.taken_before) < required {
            return Err(Ended::TooSlow);
        }
        self.waited = Duration::ZERO;
        self.taken_before = taken;
        Ok(())
    }
}

/// Returns the first `limit` bytes of the slices.
fn prefix<'a>(slices: &'a [IoSlice<'_>], limit: usize) -> Vec<IoSlice<'a>> {
    let mut room = limit;
    let mut prefix = Vec::new();
    for slice in slices {
        let part = &slice[..slice.len().min(room)];
        room -= part.len();
        prefix.push(IoSlice::new(part));
        if room == 0 {
            break;
        }
    }
    prefix
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::transport::Transport;
    use crate::{Config, Daemon};

    #[tokio::test]
    async fn a_half_closed_peer_still_receives_and_a_closed_one_does_not() {
        let daemon = Daemon::open(Config::default()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_input, output) = Transport::Tcp(listener.accept().await.unwrap().0).into_split();
        let mut writer = Writer::new(output, &daemon.shared.metrics, &daemon.shared.settings(), Dialect::Rsync);
        assert!(!writer.has_peer_left().unwrap());
        peer.shutdown().await.unwrap();
        while !writer.has_peer_left().unwrap() {
            tokio::task::yield_now().await;
        }
        writer.send_bytes(b"x").await.unwrap();
        assert!(writer.has_peer_left().unwrap());
        drop(peer);
        let gone = async {
            while writer.has_peer_left().is_ok() {
                let _ = writer.send_bytes(b"x").await;
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), gone).await.expect("the kernel reports the closed connection");
    }
}
