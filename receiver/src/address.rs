//! Where a sender listens, and whether the connection with it is encrypted.

use std::fmt;

/// Where a sender listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `HOST:PORT`, with an IPv6 address in brackets.
    pub host_port: String,
    /// Whether the connection uses TLS.
    pub tls: bool,
}

impl Address {
    /// Returns the host's name or IP address, without brackets and port.
    pub fn host(&self) -> &str {
        let host = self.host_port.rsplit_once(':').map_or(&self.host_port[..], |(host, _)| host);
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host_port)
    }
}

/// An address without TLS, from `HOST:PORT`.
impl<T: Into<String>> From<T> for Address {
    fn from(host_port: T) -> Self {
        Self { host_port: host_port.into(), tls: false }
    }
}
