//! The two daemons, and their URLs: `rsync://[USER@]HOST[:PORT]/`.

use std::fmt;
use std::str::FromStr;

/// The port of a stock daemon.
const PORT: u16 = 873;

/// Which of the two daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Old,
    New,
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Old => "old",
            Self::New => "new",
        })
    }
}

/// A daemon.
#[derive(Debug, Clone)]
pub(super) struct Side {
    pub(super) which: Which,
    pub(super) url: HostUrl,
}

/// The URL of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostUrl {
    pub(super) user: Option<String>,
    /// As written, with an IPv6 address in brackets.
    host: String,
    port: u16,
}

impl HostUrl {
    /// Returns the host and the port to connect to.
    pub(super) fn address(&self) -> (&str, u16) {
        (self.host.trim_start_matches('[').trim_end_matches(']'), self.port)
    }

    /// Returns the URL of a path in a module. Both may be empty.
    pub(super) fn path(&self, module: &str, path: &str) -> String {
        self.path_as(self.user.as_deref(), module, path)
    }

    /// Like [`Self::path`], for this user.
    pub(super) fn path_as(&self, user: Option<&str>, module: &str, path: &str) -> String {
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        let slash = if module.is_empty() { "" } else { "/" };
        format!("rsync://{user}{}:{}/{module}{slash}{path}", self.host, self.port)
    }
}

impl fmt::Display for HostUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rsync://{}:{}/", self.host, self.port)
    }
}

impl FromStr for HostUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("'{text}' is not of the form rsync://[USER@]HOST[:PORT]/");
        let rest = text.strip_prefix("rsync://").ok_or_else(form)?;
        let (host, module) = rest.split_once('/').unwrap_or((rest, ""));
        if !module.is_empty() {
            let module = module.trim_end_matches('/');
            return Err(format!("'{text}' names a module: give the host only, and --module {module}"));
        }
        let (user, host) = host.rsplit_once('@').map_or((None, host), |(user, host)| (Some(user.to_owned()), host));
        let (host, port) = match host.rsplit_once(':') {
            // The last part of an IPv6 address without a port.
            Some(_) if host.ends_with(']') => (host, PORT),
            Some((host, port)) => (host, port.parse().map_err(|_| form())?),
            None => (host, PORT),
        };
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || host.starts_with('-') || host.contains(':') && !is_bracketed {
            return Err(form());
        }
        Ok(Self { user, host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_a_host_and_optionally_a_user_and_a_port() {
        for (text, user, address, module) in [
            ("rsync://m.example/", None, ("m.example", 873), "rsync://m.example:873/debian/dists"),
            ("rsync://m.example", None, ("m.example", 873), "rsync://m.example:873/debian/dists"),
            ("rsync://ann@m:8873/", Some("ann"), ("m", 8873), "rsync://ann@m:8873/debian/dists"),
            ("rsync://[::1]:99/", None, ("::1", 99), "rsync://[::1]:99/debian/dists"),
            ("rsync://[::1]/", None, ("::1", 873), "rsync://[::1]:873/debian/dists"),
        ] {
            let url: HostUrl = text.parse().unwrap();
            assert_eq!((url.user.as_deref(), url.address()), (user, address));
            assert_eq!(url.path("debian", "dists"), module);
        }
        let url: HostUrl = "rsync://m".parse().unwrap();
        assert_eq!(url.path("", ""), "rsync://m:873/");
        assert_eq!(url.path_as(Some("eve"), "debian", ""), "rsync://eve@m:873/debian/");
    }

    #[test]
    fn other_urls_are_refused_and_a_module_is_named_by_an_option() {
        for text in
            ["stillmirror://m/", "m::debian", "rsync://", "rsync:///x", "rsync://m:x/", "rsync://::1/", "rsync://-e/"]
        {
            assert!(text.parse::<HostUrl>().unwrap_err().contains("'"), "{text}");
        }
        assert!("rsync://m/debian/".parse::<HostUrl>().unwrap_err().ends_with("--module debian"));
    }
}
