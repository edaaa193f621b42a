//! Finds out from its first bytes which protocol a client speaks.

use std::time::Duration;

use stillmirror_protocol::rsync::greeting;
use stillmirror_protocol::rsync::version::Version;
use stillmirror_protocol::wire::{ClientHello, HELLO_BYTES, MAGIC};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::dialect::Dialect;
use crate::transport::Transport;

/// How long a client may be silent before it gets the greeting for rsync clients. Some rsync clients wait for
/// it, and so do health checks. All others speak first.
const SILENCE: Duration = Duration::from_secs(1);

/// The protocol that a client speaks.
pub(super) enum Spoken {
    /// The native protocol.
    Native(ClientHello),
    /// Stock rsync's daemon protocol.
    Rsync {
        /// The client's first bytes.
        begun: Vec<u8>,
        /// Whether the client was greeted already.
        greeted: bool,
    },
    /// Neither.
    Unknown,
}

impl Spoken {
    /// Returns the name for metrics.
    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Self::Native(_) => Dialect::Native,
            Self::Rsync { .. } => Dialect::Rsync,
            Self::Unknown => Dialect::Unknown,
        }
    }
}

/// Reads the client's first bytes. If `greets`, a client that is silent is greeted in rsync's protocol.
pub(super) async fn detect(socket: &mut Transport, greets: bool) -> std::io::Result<Spoken> {
    let mut hello = [0; HELLO_BYTES];
    let (mut filled, mut greeted) = (0, false);
    while filled < HELLO_BYTES {
        let max_silence = if filled > 0 || greeted || !greets { Duration::MAX } else { SILENCE };
        let Ok(read) = timeout(max_silence, socket.read(&mut hello[filled..])).await else {
            socket.send(&greeting::hello(Version::NEWEST)).await?;
            greeted = true;
            continue;
        };
        let read = read?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        let begun = &hello[..filled];
        if begun.starts_with(greeting::MAGIC) {
            return Ok(Spoken::Rsync { begun: begun.to_vec(), greeted });
        }
        let may_be = |magic: &[u8]| begun.iter().zip(magic).all(|(one, other)| one == other);
        if !may_be(&MAGIC) && !may_be(greeting::MAGIC) {
            // A client that was greeted gets its error in rsync's protocol.
            let begun = begun.to_vec();
            return Ok(if greeted { Spoken::Rsync { begun, greeted } } else { Spoken::Unknown });
        }
    }
    Ok(ClientHello::decode(&hello).map_or(Spoken::Unknown, Spoken::Native))
}
