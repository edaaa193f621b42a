//! The sans-IO core: index schema, native wire, checksums and delta matching.
//!
//! Nothing here opens a socket or a file, reads a clock or starts a runtime: bytes and time come in,
//! bytes and actions go out. So every exchange can be tested in memory, replayed and fuzzed.
#![forbid(unsafe_code)]

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
