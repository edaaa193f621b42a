//! `--before` and `--after`: commands of the operator around a pull.
//!
//! A command is run by `sh -c`, in a process group of its own. SIGTERM and SIGINT of the pull reach the group as SIGTERM;
//! what still runs [`GRACE`] later is killed. What a command prints goes to standard error, because standard output is for
//! the report.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde_json::{Value, json};
use stillmirror_receiver::{Options, Report};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::arguments::HookArgs;
use super::report::to_json;
use crate::exit::{Exit, HookError};

/// The commands of one pull.
pub(super) struct Hooks<'a> {
    arguments: &'a HookArgs,
    options: &'a Options,
    runtime: &'a Runtime,
    stop: &'a CancellationToken,
}

/// How a pull ended.
pub(super) struct Ended<'a> {
    pub(super) exit: Exit,
    /// `None` if the pull failed before it could report anything.
    pub(super) report: Option<&'a Report>,
    pub(super) error: Option<String>,
}

impl<'a> Hooks<'a> {
    /// A dry run changes nothing, so it runs no commands.
    pub(super) fn new(
        arguments: &'a HookArgs,
        options: &'a Options,
        runtime: &'a Runtime,
        stop: &'a CancellationToken,
    ) -> Self {
        Self { arguments, options, runtime, stop }
    }

    pub(super) fn before(&self) -> Result<(), HookError> {
        self.run(self.arguments.before.as_deref(), Vec::new(), Vec::new()).map_err(HookError::Before)
    }

    pub(super) fn after(&self, ended: &Ended<'_>) -> Result<(), HookError> {
        let report = ended.report;
        let text = |of: fn(&Report) -> String| report.map(of).unwrap_or_default();
        let environment = vec![
            ("STILLMIRROR_STATUS", (ended.exit as u8).to_string()),
            ("STILLMIRROR_GENERATION", text(|report| report.generation.to_string())),
            ("STILLMIRROR_UNCHANGED", text(|report| u8::from(report.unchanged).to_string())),
        ];
        let input = format!("{}\n", ended.to_json()).into_bytes();
        self.run(self.arguments.after.as_deref(), environment, input).map_err(HookError::After)
    }

    fn run(&self, command: Option<&str>, environment: Vec<(&str, String)>, input: Vec<u8>) -> Result<(), String> {
        let Some(command) = command.filter(|_| !self.options.dry_run) else { return Ok(()) };
        let ended = self.start(command, environment).and_then(|child| self.runtime.block_on(self.end(child, input)));
        let why = match ended {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, signal) => format!("ended by signal {}", signal.unwrap_or_default()),
            },
            Err(error) => error.to_string(),
        };
        Err(format!("`{command}`: {why}"))
    }

    fn start(&self, command: &str, environment: Vec<(&str, String)>) -> io::Result<Child> {
        let Options { address, repository, dest, store, .. } = self.options;
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).process_group(0).stdin(Stdio::piped());
        shell.stdout(io::stderr().as_fd().try_clone_to_owned()?);
        shell.env("STILLMIRROR_ADDRESS", &address.host_port).env("STILLMIRROR_REPOSITORY", repository);
        shell.env("STILLMIRROR_DEST", std::path::absolute(dest)?);
        if let Some(store) = store {
            shell.env("STILLMIRROR_STORE", std::path::absolute(store)?);
        }
        shell.envs(environment).spawn()
    }

    /// Waits for a command to end, or ends it some time after the pull was asked to end.
    async fn end(&self, mut child: Child, input: Vec<u8>) -> io::Result<ExitStatus> {
        let group = Pid::from_child(&child);
        if let Some(mut stdin) = child.stdin.take() {
            // On a thread: a command that reads nothing must not hold up the pull. It need not read all either.
            std::thread::spawn(move || drop(stdin.write_all(&input)));
        }
        // The child stays a zombie until `Child::wait`, so that its number is not used for another group.
        let wait = move || waitid(WaitId::Pid(group), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        let mut ended = tokio::task::spawn_blocking(move || rustix::io::retry_on_intr(wait));
        let was_stopped = self.stop.is_cancelled();
        for (signal, patience) in [(Signal::TERM, was_stopped.then_some(GRACE)), (Signal::KILL, Some(GRACE))] {
            let patience = async {
                match patience {
                    Some(patience) => tokio::time::sleep(patience).await,
                    None => self.stop.cancelled().await,
                }
            };
            tokio::select! {
                _ = &mut ended => return child.wait(),
                () = patience => {}
            }
            let _ = kill_process_group(group, signal);
        }
        let _ = ended.await;
        child.wait()
    }
}

impl Ended<'_> {
    /// Returns the report, extended by how the pull ended.
    fn to_json(&self) -> Value {
        let mut value = self.report.map_or_else(|| json!({}), to_json);
        value["status"] = json!(self.exit as u8);
        value["error"] = json!(self.error);
        value
    }
}

/// How long a command may go on after the pull was asked to end.
const GRACE: Duration = Duration::from_secs(10);
