//! `stillmirror serve`.

mod manager;
mod observed;
mod passed;
mod reach;
mod reload;
pub(crate) mod sockets;
mod upgrade;

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stillmirror_daemon::{self as daemon, Daemon};
use tracing_subscriber::EnvFilter;

use crate::config::{Compression, Config, Ctime, Direct, Listen, Repository, Words};
use crate::exit::Exit;
use crate::sandbox::Reach;
use crate::{path_args, privileges, signals};

use manager::Manager;
use observed::Observed;
use passed::Passed;
use reload::Reloading;
use sockets::Socket;
use upgrade::Upgrading;

/// The number of repositories from which on work that hangs in all of them may need more threads than there are.
const REPOSITORIES: usize = 256;

const EXAMPLES: &str = "\
Examples:
  stillmirror serve --config /etc/stillmirror/mirror.toml
  stillmirror serve --root /srv/debian --store /var/lib/stillmirror/debian --name debian
  stillmirror serve --root tree --store store --listen 127.0.0.1:8730

`stillmirror --help` lists the exit codes.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Serve all repositories of this configuration file (see mirror.toml.example)
    #[arg(long, value_name = "FILE", value_parser = path_args::local(), conflicts_with_all = ["root", "store", "name"])]
    config: Option<PathBuf>,
    /// Serve this one tree
    #[arg(long, value_name = "DIR", value_parser = path_args::local(), requires = "store")]
    root: Option<PathBuf>,
    /// The tree's store, which `index` or `pull` wrote
    #[arg(long, value_name = "DIR", value_parser = path_args::local(), requires = "root")]
    store: Option<PathBuf>,
    /// The tree's name in URLs [default: the store's name]
    #[arg(long, requires = "root")]
    name: Option<String>,
    /// Where to listen: a port, on all addresses, or one address and port; port 0 is any free port; may be repeated
    /// [default: 8730, or the configuration file's]
    #[arg(long, value_name = "[ADDR:]PORT")]
    listen: Vec<Listen>,
    /// How to read files [default: auto, or the configuration file's]
    #[arg(long)]
    direct: Option<Direct>,
    /// What to do with a file of which only the ctime differs [default: explained, or the configuration file's]
    #[arg(long)]
    ctime: Option<Ctime>,
    /// If run as root, also serve files that not everybody on this host may read
    #[arg(long)]
    serve_private: bool,
    /// The format of the log on standard error; STILLMIRROR_LOG sets its level (default: info)
    #[arg(long, value_enum, default_value = "text")]
    log: LogFormat,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    start_log(arguments.log);
    raise_open_files();
    let config = config(&arguments)?;
    // Ports below 1024 need root, so bind first. Then change the user, before there is any other thread.
    let Passed { sockets: mut passed, ready } = Passed::take()?;
    let sockets = sockets::open(&config.daemon.sockets(), &mut passed)?;
    let owner = privileges::owner(config.daemon.user.as_deref(), config.daemon.group.as_deref())?;
    let metrics: Vec<_> = config.daemon.metrics_listen.0.iter().map(|listen| listen.0).collect();
    let observed = Observed::bind(&metrics, &mut passed, config.daemon.status_socket.as_deref(), owner)?;
    sockets::check_all_used(passed)?;
    if let Some(user) = &config.daemon.user {
        privileges::become_user(user, config.daemon.group.as_deref())?;
    }
    let reach = reach::enter_sandbox(&config, arguments.config.as_deref());
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // A reload may add repositories.
    let threads = daemon::blocking_threads(config.repository.len().max(REPOSITORIES));
    let runtime = builder.enable_all().max_blocking_threads(threads).build().context("cannot start a runtime")?;
    let served = runtime.block_on(serve(arguments, config, reach, sockets, observed, ready));
    // Do not wait for blocking threads: the disk of one may hang forever.
    runtime.shutdown_background();
    served
}

async fn serve(
    arguments: Arguments,
    config: Config,
    reach: Option<Reach>,
    sockets: Vec<Socket>,
    observed: Observed,
    replaces: Option<UnixDatagram>,
) -> Result<Exit> {
    let mut termination = pin!(signals::termination()?);
    // Without handlers these would end the process, and they may arrive before there is anything to reload.
    let (hangups, upgrades) = (signals::hangups()?, signals::upgrades()?);
    let passed_on = sockets::duplicate(sockets.iter().map(|socket| &socket.socket).chain(observed.sockets()))?;
    let mut listeners = sockets::listen(sockets)?;
    let _file = observed.listen(&mut listeners)?;
    let started = config.daemon.clone();
    let mut daemon = tokio::select! {
        daemon = Daemon::open(resolve(config)) => daemon?,
        () = &mut termination => return Ok(Exit::Done),
    };
    let (manager, handle) = (Manager::default(), daemon.reload_handle());
    if let Some(period) = manager::heartbeat() {
        let manager = manager.clone();
        daemon = daemon.with_heartbeat(period, move || manager.alive());
    }
    let arguments = Arc::new(arguments);
    let reloading = Reloading { arguments, started, reach, daemon: handle.clone(), manager: manager.clone() };
    let upgrading = Upgrading { sockets: passed_on, daemon: handle.clone(), manager: manager.clone() };
    match replaces {
        // The old process tells the service manager, which does not listen to this one yet.
        Some(waiting) => upgrade::tell_ready(&waiting),
        None => manager.ready(handle.repositories()),
    }
    let shutdown = async {
        termination.await;
        manager.stopping(handle.drain());
    };
    tokio::select! {
        served = daemon.run(listeners, shutdown) => served?,
        never = reloading.run(hangups) => match never {},
        never = upgrading.run(upgrades) => match never {},
    }
    Ok(Exit::Done)
}

/// Raises the soft limit on open files to the hard limit. The default soft limit is meant for programs that use
/// `select(2)`.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

/// Returns the configuration of the file, or one of a single repository from the options. Other options override it.
fn config(arguments: &Arguments) -> Result<Config> {
    let mut config = match &arguments.config {
        Some(path) => Config::load(path)?,
        None => single(arguments)?,
    };
    if !arguments.listen.is_empty() {
        config.daemon.listen = Words(arguments.listen.clone());
    }
    if let Some(direct) = arguments.direct {
        config.repository.iter_mut().for_each(|repository| repository.direct = direct);
    }
    if let Some(ctime) = arguments.ctime {
        config.repository.iter_mut().for_each(|repository| repository.ctime = ctime);
    }
    config.daemon.serve_private |= arguments.serve_private;
    Ok(config)
}

/// Returns a configuration of the single repository that the options name.
fn single(arguments: &Arguments) -> Result<Config> {
    let (Some(root), Some(store)) = (&arguments.root, &arguments.store) else {
        bail!(crate::exit::UsageError("give --config FILE, or --root DIR and --store DIR".to_owned()));
    };
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => stillmirror_store::Store::open(store)?.repository().to_owned(),
    };
    let repository = Repository::new(name, root.clone(), store.clone());
    Ok(Config { repository: vec![repository], ..Config::default() })
}

/// Returns what the daemon is started with.
pub(crate) fn resolve(config: Config) -> daemon::Config {
    let Config { daemon: settings, repository, .. } = config;
    daemon::Config {
        repositories: repository.into_iter().map(resolve_repository).collect(),
        limits: daemon::Limits {
            connections: settings.connections,
            queue: settings.queue,
            followers: settings.followers,
            connections_per_address: settings.connections_per_address,
            ipv4_prefix: settings.ipv4_prefix.0,
            ipv6_prefix: settings.ipv6_prefix.0,
            handshake: settings.handshake_timeout.duration(),
            idle: settings.idle_timeout.duration(),
            minimum_rate: settings.minimum_rate.0,
            minimum_bwlimit: settings.minimum_bwlimit.0,
            bandwidth_per_connection: settings.bandwidth_per_connection.0,
            bandwidth: settings.bandwidth.0,
            drain: settings.drain.duration(),
            upgrade_drain: settings.upgrade_drain.duration(),
            ..daemon::Limits::default()
        },
        memory: daemon::Memory {
            cache: settings.cache.0 as usize,
            buffers: settings.buffers.0 as usize,
            lists: settings.list_memory.0,
        },
        reload_interval: settings.reload_interval.duration(),
        serve_private: settings.serve_private,
        tls: settings.tls(),
        proxies: settings.proxy_protocol_from.0.iter().map(|network| network.0).collect(),
        rsync: daemon::RsyncConfig {
            enabled: settings.rsync,
            motd: settings.motd_file,
            cached_lists: settings.cached_lists.0,
            lists: settings.lists,
            rule_limits: daemon::RuleLimits { count: settings.filter_rules, bytes: settings.filter_bytes.0 as usize },
            compression: match settings.compression {
                Compression::Stored => daemon::Compression::Stored,
                Compression::Refuse => daemon::Compression::Refuse,
            },
        },
    }
}

fn resolve_repository(repository: Repository) -> daemon::RepositoryConfig {
    daemon::RepositoryConfig {
        name: repository.name,
        comment: repository.comment,
        root: repository.root,
        store: repository.store,
        direct: match repository.direct {
            Direct::Auto => daemon::DirectPolicy::Auto,
            Direct::Always => daemon::DirectPolicy::Always,
            Direct::Never => daemon::DirectPolicy::Never,
        },
        strict_ctime: repository.ctime == Ctime::Strict,
        bandwidth: repository.bandwidth.0,
        list: repository.list,
        hosts: daemon::Hosts { allow: repository.hosts_allow.0, deny: repository.hosts_deny.0 },
        users: daemon::Users { names: repository.auth_users.0, secrets: repository.secrets_file.unwrap_or_default() },
        serve_hidden_natively: repository.serve_hidden_natively,
        module: daemon::ModuleConfig {
            rules: daemon::ModuleRules {
                filter: repository.filter,
                include_from: repository.include_from,
                include: repository.include,
                exclude_from: repository.exclude_from,
                exclude: repository.exclude,
            },
            refuse_options: repository.refuse_options.0,
            max_connections: repository.max_connections,
            timeout: repository.timeout.duration(),
            numeric_ids: repository.numeric_ids,
            munge_symlinks: repository.munge_symlinks,
            outgoing_chmod: repository.outgoing_chmod.0,
        },
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("STILLMIRROR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
