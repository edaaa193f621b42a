//! Stock rsync clients: the real `rsync`, and hand-made input of clients.

/// Modules, greetings, logins, and limits on clients.
mod access;
mod alive;
mod hidden;
/// Input that no honest client sends.
mod hostile;
mod lists;
mod own_lists;
/// Pulls with many combinations of options and protocol versions.
mod pulls;
mod rotten;
pub(crate) mod support;
