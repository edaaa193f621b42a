//! The name of this mirror in its traces.

use std::fmt;
use std::str::FromStr;

use stillmirror_protocol::path;
use thiserror::Error;

/// The directory of traces, as in Debian's mirrors.
pub(crate) const DIR: &[u8] = b"project/trace";

/// The name of this mirror in its traces: a host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceHost(String);

/// The text is not a host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a host name: letters, digits, '-' and single dots between them, at most 253 characters")]
pub struct TraceHostError;

impl FromStr for TraceHost {
    type Err = TraceHostError;

    fn from_str(text: &str) -> Result<Self, TraceHostError> {
        let is_label = |label: &str| {
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            !label.is_empty() && label.len() <= 63 && label.bytes().all(is_part) && !label.starts_with('-')
        };
        let is_host = text.len() <= 253 - ".json".len() && text.split('.').all(is_label);
        is_host.then(|| Self(text.to_owned())).ok_or(TraceHostError)
    }
}

impl fmt::Display for TraceHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TraceHost {
    /// Returns the names of the trace files in [`DIR`].
    pub(crate) fn names(&self) -> [String; 2] {
        [self.0.clone(), format!("{}.json", self.0)]
    }

    /// Returns the paths of the trace files.
    pub(crate) fn paths(&self) -> Vec<Vec<u8>> {
        self.names().iter().map(|name| path::join(DIR, name.as_bytes())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_names_name_a_trace() {
        for good in ["mirror.example.org", "localhost", "a-1.b", "192.0.2.1"] {
            assert_eq!(good.parse(), Ok(TraceHost(good.to_owned())));
        }
        let long = "a".repeat(64);
        for bad in ["", ".", "..", "../x", "a/b", "/etc", "a..b", "a.", ".a", "-a", "a b", "a\n", "_x", "ä", &long] {
            assert_eq!(bad.parse::<TraceHost>(), Err(TraceHostError), "{bad}");
        }
    }
}
