//! Back-off for failed logins. Each failure makes the next login from the same network wait, longer every
//! time. Other networks do not wait.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::networks::Network;

/// The number of failures without a delay, because people mistype.
const FREE: u32 = 2;
/// The delay after the first failure that has one. Each further failure doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// The longest delay after a failure.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(32);
/// The longest time that a login may wait for its turn. If it had to wait longer, it is refused.
const MAX_WAIT: Duration = Duration::from_secs(40);
/// How long failures are remembered after the last one.
const MEMORY: Duration = Duration::from_secs(15 * 60);
/// Maximum number of networks that are remembered. Beyond that, the one whose last failure is oldest is
/// forgotten.
const NETWORKS: usize = 4096;

/// The networks from which logins failed recently.
#[derive(Default)]
pub(crate) struct Logins(Mutex<HashMap<Network, Failures>>);

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
    /// When the next login may be checked.
    ready: Instant,
}

impl Failures {
    fn delay(&self) -> Duration {
        let costly = self.count.saturating_sub(FREE);
        let doublings = costly.saturating_sub(1).min(16);
        if costly == 0 { Duration::ZERO } else { (FIRST_DELAY * (1 << doublings)).min(MAX_DELAY) }
    }
}

impl Logins {
    /// Returns how long a login from `network` must wait before it is checked. `None` if so many wait already
    /// that it is refused. Logins from one network wait one behind the other.
    pub(crate) fn begin(&self, network: Network, now: Instant) -> Option<Duration> {
        let mut known = self.lock();
        let Some(failures) = known.get_mut(&network) else { return Some(Duration::ZERO) };
        let begin = failures.ready.max(now);
        let wait = begin - now;
        if wait > MAX_WAIT {
            return None;
        }
        failures.ready = begin + failures.delay();
        Some(wait)
    }

    /// Records a failed login.
    pub(crate) fn failed(&self, network: Network, now: Instant) {
        let mut known = self.lock();
        if known.len() >= NETWORKS && !known.contains_key(&network) {
            known.retain(|_, failures| now.saturating_duration_since(failures.last) < MEMORY);
            let oldest = known.iter().min_by_key(|(_, failures)| failures.last).map(|(network, _)| *network);
            if let Some(oldest) = oldest.filter(|_| known.len() >= NETWORKS) {
                known.remove(&oldest);
            }
        }
        let failures = known.entry(network).or_insert(Failures { count: 0, last: now, ready: now });
        if now.saturating_duration_since(failures.last) >= MEMORY {
            failures.count = 0;
        }
        (failures.count, failures.last) = (failures.count.saturating_add(1), now);
        failures.ready = failures.ready.max(now + failures.delay());
    }

    /// Records a successful login: earlier failures of the network are forgotten.
    pub(crate) fn succeeded(&self, network: Network) {
        self.lock().remove(&network);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Network, Failures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::config::Limits;
    use crate::networks::Networks;
    use crate::networks::tests::network;

    #[test]
    fn every_failure_delays_the_next_login_longer_but_not_those_of_other_networks() {
        let (logins, mut now) = (Logins::default(), Instant::now());
        let (one, other) = (network(1), network(2));
        let mut waits = Vec::new();
        for _ in 0..12 {
            let wait = logins.begin(one, now).unwrap();
            waits.push(wait.as_millis());
            now += wait;
            logins.failed(one, now);
        }
        assert_eq!(waits, [0, 0, 0, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 32_000, 32_000]);
        assert_eq!(logins.begin(other, now), Some(Duration::ZERO));
        logins.succeeded(one);
        assert_eq!(logins.begin(one, now), Some(Duration::ZERO));
    }

    #[test]
    fn logins_of_one_network_wait_behind_each_other_and_too_many_are_refused() {
        let (logins, now) = (Logins::default(), Instant::now());
        let one = network(1);
        (0..8).for_each(|_| logins.failed(one, now));
        let waits: Vec<_> = (0..4).map(|_| logins.begin(one, now).map(|wait| wait.as_secs())).collect();
        assert_eq!(waits, [Some(16), Some(32), None, None]);
        let later = now + Duration::from_secs(3600);
        logins.failed(one, later);
        assert_eq!(logins.begin(one, later), Some(Duration::ZERO), "old failures are forgotten");
    }

    #[test]
    fn the_number_of_remembered_networks_is_limited() {
        let (logins, now) = (Logins::default(), Instant::now());
        let networks = Networks::new(&Limits::default());
        for number in 0..2 * NETWORKS as u32 {
            let network = networks.of(IpAddr::V4(Ipv4Addr::from_bits(number)));
            logins.failed(network, now + Duration::from_millis(number.into()));
        }
        assert_eq!(logins.lock().len(), NETWORKS);
    }
}
