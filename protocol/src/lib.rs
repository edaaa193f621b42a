//! The sans-IO core: index schema, native wire, checksums and delta matching.
//!
//! Nothing here opens a socket or a file, reads a clock or starts a runtime: bytes and time come in,
//! bytes and actions go out. So every exchange can be tested in memory, replayed and fuzzed.
#![forbid(unsafe_code)]
// What a peer, a disk or a user can reach must not panic; tests may.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

pub mod changes;
pub mod codec;
pub mod delta;
pub mod entry;
pub mod filter;
pub mod head;
pub mod limits;
pub mod list;
pub mod local;
pub mod order;
pub mod path;
pub mod rsync;
pub mod sums;
pub mod wire;
