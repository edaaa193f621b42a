//! The sockets for metrics and status.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::Mode;
use stillmirror_daemon::Listeners;

use super::passed::PassedSocket;
use super::sockets::{self, Named};

/// What the file of the status socket lets nobody do: connecting is for its owner and group.
const MASK: Mode = Mode::from_raw_mode(0o117);

/// The sockets for metrics and status, not yet registered with a runtime.
pub(super) struct Observed {
    metrics: Vec<Named>,
    status: Option<(UnixListener, SocketFile)>,
}

/// The file of a socket, which is removed when this is dropped, unless another process has replaced it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Observed {
    /// Opens the sockets, unless they were passed to this process. Needs no runtime, and must be called while there is one
    /// thread. `owner` is the user and group that the daemon changes to.
    pub(super) fn bind(
        metrics: &[SocketAddr],
        passed: &mut Vec<PassedSocket>,
        status: Option<&Path>,
        owner: Option<(u32, u32)>,
    ) -> Result<Self> {
        let bind = |address| {
            sockets::bind(address, true).with_context(|| format!("daemon.metrics_listen: cannot listen on {address}"))
        };
        let metrics = sockets::open_for(sockets::METRICS, metrics, passed, bind)?;
        let at = |path: &Path| {
            SocketFile::bind(path, owner)
                .with_context(|| format!("daemon.status_socket: cannot listen on {}", path.display()))
        };
        Ok(Self { metrics, status: status.map(at).transpose()? })
    }

    /// Returns the sockets that can be passed on to another process.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &Named> {
        self.metrics.iter()
    }

    /// Registers the sockets with the runtime, and logs their addresses. The file must be kept as long as the socket.
    pub(super) fn listen(self, listeners: &mut Listeners) -> Result<Option<SocketFile>> {
        for Named { socket, .. } in self.metrics {
            let address = socket.local_addr().context("cannot get the address of a socket")?;
            tracing::info!("metrics and status at http://{address}/");
            listeners.add_metrics(tokio::net::TcpListener::from_std(socket).context("cannot listen")?);
        }
        let Some((socket, file)) = self.status else { return Ok(None) };
        tracing::info!("status at {}", file.path.display());
        listeners.add_status(tokio::net::UnixListener::from_std(socket).context("cannot listen")?);
        Ok(Some(file))
    }
}

impl SocketFile {
    /// Opens a socket at `path`, in place of one that is there already. It has all permissions before it has its name.
    fn bind(path: &Path, owner: Option<(u32, u32)>) -> Result<(UnixListener, Self)> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => bail!("the path is in use, and not by a socket"),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let mut name = path.file_name().context("the path has no file name")?.to_owned();
        name.push(format!(".{}", std::process::id()));
        let draft = path.with_file_name(name);
        let mask = rustix::process::umask(MASK);
        let opened = UnixListener::bind(&draft);
        rustix::process::umask(mask);
        let socket = opened?;
        let named = (|| {
            socket.set_nonblocking(true)?;
            if let Some((user, group)) = owner {
                std::os::unix::fs::chown(&draft, Some(user), Some(group))?;
            }
            let found = fs::symlink_metadata(&draft)?;
            fs::rename(&draft, path)?;
            Ok::<_, io::Error>((found.dev(), found.ino()))
        })();
        match named {
            Ok(identity) => Ok((socket, Self { path: path.to_owned(), identity })),
            Err(error) => {
                let _ = fs::remove_file(&draft);
                Err(error.into())
            }
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_status_socket_is_for_its_owner_and_group_and_replaces_an_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sock");
        let (_first, old) = SocketFile::bind(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let (_second, new) = SocketFile::bind(&path, None).unwrap();
        drop(old);
        UnixStream::connect(&path).expect("the first one leaves the file of the second one alone");
        drop(new);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn a_file_that_is_no_socket_is_kept_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "kept").unwrap();
        let error = Observed::bind(&[], &mut Vec::new(), Some(&path), None).map(drop).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with(&format!("daemon.status_socket: cannot listen on {}", path.display())), "{text}");
        assert_eq!(fs::read(&path).unwrap(), b"kept");
    }
}
