//! Exit codes. Where rsync has a code for the same meaning it is used, because scripts know it.

use std::fmt;
use std::process::ExitCode;

use stillmirror_daemon::{DaemonError, TlsError};
use stillmirror_indexer::{IndexError, SignError};
use stillmirror_receiver::PullError;
use stillmirror_store::StoreError;

use crate::status::StatusError;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    /// Invalid usage or configuration.
    Usage = 1,
    /// The peer refused, or speaks another protocol or version.
    Handshake = 5,
    /// The connection could not be opened, or it broke.
    Socket = 10,
    /// A file or directory on this host failed: permission, space, damage.
    FileIo = 11,
    /// The peer broke the protocol, sent data that does not match its own digests, went back to an older generation, or
    /// its head is not trusted.
    Protocol = 12,
    /// Ended by SIGINT or SIGTERM.
    Interrupted = 20,
    /// Some files were not transferred, not indexed, or did not verify; or `shadow` could not compare everything.
    Partial = 23,
    /// Some files vanished or changed while they were read. The next run picks them up.
    Vanished = 24,
    /// More deletions than `--max-delete` allows, or a sender that has only a slice now. Nothing was deleted.
    DeleteLimit = 25,
    /// The peer was silent for too long.
    Timeout = 30,
    /// The command of `--before` failed. Nothing was pulled.
    Before = 40,
    /// The pull is done, but the command of `--after` failed.
    After = 41,
    /// `shadow` found differences between the two daemons that clients could notice.
    Differs = 42,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

impl Exit {
    /// Combines two outcomes: returns the first that is not [`Exit::Done`].
    pub(crate) fn or(self, other: Exit) -> Exit {
        if self == Exit::Done { other } else { self }
    }
}

/// A mistake on the command line or in the configuration. Used as the context of an error, it makes that a usage error.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Why a command that the operator gave for a pull failed, and when it ran.
#[derive(Debug)]
pub(crate) enum HookError {
    Before(String),
    After(String),
}

impl fmt::Display for HookError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before(why) => write!(f, "--before failed, so nothing was pulled: {why}"),
            Self::After(why) => write!(f, "--after failed: {why}"),
        }
    }
}

impl std::error::Error for HookError {}

/// Returns the exit code for an error.
pub(crate) fn of(error: &anyhow::Error) -> Exit {
    if error.downcast_ref::<UsageError>().is_some() {
        return Exit::Usage;
    }
    if let Some(error) = error.downcast_ref::<PullError>() {
        return of_pull(error);
    }
    if let Some(error) = error.downcast_ref::<StatusError>() {
        return of_status(error);
    }
    match error.downcast_ref::<HookError>() {
        Some(HookError::Before(_)) => return Exit::Before,
        Some(HookError::After(_)) => return Exit::After,
        None => {}
    }
    if let Some(error) = error.downcast_ref::<IndexError>() {
        return of_index(error);
    }
    if let Some(error) = error.downcast_ref::<SignError>() {
        return of_sign(error);
    }
    if let Some(error) = error.downcast_ref::<DaemonError>() {
        return of_daemon(error);
    }
    if let Some(error) = error.downcast_ref::<StoreError>() {
        return of_store(error);
    }
    Exit::FileIo
}

fn of_status(error: &StatusError) -> Exit {
    match error {
        StatusError::Connect { .. } | StatusError::Http { .. } => Exit::Socket,
        StatusError::Timeout { .. } => Exit::Timeout,
        StatusError::Answer { .. } => Exit::Handshake,
    }
}

fn of_index(error: &IndexError) -> Exit {
    match error {
        IndexError::Stopped => Exit::Interrupted,
        IndexError::Store(error) => of_store(error),
        IndexError::Sign(error) => of_sign(error),
        IndexError::ChangedPath { .. } | IndexError::StoreIsRoot(_) => Exit::Usage,
        _ => Exit::FileIo,
    }
}

fn of_sign(error: &SignError) -> Exit {
    match error {
        SignError::Key { .. } | SignError::Exists(_) | SignError::NoGeneration(_) | SignError::Pulled(_) => Exit::Usage,
        SignError::Io { .. } => Exit::FileIo,
    }
}

fn of_pull(error: &PullError) -> Exit {
    match error {
        PullError::Usage(_) | PullError::Busy { .. } | PullError::Authorities(_) => Exit::Usage,
        PullError::Interrupted => Exit::Interrupted,
        PullError::DeleteLimit { .. } | PullError::TurnedSlice { .. } => Exit::DeleteLimit,
        PullError::Connect { .. } | PullError::Socket { .. } => Exit::Socket,
        PullError::Timeout { .. } => Exit::Timeout,
        PullError::Handshake { .. } | PullError::Refused { .. } | PullError::Tls { .. } => Exit::Handshake,
        PullError::Older { .. } | PullError::Protocol(_) | PullError::Untrusted { .. } | PullError::Index { .. } => {
            Exit::Protocol
        }
        PullError::EmptyDestination { .. }
        | PullError::NoSpace { .. }
        | PullError::NoInodes { .. }
        | PullError::TrustFile(_)
        | PullError::File { .. } => Exit::FileIo,
        PullError::Store(error) => of_store(error),
    }
}

fn of_daemon(error: &DaemonError) -> Exit {
    match error {
        DaemonError::Store(error) => of_store(error),
        DaemonError::Listener(_) => Exit::Socket,
        DaemonError::Rules { .. } | DaemonError::Patterns { .. } | DaemonError::NoCertificate => Exit::Usage,
        DaemonError::Tls(TlsError::Read { .. }) => Exit::FileIo,
        DaemonError::Tls(_) => Exit::Usage,
        // The last three only refuse a reload.
        DaemonError::Secrets { .. }
        | DaemonError::Worker(_)
        | DaemonError::Move { .. }
        | DaemonError::NotIndexed { .. }
        | DaemonError::SlowMove { .. } => Exit::FileIo,
    }
}

fn of_store(error: &StoreError) -> Exit {
    match error {
        StoreError::Missing(_)
        | StoreError::NotAStore(_)
        | StoreError::OtherRepository { .. }
        | StoreError::Name(_) => Exit::Usage,
        _ => Exit::FileIo,
    }
}

/// The part of `stillmirror --help` about exit codes.
pub(crate) const HELP: &str = "\
Exit codes:
   0  done
   1  invalid usage or configuration
   5  the peer refused, is not who it should be (TLS), or speaks another protocol or version
  10  the connection could not be opened, or it broke
  11  file I/O on this host (permission, space, a damaged or busy store)
  12  the peer broke the protocol, its data does not match its digests, its head went back, its package indices cannot be
      read, or --trust refuses it
  20  ended by SIGINT or SIGTERM
  23  some files were not transferred, not indexed, or did not verify; or not everything could be compared
  24  some files vanished or changed while they were read; the next run picks them up
  25  more deletions than --max-delete allows, or a sender that has only a slice now; nothing was deleted
  30  the peer was silent for too long
  40  the command of --before failed; nothing was pulled
  41  the pull is done, but the command of --after failed
  42  shadow found differences that clients could notice";

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;

    use super::*;
    use crate::output::error as error_text;

    #[test]
    fn each_cause_is_reported_once() {
        let no_space = || io::Error::from_raw_os_error(28);
        let store = || StoreError::Io { action: "write", path: "/store/head".into(), source: no_space() };
        let root = IndexError::Root { path: "/root".into(), source: no_space() };
        let plain: anyhow::Result<()> = Err(no_space()).context("cannot begin");
        let errors = [store().into(), IndexError::Store(store()).into(), root.into(), plain.unwrap_err()];
        for error in errors.into_iter().chain([anyhow::Error::new(store()).context("while indexing")]) {
            let text = error_text(&error);
            assert_eq!(text.matches("(os error 28)").count(), 1, "{text}");
        }
        let usage =
            anyhow::Error::msg("line 3\n").context("cannot read it").context(UsageError("mirror.toml".to_owned()));
        assert_eq!(error_text(&usage), "mirror.toml: cannot read it: line 3");
    }
}
