//! Opens files beneath a directory without following symlinks or leaving it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How often an open is tried while the kernel returns `AGAIN` or `INTR`.
const TRIES: u32 = 64;

/// Opens `path` without leaving `root` and without following any symlink, even if the tree changes meanwhile.
/// The empty path is the root itself. The descriptor is closed on exec. Nothing is created.
///
/// # Errors
/// The kernel's errors. Among them are `LOOP` for a symlink anywhere in the path, `XDEV` for a path that
/// leaves the root, and `AGAIN` if the kernel kept returning it for many tries: another process holds a lease
/// on the file and `flags` contains `NONBLOCK`, or entries are renamed all the time.
pub fn open_beneath(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    retry(|| open(root.as_fd(), path, flags, ResolveFlags::empty()))
}

/// Like [`open_beneath`], but only uses directories that the kernel has cached, and never waits for the disk.
///
/// # Errors
/// As for [`open_beneath`], and `AGAIN` if the disk would have to be read.
pub fn open_beneath_at_once(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    match open(root.as_fd(), path, flags, ResolveFlags::CACHED) {
        // Kernels before Linux 5.12 do not know `RESOLVE_CACHED`.
        Err(Errno::INVAL) => Err(Errno::AGAIN),
        result => result,
    }
}

fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | how;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Retries an open that was interrupted, or that the kernel could not judge because of a rename elsewhere.
fn retry<T>(mut open: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..TRIES {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    open()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn neither_symlinks_nor_dots_leave_the_root() {
        let outer = tempfile::tempdir().unwrap();
        let inside = |path: &str| outer.path().join("root").join(path);
        fs::create_dir_all(inside("real")).unwrap();
        fs::write(outer.path().join("secret"), "s").unwrap();
        symlink("..", inside("up")).unwrap();
        symlink("real", inside("alias")).unwrap();
        symlink("../secret", inside("file")).unwrap();
        let root = fs::File::open(inside("")).unwrap();
        let open = |path: &[u8]| open_beneath(&root, path, OFlags::RDONLY).map(drop);
        for path in [&b"up"[..], b"up/secret", b"alias", b"file"] {
            assert_eq!(open(path), Err(Errno::LOOP), "{}", path.escape_ascii());
        }
        for path in [&b".."[..], b"real/../..", b"../secret", b"/etc"] {
            assert_eq!(open(path), Err(Errno::XDEV), "{}", path.escape_ascii());
        }
        assert_eq!((open(b""), open(b"real"), open(b"none")), (Ok(()), Ok(()), Err(Errno::NOENT)));
    }

    #[test]
    fn opening_at_once_finds_cached_directories_only() {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir_all(outer.path().join("root/real")).unwrap();
        symlink("real", outer.path().join("root/alias")).unwrap();
        let root = fs::File::open(outer.path().join("root")).unwrap();
        let open = |path: &[u8]| open_beneath_at_once(&root, path, OFlags::PATH).map(drop);
        // File systems that cache no directories (some network file systems) always return `AGAIN`.
        assert!(matches!(open(b"real"), Ok(()) | Err(Errno::AGAIN)));
        assert!(open(b"alias").is_err() && open(b"..").is_err() && open(b"none").is_err());
    }

    #[test]
    fn temporary_errors_are_retried_and_lasting_ones_returned() {
        let mut temporary = [Errno::AGAIN, Errno::INTR, Errno::AGAIN].into_iter();
        assert_eq!(retry(|| temporary.next().map_or(Ok(7), Err)), Ok(7));
        let mut tries = 0;
        let fail = |tries: &mut u32| {
            *tries += 1;
            Err::<(), _>(Errno::AGAIN)
        };
        assert_eq!((retry(|| fail(&mut tries)), tries), (Err(Errno::AGAIN), TRIES));
        assert_eq!(retry(|| Err::<(), _>(Errno::NOENT)), Err(Errno::NOENT));
    }
}
