//! Work of cores for single stock clients: their rules, their names, their lists. A step of bounded size at a time, in turns
//! by network, and what is cheap does not wait for what is not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use crate::fair::Pot;
use crate::networks::Network;

/// Steps of comparison that the rules of one network may cost at once, beyond what honest ones cost: those of two
/// sessions that go to their limit, some ten seconds of a core.
const STEPS: u64 = 1 << 32;
/// How long it takes until as many are there again.
const REFILL: Duration = Duration::from_secs(60);
/// Networks that are remembered before those are forgotten that owe nothing any more.
const REMEMBERED: usize = 1024;

/// How much a client can make of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// What the index alone decides.
    Plain,
    /// The client's own rules, wildcards and names.
    Own,
}

/// Threads for it, of one repository.
pub(crate) struct Choosing {
    plain: Arc<Pot>,
    own: Arc<Pot>,
}

/// What the rules of each network have cost.
#[derive(Default)]
pub(crate) struct Accounts(Mutex<HashMap<Network, Account>>);

struct Account {
    owed: u64,
    at: Instant,
}

impl Choosing {
    /// Threads for each core, at most.
    pub(crate) const THREADS_OF_A_CORE: usize = 3;

    /// For so many cores.
    pub(crate) fn new(cores: usize) -> Self {
        // Some wait for a page of a list. Half of the cores are left to all else whatever clients ask for.
        let (plain, own) = (2 * cores as u64, (cores as u64 / 2).max(1));
        Self { plain: Pot::new(plain), own: Pot::new(own) }
    }

    /// Runs a step when it is this network's turn. Nothing comes of one that panicked. One that nobody waits for any more
    /// is never begun.
    pub(crate) async fn run<T, F>(&self, network: Network, effort: Effort, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let pot = match effort {
            Effort::Plain => &self.plain,
            Effort::Own => &self.own,
        };
        let turn = pot.take(network, 1).await?;
        let step = move || {
            let _turn = turn;
            work()
        };
        spawn_blocking(step).await.ok()
    }
}

impl Accounts {
    /// Charges steps to a network. Whether it has any left.
    pub(crate) fn charge(&self, network: Network, steps: u64, now: Instant) -> bool {
        let mut accounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts.len() >= REMEMBERED {
            accounts.retain(|_, account| account.owed_at(now) > 0);
        }
        let Some(account) = accounts.get_mut(&network) else {
            if steps > 0 {
                accounts.insert(network, Account { owed: steps, at: now });
            }
            return steps <= STEPS;
        };
        *account = Account { owed: account.owed_at(now).saturating_add(steps), at: now };
        account.owed <= STEPS
    }
}

impl Account {
    fn owed_at(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        let paid = passed / REFILL.as_secs_f64() * STEPS as f64;
        self.owed.saturating_sub(paid as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::networks::tests::network;

    #[tokio::test]
    async fn a_session_without_rules_waits_for_nobody_s_rules() {
        let choosing = Arc::new(Choosing::new(1));
        let (release, held) = mpsc::channel::<()>();
        let rules: Vec<_> = [mpsc::channel::<()>().1, held]
            .into_iter()
            .map(|held| {
                let choosing = Arc::clone(&choosing);
                tokio::spawn(async move { choosing.run(network(1), Effort::Own, move || held.recv()).await })
            })
            .collect();
        assert_eq!(choosing.run(network(1), Effort::Plain, || 7).await, Some(7));
        drop(release);
        for rules in rules {
            rules.await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_begun() {
        let choosing = Choosing::new(1);
        let turn = choosing.own.take(network(1), 1).await.unwrap();
        {
            let abandoned = choosing.run(network(2), Effort::Own, || panic!("its client has left"));
            assert!(tokio::time::timeout(Duration::from_millis(10), abandoned).await.is_err());
        }
        drop(turn);
        assert_eq!(choosing.run(network(1), Effort::Own, || 1).await, Some(1));
    }

    #[test]
    fn a_network_s_rules_have_one_budget_that_time_refills() {
        let (accounts, now) = (Accounts::default(), Instant::now());
        assert!(accounts.charge(network(1), STEPS, now));
        assert!(!accounts.charge(network(1), 1, now), "whatever session it is");
        assert!(accounts.charge(network(2), 1, now));
        assert!(!accounts.charge(network(1), STEPS / 2 + 1, now + REFILL / 2));
        assert!(accounts.charge(network(1), 0, now + REFILL));
    }

    #[test]
    fn networks_that_owe_nothing_are_forgotten() {
        let (accounts, now) = (Accounts::default(), Instant::now());
        for number in 0..=u8::MAX {
            accounts.charge(network(number), 0, now);
        }
        assert!(accounts.0.lock().unwrap().is_empty());
    }
}
