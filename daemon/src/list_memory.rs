//! Memory for lists that are one client's own: what it asked for by name, and which row each index of its list means. One
//! budget for all sessions.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::ended::Ended;
use crate::fair::{Grant, Pot};
use crate::networks::Network;

/// Bytes that are taken at a time.
const STEP: u64 = 64 << 10;
/// The part of all that one network may have.
const PART: u64 = 2;
/// How long a session waits for memory: a list that others hold may take them hours.
const PATIENCE: Duration = Duration::from_secs(60);

/// The budget.
pub(crate) struct ListMemory {
    pot: Arc<Pot>,
    /// Bytes that one network may have.
    most: u64,
    patience: Duration,
}

/// What one session has of it, until dropped.
pub(crate) struct Share {
    memory: Arc<ListMemory>,
    network: Network,
    grant: Option<Grant>,
    /// Bytes that it needs whatever else it needs.
    base: u64,
}

impl ListMemory {
    /// A budget of so many bytes; 0 for no limit.
    pub(crate) fn new(bytes: u64) -> Arc<Self> {
        Self::with_patience(bytes, PATIENCE)
    }

    fn with_patience(bytes: u64, patience: Duration) -> Arc<Self> {
        // One step in any case, so that short lists are always served.
        let most = if bytes == 0 { u64::MAX / PART } else { (bytes / PART / STEP).max(1) * STEP };
        Arc::new(Self { pot: Pot::with_limit(most.saturating_mul(PART), most), most, patience })
    }

    /// Nothing of it, for a session of that network.
    pub(crate) fn share(self: &Arc<Self>, network: Network) -> Share {
        Share { memory: Arc::clone(self), network, grant: None, base: 0 }
    }
}

impl Share {
    /// From now on it needs so many bytes beside what it is asked to cover or to keep.
    pub(crate) fn set_base(&mut self, bytes: usize) {
        self.base = bytes as u64;
    }

    /// Sees to it that this session has so many bytes. Waits for those of others.
    pub(crate) async fn cover(&mut self, bytes: usize) -> Result<(), Ended> {
        let (bytes, has) = (self.base.saturating_add(bytes as u64), self.bytes());
        if bytes <= has {
            return Ok(());
        }
        let more = (bytes - has).next_multiple_of(STEP);
        let ListMemory { pot, most, patience } = &*self.memory;
        let grant = match has.checked_add(more) {
            Some(whole) if whole <= *most => timeout(*patience, pot.take(self.network, more)).await.ok().flatten(),
            _ => None,
        };
        let grant = grant.ok_or(Ended::NoListMemory)?;
        match &mut self.grant {
            Some(held) => held.join(grant),
            None => self.grant = Some(grant),
        }
        Ok(())
    }

    /// Gives back what is over so many bytes.
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
    async fn sessions_have_no_more_together_than_there_is() {
        let memory = ListMemory::with_patience(256 * KIB as u64, Duration::from_millis(20));
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
    async fn one_network_has_half_of_it_at_the_most_and_a_session_that_needs_more_hears_so_at_once() {
        let memory = ListMemory::with_patience(256 * KIB as u64, Duration::MAX);
        assert!(matches!(memory.share(network(1)).cover(129 * KIB).await, Err(Ended::NoListMemory)));
        let mut first = memory.share(network(1));
        first.cover(128 * KIB).await.unwrap();
        memory.share(network(2)).cover(128 * KIB).await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_gets_what_another_gives_back() {
        let memory = ListMemory::with_patience(256 * KIB as u64, Duration::MAX);
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
    async fn without_a_limit_nobody_waits() {
        let memory = ListMemory::with_patience(0, Duration::MAX);
        let mut shares = [memory.share(network(1)), memory.share(network(1))];
        for share in &mut shares {
            share.cover(1 << 40).await.unwrap();
        }
    }
}
