//! Stock clients pull the same tree from a stock daemon and from ours. Exit codes, listings and the resulting trees must
//! be the same, except where `tests/known_gaps.toml` explains why not.
//!
//! This is a short form of `benches/system/rsync_*.py`, which combines every option with every protocol: here each option
//! is tried once, and the protocols take turns. `destinations` tests random command lines and destinations.

mod changes;
mod destinations;
mod links;
mod modules;
mod options;
mod order;
pub(crate) mod peers;
mod permissions;
mod rot;
mod scripts;
mod tree;
