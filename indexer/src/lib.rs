//! Walks a repository and publishes a generation.
//!
//! Work and memory are proportional to what changed: the walk compares every directory with the list of
//! the generation before and keeps the differences alone; a file whose size, times, inode and device are
//! those of the last run is not read. The stages stand in one file each:
//!
//! 1. `walk`: directories in parallel, differences out; or, when the caller knows what changed, those
//!    paths alone;
//! 2. `hash`: every new or touched file, read once for all its digests and block checksums;
//! 3. `settle`: differences become [`stillmirror_protocol::changes::Changes`], link groups whole;
//! 4. `publish`: list, local facts and delta are built, written and made current.
#![forbid(unsafe_code)]
// What a peer, a disk or a user can reach must not panic; tests may.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod damaged;
mod error;
mod groups;
mod hash;
mod index;
mod options;
mod owners;
mod publish;
mod report;
mod settle;
mod tree;
mod walk;

pub use error::IndexError;
pub use index::index;
pub use options::{Options, STAGING, Specials, Unreadable};
pub use report::{Phases, Problem, Progress, Report};
