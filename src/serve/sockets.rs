//! The sockets that `serve` listens on.

use std::io;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use stillmirror_daemon::{Listeners, Port};

use super::passed::{self, PassedSocket};
use crate::exit::UsageError;

/// The number of connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;

/// What the sockets for clients are for, by the names that say so when they are passed on.
const CLIENTS: [(&str, Port); 3] = [("listen", Port::All), ("rsync", Port::Rsync), ("tls", Port::Tls)];
/// The same for the sockets for metrics.
pub(super) const METRICS: &str = "metrics";

/// A socket that listens for clients.
pub(super) struct Socket {
    pub(super) port: Port,
    pub(super) socket: Named,
}

/// A socket that listens, and the name under which it is passed on.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) socket: TcpListener,
}

/// Returns the sockets for clients at these addresses: those that were passed to this process, and new ones. Needs no
/// runtime.
pub(super) fn open(wanted: &[(SocketAddr, Port)], passed: &mut Vec<PassedSocket>) -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for (role, port) in CLIENTS {
        let addresses: Vec<_> = wanted.iter().filter(|(_, of)| *of == port).map(|(address, _)| *address).collect();
        let bind = |address| {
            bind(address, serves_ipv4(address, wanted)).with_context(|| format!("cannot listen on {address}"))
        };
        let opened = open_for(role, &addresses, passed, bind)?;
        sockets.extend(opened.into_iter().map(|socket| Socket { port, socket }));
    }
    Ok(sockets)
}

/// Returns the sockets for a role. A passed socket whose name is that of the role takes the place of all addresses.
pub(super) fn open_for(
    role: &str,
    addresses: &[SocketAddr],
    passed: &mut Vec<PassedSocket>,
    bind: impl Fn(SocketAddr) -> Result<TcpListener>,
) -> Result<Vec<Named>> {
    let named = |PassedSocket { name, socket, .. }| Named { name, socket };
    let by_name: Vec<_> = passed.extract_if(.., |passed| passed.name == role).map(named).collect();
    if !by_name.is_empty() {
        return Ok(by_name);
    }
    let open = |address: &SocketAddr| match passed.iter().position(|passed| passed.fits(role, *address)) {
        Some(at) => Ok(named(passed.remove(at))),
        None => Ok(Named { name: passed::bound(role), socket: bind(*address)? }),
    };
    addresses.iter().map(open).collect()
}

/// Fails if a socket that systemd has passed is left. One of the process before may have no place any more, because the
/// configuration has changed.
pub(super) fn check_all_used(left: Vec<PassedSocket>) -> Result<()> {
    for PassedSocket { name, address, .. } in left {
        if !passed::is_bound(&name) {
            bail!(UsageError(format!(
                "the socket {address} that was passed on as '{name}' is none of those in the configuration: configure its \
                 address, or name it 'listen', 'rsync', 'tls' or '{METRICS}' (FileDescriptorName= in its unit)"
            )));
        }
        tracing::info!(%address, "not listening any more");
    }
    Ok(())
}

/// Registers the sockets with the runtime, and logs their addresses.
pub(super) fn listen(sockets: Vec<Socket>) -> Result<Listeners> {
    let mut listeners = Listeners::default();
    for Socket { port, socket: Named { socket, .. } } in sockets {
        let clients = match port {
            Port::All => "",
            Port::Rsync => " for rsync clients",
            Port::Tls => " for TLS clients",
        };
        tracing::info!("listening{clients} on {}", socket.local_addr().context("cannot get the address of a socket")?);
        listeners.add(tokio::net::TcpListener::from_std(socket).context("cannot listen")?, port);
    }
    Ok(listeners)
}

/// Duplicates sockets, so that they can be passed on.
pub(super) fn duplicate<'a>(sockets: impl Iterator<Item = &'a Named>) -> Result<Vec<Named>> {
    let duplicate = |Named { name, socket }: &Named| Ok(Named { name: name.clone(), socket: socket.try_clone()? });
    sockets.map(duplicate).collect::<io::Result<_>>().context("cannot duplicate a socket")
}

/// Returns whether a socket for all IPv6 addresses serves IPv4 clients, too: unless another socket has the port for them.
pub(crate) fn serves_ipv4(address: SocketAddr, all: &[(SocketAddr, Port)]) -> bool {
    address.port() == 0 || !all.iter().any(|(other, _)| other.is_ipv4() && other.port() == address.port())
}

/// Opens a listening socket. `serves_ipv4` tells whether one for all IPv6 addresses serves IPv4 clients, too.
pub(crate) fn bind(address: SocketAddr, serves_ipv4: bool) -> io::Result<TcpListener> {
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
            let _sockets = open(&wanted, &mut Vec::new()).unwrap();
            for host in ["127.0.0.1", "[::1]"] {
                std::net::TcpStream::connect(format!("{host}:{free}")).expect(host);
            }
        }
    }

    #[test]
    fn an_address_in_use_is_named() {
        let used = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let first = open(&[(used, Port::All)], &mut Vec::new()).unwrap();
        let error = open(&[(used, Port::Rsync)], &mut Vec::new()).err().unwrap();
        assert!(format!("{error:#}").starts_with(&format!("cannot listen on {used}: ")), "{error:#}");
        drop(first);
    }
    fn passed(name: &str) -> PassedSocket {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        PassedSocket { name: name.to_owned(), address: socket.local_addr().unwrap(), socket }
    }

    fn opened(wanted: &[(SocketAddr, Port)], mut passed: Vec<PassedSocket>) -> Vec<(SocketAddr, Port, String)> {
        let sockets = open(wanted, &mut passed).unwrap().into_iter();
        check_all_used(passed).unwrap();
        sockets.map(|Socket { port, socket }| (socket.socket.local_addr().unwrap(), port, socket.name)).collect()
    }

    #[test]
    fn a_passed_socket_is_used_by_its_name_or_its_address() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (named, other) = (passed("rsync"), passed("some.socket"));
        let (at, other_at) = (named.address, other.address);
        let opened = opened(&[(other_at, Port::All), (any, Port::Rsync)], vec![named, other]);
        assert_eq!(opened, [(other_at, Port::All, "some.socket".to_owned()), (at, Port::Rsync, "rsync".to_owned())]);
    }

    #[test]
    fn a_passed_socket_without_a_place_is_named() {
        let other = passed("some.socket");
        let at = other.address.to_string();
        let error = check_all_used(vec![other]).unwrap_err().to_string();
        assert!(error.contains(&at) && error.contains("some.socket"), "{error}");
    }

    #[test]
    fn sockets_of_the_process_before_are_used_where_the_configuration_still_has_them() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let before = open(&[(any, Port::All), (any, Port::Rsync)], &mut Vec::new()).unwrap();
        let names: Vec<_> = before.iter().map(|socket| socket.socket.name.as_str()).collect();
        assert_eq!(names, ["bound-listen", "bound-rsync"]);
        let again = || {
            let passed = duplicate(before.iter().map(|socket| &socket.socket)).unwrap().into_iter();
            let passed = passed.map(|Named { name, socket }| PassedSocket {
                name,
                address: socket.local_addr().unwrap(),
                socket,
            });
            passed.collect::<Vec<_>>()
        };
        let at: Vec<_> = again().iter().map(|passed| passed.address).collect();
        let ports =
            |wanted: &[_]| opened(wanted, again()).into_iter().map(|(at, port, _)| (at, port)).collect::<Vec<_>>();
        assert_eq!(ports(&[(any, Port::Rsync), (any, Port::All)]), [(at[0], Port::All), (at[1], Port::Rsync)]);
        let moved = ports(&[("127.0.0.2:0".parse().unwrap(), Port::All), (any, Port::Rsync)]);
        assert_eq!((moved.len(), moved[1]), (2, (at[1], Port::Rsync)));
        assert!(moved[0].0.ip().to_string() == "127.0.0.2" && moved[0].1 == Port::All);
    }
}
