//! What the daemon tells about itself, over HTTP: metrics for Prometheus, a page for people, the same as JSON, and whether
//! it is ready.
//!
//! ```text
//! report      the state at one moment; every other form is made from it, so all of them agree
//! exposition  metrics in the text formats of Prometheus
//! process     what the kernel knows about the process
//! senders     what the senders of pulled repositories have
//! server      the listener: bounded connections, and answers to GET requests
//! page.html   the page, which shows the JSON
//! ```

mod exposition;
mod process;
mod report;
mod senders;
mod server;

pub use report::{Budget, ByClient, MirrorReport, MirrorStatus, Ports, Report, SenderReport, Traffic};
pub(crate) use senders::Senders;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::editions::Editions;
use crate::shared::ServerState;
use report::{Audience, sample_traffic};

/// How often the bytes sent are added to the traffic of the last hours, and stores are read.
const INTERVAL: Duration = Duration::from_secs(10);

/// The sockets for metrics and status.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// Those for anybody.
    pub(crate) metrics: Vec<TcpListener>,
    /// Those for the operator.
    pub(crate) status: Vec<UnixListener>,
}

/// Answers requests on these sockets, and keeps what they tell up to date, until the result is dropped.
pub(crate) fn serve(sockets: Observed, shared: &Arc<ServerState>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for listener in sockets.metrics {
        tasks.spawn(server::serve(listener, Audience::Public, Arc::clone(shared)));
    }
    for listener in sockets.status {
        tasks.spawn(server::serve(listener, Audience::Operator, Arc::clone(shared)));
    }
    let shared = Arc::clone(shared);
    tasks.spawn(async move {
        loop {
            sample_traffic(&shared);
            let store = |editions: &Arc<Editions>| (editions.place.name.clone(), editions.place.store.clone());
            let stores = shared.settings().registry.editions().map(store).collect();
            shared.senders.refresh(stores);
            sleep(INTERVAL).await;
        }
    });
    tasks
}
