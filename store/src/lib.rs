//! Generations on disk: open, map, check, publish, retain.
//!
//! ```text
//! <store>/repository                 format version and the repository's name
//! <store>/lock                       flock'ed by the one writer, whose process id it holds
//! <store>/current                    symlink to generations/<number>: the only name that is ever replaced
//! <store>/generations/<number>/      head, list, list.zst, local, packs; delta, origin-head, origin-list at need
//! <store>/sums/<number>.pack         records first written for that generation
//! <store>/lists/                     file lists encoded for stock clients; nothing depends on them
//! ```
//!
//! Nothing that has its final name is ever modified: a generation is written to a directory of its own,
//! synced and renamed, and then `current` is replaced. So a mapped index neither tears nor faults, and
//! a crash at any point leaves the old generation or the new one. Byte tables and the assumptions about
//! the medium are in `docs/index-format.md`.
#![deny(unsafe_code)]
// What a peer, a disk or a user can reach must not panic; tests may.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod beneath;
mod delta;
mod draft;
mod error;
mod flock;
mod generation;
mod kill;
mod layout;
pub mod list_cache;
mod map;
mod packs;
mod part;
mod records;
mod retain;
mod store;

pub use beneath::{open_beneath, open_beneath_at_once};
pub use delta::Delta;
pub use draft::Draft;
pub use error::{Damage, StoreError};
pub use flock::Flock;
pub use generation::{Generation, Origin};
pub use kill::{KILL_POINTS, kill_point};
pub use packs::{KEEP_CONTENTS, Pack, PackUse, Record};
pub use records::BadRecord;
pub use retain::{Retained, Retention};
pub use store::{CurrentHead, Mark, Store, StoreLock};
