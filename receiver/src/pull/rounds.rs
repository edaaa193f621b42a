//! A pull goes on while that helps: with another sender if one fails, and with the newest generation if the one being
//! pulled is overtaken. What was brought is kept.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stillmirror_protocol::entry::Time;
use stillmirror_store::Store;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{Pull, open_snapshots};
use crate::error::PullError;
use crate::report::{Options, Progress, Report};
use crate::source::{self, NativeSource, Pinned, SeveralSources, Source, SourceOptions};
use crate::trust;

/// Connects to the sender, or to one of several.
pub(super) async fn connect(
    options: &Options,
    began: Time,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Arc<dyn Source>, PullError> {
    let mut connection = SourceOptions {
        connect_timeout: options.connect_timeout,
        timeout: options.timeout,
        bandwidth: options.bandwidth,
        authorities: options.authorities.clone(),
        cancel,
        progress,
    };
    if options.alternatives.is_empty() {
        return Ok(Arc::new(NativeSource::connect(&options.address, connection).await?));
    }
    // Others can answer sooner than one that is silent for long.
    connection.timeout = connection.timeout.min(PATIENCE_WITH_ONE);
    connection.connect_timeout = connection.connect_timeout.min(PATIENCE_WITH_ONE);
    let addresses = std::iter::once(&options.address).chain(&options.alternatives).cloned();
    let (keys, store) = (options.trust.clone(), options.store.clone());
    let accept = Box::new(move |pinned: &Pinned| {
        // A store that cannot be opened is reported by the pull itself.
        let store = store.as_ref().and_then(|dir| Store::open(dir).ok());
        trust::check_with_store(pinned, &keys, store.as_ref(), began).map(drop)
    });
    Ok(Arc::new(SeveralSources::connect(addresses, &options.repository, connection, accept).await?))
}

/// Pulls the newest generation until one is whole, no sender is left, or [`Options::patience`] ends.
pub(super) fn pull(
    mut source: Arc<dyn Source>,
    began: Time,
    options: &Options,
    progress: &dyn Progress,
    cancel: &CancellationToken,
    runtime: &Handle,
) -> Result<Report, PullError> {
    let started = Instant::now();
    let snapshots = open_snapshots(options)?;
    let mut earlier = Report::default();
    loop {
        let snapshots = snapshots.as_ref();
        let pull = Pull { source: &*source, began, options, snapshots, progress, cancel, runtime: runtime.clone() };
        let result = pull.run();
        source.close();
        let next = Next { source: &*source, options, cancel, runtime, started };
        let renewed = match &result {
            Err(error) => next.after_error(error),
            Ok(report) if report.failed.is_empty() => None,
            Ok(report) => next.after_failures(report),
        };
        let Some(renewed) = renewed else {
            let report = result?.after(earlier);
            return Ok(Report { senders: source.served(), ..report });
        };
        if let Ok(report) = result {
            earlier = report.after(earlier);
        }
        source = renewed;
    }
}

/// Decides what a pull goes on with.
struct Next<'a> {
    source: &'a dyn Source,
    options: &'a Options,
    cancel: &'a CancellationToken,
    runtime: &'a Handle,
    started: Instant,
}

impl Next<'_> {
    /// Returns a connection to another sender, if there is one and this one is the reason of the error.
    fn after_error(&self, error: &PullError) -> Option<Arc<dyn Source>> {
        let may_help = error.concerns_sender() && self.source.leave(&error.to_string(), None);
        may_help.then(|| self.wait(self.source.renew())).flatten()
    }

    /// Returns a connection with which the files that failed may come.
    fn after_failures(&self, report: &Report) -> Option<Arc<dyn Source>> {
        let overtaken = report.is_overtaken() && self.started.elapsed() < self.options.patience;
        if overtaken && let Some(renewed) = self.newer(report) {
            return Some(renewed);
        }
        let why = format!("it could not deliver {} of its files", report.failed.len());
        if report.may_be_elsewhere() && self.source.leave(&why, Some(report.generation)) {
            return self.wait(self.source.renew());
        }
        if !overtaken {
            return None;
        }
        // The index of files that were replaced follows soon, and a daemon notices that after a moment.
        for pause in RECHECKS {
            if self.started.elapsed() + pause >= self.options.patience {
                break;
            }
            self.wait(async {
                tokio::time::sleep(pause).await;
                Ok(())
            })?;
            if let Some(renewed) = self.newer(report) {
                return Some(renewed);
            }
        }
        None
    }

    /// Returns a new connection if a sender has another generation than the one that was pulled.
    fn newer(&self, report: &Report) -> Option<Arc<dyn Source>> {
        let renewed = self.wait(async {
            let renewed = self.source.renew().await?;
            let pinned = source::head(&*renewed, &self.options.repository).await?;
            if pinned.head.generation != report.generation {
                return Ok(Some(renewed));
            }
            renewed.close();
            Ok(None)
        })??;
        tracing::info!("the sender has a newer generation; continuing with it");
        Some(renewed)
    }

    /// Waits for something that may help. `None` if it fails, because then the pull ends with what it has.
    fn wait<T>(&self, something: impl Future<Output = Result<T, PullError>>) -> Option<T> {
        let result = self.runtime.block_on(async {
            tokio::select! {
                () = self.cancel.cancelled() => Err(PullError::Interrupted),
                result = something => result,
            }
        });
        result.inspect_err(|error| tracing::warn!(%error, "cannot go on with another connection")).ok()
    }
}

/// How long one of several senders may be silent.
const PATIENCE_WITH_ONE: Duration = Duration::from_secs(30);
/// The pauses before the sender is asked again for a newer generation.
const RECHECKS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
