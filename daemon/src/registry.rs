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
use crate::repository::{Repository, Trouble};

/// Reads of files at once that a repository has at the least.
const FEWEST_READS: usize = 4;
/// How long the start waits for repositories to open. The others come when they do.
const OPENING: Duration = Duration::from_secs(3);

/// All repositories, in the order of the configuration.
pub(crate) struct Registry {
    repositories: Vec<Arc<Repository>>,
}

impl Registry {
    /// All repositories of a configuration, of which nothing is opened yet.
    pub(crate) fn new(config: &Config) -> Result<Self, DaemonError> {
        let reads = reads(config.memory.buffers, config.repositories.len());
        let is_public_only = access::is_public_only(config.serve_private);
        let new = |config: &_, queue| Repository::new(config, reads, queue, is_public_only).map(Arc::new);
        let repositories = config.repositories.iter().map(|repository| new(repository, config.limits.queue));
        Ok(Self { repositories: repositories.collect::<Result<_, _>>()? })
    }

    /// Opens trees and current generations beside each other. One that cannot be opened is unavailable until it can;
    /// a store of another repository is the operator's mistake.
    pub(crate) async fn open(&self) -> Result<(), DaemonError> {
        let mut opening = JoinSet::new();
        for repository in &self.repositories {
            let repository = Arc::clone(repository);
            opening.spawn_blocking(move || repository.look(true));
        }
        let all = async {
            while let Some(opened) = opening.join_next().await {
                let opened = opened.map_err(DaemonError::Worker)?;
                if let Err(Trouble::Store(error @ StoreError::OtherRepository { .. })) = opened {
                    return Err(DaemonError::Store(error));
                }
            }
            Ok(())
        };
        let in_time = timeout(OPENING, all).await;
        if in_time.is_err() {
            tracing::warn!(repositories = opening.len(), "some repositories take long to open: they come later");
        }
        opening.detach_all();
        in_time.unwrap_or(Ok(()))
    }

    /// All repositories.
    pub(crate) fn all(&self) -> &[Arc<Repository>] {
        &self.repositories
    }

    /// The repository of that name.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Repository>> {
        self.repositories.iter().find(|repository| repository.name == name)
    }

    /// Those that a listing of repositories shows.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &Arc<Repository>> {
        self.repositories.iter().filter(|repository| repository.is_listed)
    }
}

/// Reads of files at once for each repository: so many that the buffers of all reads that hang, of every other
/// repository, leave some for this one.
fn reads(buffers: usize, repositories: usize) -> usize {
    (buffers / EXTENT / (repositories + 1)).clamp(FEWEST_READS, READS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_whose_disks_hang_leave_buffers_for_another() {
        assert_eq!(reads(256 << 20, 1), READS);
        for repositories in 2..40 {
            let left = 256 - (repositories - 1) * reads(256 << 20, repositories);
            assert!(left >= FEWEST_READS, "{repositories}: {left}");
        }
        assert_eq!(reads(0, 1), FEWEST_READS);
    }
}
