//! Stock rsync clients, real ones and some made by hand.

mod access;
mod alive;
mod hostile;
mod lists;
mod pulls;
pub(crate) mod support;
