//! Pulls from a scripted sender, honest or not. One binary; a module by topic:
//!
//! - `whole`: what a pull makes of a tree: content, metadata, types, links, deletions, slices
//! - `saving`: what a pull does not fetch: unchanged trees, renames, deltas, what a former pull left
//! - `store`: the generation that a pull leaves
//! - `kept`: what stays when not everything can be done, and what is told of it
//! - `unprivileged`: pulls by a user for whom modes count
//! - `hostile`: senders that do not follow the protocol
//! - `property`: any tree, any change
//! - `sender`, `tree`: the scripted sender and its trees

mod hostile;
mod kept;
mod property;
mod saving;
mod sender;
mod store;
mod tree;
mod unprivileged;
mod whole;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stillmirror_receiver::{Options, PullError, Report, Silent, pull};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::sender::{REPOSITORY, Sender};

/// A place to pull into, with a store beside it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("dest")).unwrap();
        Self { dir }
    }

    fn dest(&self) -> PathBuf {
        self.dir.path().join("dest")
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dest().join(name)
    }

    /// A pull without a store.
    fn options(&self, sender: &Sender) -> Options {
        let mut options = Options::new(&sender.address, REPOSITORY, self.dest());
        options.delete = true;
        options.sync = false;
        options.timeout = Duration::from_secs(20);
        options.reconnects = 0;
        options
    }

    /// A pull with a store.
    fn mirror(&self, sender: &Sender) -> Options {
        Options { store: Some(self.store()), ..self.options(sender) }
    }
}

fn run(options: Options) -> Result<Report, PullError> {
    run_until(options, CancellationToken::new())
}

fn run_until(options: Options, cancel: CancellationToken) -> Result<Report, PullError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(pull(options, Arc::new(Silent), cancel))
}

fn staging_is_gone(dest: &Path) -> bool {
    !dest.join(".stillmirror-stage").exists()
}
