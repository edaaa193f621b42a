//! Walks a repository and publishes a generation.
//!
//! Work and memory are proportional to what changed: the walk compares every directory with the list of
//! the generation before and keeps the differences alone; a file that is known from the last run is not read,
//! whatever its name is now. The stages stand in one file each:
//!
//! 1. `walk`: directories in parallel, differences out; or, when the caller knows what changed, those
//!    paths alone;
//! 2. `expected`: which of the new and touched files have a content that is indexed already;
//! 3. `hash`: all others, read once for all their digests and block checksums;
//! 4. `settle`: differences become [`stillmirror_protocol::changes::Changes`], link groups whole;
//! 5. `publish`: list, local facts and delta are built, written and made current.
#![forbid(unsafe_code)]
// What a peer, a disk or a user can reach must not panic; tests may.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod damaged;
mod error;
mod expected;
mod groups;
mod hash;
mod index;
mod options;
mod owners;
mod publish;
mod report;
mod scrub;
mod settle;
mod tree;
mod walk;

pub use error::IndexError;
pub use index::index;
pub use options::{CtimeRule, Options, STAGING, Share, Specials, Unreadable};
pub use report::{Phases, Problem, Progress, Report};
