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

/// Returns how many connections there are descriptors for. Batches of small files adapt: a batch opens as
/// many files as there are descriptors left, and at least one.
pub(crate) fn connections(config: &Config) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let room = share(limit, config.repositories.len());
    let wanted = config.limits.connections.saturating_add(config.limits.queue);
    if room < wanted {
        tracing::warn!(
            limit,
            connections = room,
            "the limit on open files is low: fewer connections are accepted than `connections` and `queue` allow"
        );
    }
    room
}

/// Returns the number of connections under a limit on open files: at least two, one for each port.
fn share(limit: Option<u64>, repositories: usize) -> usize {
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let others = repositories.saturating_mul(REPOSITORY).saturating_add(BASE + PIPES * DESCRIPTORS);
    (limit.saturating_sub(others) / CONNECTION).max(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_files_that_they_request() {
        assert_eq!(share(Some(1024), 1), 276);
        assert_eq!(share(Some(65_536), 20), 21_552);
        assert_eq!(share(Some(40), 1), 2);
        assert_eq!(share(None, usize::MAX), 2);
        assert!(share(None, 1) > 1 << 40);
    }
}
