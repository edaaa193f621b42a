//! The bounded pool of aligned buffers for file data.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::direct::AlignedBytes;

/// Size of a buffer, and of an extent of a file, in bytes. Chosen by measurement: smaller ones cost more
/// system calls and task switches per byte, larger ones more memory per session.
pub(crate) const EXTENT: usize = 1 << 20;

/// A pool of buffers of [`EXTENT`] bytes. Memory is allocated at first use and then kept.
pub(crate) struct Pool {
    /// How many buffers there may be.
    count: usize,
    /// One permit for each buffer that is not in use.
    permits: Semaphore,
    free: Mutex<Vec<AlignedBytes>>,
    waiting: AtomicUsize,
}

impl Pool {
    /// Creates a pool of up to `bytes` bytes, but at least one buffer.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        let count = (bytes / EXTENT).clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(Self { count, permits: Semaphore::new(count), free: Mutex::default(), waiting: AtomicUsize::new(0) })
    }

    /// Waits for a buffer. Callers are served in order. To avoid deadlocks, the caller must hold no buffer
    /// that only its own further progress would free.
    pub(crate) async fn take(self: &Arc<Self>) -> Buffer {
        if let Some(buffer) = self.try_take() {
            return buffer;
        }
        let _waiting = Waiting::begin(&self.waiting);
        if let Ok(permit) = self.permits.acquire().await {
            permit.forget();
        }
        self.buffer()
    }

    /// Returns a buffer if one is free and nobody waits for it.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Buffer> {
        self.permits.try_acquire().ok()?.forget();
        Some(self.buffer())
    }

    /// Returns whether anybody waits for a buffer.
    pub(crate) fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn buffer(self: &Arc<Self>) -> Buffer {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.is_empty() {
            free.extend(AlignedBytes::slab(EXTENT));
        }
        Buffer { bytes: free.pop(), pool: Arc::clone(self) }
    }

    /// Returns how many bytes the buffers may take, and how many are in use.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let used = self.count.saturating_sub(self.permits.available_permits());
        ((self.count * EXTENT) as u64, (used * EXTENT) as u64)
    }

    #[cfg(test)]
    pub(crate) fn available(&self) -> usize {
        self.permits.available_permits()
    }
}

/// Counts a waiter until this is dropped, so also if the waiter gives up.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A buffer that returns to its pool when dropped.
pub(crate) struct Buffer {
    /// `None` only while dropping.
    bytes: Option<AlignedBytes>,
    pool: Arc<Pool>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend(self.bytes.take());
        drop(free);
        self.pool.permits.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_free_buffer_goes_to_the_first_waiter() {
        let pool = Pool::new(2 * EXTENT);
        let (first, _second) = (pool.take().await, pool.take().await);
        assert!(pool.try_take().is_none());
        let waiter = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.take().await.len() }
        });
        while !pool.is_short() {
            tokio::task::yield_now().await;
        }
        drop(first);
        assert!(pool.try_take().is_none(), "the freed buffer belongs to the waiter");
        assert_eq!(waiter.await.ok(), Some(EXTENT));
        assert!(!pool.is_short());
        assert_eq!(pool.available(), 1);
    }
}
