//! Stock rsync's daemon protocol, versions 27 to 32, for a sender that is passive.
//!
//! Sans-IO, in the order in which a session goes: the text [`greeting`] with a module's name and its
//! [`auth`], the client's [`arguments`], the binary [`setup`], then multiplexed ([`mux`]) the client's
//! filter [`rules`] and names, the file list ([`selection`] chooses, [`flist`] writes), and
//! [`requests`] answered by [`replies`] with a [`digest`] behind every file. What differs from version to version stands
//! in one table, [`version`]; integers and file indices are in [`codec`].

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
