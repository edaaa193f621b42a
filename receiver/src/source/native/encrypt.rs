//! The encryption of a connection with a sender.

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::address::Address;
use crate::error::PullError;
use crate::tls::Authorities;

/// Encrypts a connection, and makes sure that the sender is who it should be.
pub(super) async fn encrypt(
    socket: TcpStream,
    address: &Address,
    authorities: &Authorities,
) -> Result<TlsStream<TcpStream>, PullError> {
    let name = ServerName::try_from(address.host().to_owned())
        .map_err(|_| PullError::usage(format!("'{}' is not a host's name or address", address.host())))?;
    let connecting = TlsConnector::from(authorities.config().map_err(PullError::Authorities)?).connect(name, socket);
    connecting.await.map_err(|error| PullError::Tls { address: address.to_string(), fault: error.into() })
}
