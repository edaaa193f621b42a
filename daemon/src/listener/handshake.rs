//! The TLS handshake of a connection.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;

use crate::fair::Pot;
use crate::networks::Network;
use crate::transport::Transport;

/// Does the handshake. The signature costs more than everything else that a stranger can ask for, so networks take turns
/// at it.
pub(super) async fn accept(
    socket: TcpStream,
    config: Arc<ServerConfig>,
    signatures: &Arc<Pot>,
    network: Network,
) -> io::Result<Transport> {
    let hello = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
    let mut answer = pin!(hello.into_stream(config));
    let turn = signatures.take(network, 1).await;
    // The first poll signs, if the client's first message was complete in itself.
    let begun = std::future::poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await;
    drop(turn);
    let encrypted = match begun {
        Poll::Ready(encrypted) => encrypted?,
        Poll::Pending => answer.await?,
    };
    let (socket, session) = encrypted.into_inner();
    Ok(Transport::encrypted(socket, session))
}
