//! The settings in force. A reload replaces them; a session keeps those that it began with.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::ServerConfig;

use crate::bandwidth::Bucket;
use crate::config::{Config, Limits, RsyncConfig};
use crate::registry::Registry;

/// The settings in force.
pub(crate) struct Settings {
    /// What they were made from.
    pub(crate) config: Config,
    pub(crate) registry: Registry,
    /// The certificate of the TLS ports, if there is one.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// The rate limit for all sessions together, if there is one.
    pub(crate) bandwidth: Option<Arc<Bucket>>,
}

impl Settings {
    /// Creates settings. What can be kept of those `before` is kept.
    pub(crate) fn new(
        config: Config,
        registry: Registry,
        tls: Option<Arc<ServerConfig>>,
        before: Option<&Self>,
    ) -> Self {
        let bandwidth = before.and_then(|before| before.bandwidth.as_ref());
        Self { bandwidth: Bucket::after(bandwidth, config.limits.bandwidth), config, registry, tls }
    }

    /// Returns the limits for clients.
    pub(crate) fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// Returns whether a connection from `address` is a proxy's, and begins with a header that names the client.
    pub(crate) fn is_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.config.proxies.iter().any(|network| network.contains(&address))
    }

    /// Returns the settings for all stock rsync clients.
    pub(crate) fn rsync(&self) -> &RsyncConfig {
        &self.config.rsync
    }
}
