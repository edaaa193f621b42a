//! Why a comparison stops before its end.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::side::Which;
use crate::exit::Exit;

/// Why a comparison stops before its end.
#[derive(Debug)]
pub(super) enum ShadowError {
    /// The program that looks at both daemons cannot be started.
    NoClient { program: PathBuf, source: io::Error },
    /// A daemon cannot be reached, or no rsync daemon answers there.
    Down { which: Which, address: String, source: io::Error },
    /// A daemon, or a client that talks to it, was silent for longer than `--timeout`.
    Silent { which: Which, limit: Duration },
    /// Both clients failed on this host.
    Client { code: i32, message: String },
    /// A file below the scratch directory failed.
    Scratch { path: PathBuf, source: io::Error },
    /// SIGINT or SIGTERM.
    Interrupted,
}

impl ShadowError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::NoClient { .. } => Exit::Usage,
            Self::Down { .. } => Exit::Socket,
            Self::Silent { .. } => Exit::Timeout,
            Self::Client { .. } | Self::Scratch { .. } => Exit::FileIo,
            Self::Interrupted => Exit::Interrupted,
        }
    }
}

impl fmt::Display for ShadowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoClient { program, source } if source.kind() == io::ErrorKind::NotFound => write!(
                f,
                "{} is not installed: `shadow` compares what the stock rsync client sees (apt install rsync)",
                program.display()
            ),
            Self::NoClient { program, source } => write!(f, "cannot run {}: {source}", program.display()),
            Self::Down { which, address, source } => {
                write!(f, "the {which} daemon at {address} does not answer: {source}")
            }
            Self::Silent { which, limit } => {
                write!(f, "the {which} daemon sent nothing for {} s (--timeout)", limit.as_secs())
            }
            Self::Client { code, message } => write!(f, "both clients ended with {code} on this host: {message}"),
            Self::Scratch { path, source } => write!(f, "cannot use {}: {source}", path.display()),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for ShadowError {}
