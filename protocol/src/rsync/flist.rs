//! The file list in the format of stock clients.
//!
//! [`ListWriter`] writes a list from the rows of a [`crate::list`], in the order in which clients number
//! them: depth first, as one list or as one list per directory ("incremental recursion"). Nothing is sorted
//! and nothing is allocated per entry. A session keeps at most one `u32` per entry to map indices to rows
//! ([`Numbers`]). For an incremental list without filters it keeps nothing, because one `u32` per directory
//! serves all sessions ([`SubLists`]).

mod class;
mod deletions;
mod entry;
mod incremental;
mod links;
mod merge;
mod numbers;
mod owners;
mod walk;
mod writer;

pub use class::{Class, ListDigest};
pub use numbers::{Computed, Numbers, RowTable, SubLists};
pub use writer::{ListWriter, Written};
