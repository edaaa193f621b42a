//! Access control for repositories: client addresses, and users with passwords.

use std::fmt;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use rustix::process::geteuid;
use thiserror::Error;

use crate::operator_file;

/// Maximum size of a secrets file, in bytes: enough for tens of thousands of users.
const SECRETS_BYTES: u64 = 1 << 20;

/// The addresses that may access a repository and those that may not, as in rsyncd.conf. `allow` is checked
/// first, then `deny`. An address that matches neither is admitted, unless `allow` is set and `deny` is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    /// Addresses that are admitted whatever `deny` says.
    pub allow: Vec<HostPattern>,
    /// Addresses that are refused.
    pub deny: Vec<HostPattern>,
}

impl Hosts {
    /// Returns whether a client at this address is admitted.
    pub(crate) fn admit(&self, address: IpAddr) -> bool {
        let matches = |patterns: &[HostPattern]| patterns.iter().any(|pattern| pattern.matches(address));
        matches(&self.allow) || if self.deny.is_empty() { self.allow.is_empty() } else { !matches(&self.deny) }
    }
}

/// A single address, a network, or all addresses (`*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPattern {
    /// `None` for all addresses.
    network: Option<IpNet>,
}

/// An invalid host pattern.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "'{0}' is not an address, a network (10.0.0.0/8, 10.0.0.0/255.0.0.0, 2001:db8::/32) or '*'; host names are not looked up"
)]
pub struct HostPatternError(String);

impl FromStr for HostPattern {
    type Err = HostPatternError;

    fn from_str(text: &str) -> Result<Self, HostPatternError> {
        if text == "*" {
            return Ok(Self { network: None });
        }
        let network = parse_network(text).ok_or_else(|| HostPatternError(text.to_owned()))?;
        Ok(Self { network: Some(network) })
    }
}

impl HostPattern {
    /// Returns whether the pattern has this address. An IPv4 client of an IPv6 socket counts as an IPv4 client.
    fn matches(&self, address: IpAddr) -> bool {
        self.network.is_none_or(|network| network.contains(&address.to_canonical()))
    }
}

fn parse_network(text: &str) -> Option<IpNet> {
    let (address, mask) = match text.split_once('/') {
        Some((address, mask)) => (address, Some(mask)),
        None => (text, None),
    };
    let address = address.parse::<IpAddr>().ok()?.to_canonical();
    let Some(mask) = mask else { return Some(address.into()) };
    match mask.parse() {
        Ok(length) => IpNet::new(address, length).ok(),
        Err(_) => {
            let mask: IpAddr = mask.parse().ok()?;
            if mask.is_ipv4() == address.is_ipv4() { IpNet::with_netmask(address, mask).ok() } else { None }
        }
    }
}

/// Returns whether the daemon serves only what everybody on this host may read. The kernel refuses nothing to
/// root, and what root may read is not meant for strangers.
pub(crate) fn is_public_only(serve_private: bool) -> bool {
    geteuid().is_root() && !serve_private
}

/// Logs what the daemon serves if it runs as root.
pub(crate) fn warn_if_root(serve_private: bool) {
    if !geteuid().is_root() {
        return;
    }
    if serve_private {
        tracing::warn!("running as root with `serve_private`: files that only root may read are served too");
    } else {
        tracing::warn!(
            "running as root: only files that everybody on this host may read are served; set `user` in [daemon] to \
             run as another user, or set `serve_private`"
        );
    }
}

/// The users who may access a repository. If there are none, everybody may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// Their names.
    pub names: Vec<String>,
    /// The file with their passwords. Each line is `user:password`; a line that begins with `#` is a comment.
    /// The file is read at every login and must not be accessible to everybody.
    pub secrets: PathBuf,
}

/// A secrets file that cannot be used.
#[derive(Debug, Error)]
#[error("cannot use the secrets file {}: {problem}", .path.display())]
pub struct SecretsError {
    path: PathBuf,
    problem: SecretsProblem,
}

#[derive(Debug, Error)]
enum SecretsProblem {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is accessible to everybody; run `chmod o-rwx` on it")]
    Open,
    #[error("it is larger than {SECRETS_BYTES} bytes")]
    TooLarge,
}

/// A user's password. Its `Debug` output hides it.
pub(crate) struct Password(Vec<u8>);

impl Password {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

impl Users {
    /// Returns whether everybody may access the repository.
    pub(crate) fn is_everybody(&self) -> bool {
        self.names.is_empty()
    }

    /// Checks that the secrets file can be used.
    pub(crate) fn check(&self) -> Result<(), SecretsError> {
        if self.is_everybody() { Ok(()) } else { self.read().map(drop) }
    }

    /// Returns the password of a user who may access the repository, or `None` for any other user. Reads the
    /// secrets file.
    pub(crate) fn password(&self, user: &[u8]) -> Result<Option<Password>, SecretsError> {
        let secrets = self.read()?;
        if !self.names.iter().any(|name| name.as_bytes() == user) {
            return Ok(None);
        }
        Ok(find_password(&secrets, user).map(|password| Password(password.to_vec())))
    }

    fn read(&self) -> Result<Vec<u8>, SecretsError> {
        read_secrets(&self.secrets).map_err(|problem| SecretsError { path: self.secrets.clone(), problem })
    }
}

fn read_secrets(path: &Path) -> Result<Vec<u8>, SecretsProblem> {
    let file = operator_file::open(path)?;
    if file.metadata()?.mode() & 0o007 != 0 {
        return Err(SecretsProblem::Open);
    }
    let mut bytes = Vec::new();
    file.take(SECRETS_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SECRETS_BYTES {
        return Err(SecretsProblem::TooLarge);
    }
    Ok(bytes)
}

/// Returns the password on the first line for that user.
fn find_password<'a>(secrets: &'a [u8], user: &[u8]) -> Option<&'a [u8]> {
    secrets.split(|&byte| byte == b'\n').find_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        line.strip_prefix(user)?.strip_prefix(b":").filter(|_| !line.starts_with(b"#"))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn patterns(texts: &[&str]) -> Vec<HostPattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn admitted(allow: &[&str], deny: &[&str], address: &str) -> bool {
        Hosts { allow: patterns(allow), deny: patterns(deny) }.admit(address.parse().unwrap())
    }

    #[test]
    fn a_network_matches_its_addresses_however_its_mask_is_written() {
        for network in ["10.1.0.0/16", "10.1.2.3/255.255.0.0"] {
            assert!(admitted(&[network], &[], "10.1.255.1"));
            assert!(admitted(&[network], &[], "::ffff:10.1.255.1"), "an IPv4 client of an IPv6 socket");
            assert!(!admitted(&[network], &[], "10.2.0.1"));
            assert!(!admitted(&[network], &[], "::1"));
        }
        assert!(admitted(&["2001:db8::/32"], &[], "2001:db8:1::1") && !admitted(&["2001:db8::/32"], &[], "2001:db9::"));
        assert!(admitted(&["::/0"], &[], "2001:db8::1") && !admitted(&["::/0"], &[], "10.0.0.1"));
    }

    #[test]
    fn allow_is_checked_before_deny_and_deny_decides_the_rest() {
        assert!(admitted(&[], &[], "10.0.0.1"));
        assert!(!admitted(&["10.0.0.2"], &[], "10.0.0.1"), "only allowed addresses");
        assert!(!admitted(&[], &["10.0.0.0/8"], "10.0.0.1") && admitted(&[], &["10.0.0.0/8"], "11.0.0.1"));
        assert!(admitted(&["10.0.0.1"], &["*"], "10.0.0.1") && !admitted(&["10.0.0.1"], &["*"], "10.0.0.2"));
        assert!(admitted(&["10.0.0.1"], &["10.0.0.2"], "10.0.0.3"), "matches neither");
    }

    #[test]
    fn invalid_addresses_are_refused() {
        for text in [
            "",
            "example.org",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/ffff::",
            "10.0.0.0/255.0.255.0",
            "10.0.0",
            "10.0.0.0/8/8",
            "fe80::1%eth0",
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn passwords_come_from_a_file_that_only_some_may_read() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = dir.path().join("secrets");
        std::fs::write(&secrets, "# people\nannabel:x\nanna:two words: and a colon\r\neve:z\n#eve:y\n").unwrap();
        let users = Users { names: vec!["anna".to_owned(), "bob".to_owned(), "#eve".to_owned()], secrets };
        let allow = |mode| std::fs::set_permissions(&users.secrets, std::fs::Permissions::from_mode(mode)).unwrap();
        allow(0o644);
        assert!(users.check().unwrap_err().to_string().contains("everybody"));
        allow(0o640);
        users.check().unwrap();
        let password = |user: &[u8]| users.password(user).unwrap().map(|password| password.0);
        assert_eq!(password(b"anna").as_deref(), Some(&b"two words: and a colon"[..]));
        assert_eq!(password(b"bob"), None, "has no password");
        assert_eq!(password(b"eve"), None, "is not listed");
        assert_eq!(password(b"#eve"), None, "is a comment");
    }
}
