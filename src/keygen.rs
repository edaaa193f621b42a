//! `stillmirror keygen`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use stillmirror_indexer as indexer;

use crate::exit::Exit;
use crate::output::line;
use crate::path_args;

const EXAMPLES: &str = "\
Examples:
  stillmirror keygen /etc/stillmirror
  stillmirror index --config /etc/stillmirror/mirror.toml --sign /etc/stillmirror/stillmirror.key

The program `minisign` reads both files. `stillmirror --help` lists the exit codes.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where to write `stillmirror.key`, which must remain secret, and `stillmirror.pub`, for everybody; created if it
    /// does not exist
    #[arg(value_name = "DIR", value_parser = path_args::local())]
    dir: PathBuf,
}

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let files = indexer::keygen(&arguments.dir)?;
    line!("secret key: {}", files.secret.display());
    line!("public key: {}", files.public.display());
    line!("mirrors pull with --trust {}", files.key);
    Ok(Exit::Done)
}
