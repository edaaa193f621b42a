//! What a daemon is told: repositories, limits, memory.

use std::path::PathBuf;
use std::time::Duration;

use stillmirror_protocol::rsync::chmod::Chmod;
use stillmirror_protocol::rsync::requests::RuleLimits;

use crate::access::{Hosts, Users};

/// Everything that a daemon is told. [`Config::default`] serves nothing within sensible limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What is served.
    pub repositories: Vec<RepositoryConfig>,
    /// What clients may do.
    pub limits: Limits,
    /// What reading costs at the most.
    pub memory: Memory,
    /// What holds for all stock rsync clients.
    pub rsync: RsyncConfig,
    /// Whether root serves what not everybody on this host may read. Another user serves what it may read itself. Default
    /// false.
    pub serve_private: bool,
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
    /// The tree; nothing outside it is ever opened. While it is missing, the repository is unavailable.
    pub root: PathBuf,
    /// Where its generations are. A store that is not there yet is "not indexed yet", and looked for
    /// again at every reload.
    pub store: PathBuf,
    /// How its files are read.
    pub direct: DirectPolicy,
    /// Whether a file is no longer the indexed one as soon as its ctime is another, though its size, mtime and inode are
    /// the same. Default false: its content is read, once, and compared with the index.
    pub strict_ctime: bool,
    /// Bytes a second that all its sessions together are sent, 0 for no limit. Default 0.
    pub bandwidth: u64,
    /// Whether it is named to clients that ask what there is. Default true.
    pub list: bool,
    /// The addresses that may have it. Default all.
    pub hosts: Hosts,
    /// The users who may have it. Native clients cannot say who they are yet: when there are any, they
    /// are refused. Default everybody.
    pub users: Users,
    /// Whether native clients get it though [`ModuleConfig::rules`] may hide names: to them all of it is shown. Default
    /// false.
    pub serve_hidden_natively: bool,
    /// How stock rsync clients are served.
    pub module: ModuleConfig,
}

impl RepositoryConfig {
    /// A repository with every default.
    pub fn new(name: &str, root: impl Into<PathBuf>, store: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            comment: String::new(),
            root: root.into(),
            store: store.into(),
            direct: DirectPolicy::default(),
            strict_ctime: false,
            bandwidth: 0,
            list: true,
            hosts: Hosts::default(),
            users: Users::default(),
            serve_hidden_natively: false,
            module: ModuleConfig::default(),
        }
    }
}

/// How stock rsync clients are served a repository, in rsyncd.conf's words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModuleConfig {
    /// Rules for what these clients see. Native clients see everything: with rules that may hide names they are
    /// refused, unless [`RepositoryConfig::serve_hidden_natively`] is set.
    pub rules: ModuleRules,
    /// Options that a client must not use, by name or letter, with wildcards; one that begins with `!` takes
    /// back what stands before it. The meaning is rsyncd.conf's. Default none.
    pub refuse_options: Vec<String>,
    /// Stock clients of this repository at once; more wait as they do for [`Limits::connections`]. 0 for
    /// no limit but that. Default 0.
    pub max_connections: usize,
    /// How long a client may be silent when something is expected of it. Zero for [`Limits::idle`], and an
    /// hour for clients of before 3.1, which cannot be told. Default zero.
    pub timeout: Duration,
    /// Owners go out as numbers alone. Default false.
    pub numeric_ids: bool,
    /// Targets of symlinks go out without the `/rsyncd-munged/` that a receiving daemon put before them. Default
    /// false.
    pub munge_symlinks: bool,
    /// Permissions that clients see in place of those of the tree. Default none.
    pub outgoing_chmod: Chmod,
}

/// Rules in the order in which they are asked: `filter`, `include_from`, `include`, `exclude_from`, `exclude`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModuleRules {
    /// Rules with their prefix: `- *.o`.
    pub filter: Vec<String>,
    /// A file of patterns that are kept, one a line; read when the daemon starts.
    pub include_from: Option<PathBuf>,
    /// Patterns that are kept.
    pub include: Vec<String>,
    /// A file of patterns that are hidden.
    pub exclude_from: Option<PathBuf>,
    /// Patterns that are hidden.
    pub exclude: Vec<String>,
}

/// What holds for all stock rsync clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RsyncConfig {
    /// Whether they are served at all. Default true.
    pub enabled: bool,
    /// A text for every client; read at every connection. Default none.
    pub motd: Option<PathBuf>,
    /// Bytes of disk for encoded lists, all repositories together, so that a list is written once for all; 0 for none.
    /// Default 1 GiB.
    pub cached_lists: u64,
    /// Where they are kept: a directory with one for each repository, which the daemon must be able to write.
    /// Default `lists` in each store.
    pub lists: Option<PathBuf>,
    /// What the filter rules of one client may come to. Default 10,000 rules and 1 MiB.
    pub rule_limits: RuleLimits,
    /// What `-z` gets. Default [`Compression::Stored`].
    pub compression: Compression,
}

/// What a client gets that asks for compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// The form of it, without the work: blocks that are stored.
    #[default]
    Stored,
    /// An error.
    Refuse,
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
    /// Connections from one address, whatever they are at: before their hello, at a login, in the queue, in a session; 0 for
    /// no limit. Default 100.
    pub connections_per_address: usize,
    /// The bits of an IPv4 address that count: those that are equal in them share what one address may have. Default 32.
    pub ipv4_prefix: u8,
    /// The same of an IPv6 address. Default 64.
    pub ipv6_prefix: u8,
    /// How long a client may take to say hello, and to finish a request that it has begun to send.
    /// Default 10 s.
    pub handshake: Duration,
    /// How long a session may ask for nothing; a native one a quarter of it while others wait for its place. Default 5 min.
    pub idle: Duration,
    /// Bytes a second that a client must take while there is something to send, 0 for any. Default 1024.
    pub minimum_rate: u64,
    /// The time over which that is measured: a client that takes nothing at all is ended after it, and
    /// no sooner. Default 30 s.
    pub rate_window: Duration,
    /// The least that a stock client may limit itself to (`--bwlimit`), bytes a second; less is raised to it, and to
    /// `minimum_rate`. Default 16 KiB.
    pub minimum_bwlimit: u64,
    /// Bytes a second that one connection is sent at the most, 0 for no limit. Default 0.
    pub bandwidth_per_connection: u64,
    /// Bytes a second that all sessions together are sent at the most, 0 for no limit. Default 0.
    pub bandwidth: u64,
    /// How long running requests may take to finish once the daemon is told to stop. Default 30 s.
    pub drain: Duration,
}

/// What reading costs at the most, over all sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of file extents and of small files, kept for other clients that want the same ones. Default 64 MiB.
    pub cache: usize,
    /// Bytes of extents being read or sent. When they are used up, sessions wait. Default 64 MiB.
    pub buffers: usize,
    /// Bytes for lists that are single stock clients' own, over all sessions, 0 for no limit. One network has half of it at
    /// the most. When it is used up, sessions wait, and are refused after a minute. Default 1 GiB.
    pub lists: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            repositories: Vec::new(),
            limits: Limits::default(),
            memory: Memory::default(),
            rsync: RsyncConfig::default(),
            serve_private: false,
            reload_interval: Duration::from_secs(1),
        }
    }
}

impl Default for RsyncConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            motd: None,
            cached_lists: 1 << 30,
            lists: None,
            rule_limits: RuleLimits::default(),
            compression: Compression::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1000,
            queue: 1000,
            connections_per_address: 100,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            minimum_rate: 1024,
            minimum_bwlimit: 16 << 10,
            rate_window: Duration::from_secs(30),
            bandwidth_per_connection: 0,
            bandwidth: 0,
            drain: Duration::from_secs(30),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { cache: 64 << 20, buffers: 64 << 20, lists: 1 << 30 }
    }
}
