//! Stores generations on disk: opens, maps, checks, publishes and removes them.
//!
//! ```text
//! <store>/repository                 format version and the repository's name
//! <store>/lock                       flock'ed by the one writer; contains its process ID
//! <store>/current                    symlink to generations/<number>: the only name that is ever replaced
//! <store>/generations/<number>/      head, list, list.zst, local, packs; where needed head.minisig, delta, origin-head,
//!                                    origin-head.minisig, origin-list
//!                                    for the pool, pool and dropped
//! <store>/sums/<number>.pack         records first written for that generation
//! <store>/pool/                      contents that generations refer to, unless the pool is elsewhere
//! <store>/lists/                     file lists encoded for stock clients; nothing depends on them
//! ```
//!
//! A reader calls [`Store::open`] and then [`Store::current`], which returns a mapped and checked
//! [`Generation`]. A writer takes [`Store::lock`], calls [`Store::begin`], fills the [`Draft`], calls
//! [`Draft::publish`], and finally removes old generations with [`Store::retain`].
//!
//! A file that has its final name is never modified. A generation is written to a temporary directory, synced
//! and renamed, and then `current` is replaced. So a mapped index neither tears nor faults, and a crash at
//! any point leaves either the old generation or the new one. The byte tables and the assumptions about the
//! medium are in `docs/index-format.md`.
#![deny(unsafe_code)]
// Code that handles input from a peer, a disk or a user must not panic. Tests may.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod beneath;
mod content_pool;
mod delta;
mod draft;
mod dropped;
mod error;
mod flock;
mod generation;
mod kill;
mod layout;
pub mod list_cache;
mod map;
mod marker;
mod packs;
mod part;
mod records;
mod retain;
mod sender;
mod store;
mod unpool;

pub use beneath::{open_beneath, open_beneath_at_once};
pub use content_pool::{ContentPool, POOL_IN_TREE, PoolDraft, PoolName, PoolPlace, Put, has_packed};
pub use delta::Delta;
pub use draft::Draft;
pub use error::{Damage, StoreError};
pub use flock::Flock;
pub use generation::{Generation, Origin};
pub use kill::{KILL_POINTS, POOL_KILL_POINTS, kill_point};
pub use layout::CURRENT;
pub use marker::is_store;
pub use packs::{KEEP_CONTENTS, Pack, PackUse, Record};
pub use records::BadRecord;
pub use retain::{Retained, Retention};
pub use sender::SenderSeen;
pub use store::{CurrentHead, Mark, Store, StoreLock};
