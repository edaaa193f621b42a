//! The causes of ends: one short name for each, which the access log and the metrics use.

macro_rules! causes {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a session or a connection ended. The names are stable, because operators filter and alert by them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum Cause {
            $($(#[$doc])* $variant,)*
        }

        impl Cause {
            /// All causes.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns the name in logs and metrics.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

causes! {
    /// It ended as it should.
    Done => "done",
    /// The client ended early, and said so.
    ClientExit => "client_exit",
    /// The connection broke, or the client closed it early.
    Disconnected => "disconnected",

    /// The client breaks the protocol.
    Malformed => "malformed",
    /// The first bytes belong to no known protocol.
    UnknownProtocol => "unknown_protocol",
    /// The TLS handshake failed.
    TlsFailed => "tls_failed",
    /// A proxy sent no valid PROXY header.
    ProxyHeader => "proxy_header",
    /// An option of the client is unknown, invalid, or refused.
    OptionRefused => "option_refused",
    /// A filter rule of the client is invalid, or there are too many.
    RulesInvalid => "rules_invalid",
    /// The client's filter rules cost too much.
    RulesTooCostly => "rules_too_costly",
    /// The client's list repeats too many entries.
    ListTooLong => "list_too_long",
    /// The file of names that the client asks for cannot be read.
    NamesUnreadable => "names_unreadable",

    /// There is no repository with this name, or this client must not know that there is.
    UnknownRepository => "unknown_repository",
    /// The repository is for other addresses only.
    AccessDenied => "access_denied",
    /// The user or the password is wrong.
    LoginFailed => "login_failed",
    /// The repository is not indexed, or cannot be opened at present.
    Unavailable => "unavailable",
    /// All sessions are in use, and the queue is full.
    QueueFull => "queue_full",
    /// There are as many followers as there may be.
    FollowersFull => "followers_full",
    /// The client's address has as many connections as it may have.
    AddressLimit => "address_limit",
    /// Too many connections have not named a repository yet, and this one was the oldest.
    Evicted => "evicted",
    /// No memory is left for lists of single clients.
    ListMemory => "list_memory",

    /// The client sent no request for too long.
    Idle => "idle",
    /// The client did not finish a greeting, a login or a request in time.
    RequestTimeout => "request_timeout",
    /// The client took less than the minimum rate.
    TooSlow => "too_slow",

    /// The daemon shuts down, and the client was told.
    Shutdown => "shutdown",
    /// The daemon shut down in the middle of a message to the client.
    CutOff => "cut_off",

    /// A file changed in the middle of a frame.
    FileChanged => "file_changed",
    /// An encoded list in the cache is damaged.
    CachedListDamaged => "cached_list_damaged",
    /// The file list on the disk is damaged.
    IndexDamaged => "index_damaged",
    /// A thread of the daemon panicked.
    Internal => "internal",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_cause_has_a_name_of_its_own_that_the_documents_explain() {
        let names: BTreeSet<_> = Cause::ALL.iter().map(|cause| cause.name()).collect();
        assert_eq!(names.len(), Cause::ALL.len());
        let documented = include_str!("../../docs/operations.md");
        let missing: Vec<_> = names.iter().filter(|name| !documented.contains(&format!("| `{name}` |"))).collect();
        assert!(missing.is_empty(), "docs/operations.md does not explain {missing:?}");
    }
}
