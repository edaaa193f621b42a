//! `stillmirror pull`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, Args, ValueEnum};
use indicatif::ProgressBar;
use serde_json::json;
use stillmirror_protocol::path::Escaped;
use stillmirror_receiver::{self as receiver, Action, Failure, Options, Phase, PullError, Report};

use crate::config::{self, Bytes, Seconds};
use crate::exit::{Exit, UsageError};
use crate::filter_args::FilterArgs;
use crate::output::{OutputArgs, bytes, count, line};
use crate::progress::{self, FilesDone};
use crate::url::Url;
use crate::{path_args, signals};

/// The least `--bwlimit`, in bytes per second. The kernel opens a full receive window (6 MiB by default) again once a
/// sixteenth of it is free. Below this limit, that takes longer than a daemon waits before it disconnects a client that
/// takes nothing (30 s by default).
const LEAST_BWLIMIT: u64 = 16 << 10;

const EXAMPLES: &str = "\
Examples:
  stillmirror pull stillmirror://mirror.example/debian /srv/debian --delete --dry-run
  stillmirror pull stillmirror://mirror.example/debian mirror --store mirror-store --delete
  stillmirror pull stillmirror://mirror.example/debian/dists/stable stable --exclude '*.tar'

`stillmirror --help` lists the exit codes.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("deleting").args(["delete", "delete_grace"]).multiple(true))]
pub(crate) struct Arguments {
    /// The repository, or a part of it
    #[arg(value_name = "stillmirror://HOST:PORT/NAME[/PATH]")]
    url: Url,
    /// The local tree; created if it does not exist
    #[arg(value_name = "DEST", value_parser = path_args::local())]
    dest: PathBuf,
    /// Where the generation of the tree is kept [default: a directory for this tree below $XDG_STATE_HOME/stillmirror,
    /// ~/.local/state/stillmirror, or, for root, /var/lib/stillmirror]
    #[arg(long, value_name = "DIR", value_parser = path_args::local())]
    store: Option<PathBuf>,
    /// Delete what the sender does not have; names that the filter leaves out and stores are never deleted
    #[arg(long)]
    delete: bool,
    /// Like --delete, but each name remains for this long (2h, 1d), for readers that hold an older index; a later pull
    /// deletes it
    #[arg(long, value_name = "AGE")]
    delete_grace: Option<Seconds>,
    /// Delete nothing at all if this run would delete more names than this
    #[arg(long, value_name = "NUMBER", requires = "deleting")]
    max_delete: Option<u64>,
    /// Pull into an empty or missing DEST although the store knows files of it; without this flag its disk is taken
    /// for one that is not mounted
    #[arg(long)]
    allow_empty: bool,
    #[command(flatten)]
    filter: FilterArgs,
    /// Only print what would be done, and how many bytes would be fetched
    #[arg(long, short = 'n')]
    dry_run: bool,
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
    /// How long connecting may take
    #[arg(long, value_name = "TIME", default_value = "30s")]
    connect_timeout: Seconds,
    /// Keep the content of files up to this size in the store, to serve it from there; 0 keeps none
    #[arg(long, value_name = "SIZE", default_value = "16KiB")]
    keep_contents: Bytes,
    /// Do not flush the file system before files get their final names
    #[arg(long)]
    no_fsync: bool,
    /// The number of threads that hash, match and write; 0 uses all cores
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    output: OutputArgs,
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

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let options = options(&arguments)?;
    let bar = arguments.output.bar();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start a runtime")?;
    let cancel = signals::stop_token()?;
    let result = runtime.block_on(receiver::pull(options, Arc::new(BarProgress::new(&bar)), cancel));
    bar.finish_and_clear();
    // Do not wait for threads that still wait for the disk.
    runtime.shutdown_background();
    match result {
        Ok(report) => Ok(print(&report, &arguments)),
        Err(PullError::DeleteLimit { wanted, limit, report }) => {
            print(&report, &arguments);
            Err(PullError::DeleteLimit { wanted, limit, report }.into())
        }
        Err(error) => Err(error.into()),
    }
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

fn options(arguments: &Arguments) -> Result<Options> {
    let Url { address, repository, path } = arguments.url.clone();
    if repository.is_empty() {
        let form = format!("name a repository: stillmirror://{address}/NAME (`stillmirror list` shows them)");
        return Err(UsageError(form).into());
    }
    let mut options = Options::new(address, repository, &arguments.dest);
    options.path = path;
    options.store = Some(match &arguments.store {
        Some(store) => store.clone(),
        None => default_store(&arguments.dest)?,
    });
    options.delete = arguments.delete || arguments.delete_grace.is_some();
    options.delete_grace = arguments.delete_grace.map(Seconds::duration);
    options.allow_empty = arguments.allow_empty;
    options.max_delete = arguments.max_delete;
    options.filter = arguments.filter.0.clone();
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

/// Returns the default store of a destination: a directory where programs keep their state. Its name shows people which
/// tree it belongs to, and ends in a digest of the whole path, so that no two trees share it.
fn default_store(dest: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(dest).context("cannot resolve the path of the destination")?;
    let absolute = std::fs::canonicalize(&absolute).unwrap_or(absolute);
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

/// Prints the report. Returns the exit code.
fn print(report: &Report, arguments: &Arguments) -> Exit {
    for failed in &report.failed {
        let why = match failed.why {
            Failure::Stale => "changed at the sender after it was indexed",
            Failure::Vanished => "vanished at the sender",
            Failure::Unreadable => "cannot be read at the sender",
            Failure::InTheWay => "a directory with local files is in the way",
            Failure::Refused => "cannot be created on this host",
            Failure::Damaged => "does not match its digest at the sender",
            Failure::Stuck => "cannot be changed on this host",
            Failure::Held => "waits for the files that it refers to",
        };
        eprintln!("stillmirror: {}: {why}", Escaped(&failed.path));
    }
    if report.deletes_held > 0 && !report.failed.is_empty() {
        let held = count(report.deletes_held, "deletion");
        eprintln!("stillmirror: not everything could be fetched: {held} held back until a pull fetches everything");
    }
    if !report.unchanged && report.devices_skipped > 0 {
        let skipped = count(report.devices_skipped, "device file");
        eprintln!("stillmirror: {skipped} skipped; --devices creates them");
    }
    if !report.unchanged && report.setid_cleared > 0 {
        let cleared = count(report.setid_cleared, "file");
        eprintln!("stillmirror: {cleared} without the setuid and setgid bits of the origin; --setid keeps them");
    }
    if report.links_copied > 0 {
        let copied = count(report.links_copied, "name");
        eprintln!("stillmirror: this file system takes no further hard links: {copied} copied instead");
    }
    let output = &arguments.output;
    if output.json {
        line!("{}", to_json(report));
    } else if arguments.dry_run && output.text() {
        print_plan(report);
    } else if !arguments.dry_run && output.summary() {
        print_summary(report);
    }
    // A held file does not count: the files that it waits for are in the list, too.
    let is_transient = |why| matches!(why, Failure::Stale | Failure::Vanished | Failure::Held);
    match report.failed.iter().map(|failed| failed.why).find(|&why| !is_transient(why)) {
        Some(_) => Exit::Partial,
        None if report.failed.is_empty() => Exit::Done,
        None => Exit::Vanished,
    }
}

fn print_summary(report: &Report) {
    if report.unchanged {
        line!("generation {}: nothing is new", report.generation);
        return print_waiting(report);
    }
    line!(
        "generation {}: {} updated, {} reused, {} linked, {} deleted",
        report.generation,
        count(report.files_updated, "file"),
        report.files_reused,
        report.files_linked,
        report.files_deleted
    );
    line!(
        "received {} in {:.1} s ({} of data, {} of block checksums, {} of lists); {} were there already",
        bytes(report.bytes_received),
        report.seconds,
        bytes(report.bytes_literal),
        bytes(report.bytes_checksums),
        bytes(report.bytes_list),
        bytes(report.bytes_matched)
    );
    print_waiting(report);
}

fn print_waiting(report: &Report) {
    if report.deletes_waiting > 0 {
        line!("{} left for a later pull", count(report.deletes_waiting, "deletion"));
    }
}

fn print_plan(report: &Report) {
    for (action, path) in &report.planned {
        let shown: &[u8] = if path.is_empty() { b"." } else { path };
        line!("{:<14} {}", verb(*action), Escaped(shown));
    }
    line!("generation {}: at most {} of data would be fetched", report.generation, bytes(report.planned_bytes));
    print_waiting(report);
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::MakeDirectory => "make directory",
        Action::Fetch => "fetch",
        Action::Reuse => "reuse",
        Action::Link => "link",
        Action::Symlink => "symlink",
        Action::Special => "special",
        Action::Metadata => "metadata",
        Action::Delete => "delete",
    }
}

fn to_json(report: &Report) -> serde_json::Value {
    let failed: Vec<_> = report
        .failed
        .iter()
        .map(|failed| json!({ "path": Escaped(&failed.path).to_string(), "why": format!("{:?}", failed.why).to_lowercase() }))
        .collect();
    let planned: Vec<_> = report
        .planned
        .iter()
        .map(|(action, path)| json!({ "action": verb(*action), "path": Escaped(path).to_string() }))
        .collect();
    json!({
        "generation": report.generation,
        "unchanged": report.unchanged,
        "files_updated": report.files_updated,
        "files_reused": report.files_reused,
        "files_deleted": report.files_deleted,
        "deletes_held": report.deletes_held,
        "deletes_waiting": report.deletes_waiting,
        "files_linked": report.files_linked,
        "links_copied": report.links_copied,
        "devices_skipped": report.devices_skipped,
        "setid_cleared": report.setid_cleared,
        "directories_made": report.directories_made,
        "others_made": report.others_made,
        "metadata_changed": report.metadata_changed,
        "bytes_literal": report.bytes_literal,
        "bytes_matched": report.bytes_matched,
        "bytes_checksums": report.bytes_checksums,
        "bytes_list": report.bytes_list,
        "bytes_received": report.bytes_received,
        "bytes_sent": report.bytes_sent,
        "round_trips": report.round_trips,
        "seconds": report.seconds,
        "failed": failed,
        "planned": planned,
        "planned_bytes": report.planned_bytes,
        "store_generation": report.published,
    })
}

/// Shows the receiver's progress on the bar.
pub(crate) struct BarProgress {
    bar: ProgressBar,
    files: FilesDone,
}

impl BarProgress {
    pub(crate) fn new(bar: &ProgressBar) -> Self {
        Self { bar: bar.clone(), files: FilesDone::default() }
    }
}

impl receiver::Progress for BarProgress {
    fn phase(&self, phase: Phase, files: u64, bytes: u64) {
        let bar = &self.bar;
        bar.set_position(0);
        bar.set_message("");
        match phase {
            Phase::Queued(place) => {
                progress::counting(bar, "waiting for the sender");
                bar.set_message(format!("{place} ahead in its queue"));
            }
            Phase::List => progress::counting(bar, "requesting the list"),
            Phase::Check => progress::counting(bar, "checking the local tree"),
            Phase::Fetch => progress::measuring(bar, "fetching", &self.files, files, bytes),
            Phase::Commit => progress::counting(bar, "renaming into place"),
            Phase::Publish => progress::counting(bar, "writing the generation"),
            Phase::Verify => progress::measuring(bar, "verifying", &self.files, files, bytes),
        }
    }

    fn advance(&self, files: u64, bytes: u64) {
        self.files.add(files);
        self.bar.inc(bytes);
    }
}
