//! Sessions: the code that both dialects share.

pub(crate) mod follow;
pub(crate) mod native;
pub(crate) mod record;
pub(crate) mod rsync;

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::direct::page_size;
use crate::ended::Ended;
use crate::shared::ServerState;
use crate::stream::Writer;

/// How long a session may take to finish its current frame when the daemon stops waiting for sessions.
pub(crate) const FRAME_GRACE: Duration = Duration::from_secs(2);

/// Waits until the daemon stops waiting for sessions to end. Returns [`Ended::Stopping`] if the writer becomes free in
/// time: the session is then between two frames, and the client can be told. Returns [`Ended::CutOff`] otherwise.
pub(crate) async fn forced_shutdown(shared: &ServerState, writer: &Mutex<Writer>) -> Ended {
    shared.ending.cancelled().await;
    match timeout(FRAME_GRACE, writer.lock()).await {
        Ok(_) => Ended::Stopping,
        Err(_) => Ended::CutOff,
    }
}

/// Reads one byte of each mapped page, so that sending the pages does not wait for the disk.
pub(crate) fn touch(bytes: &[u8]) {
    for at in offset_on_each_page(bytes.len(), page_size() as usize) {
        std::hint::black_box(bytes[at]);
    }
}

/// Returns at least one offset on each page that `len` bytes lie on, wherever on a page they begin.
fn offset_on_each_page(len: usize, page: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(page).chain(len.checked_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_touched_wherever_the_bytes_begin() {
        for page in [4096, 16_384, 65_536] {
            for (begin, len) in
                [(0, 1), (page - 1, 2), (100, page), (page - 96, 200), (5, 3 * page), (0, 2 * page), (7, 0)]
            {
                let mut touched: Vec<_> = offset_on_each_page(len, page).map(|at| (begin + at) / page).collect();
                touched.dedup();
                let all: Vec<_> = (begin / page..(begin + len).div_ceil(page)).filter(|_| len > 0).collect();
                assert_eq!(touched, all, "{len} bytes at {begin}, pages of {page}");
            }
        }
    }
}
