//! Permits whose number can change while some of them are held.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

/// The maximum number of permits: what one call can acquire.
const MAX: usize = u32::MAX as usize;

/// A number of permits. If the number shrinks, those that are held are withdrawn as they come back.
#[derive(Debug)]
pub(crate) struct Permits {
    semaphore: Arc<Semaphore>,
    number: Mutex<Number>,
}

#[derive(Debug)]
struct Number {
    /// How many there are.
    actual: usize,
    /// How many there should be.
    wanted: usize,
    /// Whether a task withdraws permits.
    is_shrinking: bool,
}

impl Permits {
    /// Creates `number` permits.
    pub(crate) fn new(number: usize) -> Arc<Self> {
        let number = number.min(MAX);
        let state = Number { actual: number, wanted: number, is_shrinking: false };
        Arc::new(Self { semaphore: Arc::new(Semaphore::new(number)), number: Mutex::new(state) })
    }

    /// Returns the semaphore that hands out the permits.
    pub(crate) fn semaphore(&self) -> &Arc<Semaphore> {
        &self.semaphore
    }

    /// Changes how many permits there are. More are available at once. If fewer are wanted than are held, no one gets a
    /// permit until so many have come back.
    pub(crate) fn resize(self: &Arc<Self>, number: usize) {
        let mut state = self.lock();
        state.wanted = number.min(MAX);
        if state.actual < state.wanted {
            self.semaphore.add_permits(state.wanted - state.actual);
            state.actual = state.wanted;
            return;
        }
        state.actual -= self.semaphore.forget_permits(state.actual - state.wanted);
        if state.actual > state.wanted && !std::mem::replace(&mut state.is_shrinking, true) {
            let permits = Arc::clone(self);
            tokio::spawn(async move { permits.shrink().await });
        }
    }

    /// Withdraws permits as they come back, for as long as there are more than are wanted.
    async fn shrink(&self) {
        while self.has_excess() {
            // The semaphore is never closed.
            let Ok(permit) = self.semaphore.acquire().await else { return };
            let mut state = self.lock();
            // More may be wanted by now.
            if state.actual > state.wanted {
                permit.forget();
                state.actual -= 1;
            }
        }
    }

    /// Returns whether there are more permits than are wanted. If not, no task withdraws permits any more.
    fn has_excess(&self) -> bool {
        let mut state = self.lock();
        state.is_shrinking = state.actual > state.wanted;
        state.is_shrinking
    }

    fn lock(&self) -> MutexGuard<'_, Number> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn held_permits_are_withdrawn_as_they_come_back() {
        let permits = Permits::new(4);
        let mut held: Vec<_> = (0..4).map(|_| permits.semaphore().try_acquire().unwrap()).collect();
        permits.resize(2);
        held.truncate(2);
        while permits.lock().is_shrinking {
            tokio::task::yield_now().await;
        }
        assert_eq!(permits.semaphore().available_permits(), 0);
        held.clear();
        assert_eq!(permits.semaphore().available_permits(), 2);
    }

    #[tokio::test]
    async fn a_number_that_grows_again_leaves_what_is_held_alone() {
        let permits = Permits::new(3);
        let held = permits.semaphore().try_acquire_many(3).unwrap();
        permits.resize(1);
        permits.resize(5);
        let more = permits.semaphore().acquire_many(2).await.unwrap();
        assert!(permits.semaphore().try_acquire().is_err());
        drop((held, more));
        drop(permits.semaphore().acquire_many(5).await.unwrap());
        permits.resize(0);
        assert!(permits.semaphore().try_acquire().is_err());
    }
}
