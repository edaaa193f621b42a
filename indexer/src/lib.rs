//! Walks a repository's tree and publishes a generation.
//!
//! Work and memory are proportional to what changed. The walk compares each directory with the previous
//! generation's list and keeps only the differences. A file that is known from the previous run is not read
//! again, even if it was renamed. The entry point is [`index`]. It runs these stages, each in its own module:
//!
//! 1. `walk` compares all directories in parallel and returns the differences. If the caller knows which paths have
//!    changed, it only looks at those.
//! 2. `expected` determines which of the new and touched files have a content that is already indexed.
//! 3. `hash` reads all other files once, for all their digests and block checksums.
//!    With a pool, `pooling` puts the contents there, once they are known.
//! 4. `settle` turns the differences into [`stillmirror_protocol::changes::Changes`], with link groups whole.
//! 5. `publish` builds and writes the list, the local facts and the delta, and makes the generation current.
#![forbid(unsafe_code)]
// Code that handles input from a peer, a disk or a user must not panic. Tests may.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod access;
mod damaged;
mod error;
mod expected;
mod groups;
mod hash;
mod index;
mod keep_known;
mod known_records;
mod options;
mod owners;
mod pooling;
mod publish;
mod report;
mod scrub;
mod settle;
mod sign;
mod signer;
mod tree;
mod walk;

pub use error::IndexError;
pub use index::index;
pub use options::{CtimeRule, Options, STAGING, Share, Specials, Unreadable};
pub use report::{Phases, Problem, Progress, Report};
pub use sign::sign;
pub use signer::{KeyFiles, SignError, Signer, keygen};
