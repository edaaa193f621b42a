//! The real binary, on real trees, with the real rsync as the judge.
//!
//! One test binary, one module a topic: `pull` (what a downstream sees), `index` (what a publisher sees),
//! `hierarchy` (mirrors of mirrors), `rsync` (what stock clients see), `bad_input` (what goes wrong, and with which exit
//! code), `kills` (a run ended at any moment), `shortage` (a host that gives little). `support` makes trees, runs
//! commands, and ends what it started.

mod bad_input;
mod hierarchy;
mod index;
mod kills;
mod pull;
mod rsync;
mod shortage;
mod support;
