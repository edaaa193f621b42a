//! `stillmirror check`: says in words what of a configuration will work on this host, what will not, and what to do.
//!
//! What the daemon opens is opened here by the daemon's own code, in a process that has become the service's user. So what
//! is found is what the daemon will find.

mod files;
mod finding;
mod host;
mod indexing;
mod ports;
mod service_user;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::config::Config;
use crate::exit::Exit;
use crate::output::{self, count, line};
use crate::{path_args, serve};
use finding::{Level, Report};
use service_user::ServiceUser;

const EXAMPLES: &str = "\
Examples:
  stillmirror check --config /etc/stillmirror/mirror.toml
  stillmirror check --config /etc/stillmirror/mirror.toml --user mirror --json

The exit code is 0 if there is no error (there may be warnings), and 1 otherwise.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The configuration file to check (see mirror.toml.example)
    #[arg(long, value_name = "FILE", value_parser = path_args::local())]
    config: PathBuf,
    /// The user that the daemon runs as; only root can check for another one [default: `user` in the file, else the
    /// packaged service's `stillmirror` if there is such a user]
    #[arg(long)]
    user: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Become the user, check what the daemon opens, and print only the findings: what `check` starts itself
    #[arg(long, hide = true, requires = "user")]
    files_only: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let Arguments { config: path, user, json, files_only } = arguments;
    let mut report = Report::default();
    report.section("configuration");
    match Config::load(&path) {
        Err(error) => report.error(output::error(&error), ""),
        Ok(config) => {
            let user = ServiceUser::of(user, &config);
            if files_only {
                user.check_here(&config, &path, &mut report);
                line!("{}", serde_json::to_string(&report.findings)?);
                return Ok(Exit::Done);
            }
            report.ok(format!("{} is valid: {}", path.display(), repositories(&config)));
            host::check(&serve::resolve(config.clone()), &mut report);
            ports::check(&config, &mut report);
            user.check(&config, &path, &mut report);
            indexing::check(&config, &mut report);
        }
    }
    if json {
        line!("{}", report.json());
    } else {
        report.print();
    }
    Ok(if report.count(Level::Error) == 0 { Exit::Done } else { Exit::Usage })
}

fn repositories(config: &Config) -> String {
    count(config.repository.len() as u64, "repository")
}
