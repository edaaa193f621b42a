//! Connections that have not said hello yet, or have to say who they are: only so many, and the network that has the most of
//! them loses its oldest one first.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::networks::Network;

/// They are at most so many.
const STRANGERS: usize = 1024;

/// All of them.
pub(crate) struct Strangers {
    most: usize,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Only grows: no number ever stands for two of them.
    next: u64,
    /// The oldest first.
    by_number: BTreeMap<u64, (Network, CancellationToken)>,
    counts: HashMap<Network, usize>,
}

/// One of them, until dropped.
pub(crate) struct Stranger {
    strangers: Arc<Strangers>,
    number: u64,
    evicted: CancellationToken,
}

impl Default for Strangers {
    fn default() -> Self {
        Self { most: STRANGERS, known: Mutex::default() }
    }
}

impl Strangers {
    /// One more.
    pub(crate) fn add(self: &Arc<Self>, network: Network) -> Stranger {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, evicted) = (known.next, CancellationToken::new());
        known.next += 1;
        known.by_number.insert(number, (network, evicted.clone()));
        *known.counts.entry(network).or_default() += 1;
        if known.by_number.len() > self.most
            && let Some(oldest) = known.oldest_of_most()
        {
            oldest.cancel();
        }
        Stranger { strangers: Arc::clone(self), number, evicted }
    }
}

impl Known {
    /// Takes out the oldest one of the network that has the most.
    fn oldest_of_most(&mut self) -> Option<CancellationToken> {
        let most = *self.counts.values().max()?;
        let is_of_most = |network: &Network| self.counts.get(network) == Some(&most);
        let (&number, _) = self.by_number.iter().find(|(_, (network, _))| is_of_most(network))?;
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
    /// Waits until it has to go, because so many came after it.
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

    fn strangers(most: usize) -> Arc<Strangers> {
        Arc::new(Strangers { most, known: Mutex::default() })
    }

    #[test]
    fn the_end_of_one_who_was_evicted_takes_no_newcomer_off_the_list() {
        let strangers = strangers(1);
        let evicted = strangers.add(network(1));
        let second = strangers.add(network(1));
        assert!(evicted.evicted.is_cancelled());
        drop(second);
        // The list is empty, and a number that begins anew is that of the one who was evicted.
        let newcomer = strangers.add(network(1));
        drop(evicted);
        drop(strangers.add(network(1)));
        assert!(newcomer.evicted.is_cancelled(), "it is on the list");
    }

    #[test]
    fn the_oldest_one_of_the_network_that_has_the_most_goes_first() {
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
