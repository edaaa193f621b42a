//! Keys that sign heads, in minisign's formats.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minisign::{KeyPair, SecretKey};
use stillmirror_protocol::entry::Time;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::signature::{PublicKey, verify};
use stillmirror_store::Generation;
use thiserror::Error;

/// The names of the files that [`keygen`] writes.
const SECRET_KEY: &str = "stillmirror.key";
const PUBLIC_KEY: &str = "stillmirror.pub";
/// Maximum size of a secret key file, in bytes.
const SECRET_KEY_BYTES: u64 = 4096;

/// Why a key cannot be made or used.
#[derive(Debug, Error)]
pub enum SignError {
    /// The key file is invalid.
    #[error("{}: {fault}", .path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        fault: KeyFault,
    },
    /// The key file exists already.
    #[error("{} exists already: a key is never overwritten", .0.display())]
    Exists(PathBuf),
    /// The store has no generation.
    #[error("{} has no generation to sign: run `stillmirror index` first", .0.display())]
    NoGeneration(PathBuf),
    /// The store is one of a mirror.
    #[error(
        "{} holds what was pulled from another host, so a mirror of it expects that host's signature: \
         sign where the repository is indexed",
        .0.display()
    )]
    Pulled(PathBuf),
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// The failed action, a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// What is wrong with a secret key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyFault {
    /// It is something else.
    #[error("not a minisign secret key")]
    Invalid,
    /// It is protected by a password, and a program that runs from cron cannot enter one.
    #[error("the key is protected by a password: `minisign -C -W` removes it")]
    Password,
    /// Other users can read or write it.
    #[error("everybody on this host can read the key: take the permissions of others away")]
    Public,
    /// The secret and the public half do not belong together.
    #[error("the key is damaged")]
    Damaged,
}

/// A secret key that signs heads.
pub struct Signer {
    path: PathBuf,
    secret: SecretKey,
    minisign_public: minisign::PublicKey,
    public: PublicKey,
    lifetime: Duration,
}

/// Shows no secret.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("public", &self.public).field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads a secret key that has no password. Heads that it signs expire after `lifetime`.
    pub fn load(path: &Path, lifetime: Duration) -> Result<Self, SignError> {
        let invalid = |fault| SignError::Key { path: path.to_owned(), fault };
        let file = File::open(path).at("open", path)?;
        if file.metadata().at("stat", path)?.permissions().mode() & 0o007 != 0 {
            return Err(invalid(KeyFault::Public));
        }
        let mut text = String::new();
        match file.take(SECRET_KEY_BYTES).read_to_string(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(invalid(KeyFault::Invalid)),
            read => read.at("read", path)?,
        };
        let (secret, minisign_public) = parse(&text).map_err(invalid)?;
        let public = PublicKey::parse(&minisign_public.to_base64()).map_err(|_| invalid(KeyFault::Damaged))?;
        let signer = Self { path: path.to_owned(), secret, minisign_public, public, lifetime };
        // Signing checks that both halves belong together.
        signer.sign_bytes(b"", "")?;
        Ok(signer)
    }

    /// The public key, with which signatures are verified.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Returns when a head expires that is signed now.
    pub(crate) fn expires(&self, now: Time) -> Time {
        let lifetime = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        Time { sec: now.sec.saturating_add(lifetime), nsec: 0 }
    }

    /// Returns whether a generation is to be signed again: its signature is missing or by another key, or less than half
    /// of the lifetime is left, or more than all of it.
    pub(crate) fn is_due(&self, generation: &Generation, now: Time) -> bool {
        let keys = std::slice::from_ref(&self.public);
        let is_ours = |signature| verify(generation.head_bytes(), signature, keys).is_ok();
        let Some(expires) = generation.head().expires.filter(|_| generation.signature().is_some_and(is_ours)) else {
            return true;
        };
        let latest = self.expires(now);
        expires > latest || expires.sec.saturating_sub(now.sec) < latest.sec.saturating_sub(now.sec) / 2
    }

    /// Signs an encoded head. Returns the signature file.
    pub(crate) fn sign(&self, head: &Head, encoded: &[u8], now: Time) -> Result<Vec<u8>, SignError> {
        let Head { repository, generation, list_digest, .. } = head;
        let words = format!("repository {repository}, generation {generation}, list sha256 {list_digest}");
        // Like the program minisign, this begins with the time of the signature.
        self.sign_bytes(encoded, &format!("timestamp:{}\t{words}", now.sec))
    }

    fn sign_bytes(&self, bytes: &[u8], comment: &str) -> Result<Vec<u8>, SignError> {
        let untrusted = format!("signature from stillmirror key {}", self.public.id());
        let signed = minisign::sign(Some(&self.minisign_public), &self.secret, bytes, Some(comment), Some(&untrusted));
        let signed = signed.map_err(|_| SignError::Key { path: self.path.clone(), fault: KeyFault::Damaged })?;
        Ok(signed.into_string().into_bytes())
    }
}

/// Parses a secret key file. The checksum in it is not compared: the program minisign writes none into a key without
/// password.
fn parse(text: &str) -> Result<(SecretKey, minisign::PublicKey), KeyFault> {
    let line = text.lines().nth(1).ok_or(KeyFault::Invalid)?;
    let bytes = STANDARD.decode(line.trim()).map_err(|_| KeyFault::Invalid)?;
    match bytes.get(..6) {
        Some(b"Ed\0\0B2") if bytes.len() == SECRET_KEY_LEN => {}
        Some(b"EdScB2") if bytes.len() == SECRET_KEY_LEN => return Err(KeyFault::Password),
        _ => return Err(KeyFault::Invalid),
    }
    let secret = SecretKey::from_bytes(&bytes).map_err(|_| KeyFault::Invalid)?;
    let public = minisign::PublicKey::from_secret_key(&secret).map_err(|_| KeyFault::Invalid)?;
    Ok((secret, public))
}

/// Length of a secret key before base64: three algorithms (2 bytes each), salt (32), two limits (8 each), the key's
/// number (8), the key (64) and a checksum (32).
const SECRET_KEY_LEN: usize = 158;

/// The files of a new key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFiles {
    /// The secret key.
    pub secret: PathBuf,
    /// The public key.
    pub public: PathBuf,
    /// The public key in base64.
    pub key: String,
}

/// Makes a key and writes its two halves into a directory, which is created if it does not exist. Fails if one of the
/// files exists.
pub fn keygen(dir: &Path) -> Result<KeyFiles, SignError> {
    let (secret, public) = (dir.join(SECRET_KEY), dir.join(PUBLIC_KEY));
    let random = |error: minisign::PError| io::Error::other(error.to_string());
    let pair = KeyPair::generate_unencrypted_keypair().map_err(random).at("make a key for", dir)?;
    let number = PublicKey::parse(&pair.pk.to_base64()).map(|key| key.id());
    let number = number.map_err(io::Error::other).at("make a key for", dir)?;
    fs::create_dir_all(dir).at("create", dir)?;
    if public.exists() {
        return Err(SignError::Exists(public));
    }
    let comment = format!("stillmirror secret key {number}");
    let text = pair.sk.to_box(Some(&comment)).map_err(random).at("make a key for", dir)?.into_string();
    write_new(&secret, &text, 0o600)?;
    let text = format!("untrusted comment: stillmirror public key {number}\n{}\n", pair.pk.to_base64());
    write_new(&public, &text, 0o644)?;
    File::open(dir).and_then(|dir| dir.sync_all()).at("sync", dir)?;
    Ok(KeyFiles { secret, public, key: pair.pk.to_base64() })
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), SignError> {
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(SignError::Exists(path.to_owned())),
        opened => opened.at("create", path)?,
    };
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).at("write", path)
}

/// Adds the action and the file to an I/O error.
trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, SignError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, SignError> {
        self.map_err(|source| SignError::Io { action, path: path.to_owned(), source })
    }
}
