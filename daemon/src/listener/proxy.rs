//! The header that a trusted proxy sends before the client's bytes (PROXY protocol, versions 1 and 2).

use std::io;
use std::net::SocketAddr;

use proxy_header::{Error, ParseConfig, ProxyHeader};
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Maximum size of a header, in bytes. The extensions of version 2 could fill 64 KiB; those of real proxies, with the
/// names in a client's certificate, take some hundred bytes.
const MAX_HEADER: usize = 2048;
/// Maximum size of a header of version 1, in bytes, by its specification.
const MAX_TEXT: usize = 107;
/// The first byte of every header of version 1.
const TEXT: u8 = b'P';
const BOTH_VERSIONS: ParseConfig = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: true };

/// A connection of a proxy without a usable header.
#[derive(Debug, Error)]
pub(crate) enum HeaderError {
    #[error("the PROXY header is missing or invalid: {0:?}")]
    Invalid(Error),
    #[error("the PROXY header is longer than {0} bytes")]
    TooLong(usize),
    #[error("the connection ended within the PROXY header")]
    Ended,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Reads the header, and nothing of what follows it. Returns the client's address. `None` if the connection is the
/// proxy's own, such as a health check.
pub(crate) async fn read(socket: &mut TcpStream) -> Result<Option<SocketAddr>, HeaderError> {
    let mut bytes = [0; MAX_HEADER];
    let mut held = 0;
    loop {
        let limit = if bytes[0] == TEXT { MAX_TEXT } else { MAX_HEADER };
        if held >= limit {
            return Err(HeaderError::TooLong(limit));
        }
        let peeked = socket.peek(&mut bytes[held..limit]).await?;
        if peeked == 0 {
            return Err(HeaderError::Ended);
        }
        let parsed = match ProxyHeader::parse(&bytes[..held + peeked], BOTH_VERSIONS) {
            Ok((header, len)) => Some((header.proxied_address().map(|addresses| addresses.source), len)),
            Err(Error::BufferTooShort) => None,
            Err(error) => return Err(HeaderError::Invalid(error)),
        };
        // What belongs to the header is taken, so that the next peek waits for more.
        let end = parsed.as_ref().map_or(held + peeked, |(_, len)| *len);
        socket.read_exact(&mut bytes[held..end]).await?;
        held = end;
        if let Some((client, _)) = parsed {
            return Ok(client);
        }
    }
}
