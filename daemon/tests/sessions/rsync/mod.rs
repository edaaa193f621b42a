//! Stock rsync clients, real ones and some made by hand.

mod access;
mod alive;
mod hostile;
mod lists;
/// Lists of single clients.
mod own_lists;
mod pulls;
pub(crate) mod support;
