//! A repository as clients may use it: who may access it, what stock clients see of it, and its limits. Its editions are
//! opened elsewhere, and stay when the rest is replaced by a reload.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stillmirror_protocol::rsync::rules::{ModuleRules, ModuleTexts};
use tokio::sync::watch;

use crate::access::{Hosts, Users};
use crate::admission::Admission;
use crate::bandwidth::Bucket;
use crate::config::{self, ModuleConfig, RepositoryConfig};
use crate::edition::Edition;
use crate::editions::{Editions, Place};
use crate::error::DaemonError;
use crate::gate::Gate;
use crate::operator_file;

/// Maximum number of concurrent reads of the secrets file.
const LOGINS: usize = 4;
/// Maximum size of a file of patterns, in bytes.
const PATTERNS: u64 = 16 << 20;

/// One repository.
pub(crate) struct Repository {
    pub(crate) name: String,
    /// A one-line description for clients.
    pub(crate) comment: String,
    /// Whether a listing of repositories shows it.
    pub(crate) is_listed: bool,
    /// Whether only files that everybody on this host may read are served.
    pub(crate) is_public_only: bool,
    /// Whether native clients may access it. They see everything in it.
    pub(crate) is_native: bool,
    /// The addresses that may access it.
    pub(crate) hosts: Hosts,
    /// The users who may access it.
    pub(crate) users: Users,
    /// The gate for reading passwords, since their file may hang like any other.
    pub(crate) logins: Gate,
    /// Settings for stock clients.
    pub(crate) module: ModuleConfig,
    /// The rules for what stock clients see.
    pub(crate) rules: Arc<ModuleRules>,
    /// The limit on stock clients of this repository, if it has its own.
    pub(crate) admission: Option<Arc<Admission>>,
    /// The rate limit for all its sessions together, if there is one.
    pub(crate) bandwidth: Option<Arc<Bucket>>,
    /// The rate of this limit, in bytes per second; 0 for no limit.
    rate: u64,
    /// What is served of it.
    pub(crate) editions: Arc<Editions>,
}

impl Repository {
    /// Creates a repository. Nothing is opened yet. Up to `queue` clients wait if it has a connection limit of its own. What
    /// can be kept of the repository `before`, whose name it has, is kept: the editions of the same place, and limits. Other
    /// editions allow `reads` reads of files at once.
    pub(crate) fn new(
        config: &RepositoryConfig,
        reads: usize,
        queue: usize,
        is_public_only: bool,
        before: Option<&Self>,
    ) -> Result<Self, DaemonError> {
        config.users.check().map_err(|source| DaemonError::Secrets { repository: config.name.clone(), source })?;
        let rules = module_rules(&config.name, &config.module.rules)?;
        let max_connections = config.module.max_connections;
        let admission = before.and_then(|before| before.admission.clone());
        let place = Place {
            name: config.name.clone(),
            root: config.root.clone(),
            store: config.store.clone(),
            direct: config.direct,
            strict_ctime: config.strict_ctime,
            is_public_only,
        };
        let editions = before.map(|before| &before.editions).filter(|editions| editions.place == place);
        Ok(Self {
            name: config.name.clone(),
            comment: config.comment.clone(),
            is_listed: config.list,
            is_public_only,
            is_native: config.serve_hidden_natively || !rules.may_hide(),
            hosts: config.hosts.clone(),
            users: config.users.clone(),
            logins: Gate::new(LOGINS),
            module: config.module.clone(),
            rules: Arc::new(rules),
            admission: (max_connections > 0)
                .then(|| admission.unwrap_or_else(|| Admission::new(max_connections, queue))),
            bandwidth: Bucket::after(before.and_then(|before| before.bandwidth.as_ref()), config.bandwidth),
            rate: config.bandwidth,
            editions: editions.cloned().unwrap_or_else(|| Arc::new(Editions::new(place, reads))),
        })
    }

    /// Puts the limits of this repository in force, also for the sessions that run under those of `before`, whose name it
    /// has.
    pub(crate) fn take_over(&self, before: &Self, queue: usize) {
        if let Some(admission) = &before.admission {
            let limit = self.admission.as_ref().map_or(usize::MAX, |_| self.module.max_connections);
            admission.resize(limit, queue);
        }
        if let Some(bucket) = &before.bandwidth {
            bucket.change(self.rate);
        }
    }

    /// Returns the edition for new sessions. `None` if the repository is not indexed, or cannot be opened
    /// yet.
    pub(crate) fn current(&self) -> Option<Arc<Edition>> {
        self.editions.current()
    }

    /// Returns a receiver that notices every other edition from now on.
    pub(crate) fn news(&self) -> watch::Receiver<usize> {
        self.editions.news()
    }

    /// Returns how many followers the last edition woke.
    pub(crate) fn woken(&self) -> usize {
        self.editions.woken()
    }

    /// Returns what clients are told if there is no edition. It completes a sentence that begins with the
    /// repository.
    pub(crate) fn absence(&self) -> &'static str {
        self.editions.absence()
    }

    /// Returns whether the last check failed for another reason than a missing store or generation, and the error, unless
    /// another check runs.
    pub(crate) fn failure(&self) -> Option<String> {
        self.editions.failure()
    }
}

fn module_rules(repository: &str, rules: &config::ModuleRules) -> Result<ModuleRules, DaemonError> {
    let words = |words: &[String]| words.join(" ").into_bytes();
    let lines = |file: &Option<PathBuf>| file.as_ref().map_or(Ok(Vec::new()), |file| read_patterns(repository, file));
    let (include_from, exclude_from) = (lines(&rules.include_from)?, lines(&rules.exclude_from)?);
    let texts = ModuleTexts {
        filter: &words(&rules.filter),
        include_from: &include_from,
        include: &words(&rules.include),
        exclude_from: &exclude_from,
        exclude: &words(&rules.exclude),
    };
    ModuleRules::parse(&texts).map_err(|source| DaemonError::Rules { repository: repository.to_owned(), source })
}

fn read_patterns(repository: &str, file: &Path) -> Result<Vec<u8>, DaemonError> {
    let read = operator_file::read(file, PATTERNS + 1).and_then(|bytes| match bytes.len() as u64 {
        ..=PATTERNS => Ok(bytes),
        _ => Err(io::Error::other(format!("it is larger than {PATTERNS} bytes"))),
    });
    read.map_err(|source| DaemonError::Patterns { repository: repository.to_owned(), file: file.to_owned(), source })
}
