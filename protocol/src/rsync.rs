//! The stock rsync daemon protocol, versions 27 to 32, for the sending side.
//!
//! All modules are sans-IO. A session uses them in this order:
//!
//! 1. the text [`greeting`] with the module's name and [`auth`], then the client's [`arguments`];
//! 2. the binary [`setup`], after which the stream is multiplexed ([`mux`]);
//! 3. the client's filter [`rules`] and, with `--files-from`, its names;
//! 4. the file list ([`selection`] chooses the entries, [`flist`] writes them);
//! 5. [`requests`], answered by [`replies`] with a [`digest`] after every file.
//!
//! The differences between protocol versions are one table in [`version`]. [`codec`] holds integers and file indices.

pub mod arguments;
pub mod auth;
pub mod chmod;
pub mod codec;
pub mod digest;
pub mod exit;
pub mod fault;
pub mod flist;
pub mod greeting;
pub mod mux;
pub mod phases;
pub mod replies;
pub mod requests;
pub mod rules;
pub mod selection;
pub mod setup;
pub mod version;
