//! Shares out the process's limit on open files, so that connections leave enough descriptors for the files
//! that they request.

use rustix::process::{Resource, getrlimit};

use crate::config::Config;
use crate::extents::READS;
use crate::pipe::{DESCRIPTORS, PIPES};

/// Descriptors of the process as a whole: standard streams, the runtime's own, listeners, and lists that are
/// being written to the cache.
const BASE: usize = 64;
/// Descriptors of a repository: its tree, its store, those that opening a generation needs for a moment, and
/// its reads.
const REPOSITORY: usize = 4 + READS;
/// Descriptors of a connection: its socket, and a large file that is open twice, for direct reads and for
/// reads through the page cache.
const CONNECTION: usize = 3;

/// The part of the limit that followers take at most, as a divisor.
const FOLLOWERS_DIVISOR: usize = 8;

/// How many connections of each kind there are descriptors for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Connections that do not follow.
    pub(crate) connections: usize,
    pub(crate) followers: usize,
}

/// Returns how many connections there are descriptors for. Batches of small files adapt: a batch opens as
/// many files as there are descriptors left, and at least one.
pub(crate) fn shares(config: &Config) -> Shares {
    let limit = getrlimit(Resource::Nofile).current;
    let shares = share(limit, config.repositories.len(), config.limits.followers);
    let room = shares.connections;
    let wanted = config.limits.connections.saturating_add(config.limits.queue);
    if shares.followers < config.limits.followers {
        tracing::warn!(
            limit,
            followers = shares.followers,
            "the limit on open files is low: fewer followers are accepted"
        );
    }
    if room < wanted {
        tracing::warn!(
            limit,
            connections = room,
            "the limit on open files is low: fewer connections are accepted than `connections` and `queue` allow"
        );
    }
    shares
}

/// Divides a limit on open files: at least two connections, one for each port. A follower has only its socket.
fn share(limit: Option<u64>, repositories: usize, followers: usize) -> Shares {
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let followers = followers.min(limit / FOLLOWERS_DIVISOR);
    let others = repositories.saturating_mul(REPOSITORY).saturating_add(BASE + PIPES * DESCRIPTORS);
    let connections = (limit.saturating_sub(others).saturating_sub(followers) / CONNECTION).max(2);
    Shares { connections, followers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_files_that_they_request() {
        let connections = |limit, repositories| share(limit, repositories, 0).connections;
        assert_eq!(connections(Some(1024), 1), 276);
        assert_eq!(connections(Some(65_536), 20), 21_552);
        assert_eq!(connections(Some(40), 1), 2);
        assert_eq!(connections(None, usize::MAX), 2);
        assert!(connections(None, 1) > 1 << 40);
    }

    #[test]
    fn followers_leave_most_descriptors_to_others() {
        assert_eq!(share(Some(1024), 1, 10_000), Shares { connections: 233, followers: 128 });
        assert_eq!(share(Some(65_536), 20, 8000), Shares { connections: 18_885, followers: 8000 });
        assert_eq!(share(None, 1, 10_000).followers, 10_000);
    }
}
