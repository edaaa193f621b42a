//! The file list, as stock clients read it.
//!
//! A list is written from the rows of a [`crate::list`] in the order in which the client numbers them:
//! depth first, as one list or as one list a directory ("incremental recursion"). Nothing is sorted and nothing
//! allocated per entry; what a session keeps is at most one `u32` per entry, and nothing at all for an incremental
//! list without filters ([`Numbers`]): there one `u32` a directory serves all sessions ([`SubLists`]).

mod class;
mod depth;
mod entry;
mod gone;
mod links;
mod merge;
mod numbers;
mod owners;
mod walk;
mod writer;

pub use class::{Class, ListDigest};
pub use numbers::{Computed, Numbers, RowTable, SubLists};
pub use writer::{ListWriter, Written};
