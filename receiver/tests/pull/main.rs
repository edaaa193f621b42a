//! Pulls from a scripted sender, honest or not. All tests are one binary, with a module for each topic:
//!
//! - `whole`: the tree that a pull makes: contents, metadata, types, links, deletions, parts of a repository
//! - `saving`: what a pull does not fetch: unchanged trees, renames, deltas
//! - `resume`: what a pull does not fetch again after one that did not end
//! - `basis`: where contents and parts of new files are looked for
//! - `store`: the generation that a pull publishes
//! - `kept`: what remains if something fails, and how it is reported
//! - `grace`: deletions that wait
//! - `follow`: what happens between two pulls of a follower
//! - `senders`: several senders of one repository
//! - `switch`: snapshots that replace each other in one step
//! - `places`: destinations and stores that must not be harmed
//! - `unprivileged`: pulls by a user without root, for whom permissions matter
//! - `guards`: senders whose current generation is probably a mistake
//! - `names`: pulls of named parts
//! - `slices`: pulls of suites and architectures
//! - `space`: file systems that are too small
//! - `trace`: trace files
//! - `hostile`: senders that violate the protocol
//! - `trust`: signed heads, and the known attacks on them
//! - `property`: any tree, any change
//! - `sender`, `tree`: the scripted sender and its trees

mod basis;
mod commit;
mod follow;
mod foreign;
mod grace;
mod guards;
mod hostile;
mod kept;
mod names;
mod overtaken;
mod places;
mod property;
mod resume;
mod saving;
mod sender;
mod senders;
mod slices;
mod space;
mod store;
mod switch;
mod trace;
mod tree;
mod trust;
mod unprivileged;
mod whole;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stillmirror_receiver::{Options, PullError, Report, Silent, pull};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::sender::{REPOSITORY, Sender};

/// A directory to pull into, with a store beside it.
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

    /// Returns the options for a pull without a store.
    fn options(&self, sender: &Sender) -> Options {
        let mut options = Options::new(&sender.address, REPOSITORY, self.dest());
        options.delete = true;
        options.sync = false;
        (options.devices, options.setid) = (true, true);
        options.timeout = Duration::from_secs(20);
        options.reconnects = 0;
        options.patience = Duration::from_millis(100);
        options
    }

    /// Returns the options for a pull with a store.
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

fn staging_directory_is_removed(dest: &Path) -> bool {
    !dest.join(".stillmirror-stage").exists()
}
