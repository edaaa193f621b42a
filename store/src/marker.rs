//! Recognises stores among other directories, so that nobody deletes one by mistake.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// How the file `repository` of a store begins, whatever the store's format version.
pub(crate) const FORMATS: &str = "stillmirror store ";

/// Returns whether an open directory is a store of any format version: whether it contains a regular file
/// `repository` that begins as a store's does. The descriptor may be an `O_PATH` one.
///
/// # Errors
/// The kernel's errors, among them `ACCES` if the directory or the file may not be read.
pub fn is_store(dir: impl AsFd) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, "repository", flags, Mode::empty()) {
        // NXIO: a socket, or a device without a driver.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(false),
        opened => File::from(opened?),
    };
    if !file.metadata()?.is_file() {
        return Ok(false);
    }
    let mut beginning = Vec::new();
    file.take(FORMATS.len() as u64).read_to_end(&mut beginning)?;
    Ok(beginning == FORMATS.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Store;

    #[test]
    fn only_stores_are_recognised() {
        let outer = tempfile::tempdir().unwrap();
        let dir = |name: &str| {
            fs::create_dir_all(outer.path().join(name)).unwrap();
            outer.path().join(name)
        };
        Store::create(&dir("store"), "name").unwrap();
        fs::write(dir("future").join("repository"), "stillmirror store 2\nname\n").unwrap();
        fs::write(dir("other").join("repository"), "a list of packages").unwrap();
        fs::create_dir(dir("deep").join("repository")).unwrap();
        std::os::unix::fs::symlink("../store/repository", dir("alias").join("repository")).unwrap();
        dir("empty");
        let found = |name: &str| is_store(File::open(outer.path().join(name)).unwrap()).unwrap();
        let stores = ["store", "future", "other", "deep", "alias", "empty"].map(found);
        assert_eq!(stores, [true, true, false, false, false, false]);
    }
}
