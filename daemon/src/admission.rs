//! Admission of sessions: a fixed number run at once, and a bounded queue holds those that wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Interval, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::fair::{Claim, Grant, Pot};
use crate::networks::Network;

/// How often a waiting connection is told its position in the queue.
const NEWS: Duration = Duration::from_secs(10);

/// A fixed number of session slots, and a bounded queue for them in which networks take turns.
pub(crate) struct Admission {
    sessions: Arc<Pot>,
    queue_limit: AtomicUsize,
}

/// A session's slot. Dropping it admits the next one in the queue.
pub(crate) struct Slot {
    _grant: Grant,
}

/// The outcome for a client that asks for a session.
pub(crate) enum Arrival {
    /// It has a slot.
    Admitted(Slot),
    /// It has a place in the queue.
    Queued(Ticket),
    /// The queue is full.
    Refused,
}

impl Admission {
    /// Admits up to `sessions` at once (at least one), and queues up to `queue` more.
    pub(crate) fn new(sessions: usize, queue: usize) -> Arc<Self> {
        Arc::new(Self { sessions: Pot::new(sessions.max(1) as u64), queue_limit: AtomicUsize::new(queue) })
    }

    /// Changes both limits. Sessions that run and connections that wait stay.
    pub(crate) fn resize(&self, sessions: usize, queue: usize) {
        let sessions = sessions.max(1) as u64;
        self.queue_limit.store(queue, Ordering::Relaxed);
        self.sessions.resize(sessions, sessions);
    }

    /// Returns how many slots there are, and how many of them are taken.
    pub(crate) fn slots(&self) -> (u64, u64) {
        (self.sessions.units(), self.sessions.used())
    }

    /// Returns how many clients wait for a slot.
    pub(crate) fn waiting(&self) -> usize {
        self.sessions.waiting()
    }

    /// Asks for a session slot.
    pub(crate) fn arrive(&self, network: Network) -> Arrival {
        if let Some(grant) = self.sessions.try_take(network, 1) {
            return Arrival::Admitted(Slot { _grant: grant });
        }
        match self.sessions.claim(network, 1, self.queue_limit.load(Ordering::Relaxed)) {
            Some(claim) => Arrival::Queued(Ticket { claim, news: interval(NEWS) }),
            None => Arrival::Refused,
        }
    }
}

/// A place in the queue. Dropping it gives it up.
pub(crate) struct Ticket {
    claim: Claim,
    news: Interval,
}

/// An event for a client in the queue.
pub(crate) enum Turn {
    /// It has a slot.
    Admitted(Slot),
    /// It still waits behind this many others. Reported at once, and then every [`NEWS`].
    Waiting(u64),
    /// Its place in the queue went to a network that has fewer places there.
    Displaced,
    /// The daemon is stopping.
    Stopping,
}

impl Ticket {
    /// Waits for the next event.
    pub(crate) async fn turn(&mut self, stopping: &CancellationToken) -> Turn {
        tokio::select! {
            biased;
            grant = self.claim.granted() => match grant {
                Some(grant) => Turn::Admitted(Slot { _grant: grant }),
                None => Turn::Displaced,
            },
            () = stopping.cancelled() => Turn::Stopping,
            _ = self.news.tick() => Turn::Waiting(self.claim.before() as u64),
        }
    }
}

/// How long a session may be idle. The timeout is shorter while others wait for a slot.
#[derive(Clone)]
pub(crate) struct IdleTimeout {
    pub(crate) max: Duration,
    pub(crate) in_demand: Duration,
    pub(crate) admission: Arc<Admission>,
}

impl IdleTimeout {
    /// Waits until a session that is idle from now on has been idle for too long.
    pub(crate) async fn expired(&self) {
        let min = self.in_demand.min(self.max);
        sleep(min).await;
        tokio::select! {
            () = self.admission.sessions.is_short() => {}
            () = sleep(self.max - min) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::tests::network;

    fn queued(arrival: Arrival) -> Option<Ticket> {
        if let Arrival::Queued(ticket) = arrival { Some(ticket) } else { None }
    }

    #[tokio::test]
    async fn a_network_with_many_waiting_connections_gets_no_more_turns_than_one_with_a_single_one() {
        let (admission, stopping) = (Admission::new(1, 100), CancellationToken::new());
        let Arrival::Admitted(held) = admission.arrive(network(1)) else { panic!("the first is admitted") };
        let mut many: Vec<_> = (0..50).filter_map(|_| queued(admission.arrive(network(1)))).collect();
        let mut one = queued(admission.arrive(network(2))).unwrap();
        drop(held);
        let Turn::Admitted(first) = many[0].turn(&stopping).await else { panic!("it is the first in the queue") };
        drop(first);
        assert!(matches!(one.turn(&stopping).await, Turn::Admitted(_)));
    }

    #[tokio::test]
    async fn a_queue_filled_by_one_network_has_room_for_another() {
        let (admission, stopping) = (Admission::new(1, 10), CancellationToken::new());
        let _held = admission.arrive(network(1));
        let mut many: Vec<_> = (0..10).filter_map(|_| queued(admission.arrive(network(1)))).collect();
        assert!(matches!(admission.arrive(network(1)), Arrival::Refused));
        let other = queued(admission.arrive(network(2)));
        assert!(other.is_some());
        assert!(matches!(many[9].turn(&stopping).await, Turn::Displaced));
        assert!(matches!(many[8].turn(&stopping).await, Turn::Waiting(_)));
    }

    #[tokio::test]
    async fn other_limits_admit_those_who_wait_and_end_no_session() {
        let (admission, stopping) = (Admission::new(1, 10), CancellationToken::new());
        let mut held = vec![admission.arrive(network(1))];
        let mut waiting: Vec<_> = (2..5).filter_map(|number| queued(admission.arrive(network(number)))).collect();
        admission.resize(3, 0);
        for _ in 0..2 {
            let Turn::Admitted(slot) = waiting.remove(0).turn(&stopping).await else { panic!("there is a slot") };
            held.push(Arrival::Admitted(slot));
        }
        assert!(matches!(admission.arrive(network(9)), Arrival::Refused), "the queue is full");
        admission.resize(1, 10);
        held.truncate(1);
        assert!(matches!(waiting[0].turn(&stopping).await, Turn::Waiting(0)), "the one session is still held");
        held.clear();
        assert!(matches!(waiting[0].turn(&stopping).await, Turn::Admitted(_)));
    }

    #[tokio::test]
    async fn the_idle_timeout_is_shorter_while_others_wait_for_a_slot() {
        let admission = Admission::new(1, 10);
        let _held = admission.arrive(network(1));
        let (max, in_demand) = (Duration::from_secs(3600), Duration::from_millis(1));
        let idle_timeout = IdleTimeout { max, in_demand, admission: Arc::clone(&admission) };
        let is_over = tokio::time::timeout(Duration::from_millis(50), idle_timeout.expired()).await;
        assert!(is_over.is_err(), "nobody waits");
        let _waits = admission.arrive(network(2));
        tokio::time::timeout(Duration::from_secs(60), idle_timeout.expired()).await.expect("somebody waits");
    }
}
