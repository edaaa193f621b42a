//! The sending half of a connection: keeps to the limits of bandwidth, and notices a peer that does not read.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::{Instant, sleep_until, timeout};

use crate::bandwidth::{Allowance, Bucket};
use crate::direct::unacknowledged;
use crate::ended::Ended;
use crate::pipe::Pipe;
use crate::shared::Shared;

/// How often a writer that waits for its peer looks up.
const LOOK_UP: Duration = Duration::from_millis(500);

/// Ends the session of a peer that takes less than the minimum rate while there
/// is something to send; only the time spent waiting for it counts, and none that a limit of bandwidth takes.
pub(crate) struct Writer {
    socket: OwnedWriteHalf,
    minimum_rate: u64,
    window: Duration,
    allowance: Allowance,
    sent: u64,
    /// Time spent waiting in the current window, and what the peer had taken when it began.
    waited: Duration,
    taken_before: u64,
}

/// Bytes that go out, wherever they lie.
pub(crate) trait Source {
    /// Whether all are out.
    fn is_empty(&self) -> bool;

    /// Bytes that are left.
    fn len(&self) -> usize;

    /// Writes at most `most` of them without waiting; says how many, and takes them off.
    fn write_to(&mut self, socket: &TcpStream, most: usize) -> io::Result<usize>;
}

impl Source for &mut [IoSlice<'_>] {
    fn is_empty(&self) -> bool {
        <[_]>::is_empty(self)
    }

    fn len(&self) -> usize {
        self.iter().map(|slice| slice.len()).sum()
    }

    fn write_to(&mut self, socket: &TcpStream, most: usize) -> io::Result<usize> {
        let written = match most {
            usize::MAX => socket.try_write_vectored(self),
            most => socket.try_write_vectored(&beginning(self, most)),
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

    fn write_to(&mut self, socket: &TcpStream, most: usize) -> io::Result<usize> {
        socket.try_io(Interest::WRITABLE, || self.pour(socket, most))
    }
}

impl Writer {
    /// Within the limits of a connection and of all together.
    pub(crate) fn new(socket: OwnedWriteHalf, shared: &Shared) -> Self {
        let limits = &shared.limits;
        let mut writer = Self {
            socket,
            minimum_rate: limits.minimum_rate,
            window: limits.rate_window,
            allowance: Allowance::default(),
            sent: 0,
            waited: Duration::ZERO,
            taken_before: 0,
        };
        writer.draw_on(Bucket::new(limits.bandwidth_per_connection).as_ref());
        writer.draw_on(shared.bandwidth.as_ref());
        writer
    }

    /// From now on keeps within this limit too.
    pub(crate) fn draw_on(&mut self, limit: Option<&Arc<Bucket>>) {
        if let Some(bucket) = limit {
            self.allowance.draw_on(bucket);
        }
    }

    /// Whether the peer says no more. An error when it does not listen either.
    pub(crate) fn has_peer_left(&self) -> io::Result<bool> {
        let mut socket = [PollFd::new(self.socket.as_ref(), PollFlags::RDHUP)];
        poll(&mut socket, Some(&Timespec::default()))?;
        let state = socket[0].revents();
        if state.intersects(PollFlags::HUP | PollFlags::ERR) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(state.contains(PollFlags::RDHUP))
    }

    /// Bytes sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends bytes.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.send(&mut [IoSlice::new(bytes)]).await
    }

    /// Sends what is in the slices.
    pub(crate) async fn send(&mut self, mut slices: &mut [IoSlice<'_>]) -> Result<(), Ended> {
        self.send_while(&mut slices, || true).await.map(drop)
    }

    /// Sends for as long as `patient`, which is asked whenever the peer has taken nothing for a while, or a
    /// limit holds this up. Says how many bytes went out.
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

    /// Sends what the limits allow and the socket takes without waiting, and takes it off the source.
    pub(crate) fn send_now<S: Source>(&mut self, source: &mut S) -> Result<usize, Ended> {
        let mut sent = 0;
        while !source.is_empty() {
            match self.write(source) {
                Ok(written) => {
                    sent += written;
                    self.allowance.spend(written);
                    self.sent += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sent)
    }

    /// Writes once, if that is allowed now.
    fn write<S: Source>(&mut self, source: &mut S) -> io::Result<usize> {
        if self.allowance.is_unlimited() {
            return source.write_to(self.socket.as_ref(), usize::MAX);
        }
        let wanted = source.len();
        match self.allowance.of(wanted, Instant::now().into_std()) {
            0 if wanted > 0 => Err(io::ErrorKind::WouldBlock.into()),
            most => source.write_to(self.socket.as_ref(), most),
        }
    }

    /// When a limit lets more out, if one holds this up.
    fn held_until(&mut self) -> Option<Instant> {
        self.allowance.until(Instant::now().into_std()).map(Instant::from_std)
    }

    /// Says that nothing more comes.
    pub(crate) async fn close(&mut self) {
        let _ = self.socket.shutdown().await;
    }

    /// Waits until more can be sent.
    pub(crate) async fn writable(&mut self) -> Result<(), Ended> {
        while !self.wait().await? {}
        Ok(())
    }

    /// Waits a while; whether more can be sent.
    async fn wait(&mut self) -> Result<bool, Ended> {
        if let Some(until) = self.held_until() {
            sleep_until(until.min(Instant::now() + LOOK_UP)).await;
            return Ok(self.held_until().is_none());
        }
        let began = Instant::now();
        let ready = timeout(LOOK_UP.min(self.window), self.socket.writable()).await;
        self.waited += began.elapsed();
        if self.waited >= self.window {
            self.judge()?;
        }
        match ready {
            Ok(result) => result.map(|()| true).map_err(Ended::from),
            Err(_) => Ok(false),
        }
    }

    /// What the kernel still holds was sent but not taken: a full socket buffer hides a stalled peer.
    fn judge(&mut self) -> Result<(), Ended> {
        let held = unacknowledged(self.socket.as_ref()).unwrap_or(0);
        let taken = self.sent.saturating_sub(held);
        let least = (self.minimum_rate as f64 * self.waited.as_secs_f64()) as u64;
        if taken.saturating_sub(self.taken_before) < least {
            return Err(Ended::TooSlow);
        }
        self.waited = Duration::ZERO;
        self.taken_before = taken;
        Ok(())
    }
}

/// The first `most` bytes of the slices.
fn beginning<'a>(slices: &'a [IoSlice<'_>], most: usize) -> Vec<IoSlice<'a>> {
    let mut room = most;
    let mut beginning = Vec::new();
    for slice in slices {
        let part = &slice[..slice.len().min(room)];
        room -= part.len();
        beginning.push(IoSlice::new(part));
        if room == 0 {
            break;
        }
    }
    beginning
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::{Config, Daemon};

    #[tokio::test]
    async fn a_peer_that_says_no_more_may_still_listen_and_one_that_is_gone_does_not() {
        let daemon = Daemon::open(Config::default()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_input, output) = listener.accept().await.unwrap().0.into_split();
        let mut writer = Writer::new(output, &daemon.shared);
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
        timeout(Duration::from_secs(60), gone).await.expect("the kernel says so");
    }
}
