//! URLs: `stillmirror://HOST[:PORT]/[NAME[/PATH]]`, or `stillmirrors://` within TLS.

use std::fmt;
use std::str::FromStr;

use stillmirror_protocol::head;
use stillmirror_protocol::path::{self, Escaped};
use stillmirror_receiver::Address;

/// The default port.
pub(crate) const PORT: u16 = 8730;
/// The default port within TLS: that of `rsync-ssl`, since one port serves both kinds of clients.
pub(crate) const TLS_PORT: u16 = 874;

/// A sender, one of its repositories, or a part of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) address: Address,
    /// The repository's name; empty for the sender itself.
    pub(crate) repository: String,
    /// The path within the repository, without a trailing slash; empty for all of it.
    pub(crate) path: Vec<u8>,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.address.tls { "stillmirrors" } else { "stillmirror" };
        write!(f, "{scheme}://{}/{}", self.address, self.repository)?;
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", Escaped(&self.path)) }
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form =
            || format!("'{text}' is not of the form stillmirror://HOST[:PORT]/NAME[/PATH] (stillmirrors:// for TLS)");
        let (rest, tls, default_port) = match text.split_once("://") {
            Some(("stillmirror", rest)) => (rest, false, PORT),
            Some(("stillmirrors", rest)) => (rest, true, TLS_PORT),
            _ => return Err(other_program(text).unwrap_or_else(form)),
        };
        let (host, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (repository, path) = rest.split_once('/').unwrap_or((rest, ""));
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        if host.is_empty() || name.is_empty() {
            return Err(form());
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok())
            && !host.ends_with(']')
            && (host.matches(':').count() == 1 || host.starts_with('['));
        let host_port = match (has_port, host.contains(':') && !host.starts_with('[')) {
            (true, _) => host.to_owned(),
            (false, true) => return Err(format!("'{host}': write an IPv6 address in brackets: [::1]:{default_port}")),
            (false, false) => format!("{host}:{default_port}"),
        };
        if !repository.is_empty() {
            head::check_repository_name(repository).map_err(|error| error.to_string())?;
        }
        let path = path::check_relative(path.as_bytes()).map_err(|error| error.to_string())?.to_vec();
        Ok(Self { address: Address { host_port, tls }, repository: repository.to_owned(), path })
    }
}

/// Returns which program understands a URL of another protocol. `None` if the protocol is not known.
fn other_program(text: &str) -> Option<String> {
    let (host, path) = match text.split_once("://") {
        Some(("rsync", rest)) => rest.split_once('/').unwrap_or((rest, "")),
        Some(("http" | "https", _)) => return Some(format!("for this URL, use `wget --mirror {text}`")),
        Some(_) => return None,
        None => text.split_once("::")?,
    };
    let host = host.rsplit_once(':').map_or(host, |(name, _)| name);
    Some(format!(
        "for this URL, use `rsync -a {text} DEST`, or, if the server is a stillmirror daemon, stillmirror://{host}/{path}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Result<(String, String, String), String> {
        let url: Url = text.parse()?;
        Ok((url.address.to_string(), url.repository, String::from_utf8_lossy(&url.path).into_owned()))
    }

    #[test]
    fn urls_are_parsed_with_and_without_port_and_path() {
        for (text, address, repository, path) in [
            ("stillmirror://m.example:1/debian", "m.example:1", "debian", ""),
            ("stillmirror://m.example/debian/pool/main/", "m.example:8730", "debian", "pool/main"),
            ("stillmirror://[::1]:99/d", "[::1]:99", "d", ""),
            ("stillmirror://[::1]/d", "[::1]:8730", "d", ""),
            ("stillmirror://127.0.0.1:5/", "127.0.0.1:5", "", ""),
            ("stillmirrors://m.example/debian", "m.example:874", "debian", ""),
            ("stillmirrors://[::1]:99/d", "[::1]:99", "d", ""),
        ] {
            assert_eq!(parts(text), Ok((address.to_owned(), repository.to_owned(), path.to_owned())), "{text}");
            let url: Url = text.parse().unwrap();
            assert_eq!(url.address.tls, text.starts_with("stillmirrors:"), "{text}");
            assert_eq!(url.to_string().parse(), Ok(url), "{text}");
        }
    }

    #[test]
    fn invalid_urls_are_refused() {
        for text in [
            "rsync://h/x",
            "stillmirror:///x",
            "stillmirror://:1/x",
            "stillmirror://::1/x",
            "stillmirror://h/a/../b",
            "stillmirror://h:1/..",
        ] {
            assert!(parts(text).is_err(), "{text}");
        }
    }

    #[test]
    fn urls_of_other_protocols_name_the_program_to_use() {
        for (text, program, end) in [
            ("rsync://h:873/x/y", "`rsync -a rsync://h:873/x/y DEST`", " stillmirror://h/x/y"),
            ("rsync://h", "`rsync -a rsync://h DEST`", " stillmirror://h/"),
            ("h::x", "`rsync -a h::x DEST`", " stillmirror://h/x"),
            ("https://h/x/", "`wget --mirror https://h/x/`", ""),
        ] {
            let error = parts(text).unwrap_err();
            assert!(error.contains(program) && error.ends_with(end), "{error}");
        }
        for text in ["h:x", "ftp://h/x", "stillmirror:/h/x"] {
            assert!(parts(text).unwrap_err().contains("is not of the form"), "{text}");
        }
    }
}
