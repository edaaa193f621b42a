//! `stillmirror shadow`: compares two rsync daemons as their clients see them.

mod client;
mod data;
mod difference;
mod door;
mod error;
mod host;
mod module;
mod observer;
mod reason;
mod record;
mod report;
mod sample;
mod settle;
mod side;
mod sorted;
mod view;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::config::{Bytes, Seconds};
use crate::exit::Exit;
use crate::output::line;
use crate::{path_args, progress, signals};
use client::Client;
use error::ShadowError;
use module::{Comparison, Plan};
use observer::Observer;
use report::Report;
use side::{HostUrl, Side, Which};

const EXAMPLES: &str = "\
Examples:
  stillmirror shadow rsync://localhost:873/ rsync://localhost:8873/
  stillmirror shadow rsync://localhost/ rsync://localhost:8873/ --module debian --client '-rtlH --exclude=*.iso'
  stillmirror shadow rsync://ann@localhost/ rsync://localhost:8873/ --module push --password-file secret

`stillmirror --help` lists the exit codes.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The daemon that clients know, as `rsync://[USER@]HOST[:PORT]/`; USER logs in to both daemons
    #[arg(value_name = "OLD_URL")]
    old: HostUrl,
    /// The daemon that is to take its place
    #[arg(value_name = "NEW_URL")]
    new: HostUrl,
    /// Compare only this module, even if it is not listed; may be repeated [default: all that are listed]
    #[arg(long, value_name = "NAME")]
    module: Vec<String>,
    /// Also compare the lists that a client with these options gets; white space separates them, and no quotes are known;
    /// may be repeated
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    client: Vec<String>,
    /// The number of files of each module whose contents are compared; 0 compares none
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    sample: usize,
    /// The maximum size of these files together, for each module
    #[arg(long, value_name = "SIZE", default_value = "1GB")]
    sample_bytes: Bytes,
    /// Chooses the files; the same seed chooses the same files [default: a new one, which the report names]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Compare the digests of all files, too, as clients with -c do; a stock daemon reads the whole tree for it
    #[arg(long)]
    checksum: bool,
    /// The file with the password of the user in the URL
    #[arg(long, value_name = "FILE", value_parser = path_args::local())]
    password_file: Option<PathBuf>,
    /// The directory for temporary files: the sample, twice, and about 200 bytes for each entry of the largest module
    /// [default: $TMPDIR or /tmp]
    #[arg(long, value_name = "DIR", value_parser = path_args::local())]
    scratch: Option<PathBuf>,
    /// The stock client that looks at both daemons
    #[arg(long, value_name = "PROGRAM", default_value = "rsync", value_parser = path_args::local())]
    rsync: PathBuf,
    /// How long a daemon may be silent; a stock daemon may walk a large tree before it says anything
    #[arg(long, value_name = "TIME", default_value = "30m")]
    timeout: Seconds,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print nothing; the exit code tells
    #[arg(long, short)]
    quiet: bool,
    /// Print what no client notices, and a summary, even if standard output is not a terminal
    #[arg(long, short, conflicts_with = "quiet")]
    verbose: bool,
}

pub(crate) fn run(mut arguments: Arguments) -> Result<Exit> {
    let user = arguments.old.user.take().or(arguments.new.user.take());
    (arguments.old.user, arguments.new.user) = (user.clone(), user);
    let mut scratch = tempfile::Builder::new();
    scratch.prefix("stillmirror-shadow-");
    let scratch = match &arguments.scratch {
        Some(dir) => scratch.tempdir_in(dir),
        None => scratch.tempdir(),
    };
    let scratch = scratch.context("cannot create a temporary directory (--scratch)")?;
    let observer = Observer {
        client: Client {
            program: arguments.rsync,
            password_file: arguments.password_file,
            patience: arguments.timeout.duration(),
            stop: signals::stop_flag()?,
        },
        old: Side { which: Which::Old, url: arguments.old },
        new: Side { which: Which::New, url: arguments.new },
        scratch: scratch.path().to_owned(),
        bar: progress::bar(arguments.quiet || arguments.json),
    };
    std::fs::create_dir(observer.empty()).context("cannot create a directory for clients")?;
    progress::counting(&observer.bar, "comparing");
    let plan = Plan {
        clients: arguments.client,
        all_digests: arguments.checksum,
        sample: arguments.sample,
        sample_bytes: arguments.sample_bytes.0,
        seed: arguments.seed.unwrap_or_else(|| fastrand::u64(..1 << 32)),
    };
    let mut report = Report::new(observer.old.url.to_string(), observer.new.url.to_string(), plan.seed);
    let compared = compare(&observer, &plan, &arguments.module, &mut report);
    observer.bar.finish_and_clear();
    report.stopped = compared.as_ref().err().map(ToString::to_string);
    if arguments.json {
        line!("{}", report.to_json());
    } else if !arguments.quiet {
        use std::io::IsTerminal as _;
        report.print(arguments.verbose || std::io::stdout().is_terminal());
    }
    match compared {
        Ok(()) => Ok(report.exit()),
        Err(error) => {
            eprintln!("stillmirror: {error}");
            Ok(error.exit())
        }
    }
}

fn compare(observer: &Observer, plan: &Plan, wanted: &[String], report: &mut Report) -> Result<(), ShadowError> {
    report.client = observer.client.version()?;
    let modules = host::compare(observer, wanted, report)?;
    if modules.is_empty() {
        report.not_compared("", "modules", "the daemons have none in common");
    }
    let mut comparison = Comparison { observer, plan, report, wrong_logins: 0 };
    modules.iter().try_for_each(|module| comparison.module(module))
}
