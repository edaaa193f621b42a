//! SIGINT and SIGTERM ask a command to end; it does so at the next safe place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

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

/// Calls `reload` at every SIGHUP. Installs its handler at once.
pub(crate) fn on_hangup(mut reload: impl FnMut() + Send + 'static) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reload();
        }
    });
    Ok(())
}

/// A flag that the first SIGINT or SIGTERM sets.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    when_asked_to_end(move || raised.store(true, Ordering::Relaxed))?;
    Ok(flag)
}

/// A token that the first SIGINT or SIGTERM cancels.
pub(crate) fn stop_token() -> Result<CancellationToken> {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    when_asked_to_end(move || cancelled.cancel())?;
    Ok(token)
}

/// Runs `then` at the first SIGINT or SIGTERM, on a thread of its own: for work that has no runtime.
fn when_asked_to_end(then: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot start a runtime")?;
    let ended = {
        let _entered = runtime.enter();
        asked_to_end()?
    };
    std::thread::spawn(move || {
        runtime.block_on(ended);
        then();
    });
    Ok(())
}
