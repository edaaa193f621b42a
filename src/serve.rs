//! `stillmirror serve`

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stillmirror_daemon as daemon;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

use crate::config::{Compression, Config, Ctime, Direct, Listen, Repository};
use crate::exit::Exit;
use crate::privileges;
use crate::signals;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 1024;

#[derive(Args)]
#[command(after_help = crate::exit::HELP)]
pub(crate) struct Arguments {
    /// Serve all repositories of this file (see mirror.toml.example)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["root", "store", "name"])]
    config: Option<PathBuf>,
    /// Serve this one tree
    #[arg(long, value_name = "DIR", requires = "store")]
    root: Option<PathBuf>,
    /// Its store, as `index` or `pull` made it
    #[arg(long, value_name = "DIR", requires = "root")]
    store: Option<PathBuf>,
    /// Its name in URLs [default: the store's]
    #[arg(long, requires = "root")]
    name: Option<String>,
    /// Where to listen; port 0 takes a free one [default: port 8730 of all addresses, or the file's]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<Listen>,
    /// How files are read [default: auto, or the file's]
    #[arg(long)]
    direct: Option<Direct>,
    /// What happens to a file of which only the ctime differs [default: explained, or the file's]
    #[arg(long)]
    ctime: Option<Ctime>,
    /// Serve, as root, what not everybody on this host may read too
    #[arg(long)]
    serve_private: bool,
    /// Form of the log, on standard error; STILLMIRROR_LOG sets what it shows (default: info)
    #[arg(long, value_enum, default_value = "text")]
    log: LogForm,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum LogForm {
    Text,
    Json,
}

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    start_log(arguments.log);
    raise_open_files();
    let mut config = config(&arguments)?;
    if let Some(listen) = arguments.listen {
        config.daemon.listen = listen;
    }
    if let Some(direct) = arguments.direct {
        config.repository.iter_mut().for_each(|repository| repository.direct = direct);
    }
    if let Some(ctime) = arguments.ctime {
        config.repository.iter_mut().for_each(|repository| repository.ctime = ctime);
    }
    config.daemon.serve_private |= arguments.serve_private;
    let address = config.daemon.listen.0;
    let rsync_address = config.daemon.rsync_listen.map(|listen| listen.0).filter(|_| config.daemon.rsync);
    // Root's ports first, then no root, and only then any other thread.
    let all = bind(address)?;
    let rsync = rsync_address.map(bind).transpose()?;
    if let Some(user) = &config.daemon.user {
        privileges::become_user(user, config.daemon.group.as_deref())?;
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let threads = daemon::blocking_threads(config.repository.len());
    let runtime = builder.enable_all().max_blocking_threads(threads).build().context("cannot start a runtime")?;
    let served = runtime.block_on(async {
        let shutdown = signals::asked_to_end()?;
        // It may come before there is anything to reload, and must not end the process.
        let reload = daemon::Reload::default();
        let asked = reload.clone();
        signals::on_hangup(move || asked.reload())?;
        let all = listen(all, "listening on")?;
        let rsync = rsync.map(|listener| listen(listener, "listening for rsync clients on")).transpose()?;
        daemon::run(daemon::Listeners { all, rsync }, resolve(config), reload, shutdown).await?;
        Ok(Exit::Done)
    });
    // A thread whose disk hangs would be waited for without an end.
    runtime.shutdown_background();
    served
}

/// Lets the process open as many files as it may: the limit that it is started with is meant for programs that
/// `select(2)`.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

/// Hands a socket to the runtime.
fn listen(listener: std::net::TcpListener, what: &str) -> Result<TcpListener> {
    tracing::info!("{what} {}", listener.local_addr().context("cannot tell the address")?);
    TcpListener::from_std(listener).context("cannot listen")
}

/// A socket that listens, before there is a runtime.
fn bind(address: SocketAddr) -> Result<std::net::TcpListener> {
    open_socket(address).with_context(|| format!("cannot listen on {address}"))
}

fn open_socket(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// The configuration file, or one of a single repository from the flags.
fn config(arguments: &Arguments) -> Result<Config> {
    if let Some(path) = &arguments.config {
        return Config::load(path);
    }
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

fn resolve(config: Config) -> daemon::Config {
    let Config { daemon: settings, repository, .. } = config;
    daemon::Config {
        repositories: repository.into_iter().map(resolve_repository).collect(),
        limits: daemon::Limits {
            connections: settings.connections,
            queue: settings.queue,
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
            ..daemon::Limits::default()
        },
        memory: daemon::Memory {
            cache: settings.cache.0 as usize,
            buffers: settings.buffers.0 as usize,
            lists: settings.list_memory.0,
        },
        reload_interval: settings.reload_interval.duration(),
        serve_private: settings.serve_private,
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

fn start_log(form: LogForm) {
    let filter = EnvFilter::try_from_env("STILLMIRROR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match form {
        LogForm::Text => log.with_ansi(false).init(),
        LogForm::Json => log.json().init(),
    }
}
