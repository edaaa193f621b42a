//! Signals. SIGINT and SIGTERM ask a command to end, which it does at the next safe point. SIGHUP asks
//! for a reload, SIGUSR2 for an upgrade.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a future that completes at the first SIGINT or SIGTERM. Installs the handlers before it returns, not when the
/// future is first polled.
pub(crate) fn termination() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Returns the SIGHUPs from now on.
pub(crate) fn hangups() -> Result<Signal> {
    signal(SignalKind::hangup()).context("cannot handle SIGHUP")
}

/// Returns the requests for an upgrade (SIGUSR2) from now on.
pub(crate) fn upgrades() -> Result<Signal> {
    signal(SignalKind::user_defined2()).context("cannot handle SIGUSR2")
}

/// Returns a flag that the first SIGINT or SIGTERM sets.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    on_termination(move || raised.store(true, Ordering::Relaxed))?;
    Ok(flag)
}

/// Returns a token that the first SIGINT or SIGTERM cancels.
pub(crate) fn stop_token() -> Result<CancellationToken> {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    on_termination(move || cancelled.cancel())?;
    Ok(token)
}

/// Runs `then` at the first SIGINT or SIGTERM, on a thread of its own, for work that has no runtime.
fn on_termination(then: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot start a runtime")?;
    let terminated = {
        let _entered = runtime.enter();
        termination()?
    };
    std::thread::spawn(move || {
        runtime.block_on(terminated);
        then();
    });
    Ok(())
}
