//! Tests of whole sessions over loopback, with a real daemon, real files and a real store.

/// Requests of native clients, and the answers.
mod answers;
/// Bandwidth limits.
mod bandwidth;
/// Many connections from one address.
mod crowded;
/// Clients that break the rules. Other clients must not notice them.
mod follow;
mod hostile;
/// Counters, and the causes of ends.
mod metrics;
/// Generations whose contents are kept in a pool.
mod pinned;
/// What a daemon that runs as root does not send.
mod private;
/// Connections of proxies that name their clients.
mod proxy;
/// Another configuration for a daemon that runs.
mod reload;
/// Trees and stores that are missing, moved, switched or recreated.
mod roots;
mod rsync;
/// Startup, shutdown, new generations, and the queue for sessions.
mod service;
/// Signed heads, and clients that do not read them.
mod signed;
/// Files that changed since they were indexed.
mod stale;
/// Files whose content is in the store.
mod stored;
mod support;
/// Names that are exchanged for symlinks while they are served.
mod swapped;
/// Clients within TLS.
mod tls;
