//! The repositories that are served.

use std::sync::Arc;
use std::time::Duration;

use stillmirror_store::StoreError;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::access;
use crate::config::Config;
use crate::editions::{Editions, Look, OpenError};
use crate::error::DaemonError;
use crate::extents::READS;
use crate::pool::EXTENT;
use crate::repository::Repository;

/// Minimum number of concurrent reads of files for each repository.
const MIN_READS: usize = 4;
/// How long startup waits for repositories to open. Slower ones become available later.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a reload waits for a repository that is served now to open at its new place. Meanwhile, the old one is served.
const MOVE_TIMEOUT: Duration = Duration::from_secs(60);

/// All repositories, in the order of the configuration.
pub(crate) struct Registry {
    repositories: Vec<Arc<Repository>>,
    /// How many reads of files each repository may have at once.
    reads: usize,
}

/// How a registry differs from the one before, by the names of repositories.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Repositories that there were not before.
    pub added: Vec<String>,
    /// Repositories that there are no more. Sessions that have begun go on with them.
    pub removed: Vec<String>,
    /// Repositories with another root or store, or whose files are read in another way.
    pub moved: Vec<String>,
}

impl Registry {
    /// Creates the repositories of a configuration. Those that the registry `before` has at the same place keep their
    /// editions. Nothing is opened yet.
    pub(crate) fn new(config: &Config, before: Option<&Self>) -> Result<Self, DaemonError> {
        let reads = reads(config.memory.buffers, config.repositories.len());
        let is_public_only = access::is_public_only(config.serve_private);
        let repositories = config.repositories.iter().map(|repository| {
            let before = before.and_then(|before| before.find(&repository.name));
            let before = before.map(AsRef::as_ref);
            Repository::new(repository, reads, config.limits.queue, is_public_only, before).map(Arc::new)
        });
        Ok(Self { repositories: repositories.collect::<Result<_, _>>()?, reads })
    }

    /// Opens the trees and current generations of all repositories concurrently, except those that the registry `before`
    /// has. A repository that cannot be opened is unavailable until it can be opened. Fails if a store belongs to another
    /// repository, which is a mistake of the operator, or if a repository that is served cannot be opened at its new place.
    pub(crate) async fn open(&self, before: Option<&Self>) -> Result<(), DaemonError> {
        let is_new = |editions: &&Arc<Editions>| !before.is_some_and(|before| before.has(editions));
        let is_served = |name: &str| before.and_then(|before| before.find(name)?.current()).is_some();
        let (mut moving, mut opening) = (JoinSet::new(), JoinSet::new());
        let mut not_moved = Vec::new();
        for editions in self.editions().filter(is_new) {
            let is_served = is_served(&editions.place.name);
            not_moved.extend(is_served.then(|| editions.place.name.clone()));
            let set = if is_served { &mut moving } else { &mut opening };
            let editions = Arc::clone(editions);
            set.spawn_blocking(move || {
                let opened = editions.refresh(Look::Forced);
                (editions, opened)
            });
        }
        let all = async {
            while let Some(opened) = opening.join_next().await {
                let (_, opened) = opened.map_err(DaemonError::Worker)?;
                if let Err(OpenError::Store(error @ StoreError::OtherRepository { .. })) = opened {
                    return Err(DaemonError::Store(error));
                }
            }
            Ok(())
        };
        let in_time = timeout(OPEN_TIMEOUT, all).await;
        if in_time.is_err() {
            tracing::warn!(
                repositories = opening.len(),
                "some repositories take long to open and become available later"
            );
        }
        opening.detach_all();
        in_time.unwrap_or(Ok(()))?;
        let moved = async {
            while let Some(opened) = moving.join_next().await {
                let (editions, opened) = opened.map_err(DaemonError::Worker)?;
                check_moved(&editions, opened)?;
                not_moved.retain(|name| *name != editions.place.name);
            }
            Ok(())
        };
        let in_time = timeout(MOVE_TIMEOUT, moved).await;
        moving.detach_all();
        in_time.unwrap_or_else(|_| Err(DaemonError::SlowMove { repositories: not_moved.join(", ") }))
    }

    /// Puts the limits in force, also for the sessions that run under those of the registry `before`. Tells the followers
    /// of what is not served any more to look again.
    pub(crate) fn take_over(&self, before: &Self, queue: usize) {
        for old in &before.repositories {
            if let Some(new) = self.find(&old.name) {
                new.take_over(old, queue);
            }
            if !self.has(&old.editions) {
                old.editions.retire();
            }
        }
        self.editions().for_each(|editions| editions.set_reads(self.reads));
    }

    /// Returns how this registry differs from the one before.
    pub(crate) fn changes(&self, before: &Self) -> Changes {
        let names = |all: &mut dyn Iterator<Item = &Arc<Repository>>| all.map(|found| found.name.clone()).collect();
        let is_moved = |found: &&Arc<Repository>| before.find(&found.name).is_some() && !before.has(&found.editions);
        Changes {
            added: names(&mut self.repositories.iter().filter(|found| before.find(&found.name).is_none())),
            removed: names(&mut before.repositories.iter().filter(|found| self.find(&found.name).is_none())),
            moved: names(&mut self.repositories.iter().filter(is_moved)),
        }
    }

    /// Returns all repositories.
    pub(crate) fn all(&self) -> &[Arc<Repository>] {
        &self.repositories
    }

    /// Returns the editions of all repositories.
    pub(crate) fn editions(&self) -> impl Iterator<Item = &Arc<Editions>> {
        self.repositories.iter().map(|repository| &repository.editions)
    }

    /// Returns whether a repository has these editions.
    pub(crate) fn has(&self, editions: &Arc<Editions>) -> bool {
        self.editions().any(|found| Arc::ptr_eq(found, editions))
    }

    /// Returns the repository with this name.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Repository>> {
        self.repositories.iter().find(|repository| repository.name == name)
    }

    /// Returns the repositories that a listing shows.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &Arc<Repository>> {
        self.repositories.iter().filter(|repository| repository.is_listed)
    }
}

/// Fails if there is no edition to take the place of the one that is served.
fn check_moved(editions: &Editions, opened: Result<bool, OpenError>) -> Result<(), DaemonError> {
    let repository = || editions.place.name.clone();
    match opened {
        Err(OpenError::Store(error @ StoreError::OtherRepository { .. })) => Err(DaemonError::Store(error)),
        Err(source) => Err(DaemonError::Move { repository: repository(), source: Box::new(source) }),
        Ok(false) => Err(DaemonError::NotIndexed { repository: repository(), store: editions.place.store.clone() }),
        Ok(true) => Ok(()),
    }
}

/// Returns the maximum number of concurrent reads of files for each repository. If the reads of all other
/// repositories hang, their buffers still leave some for this one.
fn reads(buffers: usize, repositories: usize) -> usize {
    (buffers / EXTENT / (repositories + 1)).clamp(MIN_READS, READS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_whose_disks_hang_leave_buffers_for_another() {
        assert_eq!(reads(256 << 20, 1), READS);
        for repositories in 2..40 {
            let left = 256 - (repositories - 1) * reads(256 << 20, repositories);
            assert!(left >= MIN_READS, "{repositories}: {left}");
        }
        assert_eq!(reads(0, 1), MIN_READS);
    }
}
