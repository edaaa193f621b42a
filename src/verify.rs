//! `stillmirror verify`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use stillmirror_protocol::path::Escaped;
use stillmirror_receiver::{self as receiver, Problem};

use crate::exit::Exit;
use crate::output::{bytes, count, line};
use crate::{progress, signals};

#[derive(Args)]
#[command(after_help = crate::exit::HELP)]
pub(crate) struct Arguments {
    /// The tree
    dest: PathBuf,
    /// The store with the generation that it should be at
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Nothing on standard output
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let bar = progress::bar(arguments.quiet || arguments.json);
    let stop = signals::stop_token()?;
    let report = receiver::verify(&arguments.dest, &arguments.store, &crate::pull::shown(&bar), &stop);
    bar.finish_and_clear();
    let report = report?;
    for (path, problem) in &report.problems {
        eprintln!("stillmirror: {}: {}", Escaped(path), said(*problem));
    }
    if arguments.json {
        let wrong =
            |(path, problem): &(Vec<u8>, Problem)| json!({ "path": Escaped(path).to_string(), "why": said(*problem) });
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

fn said(problem: Problem) -> &'static str {
    match problem {
        Problem::Missing => "is missing",
        Problem::Type => "is another type of thing",
        Problem::Content => "has another content",
        Problem::Link => "is not the hard link that it should be",
        Problem::Unreadable => "cannot be read",
        Problem::Stored => {
            "is damaged in the store, and is served from the tree instead: run `stillmirror index --verify-store` (of \
             a store that `pull` wrote: remove it, and pull again)"
        }
    }
}
