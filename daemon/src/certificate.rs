//! The certificate of the TLS ports, and its key.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use thiserror::Error;

use crate::config::TlsConfig;
use crate::operator_file;

/// Maximum size of each of the two files, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Certificate or key that cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// Everybody on this host may read the key.
    #[error("the key {} is accessible to everybody; run `chmod o-rwx` on it", .file.display())]
    OpenKey {
        /// The file.
        file: PathBuf,
    },
    /// The file of the certificate has none.
    #[error("{} has no certificate in PEM format", .file.display())]
    NoCertificate {
        /// The file.
        file: PathBuf,
    },
    /// The file of the key has none.
    #[error("{} has no private key in PEM format", .file.display())]
    NoKey {
        /// The file.
        file: PathBuf,
    },
    /// The certificate is invalid.
    #[error("the certificate {} is invalid: {source}", .file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// The underlying error.
        source: rustls::Error,
    },
    /// The key is invalid, or of a kind that is not supported.
    #[error("the key {} cannot be used: {source}", .file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// The underlying error.
        source: rustls::Error,
    },
    /// The key belongs to another certificate.
    #[error("the key {} does not belong to the certificate {}", .key.display(), .certificate.display())]
    Mismatch {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
    },
    /// The TLS library refuses its own defaults.
    #[error("cannot set up TLS: {0}")]
    Setup(rustls::Error),
}

/// Reads certificate and key.
pub(crate) fn load(files: &TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let certificate = || files.certificate.clone();
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read_file(&files.certificate, false)?)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::NoCertificate { file: certificate() })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { file: certificate() });
    }
    let key = PrivateKeyDer::from_pem_slice(&read_file(&files.key, true)?)
        .map_err(|_| TlsError::NoKey { file: files.key.clone() })?;
    let key = provider.key_provider.load_private_key(key);
    let key = key.map_err(|source| TlsError::Key { file: files.key.clone(), source })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(TlsError::Mismatch { key: files.key.clone(), certificate: certificate() });
        }
        Err(source) => return Err(TlsError::Certificate { file: certificate(), source }),
    }
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(TlsError::Setup)?.with_no_client_auth();
    Ok(Arc::new(config.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))))
}

fn read_file(path: &Path, is_secret: bool) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Read { file: path.to_owned(), source };
    let file = operator_file::open(path).map_err(unreadable)?;
    if is_secret && file.metadata().map_err(unreadable)?.mode() & 0o007 != 0 {
        return Err(TlsError::OpenKey { file: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}
