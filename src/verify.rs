//! `stillmirror verify`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use stillmirror_protocol::path::Escaped;
use stillmirror_receiver::{self as receiver, Problem};

use crate::exit::Exit;
use crate::output::{bytes, count, line};
use crate::pull::BarProgress;
use crate::{path_args, progress, signals};

const EXAMPLES: &str = "\
Examples:
  stillmirror verify /srv/debian --store /var/lib/stillmirror/debian
  stillmirror verify mirror --store mirror-store --json

`stillmirror --help` lists the exit codes.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The tree to check
    #[arg(value_parser = path_args::local())]
    dest: PathBuf,
    /// The store with the generation of the tree
    #[arg(long, value_name = "DIR", value_parser = path_args::local())]
    store: PathBuf,
    /// Print one JSON object instead of a summary
    #[arg(long)]
    json: bool,
    /// Print no summary and no progress
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let bar = progress::bar(arguments.quiet || arguments.json);
    let stop = signals::stop_token()?;
    let report = receiver::verify(&arguments.dest, &arguments.store, &BarProgress::new(&bar), &stop);
    bar.finish_and_clear();
    let report = report?;
    for (path, problem) in &report.problems {
        eprintln!("stillmirror: {}: {}", Escaped(path), describe(*problem));
    }
    if arguments.json {
        let wrong = |(path, problem): &(Vec<u8>, Problem)| json!({ "path": Escaped(path).to_string(), "why": describe(*problem) });
        line!(
            "{}",
            json!({
                "generation": report.generation,
                "files": report.files,
                "bytes": report.bytes,
                "wrong": report.problems.iter().map(wrong).collect::<Vec<_>>(),
            })
        );
    } else if !arguments.quiet {
        line!(
            "generation {}: {} of {} checked, {} wrong",
            report.generation,
            count(report.files, "file"),
            bytes(report.bytes),
            report.problems.len()
        );
    }
    Ok(if report.problems.is_empty() { Exit::Done } else { Exit::Partial })
}

fn describe(problem: Problem) -> &'static str {
    match problem {
        Problem::Missing => "is missing",
        Problem::Type => "has another file type",
        Problem::Content => "has different content",
        Problem::Link => "is not the hard link that it should be",
        Problem::Unreadable => "cannot be read",
        Problem::Stored => {
            "is damaged in the store, and served from the tree instead: run `stillmirror index --verify-store` (if \
             `pull` wrote the store, remove it and pull again)"
        }
    }
}
