//! Stock rsync clients, real ones and some made by hand.

mod access;
mod alive;
mod hidden;
mod hostile;
mod lists;
/// Lists of single clients.
mod own_lists;
mod pulls;
mod rotten;
pub(crate) mod support;
