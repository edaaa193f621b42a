//! Stock rsync clients, real ones and some made by hand.

mod access;
mod alive;
mod hostile;
mod pulls;
pub(crate) mod support;
