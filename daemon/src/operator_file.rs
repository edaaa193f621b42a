//! Reads files that the operator names: messages of the day, passwords, patterns.
//!
//! The daemon may be allowed to read more than the users who can write to the directories of such a file. So
//! a symlink on the way to the file is followed only if it belongs to root or to the daemon's own user.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat, readlinkat};
use rustix::process::geteuid;

/// Maximum number of symlinks on the way to a file: the kernel's limit.
const MAX_SYMLINKS: usize = 40;

/// Reads up to `limit` bytes of a file.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a regular file. Fails if a symlink on the way to it belongs to another user.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let mut dir = None;
    let mut rest = components(path);
    let mut symlinks = 0;
    while let Some(name) = rest.pop() {
        if name == "/" {
            dir = Some(openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
            continue;
        }
        let found = look_up(dir.as_ref(), &name)?;
        let stat = fstat(&found)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            symlinks += 1;
            if symlinks > MAX_SYMLINKS {
                return Err(io::Error::from(rustix::io::Errno::LOOP));
            }
            if stat.st_uid != 0 && stat.st_uid != geteuid().as_raw() {
                let text = format!("a symlink on the way to it belongs to user {} and is not followed", stat.st_uid);
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
            }
            let target = readlinkat(&found, "", Vec::new())?.into_bytes();
            rest.extend(components(&PathBuf::from(OsString::from_vec(target))));
        } else if rest.is_empty() {
            return open_file(dir.as_ref(), &name);
        } else {
            dir = Some(found);
        }
    }
    Err(io::Error::from(io::ErrorKind::IsADirectory))
}

/// Returns the components of a path, in reverse order.
fn components(path: &Path) -> Vec<OsString> {
    let names = path.components().filter(|component| *component != Component::CurDir);
    names.map(|component| component.as_os_str().to_owned()).rev().collect()
}

fn look_up(dir: Option<&OwnedFd>, name: &OsStr) -> io::Result<OwnedFd> {
    let dir = dir.map_or(CWD, AsFd::as_fd);
    Ok(openat(dir, name.as_bytes(), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens a regular file. Does not wait for the other end of a FIFO.
fn open_file(dir: Option<&OwnedFd>, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(dir.map_or(CWD, AsFd::as_fd), name.as_bytes(), flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{lchown, symlink};

    use super::*;

    #[test]
    fn symlinks_of_root_and_of_this_user_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("real")).unwrap();
        std::fs::write(at("real/file"), "text").unwrap();
        symlink("real", at("dir")).unwrap();
        symlink(at("dir/./file"), at("real/absolute")).unwrap();
        symlink("../dir/absolute", at("real/link")).unwrap();
        for path in ["real/file", "dir/file", "real/link", "dir/../dir/link"] {
            assert_eq!(read(&at(path), 100).unwrap(), b"text", "{path}");
        }
        assert_eq!(read(&at("real/file"), 2).unwrap(), b"te");
    }

    #[test]
    fn symlinks_of_other_users_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("real")).unwrap();
        std::fs::write(at("real/file"), "text").unwrap();
        symlink("real/file", at("planted")).unwrap();
        symlink("real", at("planted-dir")).unwrap();
        symlink("planted", at("link")).unwrap();
        if !geteuid().is_root() {
            return;
        }
        for planted in ["planted", "planted-dir"] {
            lchown(at(planted), Some(12_345), Some(12_345)).unwrap();
        }
        for path in ["planted", "planted-dir/file", "link"] {
            let error = read(&at(path), 100).unwrap_err();
            assert!(error.to_string().contains("belongs to user 12345"), "{path}: {error}");
        }
    }

    #[test]
    fn anything_but_a_regular_file_is_an_error_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("loop", at("loop")).unwrap();
        let fifo = rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
        fifo.unwrap();
        for path in ["fifo", "loop", "nothing", "fifo/below", ".", "/"] {
            assert!(open(&at(path)).is_err(), "{path}");
        }
    }
}
