//! Opening beneath one directory, whatever lies in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How often an open that the kernel puts off is tried.
const TRIES: u32 = 64;

/// Opens `path` without leaving `root` and without following any symlink, also when the tree changes
/// meanwhile. The empty path is the root itself. The descriptor is closed on exec; nothing is created.
///
/// # Errors
/// The kernel's. Among them `LOOP` for a symlink anywhere in the path, `XDEV` for a way out of the root, and
/// `AGAIN` when the answer stayed the same for many tries: another process holds a lease on the file and
/// `flags` say not to wait for it (`NONBLOCK`), or something is renamed all the time.
pub fn open_beneath(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    patiently(|| open(root.as_fd(), path, flags, ResolveFlags::empty()))
}

/// The same at once: from what the kernel remembers of directories, without asking the disk.
///
/// # Errors
/// As above, and `AGAIN` where the disk would have to be asked.
pub fn open_beneath_at_once(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    match open(root.as_fd(), path, flags, ResolveFlags::CACHED) {
        // A kernel that knows no such opening (before Linux 5.12).
        Err(Errno::INVAL) => Err(Errno::AGAIN),
        result => result,
    }
}

fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | how;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// An open that was interrupted, or that a rename elsewhere kept the kernel from judging, is worth another try.
fn patiently<T>(mut open: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
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
    fn neither_symlinks_nor_dots_lead_out() {
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
    fn at_once_opens_what_was_just_open_and_nothing_else() {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir_all(outer.path().join("root/real")).unwrap();
        symlink("real", outer.path().join("root/alias")).unwrap();
        let root = fs::File::open(outer.path().join("root")).unwrap();
        let open = |path: &[u8]| open_beneath_at_once(&root, path, OFlags::PATH).map(drop);
        // File systems that remember nothing (of some networks) always say that the disk is to be asked.
        assert!(matches!(open(b"real"), Ok(()) | Err(Errno::AGAIN)));
        assert!(open(b"alias").is_err() && open(b"..").is_err() && open(b"none").is_err());
    }

    #[test]
    fn what_passes_is_waited_for_and_what_stays_is_told() {
        let mut passing = [Errno::AGAIN, Errno::INTR, Errno::AGAIN].into_iter();
        assert_eq!(patiently(|| passing.next().map_or(Ok(7), Err)), Ok(7));
        let mut tries = 0;
        let put_off = |tries: &mut u32| {
            *tries += 1;
            Err::<(), _>(Errno::AGAIN)
        };
        assert_eq!((patiently(|| put_off(&mut tries)), tries), (Err(Errno::AGAIN), TRIES));
        assert_eq!(patiently(|| Err::<(), _>(Errno::NOENT)), Err(Errno::NOENT));
    }
}
