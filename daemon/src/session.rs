//! Sessions: what those of every dialect have in common.

pub(crate) mod native;

use std::io;
use std::sync::Arc;

use stillmirror_protocol::wire::WireError;
use thiserror::Error;

use crate::registry::{Edition, Repository};

/// Why a session ends before its time.
#[derive(Debug, Error)]
pub(crate) enum Ended {
    #[error("{0}")]
    Malformed(#[from] WireError),
    #[error("no request for too long")]
    Idle,
    #[error("a request was begun and not finished")]
    HalfRequest,
    #[error("the peer reads too slowly")]
    TooSlow,
    #[error("a file changed in the middle of a frame")]
    Torn,
    #[error("a thread of the daemon's own died")]
    Panicked,
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

/// A generation that a session holds on to.
pub(crate) struct Pinned {
    pub(crate) repository: Arc<Repository>,
    pub(crate) edition: Arc<Edition>,
}
