//! `stillmirror sign`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use stillmirror_indexer::{self as indexer, Signer};

use crate::config::Seconds;
use crate::exit::{Exit, UsageError};
use crate::output::{OutputArgs, line, time};
use crate::path_args;

const EXAMPLES: &str = "\
Examples:
  stillmirror sign --store /var/lib/stillmirror/debian --key /etc/stillmirror/stillmirror.key
  stillmirror sign --store /var/lib/stillmirror/debian --key /etc/stillmirror/stillmirror.key --expires 30d

`stillmirror --help` lists the exit codes.";

/// How long a signature is accepted by default.
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The store that `stillmirror index` keeps
    #[arg(long, value_name = "DIR", value_parser = path_args::local())]
    store: PathBuf,
    /// The secret key
    #[arg(long, value_name = "FILE", value_parser = path_args::local())]
    key: PathBuf,
    /// How long mirrors accept the signature [default: 7d]
    #[arg(long, value_name = "AGE")]
    expires: Option<Seconds>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Reads a secret key, for signatures that are accepted for `lifetime`.
pub(crate) fn load_key(path: &Path, lifetime: Option<Seconds>) -> Result<Signer> {
    if lifetime.is_some_and(|lifetime| lifetime.duration().as_secs() == 0) {
        return Err(UsageError("--expires (sign_expires) is 0: mirrors would refuse every head".to_owned()).into());
    }
    Ok(Signer::load(path, lifetime.map_or(LIFETIME, Seconds::duration))?)
}

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let signer = load_key(&arguments.key, arguments.expires)?;
    let head = indexer::sign(&arguments.store, &signer)?;
    let (expires, key) = (head.expires.map(time).unwrap_or_default(), signer.public());
    if arguments.output.json {
        line!(
            "{}",
            json!({
                "repository": head.repository,
                "generation": head.generation,
                "expires": expires,
                "list_digest": head.list_digest.to_string(),
                "key": key.as_str(),
            })
        );
    } else if arguments.output.summary() {
        line!("{}: generation {} is signed by {} until {expires}", head.repository, head.generation, key.id());
    }
    Ok(Exit::Done)
}
