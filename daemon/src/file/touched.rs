//! The contents of files that are in their indexed state except for the ctime. Each such file is read once
//! for all sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;
use stillmirror_protocol::entry::Digest;

use super::OnDisk;

/// Maximum number of cached files, about 200 bytes each. The cache is cleared when it is full.
const MAX_FILES: usize = 1 << 17;

/// The digests of files, by the state in which they were read.
#[derive(Default)]
pub(super) struct Touched(Mutex<HashMap<OnDisk, Arc<OnceLock<Found>>>>);

/// The SHA-256 of a file. `None` if the file changed while it was read.
type Found = Result<Option<Digest>, Errno>;

impl Touched {
    /// Returns the cached digest of the file in `state`, or computes it with `read`. Concurrent callers for
    /// the same state wait for one `read`.
    pub(super) fn content(&self, state: OnDisk, read: impl FnOnce() -> Found) -> Found {
        let found = {
            let mut files = self.lock();
            if files.len() >= MAX_FILES && !files.contains_key(&state) {
                files.clear();
            }
            Arc::clone(files.entry(state).or_default())
        };
        let result = *found.get_or_init(read);
        if !matches!(result, Ok(Some(_))) {
            // The next attempt may succeed.
            self.lock().remove(&state);
        }
        result
    }

    /// Returns the cached digest of the file in `state`.
    pub(super) fn known_content(&self, state: OnDisk) -> Option<Digest> {
        self.lock().get(&state).and_then(|found| *found.get()?.as_ref().ok()?)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OnDisk, Arc<OnceLock<Found>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
