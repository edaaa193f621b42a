//! Exit codes: rsync's, where it has one for the meaning, because scripts know them.

use std::process::ExitCode;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    /// Usage or configuration.
    Usage = 1,
    /// The peer refused, or speaks another protocol or version.
    Handshake = 5,
    /// The connection could not be made, or broke.
    Socket = 10,
    /// A file or directory of this host: permission, space, damage.
    FileIo = 11,
    /// The peer sent what the protocol does not allow, or data that do not match its own digests.
    Protocol = 12,
    /// SIGINT or SIGTERM.
    Interrupted = 20,
    /// Some files were not transferred or not indexed.
    Partial = 23,
    /// Some files vanished or changed under the reader; the next run brings them.
    Vanished = 24,
    /// More deletions than `--max-delete` allows: nothing was deleted.
    DeleteLimit = 25,
    /// The peer was silent for too long.
    Timeout = 30,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// What `--help` says of them.
pub(crate) const HELP: &str = "\
Exit codes:
   0  done
   1  usage or configuration
   5  the peer refused, or speaks another protocol or version
  10  the connection could not be made, or broke
  11  file I/O on this host (permission, space, a damaged store)
  12  the peer broke the protocol, or its data do not match its digests
  20  ended by SIGINT or SIGTERM
  23  some files were not transferred (or not indexed)
  24  some files vanished or changed under the reader; the next run brings them
  25  more deletions than --max-delete allows; nothing was deleted
  30  the peer was silent for too long";
