//! The configuration: `mirror.toml`, for daemon and indexer, overridden by the environment.
//!
//! The file is parsed twice: once strictly, so that an unknown key or an invalid value is refused with its line, and once
//! through the `config` crate, which merges the environment into it (`STILLMIRROR_DAEMON__LISTEN` is `listen` of
//! `[daemon]`). `mirror.toml.example` explains every key.

mod values;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use stillmirror_daemon::{HostPattern, Port, TlsConfig};

use crate::exit::UsageError;

pub(crate) use values::{Bytes, Listen, Network, Part, Pattern, Permissions, Prefix, Seconds, Words, percent};

/// The least bandwidth limit, in bytes per second. Below it, a client would wait longer than its own timeouts allow.
const LEAST_BANDWIDTH: u64 = 1024;

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// `[daemon]`
    pub(crate) daemon: Daemon,
    /// `[index]`: the defaults for all repositories.
    pub(crate) index: Index,
    /// `[[repository]]`
    pub(crate) repository: Vec<Repository>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Daemon {
    pub(crate) listen: Words<Listen>,
    pub(crate) connections: usize,
    pub(crate) queue: usize,
    pub(crate) followers: usize,
    pub(crate) connections_per_address: usize,
    pub(crate) ipv4_prefix: Prefix<32>,
    pub(crate) ipv6_prefix: Prefix<128>,
    pub(crate) handshake_timeout: Seconds,
    pub(crate) idle_timeout: Seconds,
    pub(crate) minimum_rate: Bytes,
    pub(crate) minimum_bwlimit: Bytes,
    pub(crate) bandwidth: Bytes,
    pub(crate) bandwidth_per_connection: Bytes,
    pub(crate) drain: Seconds,
    pub(crate) upgrade_drain: Seconds,
    pub(crate) cache: Bytes,
    pub(crate) buffers: Bytes,
    pub(crate) list_memory: Bytes,
    pub(crate) reload_interval: Seconds,
    pub(crate) user: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) serve_private: bool,
    pub(crate) sandbox: bool,
    pub(crate) rsync: bool,
    pub(crate) rsync_listen: Words<Listen>,
    pub(crate) metrics_listen: Words<Listen>,
    pub(crate) status_socket: Option<PathBuf>,
    pub(crate) tls_listen: Words<Listen>,
    pub(crate) tls_certificate: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) proxy_protocol_from: Words<Network>,
    pub(crate) motd_file: Option<PathBuf>,
    pub(crate) cached_lists: Bytes,
    pub(crate) lists: Option<PathBuf>,
    pub(crate) filter_rules: usize,
    pub(crate) filter_bytes: Bytes,
    pub(crate) compression: Compression,
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            listen: Words(vec![Listen::everywhere()]),
            connections: 1000,
            queue: 1000,
            followers: 10_000,
            connections_per_address: 100,
            ipv4_prefix: Prefix(32),
            ipv6_prefix: Prefix(64),
            handshake_timeout: Seconds(10.0),
            idle_timeout: Seconds(300.0),
            minimum_rate: Bytes(1024),
            minimum_bwlimit: Bytes(16 << 10),
            bandwidth: Bytes(0),
            bandwidth_per_connection: Bytes(0),
            drain: Seconds(30.0),
            upgrade_drain: Seconds(3600.0),
            cache: Bytes(64 << 20),
            buffers: Bytes(64 << 20),
            list_memory: Bytes(1 << 30),
            reload_interval: Seconds(1.0),
            user: None,
            group: None,
            serve_private: false,
            sandbox: true,
            rsync: true,
            rsync_listen: Words::default(),
            metrics_listen: Words::default(),
            status_socket: None,
            tls_listen: Words::default(),
            tls_certificate: None,
            tls_key: None,
            proxy_protocol_from: Words::default(),
            motd_file: None,
            cached_lists: Bytes(1 << 30),
            lists: None,
            filter_rules: 10_000,
            filter_bytes: Bytes(1 << 20),
            compression: Compression::default(),
        }
    }
}

impl Daemon {
    /// Returns all addresses to listen on, each with its kind of clients.
    pub(crate) fn sockets(&self) -> Vec<(SocketAddr, Port)> {
        let all =
            |listen: &Words<Listen>, port| listen.0.iter().map(move |listen| (listen.0, port)).collect::<Vec<_>>();
        let rsync = if self.rsync { all(&self.rsync_listen, Port::Rsync) } else { Vec::new() };
        [all(&self.listen, Port::All), rsync, all(&self.tls_listen, Port::Tls)].concat()
    }

    /// Returns the files of the certificate and its key.
    pub(crate) fn tls(&self) -> Option<TlsConfig> {
        let (certificate, key) = (self.tls_certificate.clone()?, self.tls_key.clone()?);
        Some(TlsConfig { certificate, key })
    }

    fn check_tls(&self) -> Result<()> {
        match (&self.tls_certificate, &self.tls_key) {
            (Some(_), None) => bail!("daemon.tls_certificate: daemon.tls_key is missing"),
            (None, Some(_)) => bail!("daemon.tls_key: daemon.tls_certificate is missing"),
            (None, None) if !self.tls_listen.0.is_empty() => {
                bail!("daemon.tls_listen: daemon.tls_certificate and daemon.tls_key are missing")
            }
            _ => Ok(()),
        }
    }
}

/// `[index]` or `[repository.index]`. A key that is missing in the latter is taken from `[index]`, and has its default if
/// it is missing there, too.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Index {
    pub(crate) include: Option<Vec<Pattern>>,
    pub(crate) exclude: Option<Vec<Pattern>>,
    pub(crate) specials: Option<Specials>,
    pub(crate) unreadable: Option<Unreadable>,
    pub(crate) xxh128: Option<bool>,
    pub(crate) md5: Option<bool>,
    pub(crate) block_checksums: Option<bool>,
    pub(crate) smallest_block: Option<Bytes>,
    pub(crate) no_block_checksums: Option<Vec<Pattern>>,
    pub(crate) keep_contents: Option<Bytes>,
    pub(crate) sign_key: Option<PathBuf>,
    pub(crate) sign_expires: Option<Seconds>,
    pub(crate) scrub: Option<Part>,
    pub(crate) keep_generations: Option<u32>,
    pub(crate) keep_age: Option<Seconds>,
    pub(crate) threads: Option<usize>,
}

impl Index {
    /// Returns these settings, with the missing ones taken from `defaults`.
    pub(crate) fn over(self, defaults: &Index) -> Index {
        let defaults = defaults.clone();
        Index {
            include: self.include.or(defaults.include),
            exclude: self.exclude.or(defaults.exclude),
            specials: self.specials.or(defaults.specials),
            unreadable: self.unreadable.or(defaults.unreadable),
            xxh128: self.xxh128.or(defaults.xxh128),
            md5: self.md5.or(defaults.md5),
            block_checksums: self.block_checksums.or(defaults.block_checksums),
            smallest_block: self.smallest_block.or(defaults.smallest_block),
            no_block_checksums: self.no_block_checksums.or(defaults.no_block_checksums),
            keep_contents: self.keep_contents.or(defaults.keep_contents),
            sign_key: self.sign_key.or(defaults.sign_key),
            sign_expires: self.sign_expires.or(defaults.sign_expires),
            scrub: self.scrub.or(defaults.scrub),
            keep_generations: self.keep_generations.or(defaults.keep_generations),
            keep_age: self.keep_age.or(defaults.keep_age),
            threads: self.threads.or(defaults.threads),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Specials {
    /// Index them
    Keep,
    /// Leave them out
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unreadable {
    /// Keep their entries of the previous generation
    KeepOld,
    /// Leave them out
    LeaveOut,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Direct {
    /// From the page cache if they are there, otherwise directly from the disk
    #[default]
    Auto,
    /// Always directly from the disk
    Always,
    /// Always through the page cache
    Never,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ctime {
    /// `index` reads it; until then `serve` does not send it
    Strict,
    /// `index` reads it unless a new mode, owner, link count or name explains the ctime; `serve` compares its content with
    /// the index before it sends it
    #[default]
    Explained,
    /// Like explained, but `index` does not read it
    Ignored,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Compression {
    /// The requested format, with blocks that are not compressed.
    #[default]
    Stored,
    /// End the session with an error.
    Refuse,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Repository {
    pub(crate) name: String,
    pub(crate) root: PathBuf,
    pub(crate) store: PathBuf,
    #[serde(default)]
    pub(crate) comment: String,
    #[serde(default)]
    pub(crate) direct: Direct,
    #[serde(default)]
    pub(crate) ctime: Ctime,
    #[serde(default)]
    pub(crate) pin: bool,
    #[serde(default)]
    pub(crate) pool: Option<PathBuf>,
    #[serde(default = "Bytes::none")]
    pub(crate) bandwidth: Bytes,
    #[serde(default = "yes")]
    pub(crate) list: bool,
    #[serde(default)]
    pub(crate) hosts_allow: Words<HostPattern>,
    #[serde(default)]
    pub(crate) hosts_deny: Words<HostPattern>,
    #[serde(default)]
    pub(crate) auth_users: Words,
    #[serde(default)]
    pub(crate) secrets_file: Option<PathBuf>,
    #[serde(default)]
    pub(crate) serve_hidden_natively: bool,
    #[serde(default)]
    pub(crate) filter: Vec<String>,
    #[serde(default)]
    pub(crate) include_from: Option<PathBuf>,
    #[serde(default)]
    pub(crate) include: Vec<String>,
    #[serde(default)]
    pub(crate) exclude_from: Option<PathBuf>,
    #[serde(default)]
    pub(crate) exclude: Vec<String>,
    #[serde(default)]
    pub(crate) refuse_options: Words,
    #[serde(default)]
    pub(crate) max_connections: usize,
    #[serde(default = "Seconds::none")]
    pub(crate) timeout: Seconds,
    #[serde(default)]
    pub(crate) numeric_ids: bool,
    #[serde(default)]
    pub(crate) munge_symlinks: bool,
    #[serde(default)]
    pub(crate) outgoing_chmod: Permissions,
    #[serde(default)]
    pub(crate) index: Index,
}

impl Repository {
    /// Creates a repository with all settings at their defaults.
    pub(crate) fn new(name: String, root: PathBuf, store: PathBuf) -> Self {
        Self {
            name,
            root,
            store,
            comment: String::new(),
            direct: Direct::default(),
            ctime: Ctime::default(),
            pin: false,
            pool: None,
            bandwidth: Bytes::none(),
            list: true,
            hosts_allow: Words::default(),
            hosts_deny: Words::default(),
            auth_users: Words::default(),
            secrets_file: None,
            serve_hidden_natively: false,
            filter: Vec::new(),
            include_from: None,
            include: Vec::new(),
            exclude_from: None,
            exclude: Vec::new(),
            refuse_options: Words::default(),
            max_connections: 0,
            timeout: Seconds::none(),
            numeric_ids: false,
            munge_symlinks: false,
            outgoing_chmod: Permissions::default(),
            index: Index::default(),
        }
    }

    fn check(&self) -> Result<()> {
        stillmirror_protocol::head::check_repository_name(&self.name).context("repository.name")?;
        check_bandwidth("repository.bandwidth", self.bandwidth, LEAST_BANDWIDTH)?;
        if let Some(user) = self.auth_users.0.iter().find(|user| user.contains(['@', ':', '*', '?', '['])) {
            bail!(
                "repository.auth_users: '{user}': only plain user names are supported, not groups, rights or patterns"
            );
        }
        if self.secrets_file.is_none() && !self.auth_users.0.is_empty() {
            bail!("repository.auth_users: '{}' has no secrets_file", self.name);
        }
        if let Some(pool) = self.pool.as_ref().filter(|_| !self.pin) {
            bail!("repository.pool: {} is not used without `pin = true`", pool.display());
        }
        Ok(())
    }
}

fn yes() -> bool {
    true
}

/// Fails if a bandwidth limit is below `least`, a multiple of 1024. 0 is no limit.
pub(crate) fn check_bandwidth(key: &str, Bytes(limit): Bytes, least: u64) -> Result<(), UsageError> {
    if limit > 0 && limit < least {
        let least = least >> 10;
        return Err(UsageError(format!(
            "{key}: {limit} bytes per second is too low: the least is {least}KiB (0 is no limit)"
        )));
    }
    Ok(())
}

impl Config {
    /// Reads the file and applies the environment of the process.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let base = path.parent().unwrap_or(Path::new(""));
        let read = std::fs::read_to_string(path).context("cannot read the file");
        read.and_then(|text| Self::parse(&text, std::env::vars(), base))
            .with_context(|| UsageError(path.display().to_string()))
    }

    /// Like [`Config::load`], for the text of a file. Relative paths in it are relative to `base`.
    pub(crate) fn parse(text: &str, environment: impl Iterator<Item = (String, String)>, base: &Path) -> Result<Self> {
        let _: Config = toml::from_str(text)?;
        let overlay = config::Environment::default()
            .prefix("STILLMIRROR")
            .prefix_separator("_")
            .separator("__")
            .try_parsing(true)
            .source(Some(keys_only(environment)));
        let merged = config::Config::builder()
            .add_source(config::File::from_str(text, config::FileFormat::Toml))
            .add_source(overlay)
            .build()?;
        let mut config: Config = merged.try_deserialize().context("from the environment (STILLMIRROR_…)")?;
        let below = |file: &mut Option<PathBuf>| *file = file.take().map(|file| base.join(file));
        below(&mut config.index.sign_key);
        for repository in &mut config.repository {
            below(&mut repository.index.sign_key);
            repository.root = base.join(&repository.root);
            repository.store = base.join(&repository.store);
            let files = [&mut repository.secrets_file, &mut repository.include_from, &mut repository.exclude_from];
            files.into_iter().chain([&mut repository.pool]).for_each(below);
        }
        below(&mut config.daemon.lists);
        below(&mut config.daemon.motd_file);
        below(&mut config.daemon.status_socket);
        below(&mut config.daemon.tls_certificate);
        below(&mut config.daemon.tls_key);
        config.check()?;
        Ok(config)
    }

    /// Returns the repositories with these names, or all if `names` is empty. Fails if one is unknown.
    pub(crate) fn select(&self, names: &[String]) -> Result<Vec<&Repository>> {
        if names.is_empty() {
            return Ok(self.repository.iter().collect());
        }
        let find = |name: &String| self.repository.iter().find(|repository| repository.name == *name);
        let known =
            |name: &String| find(name).ok_or_else(|| UsageError(format!("no [[repository]] is named '{name}'")).into());
        names.iter().map(known).collect()
    }

    fn check(&self) -> Result<()> {
        if self.repository.is_empty() {
            bail!("no [[repository]]: there is nothing to index or serve");
        }
        if self.daemon.group.is_some() && self.daemon.user.is_none() {
            bail!("daemon.group: daemon.user is missing");
        }
        if self.daemon.sockets().is_empty() {
            bail!("daemon.listen: there is no address to listen on");
        }
        self.daemon.check_tls()?;
        check_bandwidth("daemon.bandwidth", self.daemon.bandwidth, LEAST_BANDWIDTH)?;
        let per_connection = self.daemon.bandwidth_per_connection;
        check_bandwidth("daemon.bandwidth_per_connection", per_connection, LEAST_BANDWIDTH)?;
        for (at, repository) in self.repository.iter().enumerate() {
            repository.check()?;
            let before = &self.repository[..at];
            if before.iter().any(|other| other.name == repository.name) {
                bail!("repository.name: two repositories are named '{}'", repository.name);
            }
            if before.iter().any(|other| other.store == repository.store) {
                bail!("repository.store: {} is the store of two repositories", repository.store.display());
            }
            if let Some(pool) = &repository.pool
                && before.iter().any(|other| other.pool.as_ref() == Some(pool))
            {
                bail!("repository.pool: {} is the pool of two repositories", pool.display());
            }
        }
        Ok(())
    }
}

/// Returns the variables that stand for keys. Others with the prefix, such as `STILLMIRROR_LOG`, are not configuration.
fn keys_only(environment: impl Iterator<Item = (String, String)>) -> HashMap<String, String> {
    environment
        .filter(|(name, _)| name.starts_with("STILLMIRROR_DAEMON__") || name.starts_with("STILLMIRROR_INDEX__"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../mirror.toml.example");

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(text, environment, Path::new("/etc/stillmirror"))
    }

    const SMALLEST: &str = "[[repository]]\nname = 'debian'\nroot = '/srv/debian'\nstore = 'stores/debian'\n";

    #[test]
    fn the_example_is_valid_as_it_is_and_with_every_key_uncommented() {
        parse(EXAMPLE, &[]).expect("the example is a working file");
        let all: String = EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix("#") {
                // `pool` needs it.
                Some("pin = false") => "pin = true",
                Some(key) if key.starts_with(|first: char| first.is_ascii_lowercase()) && key.contains(" = ") => key,
                _ => line,
            })
            .fold(String::new(), |text, line| text + line + "\n");
        assert_ne!(all, EXAMPLE);
        parse(&all, &[]).expect("every commented key exists, and its value is valid");
    }

    #[test]
    fn the_example_shows_every_key_with_its_default() {
        let defaults = Daemon::default();
        for line in [
            format!("#connections = {}", defaults.connections),
            format!("#queue = {}", defaults.queue),
            format!("#connections_per_address = {}", defaults.connections_per_address),
            format!("#ipv4_prefix = {}", defaults.ipv4_prefix.0),
            format!("#ipv6_prefix = {}", defaults.ipv6_prefix.0),
            format!("#handshake_timeout = \"{}s\"", defaults.handshake_timeout.0),
            format!("#idle_timeout = \"{}m\"", defaults.idle_timeout.0 / 60.0),
            format!("#minimum_rate = \"{}KiB\"", defaults.minimum_rate.0 >> 10),
            format!("#minimum_bwlimit = \"{}KiB\"", defaults.minimum_bwlimit.0 >> 10),
            format!("#bandwidth = {}", defaults.bandwidth.0),
            format!("#bandwidth_per_connection = {}", defaults.bandwidth_per_connection.0),
            format!("#drain = \"{}s\"", defaults.drain.0),
            format!("#upgrade_drain = \"{}h\"", defaults.upgrade_drain.0 / 3600.0),
            format!("#cache = \"{}MiB\"", defaults.cache.0 >> 20),
            format!("#buffers = \"{}MiB\"", defaults.buffers.0 >> 20),
            format!("#list_memory = \"{}GiB\"", defaults.list_memory.0 >> 30),
            format!("#cached_lists = \"{}GiB\"", defaults.cached_lists.0 >> 30),
            format!("#filter_rules = {}", defaults.filter_rules),
            format!("#filter_bytes = \"{}MiB\"", defaults.filter_bytes.0 >> 20),
            format!("#reload_interval = \"{}s\"", defaults.reload_interval.0),
        ] {
            assert!(EXAMPLE.contains(&line), "the example lacks '{line}'");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name_and_line() {
        let error = parse(&format!("[daemon]\nconections = 5\n{SMALLEST}"), &[]).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("line 2") && text.contains("conections"), "{text}");
    }

    #[test]
    fn an_invalid_value_is_refused_with_its_line() {
        for (line, wanted) in [
            ("cache = '5 bananas'", "bananas"),
            ("idle_timeout = -1", "idle_timeout"),
            ("listen = 'nowhere'", "nowhere"),
            ("ipv4_prefix = 33", "ipv4_prefix"),
            ("proxy_protocol_from = ['10.0.0.0/33']", "10.0.0.0/33"),
            ("proxy_protocol_from = '*'", "'*' is not an address"),
            ("ipv6_prefix = 129", "ipv6_prefix"),
        ] {
            let error = parse(&format!("[daemon]\n{line}\n{SMALLEST}"), &[]).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains("line 2") && text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn one_address_or_several_are_listened_on() {
        let sockets = |lines: &str, environment: &[(&str, &str)]| {
            let config = parse(&format!("[daemon]\n{lines}\n{SMALLEST}"), environment)?;
            Ok::<_, anyhow::Error>(
                config.daemon.sockets().into_iter().map(|(address, _)| address.to_string()).collect(),
            )
        };
        let several: Vec<String> = sockets("listen = ['192.0.2.1:8730', '[2001:db8::1]:8730', 873]", &[]).unwrap();
        assert_eq!(several, ["192.0.2.1:8730", "[2001:db8::1]:8730", "[::]:873"]);
        let several: Vec<String> = sockets("listen = 8730\nrsync_listen = ['[::]:873']", &[]).unwrap();
        assert_eq!(several, ["[::]:8730", "[::]:873"]);
        let others = [("STILLMIRROR_DAEMON__LISTEN", "192.0.2.1:1, 192.0.2.1:2")];
        assert_eq!(sockets("", &others).unwrap(), ["192.0.2.1:1", "192.0.2.1:2"]);
        let error = sockets("listen = []", &[]).unwrap_err();
        assert!(format!("{error:#}").contains("daemon.listen: there is no address to listen on"), "{error:#}");
    }

    #[test]
    fn tls_needs_a_certificate_and_its_key() {
        for (lines, wanted) in [
            ("tls_listen = 874", "daemon.tls_listen: daemon.tls_certificate and daemon.tls_key are missing"),
            ("tls_listen = 874\ntls_certificate = 'c'", "daemon.tls_certificate: daemon.tls_key is missing"),
            ("tls_key = 'k'", "daemon.tls_key: daemon.tls_certificate is missing"),
        ] {
            let error = parse(&format!("[daemon]\n{lines}\n{SMALLEST}"), &[]).unwrap_err();
            assert!(format!("{error:#}").contains(wanted), "{error:#}");
        }
        let lines = "tls_listen = 874\ntls_certificate = 'cert.pem'\ntls_key = '/etc/ssl/key.pem'";
        let tls = parse(&format!("[daemon]\n{lines}\n{SMALLEST}"), &[]).unwrap().daemon.tls().unwrap();
        assert_eq!(tls.certificate, Path::new("/etc/stillmirror/cert.pem"));
        assert_eq!(tls.key, Path::new("/etc/ssl/key.pem"));
    }

    #[test]
    fn a_bandwidth_below_the_least_is_refused_with_its_key() {
        for key in ["bandwidth", "bandwidth_per_connection"] {
            let error = parse(&format!("[daemon]\n{key} = 1000\n{SMALLEST}"), &[]).unwrap_err();
            assert!(format!("{error:#}").contains(&format!("daemon.{key}: ")), "{error:#}");
            parse(&format!("[daemon]\n{key} = '12.5MB'\n{SMALLEST}"), &[]).unwrap();
        }
        let error = parse(&format!("{SMALLEST}bandwidth = 1\n"), &[]).unwrap_err();
        assert!(format!("{error:#}").contains("repository.bandwidth: "), "{error:#}");
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let config =
            parse(&format!("[daemon]\nconnections = 5\n{SMALLEST}"), &[("STILLMIRROR_DAEMON__CONNECTIONS", "7")]);
        assert_eq!(config.unwrap().daemon.connections, 7);
    }

    #[test]
    fn an_unknown_key_in_the_environment_is_refused() {
        let error = parse(SMALLEST, &[("STILLMIRROR_DAEMON__CONECTIONS", "7")]).unwrap_err();
        assert!(format!("{error:#}").contains("conections"), "{error:#}");
        parse(SMALLEST, &[("STILLMIRROR_LOG", "debug")]).expect("not configuration");
    }

    #[test]
    fn hosts_and_users_are_written_as_in_rsyncd_conf_or_as_an_array() {
        let more = "hosts_allow = '10.0.0.0/8, ::1'\nhosts_deny = ['*']\nauth_users = 'anna bob'\nsecrets_file = 's'\n";
        let repository = parse(&format!("{SMALLEST}{more}"), &[]).unwrap().repository.remove(0);
        assert_eq!((repository.hosts_allow.0.len(), repository.hosts_deny.0.len()), (2, 1));
        assert_eq!(repository.auth_users.0, ["anna", "bob"]);
        assert_eq!(repository.secrets_file.as_deref(), Some(Path::new("/etc/stillmirror/s")));
    }

    #[test]
    fn invalid_hosts_users_and_permissions_are_refused_with_their_name() {
        for (line, wanted) in [
            ("hosts_allow = 'mirror.example.org'", "mirror.example.org"),
            ("auth_users = '@staff'\nsecrets_file = 's'", "@staff"),
            ("auth_users = 'anna'", "secrets_file"),
            ("outgoing_chmod = 'a+r,u=g'", "'u=g' is not a mode change"),
        ] {
            let error = parse(&format!("{SMALLEST}{line}\n"), &[]).unwrap_err();
            assert!(format!("{error:#}").contains(wanted), "{error:#}");
        }
    }

    #[test]
    fn relative_paths_are_relative_to_the_file() {
        let config = parse(SMALLEST, &[]).unwrap();
        assert_eq!(config.repository[0].store, Path::new("/etc/stillmirror/stores/debian"));
    }

    #[test]
    fn a_pool_needs_pin_and_belongs_to_one_repository() {
        let pool = "pin = true\npool = 'pool'\n";
        let config = parse(&format!("{SMALLEST}{pool}"), &[]).unwrap();
        assert_eq!(config.repository[0].pool.as_deref(), Some(Path::new("/etc/stillmirror/pool")));
        let other = SMALLEST.replace("debian", "other");
        for text in [format!("{SMALLEST}pool = 'pool'\n"), format!("{SMALLEST}{pool}{other}{pool}")] {
            let error = parse(&text, &[]).unwrap_err();
            assert!(format!("{error:#}").contains("repository.pool: /etc/stillmirror/pool"), "{error:#}");
        }
    }

    #[test]
    fn two_repositories_cannot_share_a_name_or_a_store() {
        let other = SMALLEST.replace("'debian'", "'other'");
        assert!(parse(&format!("{SMALLEST}{SMALLEST}"), &[]).is_err());
        assert!(parse(&format!("{SMALLEST}{other}"), &[]).is_err());
    }
}
