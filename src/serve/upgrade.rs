//! An upgrade: SIGUSR2 starts the binary anew with the sockets of this process. Once the new process serves, this one only
//! finishes what it has begun.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use command_fds::{CommandFdExt, FdMapping};
use stillmirror_daemon as daemon;
use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;

use super::manager::Manager;
use super::passed::{FIRST, READY};
use super::sockets::Named;
use crate::output;

/// How long the new process may take until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often to check whether the new process has ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// What the new process sends when it serves.
const SERVING: &[u8] = b"READY=1";

/// What an upgrade needs.
pub(super) struct Upgrading {
    /// The sockets to pass on.
    pub(super) sockets: Vec<Named>,
    pub(super) manager: Manager,
    pub(super) daemon: daemon::Reload,
}

impl Upgrading {
    /// Upgrades at the first signal for which that succeeds. Never returns.
    pub(super) async fn run(self, mut signals: Signal) -> Infallible {
        let sockets = Arc::new(self.sockets);
        while signals.recv().await.is_some() {
            tracing::info!("upgrading: starting a new process");
            let passed = Arc::clone(&sockets);
            let started = spawn_blocking(move || start(&passed)).await.context("the upgrade panicked");
            match started.and_then(|started| started) {
                Ok(process) => {
                    self.manager.replaced_by(process, self.daemon.repositories());
                    tracing::info!(process, "the new process serves; this one finishes what it has begun");
                    break;
                }
                Err(error) => {
                    let error = output::error(&error);
                    tracing::error!(error, "the upgrade failed: this process goes on");
                }
            }
        }
        drop(sockets);
        self.daemon.hand_over();
        while signals.recv().await.is_some() {
            tracing::warn!("this process has been replaced already: it cannot be upgraded");
        }
        std::future::pending().await
    }
}

/// Tells the process that is replaced that this one serves.
pub(super) fn tell_ready(waiting: &UnixDatagram) {
    if let Err(error) = waiting.send(SERVING) {
        tracing::warn!(%error, "cannot tell the old process that this one serves");
    }
}

/// Starts the new process, and waits until it serves. Returns its number. If it does not come to that, it is ended.
fn start(sockets: &[Named]) -> Result<u32> {
    let (waiting, ready) = UnixDatagram::pair().context("cannot create a socket")?;
    waiting.set_read_timeout(Some(CHECK_INTERVAL)).context("cannot set a timeout")?;
    let mut process = spawn(sockets, &ready)?;
    drop(ready);
    match wait(&waiting, &mut process) {
        Ok(()) => Ok(process.id()),
        Err(error) => {
            let _ = process.kill();
            let _ = process.wait();
            Err(error)
        }
    }
}

fn wait(waiting: &UnixDatagram, process: &mut Child) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    let mut message = [0; SERVING.len() + 1];
    while Instant::now() < deadline {
        match waiting.recv(&mut message) {
            Ok(len) if message[..len] == *SERVING => return Ok(()),
            // Without a sender left, this does not wait.
            Ok(_) => std::thread::sleep(CHECK_INTERVAL),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => std::thread::sleep(CHECK_INTERVAL),
        }
        if let Some(status) = process.try_wait().context("cannot wait for the new process")? {
            bail!("the new process has ended ({status}); its messages say why");
        }
    }
    bail!("the new process does not serve after {} s, and was ended", START_TIMEOUT.as_secs())
}

fn spawn(sockets: &[Named], ready: &UnixDatagram) -> Result<Child> {
    let programs = programs();
    let mut last = None;
    for program in &programs {
        match command(program, sockets, ready)?.spawn() {
            Ok(process) => return Ok(process),
            Err(error) => last = last.or(Some((program, error))),
        }
    }
    let Some((program, error)) = last else { bail!("this process does not know its own program") };
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// Returns where the program may be: what this process was started as, which may lead to a new version, and the file that it
/// was started from.
fn programs() -> Vec<PathBuf> {
    let started_as = std::env::args_os().next().map(PathBuf::from);
    // Once the file was replaced, its path ends like this.
    let file =
        std::env::current_exe().ok().map(|file| match file.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
            Some(path) => PathBuf::from(path),
            None => file,
        });
    started_as.into_iter().chain(file).collect()
}

fn command(program: &PathBuf, sockets: &[Named], ready: &UnixDatagram) -> Result<Command> {
    let mut passed: Vec<(&str, OwnedFd)> = Vec::new();
    for Named { name, socket } in sockets {
        passed.push((name, socket.try_clone().context("cannot duplicate a socket")?.into()));
    }
    passed.push((READY, ready.try_clone().context("cannot duplicate a socket")?.into()));
    let names = passed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(":");
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1));
    command.env("LISTEN_FDS", passed.len().to_string()).env("LISTEN_FDNAMES", names);
    // The number of the new process is not known yet. Without these variables, what the others say is for any process.
    command.env_remove("LISTEN_PID").env_remove("LISTEN_PIDFDID").env_remove("WATCHDOG_PID");
    let mappings = passed.into_iter().enumerate();
    let mappings = mappings.map(|(number, (_, parent_fd))| FdMapping { parent_fd, child_fd: (FIRST + number) as i32 });
    command.fd_mappings(mappings.collect()).context("cannot pass the sockets on")?;
    Ok(command)
}
