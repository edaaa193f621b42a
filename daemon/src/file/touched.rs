//! What was found in files that are in their indexed state but for the ctime: each is read once, however many ask.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;
use stillmirror_protocol::entry::Digest;

use super::OnDisk;

/// Files that are remembered, about 200 bytes each. Beyond them all are forgotten.
const MOST: usize = 1 << 17;

/// The contents of files, by the state that they were read in.
#[derive(Default)]
pub(super) struct Touched(Mutex<HashMap<OnDisk, Arc<OnceLock<Found>>>>);

/// The SHA-256; none for a file that did not keep still.
type Found = Result<Option<Digest>, Errno>;

impl Touched {
    /// The content of the file in that state, as it was found before or `read` finds it now. Who asks meanwhile waits.
    pub(super) fn content(&self, state: OnDisk, read: impl FnOnce() -> Found) -> Found {
        let found = {
            let mut files = self.lock();
            if files.len() >= MOST && !files.contains_key(&state) {
                files.clear();
            }
            Arc::clone(files.entry(state).or_default())
        };
        let result = *found.get_or_init(read);
        if !matches!(result, Ok(Some(_))) {
            // The next attempt may find more.
            self.lock().remove(&state);
        }
        result
    }

    /// What was found in that state before.
    pub(super) fn known_content(&self, state: OnDisk) -> Option<Digest> {
        self.lock().get(&state).and_then(|found| *found.get()?.as_ref().ok()?)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OnDisk, Arc<OnceLock<Found>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
