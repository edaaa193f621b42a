//! What a daemon would find on this host, without serving anything. It is found by the code that serves.

use std::io;
use std::path::Path;
use std::sync::Arc;

use stillmirror_store::Generation;

use crate::access;
use crate::certificate::{self, TlsError};
use crate::config::{Limits, RepositoryConfig, TlsConfig};
use crate::descriptors;
use crate::direct::batch;
use crate::edition::Edition;
use crate::editions::{Look, OpenError};
use crate::error::DaemonError;
pub use crate::file::{Reading, Sample};
use crate::operator_file as named_file;
use crate::repository::Repository;

/// A repository that is not served.
pub struct Probe {
    repository: Repository,
}

impl Probe {
    /// Reads the files that the configuration of a repository names: passwords, patterns. Fails where a daemon would not
    /// start.
    pub fn new(config: &RepositoryConfig, serve_private: bool) -> Result<Self, DaemonError> {
        let repository = Repository::new(config, 1, 0, access::is_public_only(serve_private), None)?;
        Ok(Self { repository })
    }

    /// Opens and checks the current generation, and the tree. `None` if there is no generation yet.
    pub fn open(&self) -> Result<Option<Found>, OpenError> {
        self.repository.editions.refresh(Look::Forced)?;
        let is_public_only = self.repository.is_public_only;
        Ok(self.repository.editions.current().map(|edition| Found { edition, is_public_only }))
    }
}

/// A generation and its tree, as they would be served.
pub struct Found {
    edition: Arc<Edition>,
    is_public_only: bool,
}

impl Found {
    /// Returns the generation.
    pub fn generation(&self) -> &Generation {
        &self.edition.generation
    }

    /// Returns whether only files are sent that everybody on this host may read.
    pub fn is_public_only(&self) -> bool {
        self.is_public_only
    }

    /// Returns whether the contents of the generation's files are kept in a pool that cannot be opened.
    pub fn lacks_pool(&self) -> bool {
        self.edition.is_pinned() && !self.edition.has_pool()
    }

    /// Opens up to `count` files, evenly spread over the list, and compares their states with the index. Reads none of
    /// them. Leaves out those that would not be sent.
    pub fn sample(&self, count: u32) -> Sample {
        let list = self.edition.generation.list();
        let is_sent = |row: &u32| list.row(*row).is_file() && (!self.is_public_only || list.is_public(*row));
        let step = (list.len() / count.max(1)).max(1);
        let rows = (0..list.len()).filter(is_sent).step_by(step as usize).take(count as usize);
        self.edition.tree.sample(&self.edition.generation, rows)
    }
}

/// Fails if the kernel does not let this process read in batches.
pub fn io_uring() -> io::Result<()> {
    batch::is_available()
}

/// Opens a file that the operator names, as the daemon does: a symlink on the way to it must belong to root or to this
/// process's user.
pub fn operator_file(path: &Path) -> io::Result<()> {
    named_file::open(path).map(drop)
}

/// Reads the certificate of the TLS ports and its key, as the daemon does.
pub fn tls(files: &TlsConfig) -> Result<(), TlsError> {
    certificate::load(files).map(drop)
}

/// Returns how many open files a daemon needs so that all the connections and followers are accepted that `limits` allow.
pub fn open_files(limits: &Limits, repositories: usize) -> u64 {
    descriptors::wanted(limits, repositories) as u64
}
