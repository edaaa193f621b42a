//! SIGINT and SIGTERM ask a command to end; it does so at the next safe place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Completes at the first SIGINT or SIGTERM. Installs its handlers at once, not when it is first polled.
pub(crate) fn asked_to_end() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// A flag that the first SIGINT or SIGTERM sets, for work that has no runtime of its own.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot start a runtime")?;
    let ended = {
        let _entered = runtime.enter();
        asked_to_end()?
    };
    let raised = Arc::clone(&flag);
    std::thread::spawn(move || {
        runtime.block_on(ended);
        raised.store(true, Ordering::Relaxed);
    });
    Ok(flag)
}
