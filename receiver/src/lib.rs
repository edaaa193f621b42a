//! The receiver: makes a local tree what a sender's generation says, and a generation of that tree.
//!
//! [`pull`] goes through the modules in this order, each a step:
//!
//! | step | module |
//! |---|---|
//! | ask what is current | [`source`], `listing` |
//! | look at what is there | `selection`, `facts`, on top of `local` |
//! | decide | `plan`, a pure function |
//! | find parts of new files in old ones | `matching` |
//! | fetch, build and verify | `fetch`, `stage` |
//! | give names | `commit` |
//! | make it a generation of one's own | `publish`, `mark` |
//!
//! Nothing received is trusted: lists are validated, lengths meet limits, contents their SHA-256, and the
//! disk is only touched beneath the destination (`local`).
#![forbid(unsafe_code)]
// What a peer, a disk or a user can reach must not panic; tests may.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod browse;
mod commit;
mod error;
mod facts;
mod fetch;
mod listing;
mod local;
mod mark;
mod matching;
mod owners;
mod plan;
mod publish;
mod pull;
mod report;
mod selection;
pub mod source;
mod stage;
mod verify;

pub use error::PullError;
pub use pull::{pull, pull_from};
pub use report::{Action, Check, Failed, Failure, Options, Owners, Phase, Progress, Report, Silent};
pub use source::{NativeSource, Pinned, Renewing, Source, SourceOptions};
pub use verify::{Problem, VerifyReport, verify};
