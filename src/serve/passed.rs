//! Listening sockets that another process has opened: systemd (`sd_listen_fds(3)`), or the process that an upgrade replaces.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;

use anyhow::{Context, Result, bail};
use listenfd::ListenFd;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt;

use crate::exit::UsageError;

/// The name of the socket on which the process that is replaced waits.
pub(super) const READY: &str = "stillmirror-ready";
/// What the names of sockets begin with that a process opened itself. Without it, systemd has opened the socket.
const BOUND: &str = "bound-";
/// The number of the first descriptor that is passed.
pub(super) const FIRST: usize = 3;

/// What was passed to this process.
#[derive(Default)]
pub(super) struct Passed {
    pub(super) sockets: Vec<PassedSocket>,
    /// Where the process that is replaced waits until this one is ready.
    pub(super) ready: Option<UnixDatagram>,
}

/// A listening socket that was passed to this process.
pub(super) struct PassedSocket {
    /// What the descriptor is called, which may say what the socket is for.
    pub(super) name: String,
    pub(super) socket: TcpListener,
    pub(super) address: SocketAddr,
}

impl Passed {
    /// Takes what was passed to this process. Changes the environment, so it must be called before there is another thread.
    pub(super) fn take() -> Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(|name| if name.is_empty() { "unknown" } else { name });
        let mut all = ListenFd::from_env();
        let mut passed = Self::default();
        for number in 0..all.len() {
            let name = names.next().unwrap_or("unknown").to_owned();
            let what = || UsageError(format!("the descriptor {} that was passed on as '{name}'", FIRST + number));
            if name == READY {
                passed.ready = all.take_unix_datagram(number).with_context(what)?;
                continue;
            }
            let Some(socket) = all.take_tcp_listener(number).with_context(what)? else { continue };
            passed.sockets.push(PassedSocket::new(name.clone(), socket).with_context(what)?);
        }
        Ok(passed)
    }
}

impl PassedSocket {
    fn new(name: String, socket: TcpListener) -> Result<Self> {
        if !sockopt::socket_acceptconn(&socket)? {
            bail!("the socket does not listen");
        }
        let address = socket.local_addr()?;
        socket.set_nonblocking(true)?;
        fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
        Ok(Self { name, socket, address })
    }

    /// Returns whether the socket can be the one of a role at this address. One that the process before has opened for a role
    /// serves the same role at the address in its configuration, in which port 0 stands for any.
    pub(super) fn fits(&self, role: &str, address: SocketAddr) -> bool {
        match self.name.strip_prefix(BOUND) {
            Some(before) => {
                let has_port = [0, self.address.port()].contains(&address.port());
                before == role && self.address.ip() == address.ip() && has_port
            }
            None => self.address == address,
        }
    }
}

/// Returns the name under which a socket is passed on that this process has opened for a role.
pub(super) fn bound(role: &str) -> String {
    format!("{BOUND}{role}")
}

/// Returns whether a socket with this name was opened by the process before.
pub(super) fn is_bound(name: &str) -> bool {
    name.starts_with(BOUND)
}
