//! Whole sessions over loopback: a real daemon, real files, a real store.

/// What clients ask for and get.
mod answers;
/// Limits on how fast bytes leave.
mod bandwidth;
/// Many connections from one address.
mod crowded;
/// Clients that break the rules, and what others notice of them: nothing.
mod hostile;
/// What a daemon of root keeps to itself.
mod private;
/// Trees and stores that are missing, moved, switched or made anew.
mod roots;
mod rsync;
/// Starting, stopping, new generations, waiting for a place.
mod service;
/// Files that are not what was indexed.
mod stale;
/// Files whose content the store has.
mod stored;
mod support;
/// Names that are exchanged for symlinks while they are served.
mod swapped;
