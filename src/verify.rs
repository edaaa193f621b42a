//! `stillmirror verify`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use stillmirror_protocol::path::Escaped;
use stillmirror_receiver as receiver;

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
    let stop = signals::stop_flag()?;
    let report = receiver::verify(&arguments.dest, &arguments.store, &progress_of(&bar), &stop);
    bar.finish_and_clear();
    let report = report?;
    for (path, wrong) in &report.wrong {
        eprintln!("stillmirror: {}: {wrong}", Escaped(path));
    }
    if arguments.json {
        let wrong = |(path, wrong): &(Vec<u8>, receiver::Wrong)| json!({ "path": Escaped(path).to_string(), "why": wrong.to_string() });
        line!(
            "{}",
            json!({
                "generation": report.generation,
                "files": report.files,
                "bytes": report.bytes,
                "wrong": report.wrong.iter().map(wrong).collect::<Vec<_>>(),
            })
        );
    } else if !arguments.quiet {
        line!(
            "generation {}: {} of {} checked, {} wrong",
            report.generation,
            count(report.files, "file"),
            bytes(report.bytes),
            report.wrong.len()
        );
    }
    Ok(if report.wrong.is_empty() { Exit::Done } else { Exit::Partial })
}

fn progress_of(bar: &indicatif::ProgressBar) -> impl receiver::Progress + use<> {
    crate::pull::shown(bar)
}
