//! Fair sharing of limited resources, in turns by network: a client that waits on many connections gets no
//! more turns than one that waits on one. A [`Pot`] holds the units of a resource, a [`Claim`] waits for some
//! of them, and a [`Grant`] holds them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use crate::networks::Network;

/// A queue in which networks take turns. Items of the same network are served in order of arrival.
pub(crate) struct Rotation<T> {
    order: VecDeque<Network>,
    waiting: HashMap<Network, VecDeque<(u64, T)>>,
    next: u64,
    len: usize,
}

impl<T> Default for Rotation<T> {
    fn default() -> Self {
        Self { order: VecDeque::new(), waiting: HashMap::new(), next: 0, len: 0 }
    }
}

impl<T> Rotation<T> {
    /// Adds an item to the queue and returns its number.
    pub(crate) fn push(&mut self, network: Network, item: T) -> u64 {
        let number = self.next;
        self.next += 1;
        self.len += 1;
        let own = self.waiting.entry(network).or_default();
        if own.is_empty() {
            self.order.push_back(network);
        }
        own.push_back((number, item));
        number
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the first network, in order of turns, whose first item `may` be served: its place in the
    /// order, and the item.
    fn first(&self, may: impl Fn(Network, &T) -> bool) -> Option<(usize, &T)> {
        self.order.iter().enumerate().find_map(|(place, network)| {
            let (_, item) = self.waiting.get(network)?.front()?;
            may(*network, item).then_some((place, item))
        })
    }

    /// Takes the first item of the network at `place` in the order. The network moves to the end of the
    /// order.
    fn take(&mut self, place: usize) -> Option<(Network, T)> {
        let network = self.order.remove(place)?;
        let own = self.waiting.get_mut(&network)?;
        let (_, item) = own.pop_front()?;
        self.len -= 1;
        if own.is_empty() {
            self.waiting.remove(&network);
        } else {
            self.order.push_back(network);
        }
        Some((network, item))
    }

    /// Removes an item from the queue.
    pub(crate) fn remove(&mut self, network: Network, number: u64) -> Option<T> {
        let own = self.waiting.get_mut(&network)?;
        let place = own.iter().position(|(other, _)| *other == number)?;
        let (_, item) = own.remove(place)?;
        self.len -= 1;
        if own.is_empty() {
            self.waiting.remove(&network);
            self.order.retain(|other| *other != network);
        }
        Some(item)
    }

    /// Returns how many items are served before this one if no others arrive.
    pub(crate) fn before(&self, network: Network, number: u64) -> usize {
        let own = self.waiting.get(&network);
        let Some(rounds) = own.and_then(|own| own.iter().position(|(other, _)| *other == number)) else { return 0 };
        let mut is_before = true;
        let counts = self.order.iter().map(|other| {
            if *other == network {
                is_before = false;
                return rounds;
            }
            let len = self.waiting.get(other).map_or(0, VecDeque::len);
            len.min(rounds + usize::from(is_before))
        });
        counts.sum()
    }

    /// Makes room for an item of `network`: removes the last item of the network that has the most, if it has
    /// at least two more than `network`.
    pub(crate) fn displace_for(&mut self, network: Network) -> Option<T> {
        let len = |network| self.waiting.get(network).map_or(0, VecDeque::len);
        let largest = *self.order.iter().max_by_key(|network| len(network))?;
        if len(&largest) < len(&network) + 2 {
            return None;
        }
        let (number, _) = self.waiting.get(&largest)?.back()?;
        self.remove(largest, *number)
    }
}

/// The units of a limited resource, and the queue for them.
pub(crate) struct Pot {
    state: Mutex<State>,
    /// The number of claims in the queue.
    waiting: watch::Sender<usize>,
}

struct State {
    /// How many units there are.
    units: u64,
    /// Maximum number of units that one network may hold.
    network_limit: u64,
    free: u64,
    /// How many of the units that are held vanish when they come back.
    excess: u64,
    held: HashMap<Network, u64>,
    claims: Rotation<(u64, oneshot::Sender<Grant>)>,
}

/// Units that somebody holds until this is dropped.
pub(crate) struct Grant {
    pot: Arc<Pot>,
    network: Network,
    units: u64,
}

/// A place in the queue for units. Dropping it gives up the place.
pub(crate) struct Claim {
    pot: Arc<Pot>,
    network: Network,
    number: u64,
    granted: oneshot::Receiver<Grant>,
}

impl Pot {
    /// Creates a pot of `units` units, all of which one network may hold.
    pub(crate) fn new(units: u64) -> Arc<Self> {
        Self::with_limit(units, units)
    }

    /// Creates a pot of `units` units, of which one network may hold at most `network_limit`.
    pub(crate) fn with_limit(units: u64, network_limit: u64) -> Arc<Self> {
        let (held, claims) = (HashMap::new(), Rotation::default());
        let state = State { units, network_limit, free: units, excess: 0, held, claims };
        Arc::new(Self { state: Mutex::new(state), waiting: watch::Sender::new(0) })
    }

    /// Changes how many units there are, and how many of them one network may hold. Units that are held stay held. If
    /// there are then too many, the next ones that come back vanish.
    pub(crate) fn resize(self: &Arc<Self>, units: u64, network_limit: u64) {
        let mut state = self.lock();
        let held = state.used();
        (state.units, state.network_limit) = (units, network_limit);
        (state.free, state.excess) = (units.saturating_sub(held), held.saturating_sub(units));
        drop(state);
        self.share_out();
    }

    /// Returns how many units there are.
    pub(crate) fn units(&self) -> u64 {
        self.lock().units
    }

    /// Returns how many units are held.
    pub(crate) fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Returns how many claims wait for units.
    pub(crate) fn waiting(&self) -> usize {
        *self.waiting.borrow()
    }

    /// Takes units if enough are free and nobody waits for any.
    pub(crate) fn try_take(self: &Arc<Self>, network: Network, units: u64) -> Option<Grant> {
        let mut state = self.lock();
        let may = state.claims.len() == 0 && state.may_have(network, units) && units <= state.free;
        may.then(|| self.grant(&mut state, network, units))
    }

    /// Waits for units. `None` if that is more than one network may hold.
    pub(crate) async fn take(self: &Arc<Self>, network: Network, units: u64) -> Option<Grant> {
        match self.try_take(network, units) {
            Some(grant) => Some(grant),
            None if units > self.lock().network_limit => None,
            None => self.claim(network, units, usize::MAX)?.granted().await,
        }
    }

    /// Joins the queue, which holds up to `queue_limit` claims. `None` if it is full and no other network has
    /// a place to give up.
    pub(crate) fn claim(self: &Arc<Self>, network: Network, units: u64, queue_limit: usize) -> Option<Claim> {
        let (sender, granted) = oneshot::channel();
        let mut state = self.lock();
        let displaced = if state.claims.len() < queue_limit { None } else { Some(state.claims.displace_for(network)?) };
        let number = state.claims.push(network, (units, sender));
        self.waiting.send_replace(state.claims.len());
        drop(state);
        drop(displaced);
        self.share_out();
        Some(Claim { pot: Arc::clone(self), network, number, granted })
    }

    /// Waits until somebody waits for units.
    pub(crate) async fn is_short(&self) {
        // This cannot fail: the pot owns the sender.
        let _ = self.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
    }

    /// Grants free units to the claims whose turn it is.
    fn share_out(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let may = |network, (units, _): &(u64, _)| state.may_have(network, *units);
            let Some((place, units)) = state.claims.first(may).map(|(place, (units, _))| (place, *units)) else {
                return;
            };
            // A large claim blocks the queue until its units are free. Otherwise smaller claims would always
            // overtake it.
            if units > state.free {
                return;
            }
            let Some((network, (units, sender))) = state.claims.take(place) else { return };
            let grant = self.grant(&mut state, network, units);
            self.waiting.send_replace(state.claims.len());
            drop(state);
            // If the receiver is gone, this returns the units.
            drop(sender.send(grant));
        }
    }

    fn grant(self: &Arc<Self>, state: &mut State, network: Network, units: u64) -> Grant {
        state.free -= units;
        *state.held.entry(network).or_default() += units;
        Grant { pot: Arc::clone(self), network, units }
    }

    fn give_back(self: &Arc<Self>, network: Network, units: u64) {
        if units == 0 {
            return;
        }
        let mut state = self.lock();
        let vanish = units.min(state.excess);
        state.excess -= vanish;
        state.free += units - vanish;
        if let Some(held) = state.held.get_mut(&network) {
            *held = held.saturating_sub(units);
            if *held == 0 {
                state.held.remove(&network);
            }
        }
        drop(state);
        self.share_out();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns how many units are held.
    fn used(&self) -> u64 {
        self.units + self.excess - self.free
    }

    fn may_have(&self, network: Network, units: u64) -> bool {
        self.held.get(&network).copied().unwrap_or(0).saturating_add(units) <= self.network_limit
    }
}

impl Grant {
    pub(crate) fn units(&self) -> u64 {
        self.units
    }

    /// Adds the units of another grant of the same network.
    pub(crate) fn join(&mut self, mut other: Self) {
        self.units += std::mem::take(&mut other.units);
    }

    /// Gives back all units except `units`.
    pub(crate) fn keep(&mut self, units: u64) {
        let over = self.units.saturating_sub(units);
        self.units -= over;
        self.pot.give_back(self.network, over);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.pot.give_back(self.network, self.units);
    }
}

impl Claim {
    /// Waits for the units. `None` if the claim was displaced by another network's.
    pub(crate) async fn granted(&mut self) -> Option<Grant> {
        (&mut self.granted).await.ok()
    }

    /// Returns how many claims are served before this one.
    pub(crate) fn before(&self) -> usize {
        self.pot.lock().claims.before(self.network, self.number)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.pot.lock();
        let was_waiting = state.claims.remove(self.network, self.number).is_some();
        self.pot.waiting.send_replace(state.claims.len());
        drop(state);
        if was_waiting {
            // It may have blocked smaller claims behind it.
            self.pot.share_out();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::networks::tests::network;

    #[test]
    fn networks_take_turns_however_many_items_each_has() {
        let mut rotation = Rotation::default();
        (0..5).for_each(|at| _ = rotation.push(network(1), (1, at)));
        (0..2).for_each(|at| _ = rotation.push(network(2), (2, at)));
        rotation.push(network(3), (3, 0));
        let turns: Vec<_> = std::iter::from_fn(|| rotation.take(0)).map(|(_, item)| item).collect();
        assert_eq!(turns, [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (1, 2), (1, 3), (1, 4)]);
        assert_eq!((rotation.len(), rotation.order.len(), rotation.waiting.len()), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn every_item_knows_how_many_are_served_before_it(
            arrivals in prop::collection::vec(0..6u8, 1..40),
            turns in 0..20usize,
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let mut rotation = Rotation::default();
            let mut all: Vec<_> = arrivals.iter().map(|&of| (network(of), rotation.push(network(of), of))).collect();
            (0..turns).for_each(|_| _ = rotation.take(0));
            for index in gone {
                let (network, number) = all[index.index(all.len())];
                rotation.remove(network, number);
            }
            all.retain(|(network, number)| {
                rotation.waiting.get(network).is_some_and(|own| own.iter().any(|(other, _)| other == number))
            });
            prop_assert_eq!(all.len(), rotation.len());
            let mut before: Vec<_> = all.iter().map(|&(network, number)| rotation.before(network, number)).collect();
            before.sort_unstable();
            prop_assert_eq!(before, (0..all.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn in_a_full_queue_a_network_with_two_more_items_is_displaced() {
        let mut rotation = Rotation::default();
        (0..3).for_each(|at| _ = rotation.push(network(1), at));
        assert_eq!(rotation.displace_for(network(1)), None);
        assert_eq!(rotation.displace_for(network(2)), Some(2));
        rotation.push(network(2), 9);
        assert_eq!(rotation.displace_for(network(2)), None);
        assert_eq!(rotation.displace_for(network(3)), Some(1));
    }

    #[tokio::test]
    async fn returned_units_go_to_each_network_in_turn() {
        let pot = Pot::new(1);
        let held = pot.take(network(1), 1).await.unwrap();
        let mut many: Vec<_> = (0..3).map(|_| pot.claim(network(1), 1, 10).unwrap()).collect();
        let mut one = pot.claim(network(2), 1, 10).unwrap();
        assert_eq!((many[0].before(), one.before(), many[1].before()), (0, 1, 2));
        drop(held);
        drop(many[0].granted().await.unwrap());
        let grant = one.granted().await.unwrap();
        assert!(pot.try_take(network(3), 1).is_none());
        drop((many, grant));
        assert!(pot.try_take(network(3), 1).is_some());
        assert!(pot.lock().held.is_empty() && pot.lock().free == 1);
    }

    #[tokio::test]
    async fn a_network_at_its_limit_waits_and_others_do_not() {
        let pot = Pot::with_limit(100, 50);
        let mut held = pot.take(network(1), 50).await.unwrap();
        let mut more = pot.claim(network(1), 10, 10).unwrap();
        assert!(pot.take(network(1), 51).await.is_none(), "more than the limit");
        let mut other = pot.claim(network(2), 40, 10).unwrap();
        let grant = other.granted().await.unwrap();
        held.keep(40);
        held.join(more.granted().await.unwrap());
        assert_eq!((held.units(), grant.units(), pot.lock().free), (50, 40, 10));
    }

    #[tokio::test]
    async fn an_abandoned_large_claim_lets_smaller_ones_pass() {
        let pot = Pot::new(10);
        let _held = pot.take(network(1), 5).await.unwrap();
        let much = pot.claim(network(2), 8, 10).unwrap();
        let mut little = pot.claim(network(3), 2, 10).unwrap();
        assert!(little.granted.try_recv().is_err(), "it is not its turn");
        drop(much);
        assert_eq!(little.granted().await.unwrap().units(), 2);
    }

    #[tokio::test]
    async fn units_granted_to_an_abandoned_claim_go_to_the_next() {
        let pot = Pot::new(1);
        let held = pot.take(network(1), 1).await.unwrap();
        let (gone, mut next) = (pot.claim(network(1), 1, 10).unwrap(), pot.claim(network(2), 1, 10).unwrap());
        drop(held);
        drop(gone);
        assert!(next.granted().await.is_some());
    }
}
