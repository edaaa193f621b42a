//! The memory budget, over all sessions, for lists that belong to a single client: the entries that it
//! requested by name, and which row each index of its list stands for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use crate::ended::Ended;
use crate::fair::{Grant, Pot};
use crate::networks::Network;

/// The granularity of grants, in bytes.
const STEP: u64 = 64 << 10;
/// One network may hold at most the budget divided by this.
const NETWORK_PART: u64 = 2;
/// How long a session waits for memory. Lists that other sessions hold may be needed for hours.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The budget of all sessions.
pub(crate) struct ListMemory {
    pot: Arc<Pot>,
    /// Maximum number of bytes that one network may hold.
    network_limit: AtomicU64,
    max_wait: Duration,
}

/// The part of the budget that one session holds until this is dropped.
pub(crate) struct Share {
    memory: Arc<ListMemory>,
    network: Network,
    grant: Option<Grant>,
    /// Bytes that the session needs in addition to what it covers or keeps.
    base: u64,
}

impl ListMemory {
    /// Creates a budget of `bytes` bytes; 0 for no limit.
    pub(crate) fn new(bytes: u64) -> Arc<Self> {
        Self::with_max_wait(bytes, MAX_WAIT)
    }

    fn with_max_wait(bytes: u64, max_wait: Duration) -> Arc<Self> {
        let network_limit = network_limit(bytes);
        let pot = Pot::with_limit(network_limit.saturating_mul(NETWORK_PART), network_limit);
        Arc::new(Self { pot, network_limit: AtomicU64::new(network_limit), max_wait })
    }

    /// Changes the budget. Sessions keep what they hold.
    pub(crate) fn resize(&self, bytes: u64) {
        let network_limit = network_limit(bytes);
        self.network_limit.store(network_limit, Ordering::Relaxed);
        self.pot.resize(network_limit.saturating_mul(NETWORK_PART), network_limit);
    }

    /// Returns the budget, and the bytes of it that sessions hold.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.pot.units(), self.pot.used())
    }

    /// Returns an empty share for a session of `network`.
    pub(crate) fn share(self: &Arc<Self>, network: Network) -> Share {
        Share { memory: Arc::clone(self), network, grant: None, base: 0 }
    }
}

/// Returns how many bytes of a budget of `bytes` bytes one network may hold.
fn network_limit(bytes: u64) -> u64 {
    // At least one step, so that short lists are always served.
    if bytes == 0 { u64::MAX / NETWORK_PART } else { (bytes / NETWORK_PART / STEP).max(1) * STEP }
}

impl Share {
    /// Sets the number of bytes that the session needs in addition to what it covers or keeps.
    pub(crate) fn set_base(&mut self, bytes: usize) {
        self.base = bytes as u64;
    }

    /// Makes sure that this session holds `bytes` bytes. Waits for other sessions if necessary. Fails if no
    /// memory becomes free in time, or one network may not hold that much.
    pub(crate) async fn cover(&mut self, bytes: usize) -> Result<(), Ended> {
        let (bytes, has) = (self.base.saturating_add(bytes as u64), self.bytes());
        if bytes <= has {
            return Ok(());
        }
        let more = (bytes - has).next_multiple_of(STEP);
        let ListMemory { pot, network_limit, max_wait } = &*self.memory;
        let grant = match has.checked_add(more) {
            Some(whole) if whole <= network_limit.load(Ordering::Relaxed) => {
                timeout(*max_wait, pot.take(self.network, more)).await.ok().flatten()
            }
            _ => None,
        };
        let grant = grant.ok_or(Ended::NoListMemory)?;
        match &mut self.grant {
            Some(held) => held.join(grant),
            None => self.grant = Some(grant),
        }
        Ok(())
    }

    /// Gives back all memory beyond `bytes` bytes.
    pub(crate) fn keep(&mut self, bytes: usize) {
        if let Some(grant) = &mut self.grant {
            grant.keep(self.base.saturating_add(bytes as u64).next_multiple_of(STEP));
        }
    }

    fn bytes(&self) -> u64 {
        self.grant.as_ref().map_or(0, Grant::units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::tests::network;

    const KIB: usize = 1 << 10;

    #[tokio::test]
    async fn all_sessions_together_stay_within_the_budget() {
        let memory = ListMemory::with_max_wait(256 * KIB as u64, Duration::from_millis(20));
        let mut shares: Vec<_> = (0..3).map(|at| memory.share(network(at))).collect();
        shares[0].cover(1).await.unwrap();
        assert_eq!(shares[0].bytes(), STEP);
        shares[0].cover(128 * KIB).await.unwrap();
        shares[1].cover(128 * KIB).await.unwrap();
        assert!(matches!(shares[2].cover(1).await, Err(Ended::NoListMemory)));
        shares[1].keep(KIB);
        shares[2].cover(64 * KIB).await.unwrap();
        shares.clear();
        memory.share(network(9)).cover(128 * KIB).await.unwrap();
    }

    #[tokio::test]
    async fn a_network_gets_at_most_half_and_a_session_that_needs_more_fails_at_once() {
        let memory = ListMemory::with_max_wait(256 * KIB as u64, Duration::MAX);
        assert!(matches!(memory.share(network(1)).cover(129 * KIB).await, Err(Ended::NoListMemory)));
        let mut first = memory.share(network(1));
        first.cover(128 * KIB).await.unwrap();
        memory.share(network(2)).cover(128 * KIB).await.unwrap();
    }

    #[tokio::test]
    async fn a_waiting_session_gets_what_another_gives_back() {
        let memory = ListMemory::with_max_wait(256 * KIB as u64, Duration::MAX);
        let mut first = memory.share(network(1));
        first.cover(128 * KIB).await.unwrap();
        let waits = tokio::spawn({
            let mut second = memory.share(network(1));
            async move { second.cover(64 * KIB).await }
        });
        memory.pot.is_short().await;
        drop(first);
        waits.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn without_a_limit_no_session_waits() {
        let memory = ListMemory::with_max_wait(0, Duration::MAX);
        let mut shares = [memory.share(network(1)), memory.share(network(1))];
        for share in &mut shares {
            share.cover(1 << 40).await.unwrap();
        }
    }
}
