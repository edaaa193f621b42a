//! The sans-IO core: index schema, native and rsync wire protocols, checksums and delta matching.
//!
//! Nothing in this crate opens a socket or a file, reads a clock or starts a runtime. Callers pass in bytes and
//! times and get back bytes and actions. Every exchange can therefore be tested in memory, replayed and fuzzed.
#![forbid(unsafe_code)]
// Code that processes input from a peer, a disk or a user must not panic. Tests may.
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
pub mod signature;
pub mod sums;
pub mod wire;
