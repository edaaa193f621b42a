//! What the senders of pulled repositories had when they were asked last. Receivers leave that in their stores, and it is
//! read from time to time, so that a disk that hangs holds up no answer.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use stillmirror_store::SenderSeen;

/// What is known of the senders, by repository.
#[derive(Default)]
pub(crate) struct Senders(Mutex<Known>);

#[derive(Default)]
struct Known {
    seen: HashMap<String, SenderSeen>,
    /// The repositories whose stores are being read.
    reading: HashSet<String>,
}

impl Senders {
    /// Returns what is known of the sender of a repository.
    pub(super) fn seen(&self, repository: &str) -> Option<SenderSeen> {
        self.lock().seen.get(repository).copied()
    }

    /// Reads what the stores say, each on a thread of its own. A store that is still being read is left out, and
    /// repositories that are not named any more are forgotten.
    pub(super) fn refresh(self: &Arc<Self>, stores: Vec<(String, PathBuf)>) {
        self.lock().seen.retain(|name, _| stores.iter().any(|(known, _)| known == name));
        for (name, store) in stores {
            if !self.lock().reading.insert(name.clone()) {
                continue;
            }
            let senders = Arc::clone(self);
            tokio::task::spawn_blocking(move || {
                let seen = SenderSeen::read(&store);
                let mut known = senders.lock();
                known.reading.remove(&name);
                match seen {
                    Some(seen) => known.seen.insert(name, seen),
                    None => known.seen.remove(&name),
                };
            });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
