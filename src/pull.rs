//! `stillmirror pull`.

mod arguments;
mod hooks;
mod progress;
mod report;

use std::sync::Arc;

use anyhow::{Context, Result};
use stillmirror_receiver::{self as receiver, Options, PullError, Report};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::exit::{self, Exit};
use crate::{output, signals};
use hooks::{Ended, Hooks};

pub(crate) use arguments::{Arguments, explain_rsync_flags};
pub(crate) use progress::BarProgress;

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let options = arguments::options(&arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start a runtime")?;
    let cancel = signals::stop_token()?;
    let hooks = Hooks::new(&arguments.hooks, &options, &runtime, &cancel);
    let result = run_between(&hooks, &arguments, &options, &runtime, &cancel);
    // Do not wait for threads that still wait for the disk.
    runtime.shutdown_background();
    result
}

/// Runs the pull, and the operator's commands before and after it.
fn run_between(
    hooks: &Hooks<'_>,
    arguments: &Arguments,
    options: &Options,
    runtime: &Runtime,
    cancel: &CancellationToken,
) -> Result<Exit> {
    let (result, report) = match hooks.before() {
        Ok(()) => pull(arguments, options, runtime, cancel),
        // Most likely, the command was ended by the same signal.
        Err(_) if cancel.is_cancelled() => (Err(PullError::Interrupted.into()), None),
        Err(error) => (Err(error.into()), None),
    };
    let exit = result.as_ref().map_or_else(exit::of, |exit| *exit);
    let error = result.as_ref().err().map(output::error);
    match hooks.after(&Ended { exit, report: report.as_ref(), error }) {
        Err(error) if exit == Exit::Done => Err(error.into()),
        Err(error) => {
            eprintln!("stillmirror: {error}");
            result
        }
        Ok(()) => result,
    }
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
