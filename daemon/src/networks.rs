//! Which addresses count as one client, and how many connections each of them has.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Limits;

/// Connections over the limit of one network that are told so at a time. More are closed at once: to be told takes a
/// socket for a while.
const TOLD: usize = 16;

/// The addresses with one prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Network(IpAddr);

/// The connections of each network.
pub(crate) struct Networks {
    ipv4_prefix: u8,
    ipv6_prefix: u8,
    /// Of one network; 0 for no limit.
    most: usize,
    open: Mutex<HashMap<Network, Open>>,
}

/// What one network has open.
#[derive(Debug, Default, PartialEq, Eq)]
struct Open {
    connections: usize,
    /// Connections that are being told that there are too many.
    told: usize,
    /// The log has said it.
    is_logged: bool,
}

/// A connection that counts for its network, until dropped.
pub(crate) struct Connection {
    networks: Arc<Networks>,
    pub(crate) network: Network,
    is_over: bool,
}

impl Networks {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        let Limits { connections_per_address: most, ipv4_prefix, ipv6_prefix, .. } = *limits;
        Arc::new(Self { ipv4_prefix, ipv6_prefix, most, open: Mutex::default() })
    }

    /// The network of an address.
    pub(crate) fn of(&self, address: IpAddr) -> Network {
        Network(match address.to_canonical() {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.ipv4_prefix.min(32))).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.ipv6_prefix.min(128))).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        })
    }

    /// The most connections of one network.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Counts a connection from that address; none for one that is to be closed without a word.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Connection> {
        let network = self.of(address);
        let mut open = self.lock();
        let counts = open.entry(network).or_default();
        let is_over = self.most > 0 && counts.connections >= self.most;
        if is_over && counts.told >= TOLD {
            return None;
        }
        if is_over && !std::mem::replace(&mut counts.is_logged, true) {
            tracing::warn!(%address, connections = counts.connections, "more connections from one address than it may have");
        }
        *(if is_over { &mut counts.told } else { &mut counts.connections }) += 1;
        Some(Connection { networks: Arc::clone(self), network, is_over })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Network, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Whether it is one more than its network may have: all it may get is to be told so.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.networks.lock();
        let Some(counts) = open.get_mut(&self.network) else { return };
        let count = if self.is_over { &mut counts.told } else { &mut counts.connections };
        *count = count.saturating_sub(1);
        if counts.connections + counts.told == 0 {
            open.remove(&self.network);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The networks of 10.0.0.0, 10.0.0.1, …
    pub(crate) fn network(number: u8) -> Network {
        Network(IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)))
    }

    fn networks(limits: Limits) -> Arc<Networks> {
        Networks::new(&limits)
    }

    #[test]
    fn an_address_counts_with_those_of_its_prefix() {
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
    fn a_network_has_so_many_connections_and_no_more_until_one_ends() {
        let networks = networks(Limits { connections_per_address: 2, ..Limits::default() });
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let enter = |address| networks.enter(address);
        let mut held: Vec<_> = (0..2).filter_map(|_| enter(one)).collect();
        assert!(held.len() == 2 && !held.iter().any(Connection::is_over));
        let told: Vec<_> = (0..TOLD).filter_map(|_| enter(one)).collect();
        assert!(told.len() == TOLD && told.iter().all(Connection::is_over));
        assert!(enter(one).is_none(), "nobody else is even told");
        assert!(enter(other).is_some_and(|connection| !connection.is_over()));
        held.pop();
        assert!(enter(one).is_some_and(|connection| !connection.is_over()));
        drop((held, told));
        assert!(networks.lock().is_empty(), "nothing is remembered of who has left");
    }

    #[test]
    fn without_a_limit_every_connection_is_let_in() {
        let networks = networks(Limits { connections_per_address: 0, ..Limits::default() });
        let held: Vec<_> = (0..5000).filter_map(|_| networks.enter("192.0.2.1".parse().unwrap())).collect();
        assert!(held.len() == 5000 && !held.iter().any(Connection::is_over));
    }
}
