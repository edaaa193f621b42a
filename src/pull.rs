//! `stillmirror pull`.

mod arguments;
mod hooks;
mod progress;
mod reach;
mod report;

use std::sync::Arc;

use anyhow::{Context, Result};
use stillmirror_receiver::{self as receiver, Follower, Last, Options, Pauses, Progress, PullError, Report};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::exit::{self, Exit};
use crate::{output, signals};
use hooks::{Ended, Hooks};

pub(crate) use arguments::{Arguments, explain_rsync_flags};
pub(crate) use progress::BarProgress;

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let options = arguments::options(&arguments)?;
    // Before there are any other threads, which it would not bind.
    reach::enter_sandbox(&arguments, &options);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start a runtime")?;
    let cancel = signals::stop_token()?;
    let hooks = Hooks::new(&arguments.hooks, &options, &runtime, &cancel);
    let once = || run_between(&hooks, &arguments, &options, &runtime, &cancel);
    let result = if arguments.follow {
        let follower = Follower::new(&options, Pauses::default(), cancel.clone());
        follow(follower, once, &arguments, &runtime, &cancel)
    } else {
        once().0
    };
    // Do not wait for threads that still wait for the disk.
    runtime.shutdown_background();
    result
}

/// Pulls again and again, until a signal comes or no further pull can succeed.
fn follow(
    mut follower: Follower,
    once: impl Fn() -> (Result<Exit>, Option<Report>),
    arguments: &Arguments,
    runtime: &Runtime,
    cancel: &CancellationToken,
) -> Result<Exit> {
    loop {
        let (result, report) = once();
        if cancel.is_cancelled() {
            return result;
        }
        let failed = result.as_ref().err().and_then(|error| error.downcast_ref());
        let last = report.as_ref().map(Last::Pulled).or(failed.map(Last::Failed));
        if follower.decide(last.unwrap_or(Last::Prevented)).is_err() {
            return result;
        }
        if let Err(error) = &result {
            eprintln!("stillmirror: {}", output::error(error));
        }
        let bar = arguments.output.bar();
        let progress: Arc<dyn Progress> = Arc::new(BarProgress::new(&bar));
        let next = runtime.block_on(follower.next_pull(&progress));
        bar.finish_and_clear();
        match next {
            Ok(()) => {}
            // Between two pulls, a signal interrupts nothing.
            Err(PullError::Interrupted) => return Ok(Exit::Done),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs the pull, and the operator's commands before and after it. Returns how it ended, and what it did, as far as it is
/// known.
fn run_between(
    hooks: &Hooks<'_>,
    arguments: &Arguments,
    options: &Options,
    runtime: &Runtime,
    cancel: &CancellationToken,
) -> (Result<Exit>, Option<Report>) {
    let (result, report) = match hooks.before() {
        Ok(()) => pull(arguments, options, runtime, cancel),
        // Most likely, the command was ended by the same signal.
        Err(_) if cancel.is_cancelled() => (Err(PullError::Interrupted.into()), None),
        Err(error) => (Err(error.into()), None),
    };
    let exit = result.as_ref().map_or_else(exit::of, |exit| *exit);
    let error = result.as_ref().err().map(output::error);
    let result = match hooks.after(&Ended { exit, report: report.as_ref(), error }) {
        Err(error) if exit == Exit::Done => Err(error.into()),
        Err(error) => {
            eprintln!("stillmirror: {error}");
            result
        }
        Ok(()) => result,
    };
    (result, report)
}

/// Returns how the pull ended, and what it did, as far as it is known.
fn pull(
    arguments: &Arguments,
    options: &Options,
    runtime: &Runtime,
    cancel: &CancellationToken,
) -> (Result<Exit>, Option<Report>) {
    let bar = arguments.output.bar();
    let pulled = receiver::pull(options.clone(), Arc::new(BarProgress::new(&bar)), cancel.clone());
    let result = runtime.block_on(pulled);
    bar.finish_and_clear();
    match result {
        Ok(report) => (Ok(report::print(&report, arguments)), Some(report)),
        Err(error) => {
            let report = match &error {
                PullError::DeleteLimit { report, .. } => Some((**report).clone()),
                _ => None,
            };
            if let Some(report) = &report {
                report::print(report, arguments);
            }
            (Err(error.into()), report)
        }
    }
}
