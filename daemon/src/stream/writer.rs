//! The sending half of a connection, which notices a peer that does not read.

use std::io::{self, IoSlice};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::{Instant, timeout};

use crate::config::Limits;
use crate::direct::unacknowledged;
use crate::session::Ended;

/// How often a writer that waits for its peer looks up.
const LOOK_UP: Duration = Duration::from_millis(500);

/// Ends the session of a peer that takes less than the minimum rate while there
/// is something to send; only the time spent waiting for it counts.
pub(crate) struct Writer {
    socket: OwnedWriteHalf,
    minimum_rate: u64,
    window: Duration,
    sent: u64,
    /// Time spent waiting in the current window, and what the peer had taken when it began.
    waited: Duration,
    taken_before: u64,
}

impl Writer {
    pub(crate) fn new(socket: OwnedWriteHalf, limits: &Limits) -> Self {
        Self {
            socket,
            minimum_rate: limits.minimum_rate,
            window: limits.rate_window,
            sent: 0,
            waited: Duration::ZERO,
            taken_before: 0,
        }
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
    pub(crate) async fn send(&mut self, slices: &mut [IoSlice<'_>]) -> Result<(), Ended> {
        self.send_while(slices, || true).await.map(drop)
    }

    /// Sends for as long as `patient`, which is asked whenever the peer has taken nothing for a while.
    /// Says how many bytes went out.
    pub(crate) async fn send_while(
        &mut self,
        mut slices: &mut [IoSlice<'_>],
        patient: impl Fn() -> bool,
    ) -> Result<usize, Ended> {
        let mut sent = 0;
        loop {
            sent += self.send_now(&mut slices)?;
            if slices.is_empty() || (!self.wait().await? && !patient()) {
                return Ok(sent);
            }
        }
    }

    /// Sends what the socket takes without waiting, and takes it off the slices.
    pub(crate) fn send_now(&mut self, slices: &mut &mut [IoSlice<'_>]) -> Result<usize, Ended> {
        let mut sent = 0;
        while !slices.is_empty() {
            match self.socket.try_write_vectored(slices) {
                Ok(written) => {
                    sent += written;
                    self.sent += written as u64;
                    IoSlice::advance_slices(slices, written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sent)
    }

    /// Says that nothing more comes.
    pub(crate) async fn close(&mut self) {
        let _ = self.socket.shutdown().await;
    }

    /// Waits until the peer has taken something.
    pub(crate) async fn writable(&mut self) -> Result<(), Ended> {
        while !self.wait().await? {}
        Ok(())
    }

    /// Waits a while; whether the peer has taken something.
    async fn wait(&mut self) -> Result<bool, Ended> {
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
