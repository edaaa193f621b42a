//! What `serve` and `pull` give up before they handle bytes of strangers: paths that they do not need (Landlock), and system
//! calls that they never make (seccomp).
//!
//! Both bind the calling thread and the threads that it starts later. So [`enter`] comes before the runtime.

mod landlock;
mod seccomp;

use std::path::{Path, PathBuf};

pub(crate) use landlock::version as landlock_version;

/// Directories and files that every program reads: libraries, users and groups, host names, certificates, time zones, and
/// what the kernel says about processes and CPUs.
const SYSTEM: [&str; 11] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/proc",
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    "/dev/null",
    "/dev/urandom",
];

/// What a command may still reach, besides [`SYSTEM`]. Everything else on the file system is closed to it.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    execute: Vec<PathBuf>,
    /// Whether it connects to others over TCP.
    connects: bool,
    /// Whether it listens on further TCP ports.
    listens: bool,
}

impl Reach {
    /// Returns the reach of a command that connects to others.
    pub(crate) fn of_client() -> Self {
        Self { connects: true, ..Self::default() }
    }

    /// Returns the reach of a command that listens.
    pub(crate) fn of_server() -> Self {
        Self { listens: true, ..Self::default() }
    }

    /// Allows reading below a path. If nothing is there yet, the nearest directory above it counts.
    pub(crate) fn may_read(&mut self, path: impl AsRef<Path>) {
        self.read.push(existing(path.as_ref()));
    }

    /// Allows reading below the parents of a path: of the path itself, and of the directory that it leads to as a symlink.
    /// So it may be replaced by another one.
    pub(crate) fn may_read_beside(&mut self, path: &Path) {
        self.may_read(parent(path));
        if let Ok(target) = path.canonicalize() {
            self.may_read(parent(&target));
        }
    }

    /// Allows reading and writing below a path. If nothing is there yet, the nearest directory above it counts.
    pub(crate) fn may_write(&mut self, path: impl AsRef<Path>) {
        self.write.push(existing(path.as_ref()));
    }

    /// Returns the paths that `wanted` allows and this does not.
    pub(crate) fn lacks<'a>(&self, wanted: &'a Self) -> Vec<&'a Path> {
        let within = |path: &Path, allowed: &[&[PathBuf]]| {
            allowed.iter().any(|paths| paths.iter().any(|allowed| path.starts_with(allowed)))
        };
        let unread = wanted.read.iter().filter(|path| !within(path, &[&self.read, &self.write]));
        let unwritten = wanted.write.iter().filter(|path| !within(path, &[&self.write]));
        unread.chain(unwritten).map(PathBuf::as_path).collect()
    }

    /// Allows reading and starting programs below a path.
    pub(crate) fn may_execute(&mut self, path: impl AsRef<Path>) {
        self.execute.push(path.as_ref().to_owned());
    }
}

/// Which parts of the sandbox are in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub(crate) landlock: Enforcement,
    pub(crate) seccomp: Enforcement,
}

/// Whether the kernel enforces a part of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Enforcement {
    Full,
    /// The kernel knows only some of the restrictions.
    Partial,
    /// The reason why nothing is enforced.
    Missing(String),
}

/// Closes everything but `reach` to this thread and to the threads and programs that it starts. It cannot be undone.
pub(crate) fn enter(reach: &Reach) -> Sandbox {
    Sandbox { landlock: landlock::restrict(reach), seccomp: seccomp::restrict() }
}

/// Returns the path if something is there, and otherwise the nearest directory above it that exists.
fn existing(path: &Path) -> PathBuf {
    let absolute = absolute(path);
    absolute.ancestors().find(|path| path.exists()).unwrap_or(&absolute).to_owned()
}

fn parent(path: &Path) -> PathBuf {
    let absolute = absolute(path);
    absolute.parent().unwrap_or(&absolute).to_owned()
}

/// Returns the path from the root directory on. An empty path is the current directory.
fn absolute(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::os::unix::fs::symlink;

    use rustix::io::Errno;

    use super::*;

    /// Runs `attempts` on a thread of its own in the sandbox. `None` if this kernel has no Landlock.
    fn inside<T: Send>(reach: &Reach, attempts: impl FnOnce() -> T + Send) -> Option<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let sandbox = enter(reach);
                let is_enforced = !matches!(sandbox.landlock, Enforcement::Missing(_));
                is_enforced.then(attempts)
            });
            thread.join().unwrap()
        })
    }

    fn denied<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    #[test]
    fn only_what_is_allowed_can_be_read_and_written() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["tree", "lists", "secret"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("file"), "text").unwrap();
        }
        let mut reach = Reach::default();
        reach.may_read(at("tree"));
        reach.may_write(at("lists"));
        inside(&reach, || {
            assert_eq!(fs::read(at("tree/file")).unwrap(), b"text");
            assert!(denied(fs::write(at("tree/file"), "other")), "a tree is only read");
            assert!(denied(fs::write(at("tree/new"), "other")));
            assert!(denied(fs::remove_file(at("tree/file"))));
            assert!(denied(fs::rename(at("tree/file"), at("lists/file"))));
            fs::write(at("lists/new"), "list").unwrap();
            fs::rename(at("lists/new"), at("lists/list")).unwrap();
            fs::remove_file(at("lists/list")).unwrap();
            assert!(denied(fs::read(at("secret/file"))));
            assert!(denied(fs::read_dir(at("secret"))));
            assert!(denied(fs::read_dir("/root")));
            assert!(denied(fs::read_dir("/")));
            assert!(denied(std::process::Command::new("/bin/true").status()), "no program can be started");
        });
    }

    #[test]
    fn a_root_that_is_replaced_can_still_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["snapshots/1", "snapshots/2", "other"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        symlink("../snapshots/1", at("other/root")).unwrap();
        let mut reach = Reach::default();
        reach.may_read_beside(&at("other/root"));
        fs::write(at("secret"), "text").unwrap();
        let replace = || {
            symlink("../snapshots/2", at("other/next")).unwrap();
            fs::rename(at("other/next"), at("other/root")).unwrap();
        };
        replace();
        inside(&reach, || {
            fs::read_dir(at("other/root")).unwrap();
            assert!(denied(fs::read(at("secret"))));
        });
    }

    #[test]
    fn what_a_new_configuration_needs_beyond_the_old_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["srv/one", "lists", "other"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        let (mut old, mut new) = (Reach::default(), Reach::default());
        old.may_read_beside(&at("srv/one"));
        old.may_write(at("lists"));
        new.may_read(at("srv/one"));
        new.may_read(at("lists"));
        assert!(old.lacks(&new).is_empty());
        new.may_read(at("other"));
        new.may_write(at("srv"));
        assert_eq!(old.lacks(&new), [at("other"), at("srv")]);
    }

    #[test]
    fn what_does_not_exist_yet_can_be_created() {
        let dir = tempfile::tempdir().unwrap();
        let mut reach = Reach::default();
        reach.may_write(dir.path().join("dest/below"));
        inside(&reach, || fs::create_dir_all(dir.path().join("dest/below")).unwrap());
    }

    #[test]
    fn connections_are_refused_unless_they_are_allowed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        if landlock_version() < 4 {
            return;
        }
        inside(&Reach::default(), || {
            assert!(denied(std::net::TcpStream::connect(address)));
            assert!(denied(std::net::TcpListener::bind("127.0.0.1:0")));
        });
        inside(&Reach::of_client(), || {
            std::net::TcpStream::connect(address).unwrap();
        });
    }

    #[test]
    fn calls_that_change_the_host_are_refused() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                if let Enforcement::Missing(_) = seccomp::restrict() {
                    return;
                }
                assert_eq!(rustix::process::chroot("/"), Err(Errno::PERM));
                assert_eq!(rustix::system::sethostname(b"other"), Err(Errno::PERM));
                // SAFETY: the new namespace is of this thread alone, and the call is refused.
                let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
                assert_eq!(unshared, Err(Errno::PERM));
            });
        });
    }
}
