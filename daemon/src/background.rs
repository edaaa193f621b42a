//! Blocking threads of low priority, for work that a single client asks for and that others should not feel.

use std::io;
use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};
use tokio::task::{self, JoinHandle};

/// How much lower their priority is. On a busy host they get about a tenth of what other threads get; on an idle one,
/// all they can use.
const NICE: i32 = 10;

/// Only its blocking threads are used. They start on demand and end when they are idle.
static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    let lower_priority = || {
        // Linux changes the calling thread alone. Without it the work runs at normal priority.
        let _ = rustix::process::nice(NICE);
    };
    Builder::new_current_thread().thread_name("background").on_thread_start(lower_priority).build()
});

/// Runs `work` on a thread of low priority. The caller limits how much runs at a time.
pub(crate) fn spawn<T, F>(work: F) -> JoinHandle<T>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    match &*RUNTIME {
        Ok(runtime) => runtime.spawn_blocking(work),
        Err(_) => task::spawn_blocking(work),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn niceness() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[tokio::test]
    async fn background_work_has_a_lower_priority_and_leaves_other_threads_alone() {
        let before = niceness();
        assert_eq!(spawn(niceness).await.unwrap(), (before + NICE).min(19));
        assert_eq!(task::spawn_blocking(niceness).await.unwrap(), before);
        assert_eq!(niceness(), before);
    }
}
