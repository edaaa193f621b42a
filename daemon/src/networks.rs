//! Networks: groups of addresses that count as one client, and the number of connections that each has.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Limits;

/// Maximum number of connections over a network's limit that get an error message at a time. More are closed
/// without one, because each message occupies a socket for a while.
const MAX_REFUSALS: usize = 16;

/// All addresses with the same prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Network(IpAddr);

/// The connections of all networks.
pub(crate) struct Networks {
    ipv4_prefix: AtomicU8,
    ipv6_prefix: AtomicU8,
    /// Maximum number of connections of one network; 0 for no limit.
    limit: AtomicUsize,
    open: Mutex<HashMap<Network, Open>>,
}

/// The open connections of one network.
#[derive(Debug, Default, PartialEq, Eq)]
struct Open {
    connections: usize,
    /// Connections over the limit that are being sent an error message.
    refusals: usize,
    /// Whether it was logged that the network reached its limit.
    is_logged: bool,
}

/// A connection that counts for its network until this is dropped.
pub(crate) struct Connection {
    networks: Arc<Networks>,
    pub(crate) network: Network,
    is_over: bool,
}

impl Networks {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        let Limits { connections_per_address, ipv4_prefix, ipv6_prefix, .. } = *limits;
        let limit = AtomicUsize::new(connections_per_address);
        let (ipv4_prefix, ipv6_prefix) = (AtomicU8::new(ipv4_prefix), AtomicU8::new(ipv6_prefix));
        Arc::new(Self { ipv4_prefix, ipv6_prefix, limit, open: Mutex::default() })
    }

    /// Changes the limits. A connection that is open counts for the network that it had when it was opened.
    pub(crate) fn resize(&self, limits: &Limits) {
        self.limit.store(limits.connections_per_address, Ordering::Relaxed);
        self.ipv4_prefix.store(limits.ipv4_prefix, Ordering::Relaxed);
        self.ipv6_prefix.store(limits.ipv6_prefix, Ordering::Relaxed);
    }

    /// Returns the network of an address.
    pub(crate) fn of(&self, address: IpAddr) -> Network {
        Network(match address.to_canonical() {
            IpAddr::V4(address) => {
                let prefix = self.ipv4_prefix.load(Ordering::Relaxed).min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let prefix = self.ipv6_prefix.load(Ordering::Relaxed).min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        })
    }

    /// Returns the maximum number of connections of one network.
    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Returns the number of open connections, and of networks that have any.
    pub(crate) fn open(&self) -> (usize, usize) {
        let open = self.lock();
        (open.values().map(|open| open.connections).sum(), open.len())
    }

    /// Counts a connection from `address`. `None` if it must be closed without an error message.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Connection> {
        let network = self.of(address);
        let mut open = self.lock();
        let counts = open.entry(network).or_default();
        let limit = self.limit();
        let is_over = limit > 0 && counts.connections >= limit;
        if is_over && counts.refusals >= MAX_REFUSALS {
            return None;
        }
        if is_over && !std::mem::replace(&mut counts.is_logged, true) {
            tracing::warn!(%address, connections = counts.connections, "too many connections from one address");
        }
        *(if is_over { &mut counts.refusals } else { &mut counts.connections }) += 1;
        Some(Connection { networks: Arc::clone(self), network, is_over })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Network, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Returns whether this connection exceeds its network's limit. If so, it only gets an error message.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.networks.lock();
        let Some(counts) = open.get_mut(&self.network) else { return };
        let count = if self.is_over { &mut counts.refusals } else { &mut counts.connections };
        *count = count.saturating_sub(1);
        if counts.connections + counts.refusals == 0 {
            open.remove(&self.network);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns the network of the address 10.0.0.`number`.
    pub(crate) fn network(number: u8) -> Network {
        Network(IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)))
    }

    fn networks(limits: Limits) -> Arc<Networks> {
        Networks::new(&limits)
    }

    #[test]
    fn addresses_with_the_same_prefix_are_one_network() {
        let of = |networks: &Networks, address: &str| networks.of(address.parse().unwrap());
        let by_default = networks(Limits::default());
        assert_ne!(of(&by_default, "192.0.2.1"), of(&by_default, "192.0.2.2"));
        assert_eq!(of(&by_default, "192.0.2.1"), of(&by_default, "::ffff:192.0.2.1"));
        assert_eq!(of(&by_default, "2001:db8:0:1::1"), of(&by_default, "2001:db8:0:1:ffff::2"));
        assert_ne!(of(&by_default, "2001:db8:0:1::1"), of(&by_default, "2001:db8:0:2::1"));
        let wide = networks(Limits { ipv4_prefix: 24, ipv6_prefix: 48, ..Limits::default() });
        assert_eq!(of(&wide, "192.0.2.1"), of(&wide, "192.0.2.200"));
        assert_eq!(of(&wide, "2001:db8:0:1::1"), of(&wide, "2001:db8:0:2::1"));
        let all = networks(Limits { ipv4_prefix: 0, ipv6_prefix: 0, ..Limits::default() });
        assert_eq!(of(&all, "192.0.2.1"), of(&all, "198.51.100.1"));
        assert_eq!(of(&all, "2001:db8::1"), of(&all, "::1"));
    }

    #[test]
    fn a_network_at_its_limit_gets_no_connection_until_one_ends() {
        let networks = networks(Limits { connections_per_address: 2, ..Limits::default() });
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let enter = |address| networks.enter(address);
        let mut held: Vec<_> = (0..2).filter_map(|_| enter(one)).collect();
        assert!(held.len() == 2 && !held.iter().any(Connection::is_over));
        let refused: Vec<_> = (0..MAX_REFUSALS).filter_map(|_| enter(one)).collect();
        assert!(refused.len() == MAX_REFUSALS && refused.iter().all(Connection::is_over));
        assert!(enter(one).is_none(), "no more error messages");
        assert!(enter(other).is_some_and(|connection| !connection.is_over()));
        held.pop();
        assert!(enter(one).is_some_and(|connection| !connection.is_over()));
        drop((held, refused));
        assert!(networks.lock().is_empty(), "closed connections leave nothing behind");
    }

    #[test]
    fn without_a_limit_every_connection_is_admitted() {
        let networks = networks(Limits { connections_per_address: 0, ..Limits::default() });
        let held: Vec<_> = (0..5000).filter_map(|_| networks.enter("192.0.2.1".parse().unwrap())).collect();
        assert!(held.len() == 5000 && !held.iter().any(Connection::is_over));
    }
}
