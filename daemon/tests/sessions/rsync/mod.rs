//! Stock rsync clients, real ones and some made by hand.

mod access;
mod hostile;
mod pulls;
mod support;
