//! Stock clients pull the same tree from a stock daemon and from ours: how they end, what they list and what they
//! leave behind must be the same, except where `tests/known_gaps.toml` says why not.
//!
//! A reduced form of `benches/system/rsync_*.py`, which puts every option to every protocol: here each option is tried
//! once, and the protocols take turns. `destinations` draws all of it at random, what was in the destination above all.

mod changes;
mod destinations;
mod links;
mod modules;
mod options;
mod order;
mod peers;
mod permissions;
mod rot;
mod scripts;
mod tree;
