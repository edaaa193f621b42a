//! The sockets that `serve` listens on.

use std::io;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use stillmirror_daemon::{Listeners, Port};

/// The number of connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;

/// Opens a listening socket at each address. Needs no runtime.
pub(super) fn bind(wanted: &[(SocketAddr, Port)]) -> Result<Vec<(TcpListener, Port)>> {
    let open = |&(address, port): &(SocketAddr, Port)| {
        let socket = open(address, serves_ipv4(address, wanted));
        Ok((socket.with_context(|| format!("cannot listen on {address}"))?, port))
    };
    wanted.iter().map(open).collect()
}

/// Registers the sockets with the runtime, and logs their addresses.
pub(super) fn listen(sockets: Vec<(TcpListener, Port)>) -> Result<Listeners> {
    let mut listeners = Listeners::default();
    for (socket, port) in sockets {
        let clients = match port {
            Port::All => "",
            Port::Rsync => " for rsync clients",
        };
        tracing::info!("listening{clients} on {}", socket.local_addr().context("cannot get the address of a socket")?);
        listeners.add(tokio::net::TcpListener::from_std(socket).context("cannot listen")?, port);
    }
    Ok(listeners)
}

/// Returns whether a socket for all IPv6 addresses serves IPv4 clients, too: unless another socket has the port for them.
fn serves_ipv4(address: SocketAddr, all: &[(SocketAddr, Port)]) -> bool {
    address.port() == 0 || !all.iter().any(|(other, _)| other.is_ipv4() && other.port() == address.port())
}

/// Opens a listening socket. `serves_ipv4` tells whether one for all IPv6 addresses serves IPv4 clients, too.
pub(super) fn open(address: SocketAddr, serves_ipv4: bool) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // Whatever the system's default is.
        sockopt::set_ipv6_v6only(&socket, !serves_ipv4)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_and_ipv6_can_have_sockets_of_their_own_on_one_port() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = |host: &str| (format!("{host}:{free}").parse().unwrap(), Port::All);
        for hosts in [&["[::]"][..], &["[::]", "0.0.0.0"], &["127.0.0.1", "[::]"], &["[::1]", "127.0.0.1"]] {
            let wanted: Vec<_> = hosts.iter().map(|host| address(host)).collect();
            let _sockets = bind(&wanted).unwrap();
            for host in ["127.0.0.1", "[::1]"] {
                std::net::TcpStream::connect(format!("{host}:{free}")).expect(host);
            }
        }
    }

    #[test]
    fn an_address_in_use_is_named() {
        let used = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let first = bind(&[(used, Port::All)]).unwrap();
        let error = bind(&[(used, Port::Rsync)]).unwrap_err();
        assert!(format!("{error:#}").starts_with(&format!("cannot listen on {used}: ")), "{error:#}");
        drop(first);
    }
}
