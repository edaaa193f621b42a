//! Shares out the process's limit on open files, so that connections leave enough descriptors for the files
//! that they request.

use rustix::process::{Resource, getrlimit};

use crate::config::{Config, Limits};
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
pub(crate) const CONNECTION: u32 = 3;
/// Descriptors of a follower, which opens no file.
pub(crate) const FOLLOWER: u32 = 1;

/// The descriptors that connections share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Descriptors for connections of all kinds.
    pub(crate) descriptors: usize,
    /// How many followers there may be.
    pub(crate) followers: usize,
}

/// Returns how many descriptors there are for connections. Batches of small files adapt: a batch opens as
/// many files as there are descriptors left, and at least one.
pub(crate) fn shares(config: &Config) -> Shares {
    let limit = getrlimit(Resource::Nofile).current;
    let shares = share(limit, config.repositories.len(), config.limits.followers);
    let wanted = config.limits.connections.saturating_add(config.limits.queue);
    let connections = (shares.descriptors - shares.followers) / CONNECTION as usize;
    if shares.followers < config.limits.followers {
        tracing::warn!(
            limit,
            followers = shares.followers,
            "the limit on open files is low: fewer followers are accepted than `followers` allows"
        );
    }
    if connections < wanted {
        tracing::warn!(
            limit,
            connections,
            "the limit on open files is low: beside all followers, fewer connections are accepted than `connections` \
             and `queue` allow"
        );
    }
    shares
}

/// Returns the lowest limit on open files with which everything is accepted that `limits` allow.
pub(crate) fn wanted(limits: &Limits, repositories: usize) -> usize {
    let connections = limits.connections.saturating_add(limits.queue).saturating_mul(CONNECTION as usize);
    // Followers get at most two thirds.
    let of_followers = limits.followers.div_ceil(2).saturating_mul(3);
    others(repositories).saturating_add(connections.saturating_add(limits.followers).max(of_followers))
}

/// Returns how many descriptors are not for connections.
fn others(repositories: usize) -> usize {
    repositories.saturating_mul(REPOSITORY).saturating_add(BASE + PIPES * DESCRIPTORS)
}

/// Divides a limit on open files. There are at least two connections, and followers leave a third of the
/// descriptors.
fn share(limit: Option<u64>, repositories: usize, followers: usize) -> Shares {
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let descriptors = limit.saturating_sub(others(repositories)).max(2 * CONNECTION as usize);
    Shares { descriptors, followers: followers.min(descriptors / 3 * 2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_files_that_they_request() {
        let connections = |limit, repositories| share(limit, repositories, 0).descriptors / CONNECTION as usize;
        assert_eq!(connections(Some(1024), 1), 276);
        assert_eq!(connections(Some(65_536), 20), 21_552);
        assert_eq!(connections(Some(40), 1), 2);
        assert_eq!(connections(None, usize::MAX), 2);
        assert!(connections(None, 1) > 1 << 40);
    }

    #[test]
    fn the_wanted_limit_accepts_everything_and_a_lower_one_does_not() {
        for (connections, queue, followers) in [(1000, 1000, 10_000), (10, 0, 10_001), (2, 1, 0), (5000, 0, 3)] {
            let limits = Limits { connections, queue, followers, ..Limits::default() };
            let accepts = |limit: usize| {
                let shares = share(Some(limit as u64), 3, followers);
                let others = (shares.descriptors - shares.followers) / CONNECTION as usize;
                shares.followers == followers && others >= connections + queue
            };
            let wanted = wanted(&limits, 3);
            assert!(accepts(wanted), "{connections} {queue} {followers}");
            assert!(!accepts(wanted - 3), "{connections} {queue} {followers}");
        }
    }

    #[test]
    fn followers_leave_descriptors_to_others() {
        let followers = |limit| share(limit, 1, 10_000).followers;
        assert_eq!(followers(Some(1024)), 552);
        assert_eq!(followers(Some(20_000)), 10_000);
        assert_eq!(followers(Some(40)), 4);
        assert_eq!(followers(None), 10_000);
    }
}
