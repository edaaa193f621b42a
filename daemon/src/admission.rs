//! Who may have a session, and who waits for one.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, interval};
use tokio_util::sync::CancellationToken;

/// How often a waiting connection is told its place.
const NEWS: Duration = Duration::from_secs(10);

/// A fixed number of sessions, and a bounded queue for them, in the order of arrival.
pub(crate) struct Admission {
    sessions: Arc<Semaphore>,
    queue_limit: usize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    next: u64,
    tickets: BTreeSet<u64>,
}

/// A session's place. Dropping it lets the next one in.
pub(crate) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

/// What an arrival gets.
pub(crate) enum Arrival {
    /// A session.
    Admitted(Place),
    /// A place in the queue.
    Queued(Ticket),
    /// Neither.
    Refused,
}

impl Admission {
    /// `sessions` at once, at most `queue` waiting.
    pub(crate) fn new(sessions: usize, queue: usize) -> Arc<Self> {
        let sessions = Arc::new(Semaphore::new(sessions.clamp(1, Semaphore::MAX_PERMITS)));
        Arc::new(Self { sessions, queue_limit: queue, queue: Mutex::default() })
    }

    /// Asks for a session.
    pub(crate) fn arrive(self: &Arc<Self>) -> Arrival {
        if let Ok(permit) = Arc::clone(&self.sessions).try_acquire_owned() {
            return Arrival::Admitted(Place { _permit: Some(permit) });
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.tickets.len() >= self.queue_limit {
            return Arrival::Refused;
        }
        let number = queue.next;
        queue.next += 1;
        queue.tickets.insert(number);
        let admitted = Box::pin(Arc::clone(&self.sessions).acquire_owned());
        Arrival::Queued(Ticket { admission: Arc::clone(self), number, admitted, news: interval(NEWS) })
    }
}

/// A place in the queue. Dropping it gives it up.
pub(crate) struct Ticket {
    admission: Arc<Admission>,
    number: u64,
    admitted: Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>,
    news: Interval,
}

/// What happens to one who waits.
pub(crate) enum Turn {
    /// A session.
    Come(Place),
    /// Still so many before this one: told at once, and every [`NEWS`].
    Waiting(u64),
    /// The daemon stops.
    Stopping,
}

impl Ticket {
    /// Waits for what happens next. To be asked from the first moment on: the order is that of the first asking.
    pub(crate) async fn turn(&mut self, stopping: &CancellationToken) -> Turn {
        tokio::select! {
            biased;
            permit = &mut self.admitted => Turn::Come(Place { _permit: permit.ok() }),
            () = stopping.cancelled() => Turn::Stopping,
            _ = self.news.tick() => Turn::Waiting(self.place()),
        }
    }

    /// Connections that wait before this one.
    fn place(&self) -> u64 {
        let queue = self.admission.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.tickets.range(..self.number).count() as u64
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queue = self.admission.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.tickets.remove(&self.number);
    }
}
