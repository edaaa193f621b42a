//! Sessions: what those of every dialect have in common.

pub(crate) mod counts;
pub(crate) mod native;
pub(crate) mod rsync;

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::direct::page_size;
use crate::ended::Ended;
use crate::shared::Shared;
use crate::stream::Writer;

/// How long a session has to come to the end of a frame when the daemon ends.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(2);

/// Waits until the daemon does not wait for sessions any longer. The client can be told if the writer comes free in
/// time: who has it then is between two frames.
pub(crate) async fn out_of_time(shared: &Shared, writer: &Mutex<Writer>) -> Ended {
    shared.ending.cancelled().await;
    match timeout(LAST_WORDS, writer.lock()).await {
        Ok(_) => Ended::Stopping,
        Err(_) => Ended::CutOff,
    }
}

/// Makes mapped pages resident, so that sending them does not wait for the disk.
pub(crate) fn touch(bytes: &[u8]) {
    for at in on_each_page(bytes.len(), page_size() as usize) {
        std::hint::black_box(bytes[at]);
    }
}

/// A place on each page that so many bytes lie on, wherever on a page they begin.
fn on_each_page(len: usize, page: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(page).chain(len.checked_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_touched_wherever_bytes_begin() {
        for page in [4096, 16_384, 65_536] {
            for (begin, len) in
                [(0, 1), (page - 1, 2), (100, page), (page - 96, 200), (5, 3 * page), (0, 2 * page), (7, 0)]
            {
                let mut touched: Vec<_> = on_each_page(len, page).map(|at| (begin + at) / page).collect();
                touched.dedup();
                let all: Vec<_> = (begin / page..(begin + len).div_ceil(page)).filter(|_| len > 0).collect();
                assert_eq!(touched, all, "{len} bytes at {begin}, pages of {page}");
            }
        }
    }
}
