//! Failed logins: each makes the next one from the same address wait, longer every time. Nobody else waits for them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Failures that cost no time: people mistype.
const FREE: u32 = 2;
/// What the first one costs that does; each further one costs twice as much.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// The longest delay of one login.
pub(crate) const LONGEST_DELAY: Duration = Duration::from_secs(32);
/// The longest wait of a login for its turn: beyond that it is refused.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long failures are remembered after the last one.
const MEMORY: Duration = Duration::from_secs(15 * 60);
/// Addresses that are remembered. One more forgets the one that failed longest ago.
const ADDRESSES: usize = 4096;

/// The addresses from which logins failed lately.
#[derive(Default)]
pub(crate) struct Logins(Mutex<HashMap<IpAddr, Failures>>);

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
    /// When the next login may be looked at.
    ready: Instant,
}

impl Failures {
    fn delay(&self) -> Duration {
        let costly = self.count.saturating_sub(FREE);
        let doublings = costly.saturating_sub(1).min(16);
        if costly == 0 { Duration::ZERO } else { (FIRST_DELAY * (1 << doublings)).min(LONGEST_DELAY) }
    }
}

impl Logins {
    /// How long a login from this address waits before it is looked at; none when so many wait already that it is
    /// refused. Those of one address wait one behind the other.
    pub(crate) fn begin(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let mut known = self.lock();
        let Some(failures) = known.get_mut(&origin(address)) else { return Some(Duration::ZERO) };
        let begin = failures.ready.max(now);
        let wait = begin - now;
        if wait > PATIENCE {
            return None;
        }
        failures.ready = begin + failures.delay();
        Some(wait)
    }

    /// A login from this address failed.
    pub(crate) fn failed(&self, address: IpAddr, now: Instant) {
        let (mut known, address) = (self.lock(), origin(address));
        if known.len() >= ADDRESSES && !known.contains_key(&address) {
            known.retain(|_, failures| now.saturating_duration_since(failures.last) < MEMORY);
            let oldest = known.iter().min_by_key(|(_, failures)| failures.last).map(|(address, _)| *address);
            if let Some(oldest) = oldest.filter(|_| known.len() >= ADDRESSES) {
                known.remove(&oldest);
            }
        }
        let failures = known.entry(address).or_insert(Failures { count: 0, last: now, ready: now });
        if now.saturating_duration_since(failures.last) >= MEMORY {
            failures.count = 0;
        }
        (failures.count, failures.last) = (failures.count.saturating_add(1), now);
        failures.ready = failures.ready.max(now + failures.delay());
    }

    /// A login from this address succeeded: what failed before is forgotten.
    pub(crate) fn succeeded(&self, address: IpAddr) {
        self.lock().remove(&origin(address));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Failures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address that failures are counted for: of an IPv6 client its network of 64 bits, out of which it has any number.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_failure_delays_the_next_login_of_its_address_longer_and_no_other() {
        let (logins, mut now) = (Logins::default(), Instant::now());
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
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
    fn logins_of_one_address_wait_behind_each_other_and_too_many_are_refused() {
        let (logins, now) = (Logins::default(), Instant::now());
        let one = address("192.0.2.1");
        (0..8).for_each(|_| logins.failed(one, now));
        let waits: Vec<_> = (0..4).map(|_| logins.begin(one, now).map(|wait| wait.as_secs())).collect();
        assert_eq!(waits, [Some(16), Some(32), None, None]);
        let later = now + Duration::from_secs(3600);
        logins.failed(one, later);
        assert_eq!(logins.begin(one, later), Some(Duration::ZERO), "old failures are forgotten");
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_and_an_ipv4_client_is_itself() {
        let (logins, now) = (Logins::default(), Instant::now());
        (1..=4).for_each(|host| logins.failed(address(&format!("2001:db8::{host}")), now));
        assert_ne!(logins.begin(address("2001:db8::99"), now), Some(Duration::ZERO));
        assert_eq!(logins.begin(address("2001:db8:0:1::1"), now), Some(Duration::ZERO));
        (1..=4).for_each(|_| logins.failed(address("::ffff:192.0.2.1"), now));
        assert_ne!(logins.begin(address("192.0.2.1"), now), Some(Duration::ZERO));
        assert_eq!(logins.begin(address("::ffff:192.0.2.2"), now), Some(Duration::ZERO));
    }

    #[test]
    fn no_more_addresses_are_remembered_than_may_be() {
        let (logins, now) = (Logins::default(), Instant::now());
        for number in 0..2 * ADDRESSES as u32 {
            logins.failed(IpAddr::from(number.to_be_bytes()), now + Duration::from_millis(number.into()));
        }
        assert_eq!(logins.lock().len(), ADDRESSES);
    }
}
