//! The repositories that are served.

use std::sync::Arc;

use stillmirror_store::StoreError;
use tokio::task::JoinSet;
use tokio::time::{Duration, timeout};

use crate::access;
use crate::config::Config;
use crate::error::DaemonError;
use crate::extents::READS;
use crate::pool::EXTENT;
use crate::repository::{Look, OpenError, Repository};

/// Minimum number of concurrent reads of files for each repository.
const MIN_READS: usize = 4;
/// How long startup waits for repositories to open. Slower ones become available later.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);

/// All repositories, in the order of the configuration.
pub(crate) struct Registry {
    repositories: Vec<Arc<Repository>>,
}

impl Registry {
    /// Creates the repositories of a configuration. Nothing is opened yet.
    pub(crate) fn new(config: &Config) -> Result<Self, DaemonError> {
        let reads = reads(config.memory.buffers, config.repositories.len());
        let is_public_only = access::is_public_only(config.serve_private);
        let new = |config: &_, queue| Repository::new(config, reads, queue, is_public_only).map(Arc::new);
        let repositories = config.repositories.iter().map(|repository| new(repository, config.limits.queue));
        Ok(Self { repositories: repositories.collect::<Result<_, _>>()? })
    }

    /// Opens the trees and current generations of all repositories concurrently. A repository that cannot be
    /// opened is unavailable until it can be opened. Fails if a store belongs to another repository, which is
    /// a mistake of the operator.
    pub(crate) async fn open(&self) -> Result<(), DaemonError> {
        let mut opening = JoinSet::new();
        for repository in &self.repositories {
            let repository = Arc::clone(repository);
            opening.spawn_blocking(move || repository.refresh(Look::Forced));
        }
        let all = async {
            while let Some(opened) = opening.join_next().await {
                let opened = opened.map_err(DaemonError::Worker)?;
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
        in_time.unwrap_or(Ok(()))
    }

    /// Returns all repositories.
    pub(crate) fn all(&self) -> &[Arc<Repository>] {
        &self.repositories
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
