//! The daemon's configuration: repositories, limits, memory.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use stillmirror_protocol::rsync::chmod::Chmod;
use stillmirror_protocol::rsync::requests::RuleLimits;

use crate::access::{Hosts, Users};

/// The configuration of a daemon. [`Config::default`] has sensible limits and no repositories.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The repositories that are served.
    pub repositories: Vec<RepositoryConfig>,
    /// Limits for clients.
    pub limits: Limits,
    /// Memory limits.
    pub memory: Memory,
    /// Settings for all stock rsync clients.
    pub rsync: RsyncConfig,
    /// The certificate for ports of the kind [`Port::Tls`](crate::Port::Tls). Default none.
    pub tls: Option<TlsConfig>,
    /// The networks of proxies, whose connections must begin with a PROXY header (version 1 or 2) that names the
    /// client. From other addresses such a header is not accepted. Default none.
    pub proxies: Vec<IpNet>,
    /// Whether a daemon that runs as root serves files that not everybody on this host may read. As another
    /// user, the daemon serves what that user may read. Default false.
    pub serve_private: bool,
    /// How often each store is checked for a new generation. A check costs one readlink. Default 1 s.
    pub reload_interval: Duration,
}

/// One repository.
#[derive(Debug, Clone, PartialEq)]
pub struct RepositoryConfig {
    /// The repository's name in URLs. The store must belong to a repository of this name.
    pub name: String,
    /// A one-line description, shown to clients.
    pub comment: String,
    /// The root of the tree. Nothing outside it is ever opened. While it is missing, the repository is
    /// unavailable.
    pub root: PathBuf,
    /// The store with its generations. While the store is missing, the repository counts as "not indexed
    /// yet", and every reload looks for the store again.
    pub store: PathBuf,
    /// How its files are read.
    pub direct: DirectPolicy,
    /// Whether a file whose ctime differs from the index is refused, although its size, mtime and inode are
    /// the same. Default false: the content of such a file is read once and compared with the index.
    pub strict_ctime: bool,
    /// Rate limit for all its sessions together, in bytes per second; 0 for no limit. Default 0.
    pub bandwidth: u64,
    /// Whether it appears in the listing of repositories. Default true.
    pub list: bool,
    /// The addresses that may access it. Default all.
    pub hosts: Hosts,
    /// The users who may access it. Native clients cannot log in yet, so they are refused if any users are
    /// set. Default everybody.
    pub users: Users,
    /// Whether native clients may access it although [`ModuleConfig::rules`] may hide names. They see all of
    /// it. Default false.
    pub serve_hidden_natively: bool,
    /// Settings for stock rsync clients.
    pub module: ModuleConfig,
}

impl RepositoryConfig {
    /// Creates a repository with default settings.
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

/// How a repository is served to stock rsync clients. The fields are named as in rsyncd.conf.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModuleConfig {
    /// Rules for what stock clients see. Native clients see everything, so they are refused if the rules may
    /// hide names, unless [`RepositoryConfig::serve_hidden_natively`] is set.
    pub rules: ModuleRules,
    /// Options that clients must not use, by name or letter, with wildcards. An option that begins with `!`
    /// allows again what earlier ones refuse. The meaning is that of rsyncd.conf. Default none.
    pub refuse_options: Vec<String>,
    /// Maximum number of stock clients of this repository at once. More clients wait, as they do for
    /// [`Limits::connections`]. 0 for no further limit. Default 0.
    pub max_connections: usize,
    /// How long a client may be silent when something is expected of it. If zero, [`Limits::idle`] applies,
    /// or one hour for clients older than 3.1, which cannot be told about a timeout. Default zero.
    pub timeout: Duration,
    /// Whether owners are sent as numbers only. Default false.
    pub numeric_ids: bool,
    /// Whether symlink targets are sent without the `/rsyncd-munged/` prefix that a receiving daemon added.
    /// Default false.
    pub munge_symlinks: bool,
    /// Changes to the permissions that clients see. Default none.
    pub outgoing_chmod: Chmod,
}

/// Filter rules, in the order in which they apply: `filter`, `include_from`, `include`, `exclude_from`,
/// `exclude`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModuleRules {
    /// Rules with their prefix, such as `- *.o`.
    pub filter: Vec<String>,
    /// A file of patterns for names that stay visible, one per line. Read when the daemon starts.
    pub include_from: Option<PathBuf>,
    /// Patterns for names that stay visible.
    pub include: Vec<String>,
    /// A file of patterns for names that are hidden, one per line. Read when the daemon starts.
    pub exclude_from: Option<PathBuf>,
    /// Patterns for names that are hidden.
    pub exclude: Vec<String>,
}

/// Settings for all stock rsync clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RsyncConfig {
    /// Whether stock clients are served at all. Default true.
    pub enabled: bool,
    /// The file with the message of the day. It is read at every connection. Default none.
    pub motd: Option<PathBuf>,
    /// Disk budget for encoded lists, in bytes, for all repositories together. A cached list is encoded once
    /// for all clients. 0 disables the cache. Default 1 GiB.
    pub cached_lists: u64,
    /// Where encoded lists are kept: a directory with a subdirectory for each repository. The daemon must be
    /// able to write to it. Default `lists` in each store.
    pub lists: Option<PathBuf>,
    /// Limits on the filter rules of one client. Default 10,000 rules and 1 MiB.
    pub rule_limits: RuleLimits,
    /// How `-z` is answered. Default [`Compression::Stored`].
    pub compression: Compression,
}

/// The files of a certificate and its key, in PEM format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate, followed by those of the authorities between it and the root.
    pub certificate: PathBuf,
    /// Its key. The file must not be accessible to everybody.
    pub key: PathBuf,
}

/// How the daemon answers a client that asks for compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Sends the compressed format with stored blocks, which cost no work.
    #[default]
    Stored,
    /// Refuses the client with an error.
    Refuse,
}

/// How a repository's files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirectPolicy {
    /// Takes from the page cache what is there, and reads the rest directly. So serving files does not evict
    /// what the host needs.
    #[default]
    Auto,
    /// Reads everything directly.
    Always,
    /// Reads everything through the page cache. Best if the repository fits into memory.
    Never,
}

/// Limits for clients.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Maximum number of sessions at once. Default 1000.
    pub connections: usize,
    /// Maximum number of connections that wait for a session. More are refused. Default 1000.
    pub queue: usize,
    /// Maximum number of followers at once: connections that take no session, and wait for the next generation. More are
    /// refused. 0 for none. Default 10,000.
    pub followers: usize,
    /// Maximum number of connections from one address in any state: before their hello, during login, in the
    /// queue, in a session, following. 0 for no limit. Default 100.
    pub connections_per_address: usize,
    /// The number of leading bits of an IPv4 address that count. Addresses that agree in them share the
    /// limits of one address. Default 32.
    pub ipv4_prefix: u8,
    /// The number of leading bits of an IPv6 address that count. Default 64.
    pub ipv6_prefix: u8,
    /// How long a client may take to send its hello, and to finish a request that it has begun to send.
    /// Default 10 s.
    pub handshake: Duration,
    /// How long a session may go without a request. For native sessions, it is a quarter of that while others
    /// wait for a session. Default 5 min.
    pub idle: Duration,
    /// How long a follower waits for news before it is told that there are none, and asks again. So each end notices if
    /// the other is gone. Default 45 s.
    pub follow: Duration,
    /// The minimum rate, in bytes per second, at which a client must read while there is something to send;
    /// 0 for any. Default 1024.
    pub minimum_rate: u64,
    /// The period over which the rate is measured. A client that reads nothing at all is disconnected after
    /// it, and no sooner. Default 30 s.
    pub rate_window: Duration,
    /// The lowest limit that a stock client may set for itself (`--bwlimit`), in bytes per second. A lower
    /// one is raised to it, and to `minimum_rate`. Default 16 KiB.
    pub minimum_bwlimit: u64,
    /// Rate limit for one connection, in bytes per second; 0 for no limit. Default 0.
    pub bandwidth_per_connection: u64,
    /// Rate limit for all sessions together, in bytes per second; 0 for no limit. Default 0.
    pub bandwidth: u64,
    /// How long running requests may take to finish once the daemon is told to stop. Default 30 s.
    pub drain: Duration,
    /// How long clients may take to finish once another process accepts the connections. Default 1 h.
    pub upgrade_drain: Duration,
}

/// Memory limits, over all sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of file extents and small files that are cached for other clients. Default 64 MiB.
    pub cache: usize,
    /// Bytes of extents that are being read or sent. If none are left, sessions wait. Default 64 MiB.
    pub buffers: usize,
    /// Bytes for lists that belong to single stock clients, over all sessions; 0 for no limit. One network
    /// gets at most half of them. If none are left, sessions wait, and are refused after a minute. Default
    /// 1 GiB.
    pub lists: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            repositories: Vec::new(),
            limits: Limits::default(),
            memory: Memory::default(),
            rsync: RsyncConfig::default(),
            tls: None,
            proxies: Vec::new(),
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
            followers: 10_000,
            connections_per_address: 100,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            follow: Duration::from_secs(45),
            minimum_rate: 1024,
            minimum_bwlimit: 16 << 10,
            rate_window: Duration::from_secs(30),
            bandwidth_per_connection: 0,
            bandwidth: 0,
            drain: Duration::from_secs(30),
            upgrade_drain: Duration::from_secs(3600),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { cache: 64 << 20, buffers: 64 << 20, lists: 1 << 30 }
    }
}
