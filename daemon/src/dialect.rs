//! The protocols that clients speak, as logs and metrics name them.

/// What a connection is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Dialect {
    /// Sessions of the native protocol.
    Native,
    /// Sessions of stock rsync clients.
    Rsync,
    /// Followers: native connections that wait for the next generation.
    Follower,
    /// Connections that end before their protocol is known.
    Unknown,
}

impl Dialect {
    /// Returns the name in logs and metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Rsync => "rsync",
            Self::Follower => "follower",
            Self::Unknown => "unknown",
        }
    }
}
