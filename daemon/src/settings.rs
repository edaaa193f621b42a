//! The settings in force. A reload replaces them; a session keeps those that it began with.

use std::sync::Arc;

use crate::bandwidth::Bucket;
use crate::config::{Config, Limits, RsyncConfig};
use crate::registry::Registry;

/// The settings in force.
pub(crate) struct Settings {
    /// What they were made from.
    pub(crate) config: Config,
    pub(crate) registry: Registry,
    /// The rate limit for all sessions together, if there is one.
    pub(crate) bandwidth: Option<Arc<Bucket>>,
}

impl Settings {
    /// Creates settings. What can be kept of those `before` is kept.
    pub(crate) fn new(config: Config, registry: Registry, before: Option<&Self>) -> Self {
        let bandwidth = before.and_then(|before| before.bandwidth.as_ref());
        Self { bandwidth: Bucket::after(bandwidth, config.limits.bandwidth), config, registry }
    }

    /// Returns the limits for clients.
    pub(crate) fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// Returns the settings for all stock rsync clients.
    pub(crate) fn rsync(&self) -> &RsyncConfig {
        &self.config.rsync
    }
}
