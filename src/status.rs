//! `stillmirror status`: what a running daemon on this host does, asked over its status socket.

mod render;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use stillmirror_daemon::Report;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::exit::Exit;
use crate::output::line;
use crate::path_args;

/// Where the unit's daemon has its socket.
const SOCKET: &str = "/run/stillmirror/status.sock";
/// How long the daemon may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// Maximum size of an answer, in bytes: about a kilobyte for each repository.
const MAX_ANSWER: usize = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  stillmirror status
  stillmirror status --watch
  stillmirror status --json | jq '.mirrors[] | select(.status != \"success\")'

The daemon needs the key `status_socket`. `stillmirror --help` lists the exit codes.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The daemon's status socket, which `status_socket` names
    #[arg(long, value_name = "PATH", value_parser = path_args::local(), default_value = SOCKET)]
    socket: PathBuf,
    /// Look again every 2 seconds
    #[arg(long)]
    watch: bool,
    /// Print the daemon's status.json
    #[arg(long)]
    json: bool,
}

/// Why the status is not known.
#[derive(Debug, Error)]
pub(crate) enum StatusError {
    #[error("cannot connect to {}, the status socket of the daemon: {source}", .path.display())]
    Connect { path: PathBuf, source: std::io::Error },
    #[error("{}: the daemon did not answer within {} s", .path.display(), TIMEOUT.as_secs())]
    Timeout { path: PathBuf },
    #[error("{}: {source}", .path.display())]
    Http { path: PathBuf, source: hyper::Error },
    #[error("{}: no status of a stillmirror daemon: {why}", .path.display())]
    Answer { path: PathBuf, why: String },
}

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        loop {
            show(&arguments, &ask(&arguments.socket).await?)?;
            if !arguments.watch {
                return Ok(Exit::Done);
            }
            sleep(INTERVAL).await;
        }
    })
}

/// Prints an answer.
fn show(arguments: &Arguments, answer: &str) -> Result<()> {
    if arguments.json {
        line!("{}", answer.trim_end());
        return Ok(());
    }
    let report: Report = serde_json::from_str(answer)
        .map_err(|error| StatusError::Answer { path: arguments.socket.clone(), why: error.to_string() })?;
    if arguments.watch && std::io::stdout().is_terminal() {
        // Clear the screen, and begin at its top.
        let _ = write!(std::io::stdout(), "\x1b[2J\x1b[H");
    }
    line!("{}", render::text(&report).trim_end());
    Ok(())
}

/// Returns the daemon's `status.json`.
async fn ask(path: &Path) -> Result<String, StatusError> {
    let connect = |source| StatusError::Connect { path: path.to_owned(), source };
    let asked = async {
        let socket = UnixStream::connect(path).await.map_err(connect)?;
        request(path, socket).await
    };
    timeout(TIMEOUT, asked).await.unwrap_or_else(|_| Err(StatusError::Timeout { path: path.to_owned() }))
}

async fn request(path: &Path, socket: UnixStream) -> Result<String, StatusError> {
    let failed = |source| StatusError::Http { path: path.to_owned(), source };
    let invalid = |why: String| StatusError::Answer { path: path.to_owned(), why };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(failed)?;
    let request = Request::get("/status.json").header(header::HOST, "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| invalid(error.to_string()))?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| invalid(error.to_string()))?.to_bytes();
        if status != StatusCode::OK {
            return Err(invalid(format!("the answer is {status}")));
        }
        String::from_utf8(body.into()).map_err(|error| invalid(error.to_string()))
    };
    tokio::select! {
        answer = answered => answer,
        Err(source) = connection => Err(failed(source)),
    }
}
