//! Strangers: connections that have not sent their hello yet, or have not logged in. Their number is limited.
//! Beyond the limit, the network that has the most loses its oldest one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::networks::Network;

/// Maximum number of strangers.
const STRANGERS: usize = 1024;

/// All strangers.
pub(crate) struct Strangers {
    limit: usize,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Only grows, so that a number is never reused.
    next: u64,
    /// Oldest first.
    by_number: BTreeMap<u64, (Network, CancellationToken)>,
    counts: HashMap<Network, usize>,
}

/// A connection that counts as a stranger until this is dropped.
pub(crate) struct Stranger {
    strangers: Arc<Strangers>,
    number: u64,
    evicted: CancellationToken,
}

impl Default for Strangers {
    fn default() -> Self {
        Self { limit: STRANGERS, known: Mutex::default() }
    }
}

impl Strangers {
    /// Returns how many strangers there may be, and how many there are.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.limit, self.known.lock().unwrap_or_else(PoisonError::into_inner).by_number.len())
    }

    /// Adds a stranger, and evicts one if there are too many.
    pub(crate) fn add(self: &Arc<Self>, network: Network) -> Stranger {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, evicted) = (known.next, CancellationToken::new());
        known.next += 1;
        known.by_number.insert(number, (network, evicted.clone()));
        *known.counts.entry(network).or_default() += 1;
        if known.by_number.len() > self.limit
            && let Some(oldest) = known.take_oldest_of_largest()
        {
            oldest.cancel();
        }
        Stranger { strangers: Arc::clone(self), number, evicted }
    }
}

impl Known {
    /// Removes the oldest stranger of the network that has the most.
    fn take_oldest_of_largest(&mut self) -> Option<CancellationToken> {
        let most = *self.counts.values().max()?;
        let is_largest = |network: &Network| self.counts.get(network) == Some(&most);
        let (&number, _) = self.by_number.iter().find(|(_, (network, _))| is_largest(network))?;
        self.remove(number)
    }

    fn remove(&mut self, number: u64) -> Option<CancellationToken> {
        let (network, evicted) = self.by_number.remove(&number)?;
        if let Some(count) = self.counts.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&network);
            }
        }
        Some(evicted)
    }
}

impl Stranger {
    /// Waits until this connection is evicted.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut known = self.strangers.known.lock().unwrap_or_else(PoisonError::into_inner);
        drop(known.remove(self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::tests::network;

    fn strangers(limit: usize) -> Arc<Strangers> {
        Arc::new(Strangers { limit, known: Mutex::default() })
    }

    #[test]
    fn dropping_an_evicted_stranger_does_not_remove_a_newcomer() {
        let strangers = strangers(1);
        let evicted = strangers.add(network(1));
        let second = strangers.add(network(1));
        assert!(evicted.evicted.is_cancelled());
        drop(second);
        // The list is empty now. If numbers started again, the newcomer would get that of the evicted one.
        let newcomer = strangers.add(network(1));
        drop(evicted);
        drop(strangers.add(network(1)));
        assert!(newcomer.evicted.is_cancelled(), "it is on the list");
    }

    #[test]
    fn the_oldest_stranger_of_the_largest_network_is_evicted_first() {
        let strangers = strangers(4);
        let oldest = strangers.add(network(1));
        let many: Vec<_> = (0..3).map(|_| strangers.add(network(2))).collect();
        let other = strangers.add(network(3));
        let gone: Vec<_> = many.iter().map(|stranger| stranger.evicted.is_cancelled()).collect();
        assert_eq!(gone, [true, false, false]);
        assert!(!oldest.evicted.is_cancelled() && !other.evicted.is_cancelled());
        drop((oldest, many, other));
        let known = strangers.known.lock().unwrap();
        assert!(known.by_number.is_empty() && known.counts.is_empty());
    }
}
