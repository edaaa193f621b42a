//! The command line of `pull`, and the options that it stands for.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, Args, ValueEnum};
use stillmirror_protocol::limits;
use stillmirror_protocol::signature::PublicKey;
use stillmirror_receiver::{self as receiver, MaxDelete, MinFree, Names, Options, Slice, TraceHost};

use crate::config::{self, Bytes, Seconds};
use crate::exit::UsageError;
use crate::filter_args::FilterArgs;
use crate::output::OutputArgs;
use crate::path_args;
use crate::tls_args::TlsArgs;
use crate::url::Url;

/// The least `--bwlimit`, in bytes per second. The kernel opens a full receive window (6 MiB by default) again once a
/// sixteenth of it is free. Below this limit, that takes longer than a daemon waits before it disconnects a client that
/// takes nothing (30 s by default).
const LEAST_BWLIMIT: u64 = 16 << 10;

/// How long snapshots remain by default: longer than the downloads that began in them.
const KEEP_SNAPSHOTS: Duration = Duration::from_secs(2 * 3600);

const EXAMPLES: &str = "\
Examples:
  stillmirror pull stillmirror://mirror.example/debian /srv/debian --delete --dry-run
  stillmirror pull stillmirror://mirror.example/debian mirror --store mirror-store --delete
  stillmirror pull stillmirror://mirror.example/debian /srv/debian --delete-grace 1h --switch
  stillmirror pull stillmirror://mirror.example/debian/dists/stable stable --exclude '*.tar'
  stillmirror pull stillmirror://mirror.example/debian /srv/debian --suite bookworm,bookworm-updates --arch amd64

`stillmirror --help` lists the exit codes.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("deleting").args(["delete", "delete_grace"]).multiple(true))]
pub(crate) struct Arguments {
    /// The repository, or a part of it. Of several senders, the one with the newest generation is asked, and left for
    /// another if it fails
    #[arg(value_name = "stillmirror://HOST:PORT/NAME[/PATH]", required = true, num_args = 1..)]
    urls: Vec<Url>,
    /// The local tree; created if it does not exist
    #[arg(value_name = "DEST", value_parser = path_args::local())]
    dest: PathBuf,
    /// Where the generation of the tree is kept [default: a directory for this tree below $XDG_STATE_HOME/stillmirror,
    /// ~/.local/state/stillmirror, or, for root, /var/lib/stillmirror]
    #[arg(long, value_name = "DIR", value_parser = path_args::local())]
    store: Option<PathBuf>,
    /// Update a new snapshot beside DEST, and make DEST a symlink to it in one step once it is complete: readers never see
    /// an update half done. Snapshots share unchanged files by hard links, in DEST.snapshots
    #[arg(long)]
    pub(super) switch: bool,
    /// How long a snapshot remains after it was current [default: 2h]
    #[arg(long, value_name = "AGE", requires = "switch")]
    keep_snapshots: Option<Seconds>,
    /// A directory that may have contents, or parts of them, at the same paths as DEST (an old mirror, a mounted image); only
    /// read. May be repeated
    #[arg(long, value_name = "DIR", value_parser = path_args::local())]
    basis: Vec<PathBuf>,
    /// Pull only what this key has signed: a public key file, or the key itself; may be given several times, for any of
    /// several keys
    #[arg(long, value_name = "FILE|KEY", value_parser = trusted_key)]
    trust: Vec<PublicKey>,
    /// Delete what the sender does not have; names that the filter leaves out and stores are never deleted
    #[arg(long)]
    delete: bool,
    /// Like --delete, but each name remains for this long (2h, 1d), for readers that hold an older index; a later pull
    /// deletes it
    #[arg(long, value_name = "AGE")]
    delete_grace: Option<Seconds>,
    /// Delete nothing at all if this run would delete more names than this, or more than this share of the names that
    /// DEST has (5000, 10%) [default: 40%, from 100 names on]
    #[arg(long, value_name = "NUMBER|PERCENT", requires = "deleting", value_parser = max_delete)]
    max_delete: Option<MaxDelete>,
    /// Pull into an empty or missing DEST although the store knows files of it; without this flag its disk is taken
    /// for one that is not mounted
    #[arg(long)]
    allow_empty: bool,
    /// Pull the sender's generation although it is older than the one that the last pull took
    #[arg(long)]
    allow_older: bool,
    /// Pull from a sender that has only a slice of the repository now, and had all of it at the last pull
    #[arg(long)]
    allow_slice: bool,
    /// Stay connected after the pull, and pull again whenever the sender has another generation, until SIGTERM or SIGINT; what
    /// fails is repeated
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) follow: bool,
    /// Wait until another pull into DEST, or with the same store, has ended, without TIME as long as it takes; without
    /// this flag `pull` fails at once
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, conflicts_with = "dry_run")]
    wait: Option<Option<Seconds>>,
    #[command(flatten)]
    pub(super) hooks: HookArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Pull only the names in this file (`-`: standard input), one a line, and what is below them; --delete deletes only
    /// below them. With --suite, --arch or --component, pull them in addition
    #[arg(long, value_name = "FILE", value_parser = path_args::local())]
    files_from: Option<PathBuf>,
    /// The names of --files-from end with a NUL
    #[arg(long, requires = "files_from")]
    from0: bool,
    /// Pull only this suite of Debian archives (bookworm), or rpm repositories below this directory, with all packages that
    /// its indices name; may be repeated, or a list with commas
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    suite: Vec<String>,
    /// Pull only packages of this architecture (amd64, x86_64, source) and those for all; may be repeated, or a list with
    /// commas
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    arch: Vec<String>,
    /// Pull only this component of Debian archives (main); may be repeated, or a list with commas
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    component: Vec<String>,
    /// Pull nothing if less than this would remain free on a file system that is written to (50GiB, 5%); `off` pulls even
    /// what does not seem to fit
    #[arg(long, value_name = "SIZE|PERCENT", value_parser = min_free)]
    min_free: Option<MinFree>,
    /// Write project/trace/HOST and project/trace/HOST.json below DEST after each complete pull; give it to every pull
    #[arg(long, value_name = "HOST")]
    trace: Option<TraceHost>,
    /// Only print what would be done, and how many bytes would be fetched
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
    /// Receive at most this many bytes per second (500k, 10MiB); 0 is no limit
    #[arg(long, value_name = "RATE")]
    bwlimit: Option<Bytes>,
    /// How to find out what the local tree has
    #[arg(long, value_enum, default_value = "stat")]
    check: Check,
    /// Do not set owner and group (only root can)
    #[arg(long, conflicts_with = "numeric_ids")]
    no_owner: bool,
    /// Set owner and group by number, not by name
    #[arg(long)]
    numeric_ids: bool,
    /// Do not create fifos and sockets
    #[arg(long)]
    no_specials: bool,
    /// Create device files, which give access to devices of this host (only root can)
    #[arg(long)]
    devices: bool,
    /// Keep setuid and setgid bits of files
    #[arg(long)]
    setid: bool,
    /// How long the sender may be silent
    #[arg(long, value_name = "TIME", default_value = "5m")]
    timeout: Seconds,
    /// How long to continue with newer generations if the origin replaces files during the pull
    #[arg(long, value_name = "TIME", default_value = "10m")]
    patience: Seconds,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    /// How long connecting may take
    #[arg(long, value_name = "TIME", default_value = "30s")]
    connect_timeout: Seconds,
    /// Keep the content of files up to this size in the store, to serve it from there; 0 keeps none
    #[arg(long, value_name = "SIZE", default_value = "16KiB")]
    keep_contents: Bytes,
    /// Do not flush the file system before files get their final names
    #[arg(long)]
    no_fsync: bool,
    /// Keep access to all files of this user. By default, `pull` gives up everything but DEST, its store, --basis and system
    /// files before it connects, where the kernel has Landlock; with --before or --after it does not, because their commands
    /// may need more
    #[arg(long)]
    pub(super) no_sandbox: bool,
    /// The number of threads that hash, match and write; 0 uses all cores
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Args)]
pub(super) struct HookArgs {
    /// Run this shell command before the sender is contacted; if it fails, nothing is pulled
    #[arg(long, value_name = "COMMAND")]
    pub(super) before: Option<String>,
    /// Run this shell command after the pull, however it ended, with the report as JSON on standard input
    #[arg(long, value_name = "COMMAND")]
    pub(super) after: Option<String>,
}

impl HookArgs {
    /// Returns whether there is any command.
    pub(super) fn any(&self) -> bool {
        self.before.is_some() || self.after.is_some()
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Check {
    /// Compare size and modification time of every local file
    Stat,
    /// Read every local file
    Hash,
    /// Look at nothing: trust the generation that the last pull left
    None,
}

/// Answers rsync's short options (`-avz`) with the options that `pull` has.
pub(crate) fn explain_rsync_flags(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return error };
    if error.kind() != ErrorKind::UnknownArgument || !argument.starts_with('-') || argument.starts_with("--") {
        return error;
    }
    let pull = Arguments::augment_args(clap::Command::new("pull"));
    let options: Vec<_> =
        pull.get_arguments().filter_map(clap::Arg::get_long).map(|name| format!("--{name}")).collect();
    let tip = format!(
        "rsync's letters are not needed: `pull` always copies subdirectories, symlinks, hard links, times, modes and, as \
         root, owners. It has these options: {}",
        options.join(" ")
    );
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    error
}

/// Returns the options of a pull.
pub(super) fn options(arguments: &Arguments) -> Result<Options> {
    let [url, others @ ..] = &arguments.urls[..] else {
        return Err(UsageError("name a repository: stillmirror://HOST/NAME".to_owned()).into());
    };
    let Url { address, repository, path } = url.clone();
    if repository.is_empty() {
        let form = format!("name a repository: {url}NAME (`stillmirror list` shows them)");
        return Err(UsageError(form).into());
    }
    if let Some(other) = others.iter().find(|other| (&other.repository, &other.path) != (&repository, &path)) {
        let form = format!("all URLs must name the same part of the same repository: {url} and {other} do not");
        return Err(UsageError(form).into());
    }
    let mut options = Options::new(address, repository, &arguments.dest);
    options.alternatives = others.iter().map(|other| other.address.clone()).collect();
    options.authorities = arguments.tls.authorities();
    options.path = path;
    options.store = Some(match &arguments.store {
        Some(store) => store.clone(),
        None => default_store(&arguments.dest, arguments.switch)?,
    });
    let keep = arguments.keep_snapshots.map_or(KEEP_SNAPSHOTS, Seconds::duration);
    options.keep_snapshots = arguments.switch.then_some(keep);
    options.bases.clone_from(&arguments.basis);
    options.trust.clone_from(&arguments.trust);
    options.delete = arguments.delete || arguments.delete_grace.is_some();
    options.delete_grace = arguments.delete_grace.map(Seconds::duration);
    options.allow_empty = arguments.allow_empty;
    options.allow_older = arguments.allow_older;
    options.allow_slice = arguments.allow_slice;
    options.max_delete = arguments.max_delete.unwrap_or(MaxDelete::Usual);
    options.wait = arguments.wait.map(|time| time.map_or(Duration::MAX, Seconds::duration));
    options.filter = arguments.filter.0.clone();
    options.names = arguments.files_from.as_deref().map(|file| names(file, arguments.from0)).transpose()?;
    let (suites, architectures) = (arguments.suite.clone(), arguments.arch.clone());
    let components = arguments.component.clone();
    if !(suites.is_empty() && architectures.is_empty() && components.is_empty()) {
        let slice = Slice::new(suites, architectures, components).map_err(|error| UsageError(error.to_string()))?;
        options.slice = Some(slice);
    }
    options.min_free = arguments.min_free.unwrap_or_default();
    options.trace = arguments.trace.clone();
    options.dry_run = arguments.dry_run;
    if let Some(limit) = arguments.bwlimit {
        config::check_bandwidth("--bwlimit", limit, LEAST_BWLIMIT)?;
        options.bandwidth = Some(limit.0).filter(|&rate| rate > 0);
    }
    options.check = match arguments.check {
        Check::Stat => receiver::Check::Stat,
        Check::Hash => receiver::Check::Hash,
        Check::None => receiver::Check::None,
    };
    options.owners = match (arguments.no_owner, arguments.numeric_ids) {
        (true, _) => receiver::Owners::Ignore,
        (false, true) => receiver::Owners::ByNumber,
        (false, false) => receiver::Owners::ByName,
    };
    options.specials = !arguments.no_specials;
    options.devices = arguments.devices;
    options.setid = arguments.setid;
    options.threads = arguments.threads;
    options.timeout = arguments.timeout.duration();
    options.patience = arguments.patience.duration();
    options.connect_timeout = arguments.connect_timeout.duration();
    options.sync = !arguments.no_fsync;
    options.keep_contents = arguments.keep_contents.0;
    Ok(options)
}

/// Reads the names of `--files-from`.
fn names(file: &Path, from0: bool) -> Result<Names> {
    let mut input = Vec::new();
    let read = match file.as_os_str().as_encoded_bytes() {
        b"-" => std::io::stdin().read_to_end(&mut input),
        _ => File::open(file).and_then(|mut file| file.read_to_end(&mut input)),
    };
    read.with_context(|| format!("cannot read {}", file.display()))?;
    Names::parse(&input, from0).with_context(|| UsageError(format!("--files-from {}", file.display())))
}

/// Parses a size, a percentage or `off`.
fn min_free(text: &str) -> Result<MinFree, String> {
    match (text, text.strip_suffix('%')) {
        ("off", _) => Ok(MinFree::Unchecked),
        (_, Some(percent)) => {
            config::percent(percent).map(MinFree::Percent).ok_or_else(|| format!("'{text}' is not a percentage"))
        }
        (_, None) => text.parse().map(|Bytes(bytes)| MinFree::Bytes(bytes)),
    }
}

/// Parses a number of names, or a percentage.
fn max_delete(text: &str) -> Result<MaxDelete, String> {
    let bad = || format!("'{text}' is neither a number of names nor a percentage: write 5000 or 10%");
    match text.strip_suffix('%') {
        None => text.parse().map(MaxDelete::Names).map_err(|_| bad()),
        Some(percent) => Ok(MaxDelete::Percent(config::percent(percent).ok_or_else(bad)?)),
    }
}

/// Reads a trusted key: the key in base64, or the file that contains it.
fn trusted_key(text: &str) -> Result<PublicKey, String> {
    if let Ok(key) = PublicKey::parse(text) {
        return Ok(key);
    }
    let mut content = String::new();
    let file = File::open(text).map_err(|error| format!("neither a public key nor a readable file: {error}"))?;
    let read = file.take(limits::PUBLIC_KEY as u64 + 1).read_to_string(&mut content);
    read.map_err(|error| error.to_string())?;
    PublicKey::parse(&content).map_err(|error| error.to_string())
}

/// Returns the default store of a destination: a directory where programs keep their state. Its name shows people which
/// tree it belongs to, and ends in a digest of the whole path, so that no two trees share it.
fn default_store(dest: &Path, is_symlink: bool) -> Result<PathBuf> {
    let absolute = std::path::absolute(dest).context("cannot resolve the path of the destination")?;
    let absolute = match (absolute.parent(), absolute.file_name()) {
        // The symlink leads to another directory after each pull.
        (Some(parent), Some(name)) if is_symlink => std::fs::canonicalize(parent).map(|parent| parent.join(name)),
        _ => std::fs::canonicalize(&absolute),
    }
    .unwrap_or(absolute);
    let base = match (std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME")) {
        (Some(state), _) => PathBuf::from(state).join("stillmirror"),
        _ if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/stillmirror"),
        (None, Some(home)) => PathBuf::from(home).join(".local/state/stillmirror"),
        (None, None) => {
            return Err(UsageError("neither HOME nor XDG_STATE_HOME is set: give --store DIR".to_owned()).into());
        }
    };
    let name = absolute.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let digest = stillmirror_protocol::list::digest(absolute.as_os_str().as_encoded_bytes()).to_string();
    Ok(base.join("pulls").join(format!("{name}-{}", &digest[..16])))
}
