//! `stillmirror pull`.

mod arguments;
mod progress;
mod report;

use std::sync::Arc;

use anyhow::{Context, Result};
use stillmirror_receiver::{self as receiver, PullError};

use crate::exit::Exit;
use crate::signals;

pub(crate) use arguments::{Arguments, explain_rsync_flags};
pub(crate) use progress::BarProgress;

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let options = arguments::options(&arguments)?;
    let bar = arguments.output.bar();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start a runtime")?;
    let cancel = signals::stop_token()?;
    let result = runtime.block_on(receiver::pull(options, Arc::new(BarProgress::new(&bar)), cancel));
    bar.finish_and_clear();
    // Do not wait for threads that still wait for the disk.
    runtime.shutdown_background();
    match result {
        Ok(report) => Ok(report::print(&report, &arguments)),
        Err(PullError::DeleteLimit { wanted, limit, report }) => {
            report::print(&report, &arguments);
            Err(PullError::DeleteLimit { wanted, limit, report }.into())
        }
        Err(error) => Err(error.into()),
    }
}
