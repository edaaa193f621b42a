//! Whom encrypted connections trust, and what can be wrong with a sender's TLS.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use thiserror::Error;

/// The authorities whose certificates are trusted, for all connections of a pull. They are read when the first encrypted
/// connection is made.
#[derive(Debug, Default)]
pub struct Authorities {
    /// A file with certificates in PEM format. `None` for the authorities of this host.
    file: Option<PathBuf>,
    config: OnceLock<Result<Arc<ClientConfig>, AuthoritiesError>>,
}

impl Authorities {
    /// Trusts the authorities whose certificates are in `file`, and no others. `None` for those of this host.
    pub fn new(file: Option<PathBuf>) -> Self {
        Self { file, config: OnceLock::new() }
    }

    /// Returns the settings of a connection.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, AuthoritiesError> {
        self.config.get_or_init(|| self.read()).clone()
    }

    fn read(&self) -> Result<Arc<ClientConfig>, AuthoritiesError> {
        let roots = match &self.file {
            Some(file) => {
                read_file(file).map_err(|why| AuthoritiesError::File { file: file.clone(), why: Arc::new(why) })?
            }
            None => read_system()?,
        };
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().map_err(AuthoritiesError::Setup)?;
        Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
    }
}

fn read_file(file: &Path) -> io::Result<RootCertStore> {
    let text = std::fs::read(file)?;
    let invalid = |why: &dyn fmt::Display| io::Error::new(io::ErrorKind::InvalidData, why.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| invalid(&error))?;
        roots.add(certificate).map_err(|error| invalid(&error))?;
    }
    if roots.is_empty() { Err(invalid(&"it has none in PEM format")) } else { Ok(roots) }
}

fn read_system() -> Result<RootCertStore, AuthoritiesError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|error| format!(" ({error})"));
        return Err(AuthoritiesError::NoSystem(why.unwrap_or_default()));
    }
    Ok(roots)
}

/// No authorities to trust.
#[derive(Debug, Clone, Error)]
pub enum AuthoritiesError {
    /// The file cannot be used.
    #[error("cannot use the certificates in {}: {why}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The reason.
        why: Arc<io::Error>,
    },
    /// This host has none.
    #[error("this host has no certificates of authorities{0}: install them (ca-certificates), or give --ca-file")]
    NoSystem(String),
    /// The TLS library refuses its own defaults.
    #[error("cannot set up TLS: {0}")]
    Setup(rustls::Error),
}

/// What is wrong with a sender's TLS.
#[derive(Debug, Clone, Error)]
pub enum TlsFault {
    /// Its certificate has expired.
    #[error("its certificate has expired, or the clock of this host is wrong")]
    Expired,
    /// Its certificate is not valid yet.
    #[error("its certificate is not valid yet, or the clock of this host is wrong")]
    NotValidYet,
    /// Its certificate is for other names.
    #[error("its certificate is not for this name{}", .0)]
    OtherName(String),
    /// No trusted authority has signed its certificate.
    #[error("its certificate is not signed by an authority that is trusted here; --ca-file names others")]
    UnknownIssuer,
    /// What it sends is not TLS.
    #[error("it does not speak TLS at this port")]
    NotTls,
    /// Something else.
    #[error("{0}")]
    Other(Arc<io::Error>),
}

impl From<io::Error> for TlsFault {
    fn from(error: io::Error) -> Self {
        let known =
            error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).and_then(|error| match error {
                rustls::Error::InvalidCertificate(reason) => match reason {
                    CertificateError::Expired | CertificateError::ExpiredContext { .. } => Some(Self::Expired),
                    CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                        Some(Self::NotValidYet)
                    }
                    CertificateError::NotValidForName => Some(Self::OtherName(String::new())),
                    CertificateError::NotValidForNameContext { presented, .. } => {
                        Some(Self::OtherName(format!(" (but for {})", presented.join(", "))))
                    }
                    // An authority with the right name and another key signs nothing that counts.
                    CertificateError::UnknownIssuer | CertificateError::BadSignature => Some(Self::UnknownIssuer),
                    _ => None,
                },
                rustls::Error::InvalidMessage(_) => Some(Self::NotTls),
                _ => None,
            });
        known.unwrap_or_else(|| Self::Other(Arc::new(error)))
    }
}
