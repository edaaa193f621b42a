//! What a daemon is told: repositories, limits, memory.

use std::path::PathBuf;
use std::time::Duration;

/// Everything that a daemon is told. [`Config::default`] serves nothing within sensible limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What is served.
    pub repositories: Vec<RepositoryConfig>,
    /// What clients may do.
    pub limits: Limits,
    /// What reading costs at the most.
    pub memory: Memory,
    /// How often each store is looked at for a new generation: one readlink a store. Default 1 s.
    pub reload_interval: Duration,
}

/// One repository.
#[derive(Debug, Clone, PartialEq)]
pub struct RepositoryConfig {
    /// Its name in URLs; the store must be of a repository of this name.
    pub name: String,
    /// One line about it, shown to clients.
    pub comment: String,
    /// The tree. It must exist; nothing outside it is ever opened.
    pub root: PathBuf,
    /// Where its generations are. A store that is not there yet is "not indexed yet", and looked for
    /// again at every reload.
    pub store: PathBuf,
    /// How its files are read.
    pub direct: DirectPolicy,
}

/// How a repository's files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirectPolicy {
    /// What is in the page cache is taken from there, the rest is read directly. So what is sent does
    /// not evict what the host needs.
    #[default]
    Auto,
    /// Everything is read directly.
    Always,
    /// Everything is read through the page cache: best when the repository fits into memory.
    Never,
}

/// What clients may do.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Sessions at once. Default 1000.
    pub connections: usize,
    /// Connections that wait for their turn beyond that; more are refused. Default 1000.
    pub queue: usize,
    /// How long a client may take to say hello, and to finish a request that it has begun to send.
    /// Default 10 s.
    pub handshake: Duration,
    /// How long a session may ask for nothing. Default 5 min.
    pub idle: Duration,
    /// Bytes a second that a client must take while there is something to send, 0 for any. Default 1024.
    pub minimum_rate: u64,
    /// The time over which that is measured: a client that takes nothing at all is ended after it, and
    /// no sooner. Default 30 s.
    pub rate_window: Duration,
    /// How long running requests may take to finish once the daemon is told to stop. Default 30 s.
    pub drain: Duration,
}

/// What reading costs at the most, over all sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of file extents kept for other clients that want the same ones. Default 64 MiB.
    pub cache: usize,
    /// Bytes of extents being read or sent. When they are used up, sessions wait. Default 64 MiB.
    pub buffers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            repositories: Vec::new(),
            limits: Limits::default(),
            memory: Memory::default(),
            reload_interval: Duration::from_secs(1),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1000,
            queue: 1000,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            minimum_rate: 1024,
            rate_window: Duration::from_secs(30),
            drain: Duration::from_secs(30),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { cache: 64 << 20, buffers: 64 << 20 }
    }
}
