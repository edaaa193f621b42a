//! Who may have a repository: addresses, and users with passwords.

use std::fmt;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::process::geteuid;
use thiserror::Error;

use crate::operator_file;

/// Bytes of a secrets file: tens of thousands of users.
const SECRETS_BYTES: u64 = 1 << 20;

/// Addresses that may have a repository, and that may not, as in rsyncd.conf: `allow` is asked first, then
/// `deny`; who matches neither is let in, unless there is an `allow` and no `deny`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    /// Who is let in whatever `deny` says.
    pub allow: Vec<HostPattern>,
    /// Who is kept out.
    pub deny: Vec<HostPattern>,
}

impl Hosts {
    /// Whether a client at this address is let in.
    pub(crate) fn admit(&self, address: IpAddr) -> bool {
        let matches = |patterns: &[HostPattern]| patterns.iter().any(|pattern| pattern.matches(address));
        matches(&self.allow) || if self.deny.is_empty() { self.allow.is_empty() } else { !matches(&self.deny) }
    }
}

/// One address, a network of them, or (`*`) all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPattern {
    /// `None` for all.
    network: Option<Network>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    is_v4: bool,
    /// The bits of `mask` are those that decide.
    bits: u128,
    mask: u128,
}

/// A pattern of hosts that is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "'{0}' is neither an address nor a network (10.0.0.0/8, 10.0.0.0/255.0.0.0, 2001:db8::/32) nor '*'; host names are not looked up"
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
    fn matches(&self, address: IpAddr) -> bool {
        let Some(network) = self.network else { return true };
        let (is_v4, bits) = bits(address);
        is_v4 == network.is_v4 && bits & network.mask == network.bits
    }
}

fn parse_network(text: &str) -> Option<Network> {
    let (address, mask) = match text.split_once('/') {
        Some((address, mask)) => (address, Some(mask)),
        None => (text, None),
    };
    let (is_v4, bits_of) = bits(address.parse().ok()?);
    let width = if is_v4 { 32 } else { 128 };
    let mask = match mask {
        None => u128::MAX,
        Some(mask) => match mask.parse::<u32>() {
            Ok(0) => 0,
            Ok(length) if length <= width => u128::MAX << (128 - length),
            Ok(_) => return None,
            Err(_) => {
                let (mask_is_v4, mask) = bits(mask.parse().ok()?);
                (mask_is_v4 == is_v4).then_some(mask)?
            }
        },
    };
    Some(Network { is_v4, bits: bits_of & mask, mask })
}

/// An address as bits, the first one topmost; an IPv4 client of an IPv6 socket is an IPv4 client.
fn bits(address: IpAddr) -> (bool, u128) {
    match address.to_canonical() {
        IpAddr::V4(address) => (true, u128::from(address.to_bits()) << 96),
        IpAddr::V6(address) => (false, address.to_bits()),
    }
}

/// Whether only that is served which everybody on this host may read: to root the kernel refuses nothing, and what root
/// may read is not meant for strangers.
pub(crate) fn is_public_only(serve_private: bool) -> bool {
    geteuid().is_root() && !serve_private
}

/// Says in the log what a daemon serves that runs as root.
pub(crate) fn tell_of_root(serve_private: bool) {
    if !geteuid().is_root() {
        return;
    }
    if serve_private {
        tracing::warn!("runs as root with `serve_private`: files that nobody but root may read are served too");
    } else {
        tracing::warn!(
            "runs as root: only what everybody on this host may read is served; name a `user` in [daemon] to run as, or \
             set `serve_private`"
        );
    }
}

/// Users who may have a repository. None: everybody may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// Their names.
    pub names: Vec<String>,
    /// The file with their passwords: a line `user:password` each, `#` begins a comment. It is read at
    /// every login, and must not be accessible to everybody.
    pub secrets: PathBuf,
}

/// A secrets file that is not used.
#[derive(Debug, Error)]
#[error("secrets file {}: {problem}", .path.display())]
pub struct SecretsError {
    path: PathBuf,
    problem: SecretsProblem,
}

#[derive(Debug, Error)]
enum SecretsProblem {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("everybody may read or write it; `chmod o-rwx` it")]
    Open,
    #[error("larger than {SECRETS_BYTES} bytes")]
    TooLarge,
}

/// A user's password, which is not shown.
pub(crate) struct Password(Vec<u8>);

impl Password {
    /// Its bytes.
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
    /// Whether everybody may have the repository.
    pub(crate) fn is_everybody(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether the secrets file can be used.
    pub(crate) fn check(&self) -> Result<(), SecretsError> {
        if self.is_everybody() { Ok(()) } else { self.read().map(drop) }
    }

    /// The password of a user who may have the repository; none for anybody else. Reads a file.
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

/// The password of the first line with that user.
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
    fn a_network_holds_its_addresses_however_its_mask_is_written() {
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
    fn allow_is_asked_before_deny_and_deny_decides_on_the_rest() {
        assert!(admitted(&[], &[], "10.0.0.1"));
        assert!(!admitted(&["10.0.0.2"], &[], "10.0.0.1"), "only who is allowed");
        assert!(!admitted(&[], &["10.0.0.0/8"], "10.0.0.1") && admitted(&[], &["10.0.0.0/8"], "11.0.0.1"));
        assert!(admitted(&["10.0.0.1"], &["*"], "10.0.0.1") && !admitted(&["10.0.0.1"], &["*"], "10.0.0.2"));
        assert!(admitted(&["10.0.0.1"], &["10.0.0.2"], "10.0.0.3"), "in neither");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "example.org", "10.0.0.0/33", "::/129", "10.0.0.0/ffff::", "10.0.0", "10.0.0.0/8/8", "fe80::1%eth0"]
        {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn passwords_come_from_a_file_that_is_not_for_everybody() {
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
        assert_eq!(password(b"eve"), None, "is not asked in");
        assert_eq!(password(b"#eve"), None, "is a comment");
    }
}
