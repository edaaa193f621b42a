//! The receiver: brings a local tree to the state of a sender's generation, and writes a generation of that
//! tree into the receiver's own store.
//!
//! [`pull`] runs these steps in order:
//!
//! | step | module |
//! |---|---|
//! | wait for other pulls | `turn` |
//! | ask the sender for its current generation | [`source`], `listing`, on top of `answer` |
//! | decide whether its head is trusted | `trust` |
//! | find the part of a package repository that is wanted | `slice` |
//! | look at the local tree | `selection` on top of `names`; `facts` on top of `local` |
//! | decide which deletions wait, and which directories are stores | `grace`, on top of `journal`; `stores` |
//! | refuse what is probably a mistake of the sender's | `guard`, on top of `limit` |
//! | decide what to do | `plan`, a pure function |
//! | find out whether it fits | `space` |
//! | find parts of new files in old ones | `matching`, on top of `roots` |
//! | fetch, build and verify | `fetch`, `stage` |
//! | move files into place | `commit` |
//! | or update a copy of the tree, which then replaces it in one step | `snapshots` |
//! | publish a generation of the local tree | `publish`, `mark` |
//! | say when the tree was complete | `trace` |
//! | wait for the next pull | `follow` |
//!
//! Nothing received is trusted: lists are validated, lengths are checked against limits, and contents against
//! their SHA-256. The disk is touched only beneath the destination (`local`).
#![forbid(unsafe_code)]
// Code that a peer, a disk or a user can reach must not panic; tests may.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod address;
mod answer;
mod attributes;
mod browse;
mod commit;
mod distrust;
mod error;
mod facts;
mod fetch;
mod follow;
mod grace;
mod guard;
mod journal;
mod limit;
mod listing;
mod local;
mod mark;
mod matching;
mod names;
mod plan;
mod publish;
mod pull;
mod rank;
mod report;
mod roots;
mod selection;
mod slice;
mod snapshots;
pub mod source;
mod space;
mod stage;
mod stores;
mod tls;
mod trace;
mod trace_host;
mod trust;
mod turn;
mod verify;

pub use address::Address;
pub use distrust::TrustError;
pub use error::PullError;
pub use follow::{Follower, Last, Pauses};
pub use limit::{MaxDelete, MinFree, USUAL_LEAST, USUAL_PERCENT};
pub use names::{Names, NamesError};
pub use pull::{pull, pull_from};
pub use report::{Action, Check, Failed, Failure, Notice, Options, Owners, Phase, Progress, Report, Served, Silent};
pub use slice::{IndexFault, IndexKind, Slice, SliceNameError, read_index};
pub use source::{Accept, NativeSource, Pinned, Renewing, SeveralSources, Source, SourceOptions};
pub use tls::{Authorities, AuthoritiesError, TlsFault};
pub use trace_host::{TraceHost, TraceHostError};
pub use verify::{Problem, VerifyReport, verify};
