//! CPU-bound work for single stock clients: their rules, their names, their lists. It runs in steps of
//! bounded size, in turns by network, and cheap steps do not wait for expensive ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use crate::background;
use crate::fair::Pot;
use crate::networks::Network;

/// The budget of comparison steps for the rules of one network, beyond what honest rules cost. Two sessions
/// that go to their limit spend it; that is some ten seconds of one core.
const STEPS: u64 = 1 << 32;
/// How long an empty budget takes to refill.
const REFILL: Duration = Duration::from_secs(60);
/// The number of accounts from which on those that owe nothing are removed.
const REMEMBERED: usize = 1024;

/// How expensive a client can make a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// The index alone determines the cost.
    Plain,
    /// The client's own rules, wildcards and names determine the cost. Runs at low priority.
    Own,
}

/// The threads of one repository for such work.
pub(crate) struct Choosing {
    plain: Arc<Pot>,
    own: Arc<Pot>,
}

/// The comparison steps that the rules of each network have cost.
#[derive(Default)]
pub(crate) struct Accounts(Mutex<HashMap<Network, Account>>);

struct Account {
    owed: u64,
    at: Instant,
}

impl Choosing {
    /// Maximum number of threads for each core.
    pub(crate) const THREADS_PER_CORE: usize = 3;

    /// Creates pools of threads for `cores` cores.
    pub(crate) fn new(cores: usize) -> Self {
        // There are more plain steps than cores, since some wait for a page of a list. Clients' own rules get
        // at most half of the cores, so that the other half is left for everything else.
        let (plain, own) = (2 * cores as u64, (cores as u64 / 2).max(1));
        Self { plain: Pot::new(plain), own: Pot::new(own) }
    }

    /// Runs a step when it is this network's turn. `None` if the step panicked. If the caller stops waiting,
    /// the step is never started.
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
        match effort {
            Effort::Plain => spawn_blocking(step).await.ok(),
            Effort::Own => background::spawn(step).await.ok(),
        }
    }
}

impl Accounts {
    /// Charges steps to a network, and returns whether it is still within its budget.
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
    async fn a_session_without_rules_does_not_wait_for_other_clients_rules() {
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
    async fn an_abandoned_step_is_not_started() {
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
    fn the_rules_of_a_network_share_one_budget_that_refills_over_time() {
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
