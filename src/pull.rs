//! `stillmirror pull`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde_json::json;
use stillmirror_protocol::path::Escaped;
use stillmirror_receiver::{self as receiver, Action, Failure, Options, Phase, PullError, Report};

use crate::config::{Bytes, Seconds};
use crate::exit::Exit;
use crate::filter_args::FilterArgs;
use crate::output::{bytes, count, line};
use crate::url::Url;
use crate::{progress, signals};

#[derive(Args)]
#[command(after_help = crate::exit::HELP)]
pub(crate) struct Arguments {
    /// The repository, or a part of it
    #[arg(value_name = "stillmirror://HOST:PORT/NAME[/PATH]")]
    url: Url,
    /// The local tree; made if it is not there
    #[arg(value_name = "DEST")]
    dest: PathBuf,
    /// Where the generation is kept that the tree is at [default: a directory of its own below
    /// $XDG_STATE_HOME/stillmirror, ~/.local/state/stillmirror, or, for root, /var/lib/stillmirror]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Delete what the sender does not have; what the filter leaves out is never deleted
    #[arg(long)]
    delete: bool,
    /// Delete nothing at all when more names than this would go
    #[arg(long, value_name = "NUMBER", requires = "delete")]
    max_delete: Option<u64>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Only say what would be done, and how many bytes it would fetch
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Receive at most so much a second (500k, 10MiB)
    #[arg(long, value_name = "RATE")]
    bwlimit: Option<Bytes>,
    /// What is believed about the local tree
    #[arg(long, value_enum, default_value = "stat")]
    check: Check,
    /// Do not set owner and group (nobody but root can)
    #[arg(long, conflicts_with = "numeric_ids")]
    no_owner: bool,
    /// Set owner and group by number, not by name
    #[arg(long)]
    numeric_ids: bool,
    /// Do not make devices, fifos and sockets
    #[arg(long)]
    no_specials: bool,
    /// How long the sender may be silent
    #[arg(long, value_name = "TIME", default_value = "5m")]
    timeout: Seconds,
    /// How long a connection may take to be made
    #[arg(long, value_name = "TIME", default_value = "30s")]
    connect_timeout: Seconds,
    /// Keep the content of files up to this size in the store, to be served from there; 0 for none
    #[arg(long, value_name = "SIZE", default_value = "16KiB")]
    keep_contents: Bytes,
    /// Do not flush the file system before files get their names
    #[arg(long)]
    no_fsync: bool,
    /// Threads that hash, match and write; 0 takes all cores
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    threads: usize,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Nothing on standard output
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Check {
    /// Size and modification time of every local file
    Stat,
    /// The content of every local file
    Hash,
    /// Nothing is looked at: the generation that the last pull left is trusted
    None,
}

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let options = options(&arguments)?;
    let bar = progress::bar(arguments.quiet || arguments.json);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start a runtime")?;
    let cancel = signals::stop_token()?;
    let result = runtime.block_on(receiver::pull(options, Arc::new(shown(&bar)), cancel));
    bar.finish_and_clear();
    // Threads that still wait for the disk are not waited for.
    runtime.shutdown_background();
    match result {
        Ok(report) => Ok(tell(&report, &arguments)),
        Err(PullError::DeleteLimit { wanted, limit, report }) => {
            tell(&report, &arguments);
            Err(PullError::DeleteLimit { wanted, limit, report }.into())
        }
        Err(error) => Err(error.into()),
    }
}

fn options(arguments: &Arguments) -> Result<Options> {
    let Url { address, repository, path } = arguments.url.clone();
    if repository.is_empty() {
        let form = format!("name a repository: stillmirror://{address}/NAME (`stillmirror list` shows them)");
        return Err(crate::exit::UsageError(form).into());
    }
    let mut options = Options::new(address, repository, &arguments.dest);
    options.path = path;
    options.store = Some(match &arguments.store {
        Some(store) => store.clone(),
        None => default_store(&arguments.dest)?,
    });
    options.delete = arguments.delete;
    options.max_delete = arguments.max_delete;
    options.filter = arguments.filter.0.clone();
    options.dry_run = arguments.dry_run;
    options.bandwidth = arguments.bwlimit.map(|Bytes(rate)| rate).filter(|&rate| rate > 0);
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
    options.threads = arguments.threads;
    options.timeout = arguments.timeout.duration();
    options.connect_timeout = arguments.connect_timeout.duration();
    options.sync = !arguments.no_fsync;
    options.keep_contents = arguments.keep_contents.0;
    Ok(options)
}

/// A directory for this destination, where programs keep their state. The name tells people which tree it
/// belongs to, and ends in a checksum of the whole path, so that no two trees share it.
fn default_store(dest: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(dest).context("cannot tell the path of the destination")?;
    let absolute = std::fs::canonicalize(&absolute).unwrap_or(absolute);
    let base = match (std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME")) {
        (Some(state), _) => PathBuf::from(state).join("stillmirror"),
        _ if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/stillmirror"),
        (None, Some(home)) => PathBuf::from(home).join(".local/state/stillmirror"),
        (None, None) => {
            return Err(
                crate::exit::UsageError("neither HOME nor XDG_STATE_HOME is set: give --store DIR".to_owned()).into()
            );
        }
    };
    let name = absolute.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let digest = stillmirror_protocol::list::digest(absolute.as_os_str().as_encoded_bytes()).to_string();
    Ok(base.join("pulls").join(format!("{name}-{}", &digest[..16])))
}

/// Prints the report; says how the pull ends.
fn tell(report: &Report, arguments: &Arguments) -> Exit {
    for failed in &report.failed {
        let why = match failed.why {
            Failure::Stale => "changed at the sender since it was indexed",
            Failure::Vanished => "vanished at the sender",
            Failure::Unreadable => "cannot be read at the sender",
            Failure::InTheWay => "a directory with files of its own is in the way",
            Failure::Refused => "cannot be made here",
            Failure::Damaged => "does not match its digest at the sender",
            Failure::Stuck => "cannot be changed here",
            Failure::Held => "waits for the files that it refers to",
        };
        eprintln!("stillmirror: {}: {why}", Escaped(&failed.path));
    }
    if report.deletes_held > 0 && !report.failed.is_empty() {
        let held = count(report.deletes_held, "deletion");
        eprintln!("stillmirror: not everything came: {held} held back for a pull that brings everything");
    }
    if report.links_copied > 0 {
        let copied = count(report.links_copied, "name");
        eprintln!("stillmirror: no further hard links can be made here: {copied} copied instead");
    }
    if arguments.json {
        line!("{}", to_json(report));
    } else if !arguments.quiet {
        if arguments.dry_run {
            tell_plan(report);
        } else {
            tell_done(report);
        }
    }
    let passing = |why| matches!(why, Failure::Stale | Failure::Vanished);
    match report.failed.iter().map(|failed| failed.why).find(|&why| !passing(why)) {
        Some(_) => Exit::Partial,
        None if report.failed.is_empty() => Exit::Done,
        None => Exit::Vanished,
    }
}

fn tell_done(report: &Report) {
    if report.unchanged {
        line!("generation {}: nothing is new", report.generation);
        return;
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
}

fn tell_plan(report: &Report) {
    for (action, path) in &report.planned {
        let shown: &[u8] = if path.is_empty() { b"." } else { path };
        line!("{:<14} {}", verb(*action), Escaped(shown));
    }
    line!("generation {}: at most {} of data would be fetched", report.generation, bytes(report.planned_bytes));
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
        "files_linked": report.files_linked,
        "links_copied": report.links_copied,
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

/// Progress on the bar.
struct Shown {
    bar: ProgressBar,
}

impl receiver::Progress for Shown {
    fn phase(&self, phase: Phase, files: u64, bytes: u64) {
        let bar = &self.bar;
        bar.set_position(0);
        bar.set_message("");
        match phase {
            Phase::Queued(place) => {
                progress::counting(bar, "waiting for the sender");
                bar.set_message(format!("{place} before"));
            }
            Phase::List => progress::counting(bar, "asking for the list"),
            Phase::Check => progress::counting(bar, "looking at the local tree"),
            Phase::Fetch => {
                progress::measuring(bar, "fetching", bytes);
                bar.set_message(count(files, "file"));
            }
            Phase::Commit => progress::counting(bar, "renaming into place"),
            Phase::Publish => progress::counting(bar, "writing the generation"),
            Phase::Verify => progress::measuring(bar, "verifying", bytes),
        }
    }

    fn advance(&self, _files: u64, bytes: u64) {
        self.bar.inc(bytes);
    }
}

/// The receiver's progress on a bar; `verify` shows it too.
pub(crate) fn shown(bar: &ProgressBar) -> impl receiver::Progress + use<> {
    Shown { bar: bar.clone() }
}
