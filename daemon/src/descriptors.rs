//! The process's limit on open files, shared out: connections leave enough for the files that they ask for.

use rustix::process::{Resource, getrlimit};

use crate::config::Config;
use crate::extents::READS;
use crate::pipe::{DESCRIPTORS, PIPES};

/// What is open all the time: standard streams, the runtime's own, listeners; and lists on their way into the cache.
const BASE: usize = 64;
/// Of a repository: its tree, its store, what opening a generation takes for a moment, and its reads.
const REPOSITORY: usize = 4 + READS;
/// Of a connection: its socket, and a large file that is open twice, to be read past the page cache and through it.
const CONNECTION: usize = 3;

/// Connections that there are descriptors for. A batch of small files opens as many as it finds left, but one at least.
pub(crate) fn connections(config: &Config) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let room = share(limit, config.repositories.len());
    let wanted = config.limits.connections.saturating_add(config.limits.queue);
    if room < wanted {
        tracing::warn!(
            limit,
            connections = room,
            "open files are limited: fewer connections are accepted than `connections` and `queue` allow"
        );
    }
    room
}

/// Connections under a limit on open files. Two at the least: one on each port.
fn share(limit: Option<u64>, repositories: usize) -> usize {
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let others = repositories.saturating_mul(REPOSITORY).saturating_add(BASE + PIPES * DESCRIPTORS);
    (limit.saturating_sub(others) / CONNECTION).max(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_files_that_they_ask_for() {
        assert_eq!(share(Some(1024), 1), 276);
        assert_eq!(share(Some(65_536), 20), 21_552);
        assert_eq!(share(Some(40), 1), 2);
        assert_eq!(share(None, usize::MAX), 2);
        assert!(share(None, 1) > 1 << 40);
    }
}
