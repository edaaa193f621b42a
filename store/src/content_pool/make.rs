//! Makes pools, and finds out whose they are and what their file systems can do.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};

use crate::beneath::open_beneath;
use crate::error::{At, StoreError};
use crate::layout::sync_dir;
use crate::packs::read_small;

/// The file that makes a directory a pool, and its first line.
pub(super) const MARKER: &str = "pool";
const FORMAT: &str = "stillmirror pool 1";
/// The directory of copies that are being made.
pub(super) const DRAFTS: &str = "tmp";
/// What a directory may contain that is about to become a pool.
pub(super) const PARTS: [&str; 4] = ["public", "private", DRAFTS, "pool.tmp"];
pub(super) const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// What a file system can do.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Abilities {
    pub(super) copy: bool,
    pub(super) link: bool,
}

/// Returns whether the directory is the pool of `owner`. `false` if it may become one.
pub(super) fn belongs_to(dir: &OwnedFd, path: &Path, owner: &str) -> Result<bool, StoreError> {
    match read_small(&path.join(MARKER), 8192) {
        Ok(text) => {
            let name = std::str::from_utf8(&text).ok().and_then(|text| text.split_once('\n'));
            match name.map(|(format, name)| (format, name.strip_suffix('\n').unwrap_or(name))) {
                Some((FORMAT, name)) if name == owner => Ok(true),
                Some((FORMAT, name)) => Err(StoreError::OtherPool {
                    dir: path.to_owned(),
                    found: name.to_owned(),
                    wanted: owner.to_owned(),
                }),
                _ => Err(StoreError::NotAPool(path.to_owned())),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let is_other = |name: &Vec<u8>| !PARTS.iter().any(|part| part.as_bytes() == name);
            let has_others = list(dir).at("read", path)?.iter().any(is_other);
            if has_others { Err(StoreError::NotAPool(path.to_owned())) } else { Ok(false) }
        }
        Err(error) => Err(error).at("read", &path.join(MARKER)),
    }
}

/// Makes a pool for `owner`.
pub(super) fn make(path: &Path, owner: &str) -> Result<(), StoreError> {
    let make = |path: &Path, mode| match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        // The mode does not depend on the umask.
        _ => fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)),
    };
    path.parent().map_or(Ok(()), fs::create_dir_all).at("create the pool", path)?;
    for (part, mode) in [("", 0o755), ("public", 0o755), ("private", 0o700), (DRAFTS, 0o700)] {
        let part = path.join(part);
        make(&part, mode).at("create", &part)?;
    }
    // This file makes the directory a pool, so it comes last.
    let (marker, draft) = (path.join(MARKER), path.join("pool.tmp"));
    let written = File::create(&draft).and_then(|mut file| {
        file.write_all(format!("{FORMAT}\n{owner}\n").as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&draft, &marker)).at("write", &marker)?;
    sync_dir(path)
}

/// Finds out what the file system can do.
pub(super) fn probe(dir: &OwnedFd, path: &Path) -> Result<Abilities, StoreError> {
    let drafts = open_beneath(dir, DRAFTS.as_bytes(), DIRECTORY).at("open", &path.join(DRAFTS))?;
    let names = ["probe", "probe-copy", "probe-link"];
    let clear = || {
        for name in names {
            let _ = rustix::fs::unlinkat(&drafts, name, AtFlags::empty());
        }
    };
    clear();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let open = |name| rustix::fs::openat(&drafts, name, flags, Mode::RUSR | Mode::WUSR);
    let (file, copy) = (open(names[0]), open(names[1]));
    let file = File::from(file.at("write to the pool", path)?);
    (&file).write_all(b"probe").at("write to the pool", path)?;
    let can = Abilities {
        copy: copy.is_ok_and(|copy| rustix::fs::ioctl_ficlone(copy, &file).is_ok()),
        link: rustix::fs::linkat(&drafts, names[0], &drafts, names[2], AtFlags::empty()).is_ok(),
    };
    clear();
    if can.copy || can.link { Ok(can) } else { Err(StoreError::NoPoolMethod(path.to_owned())) }
}

/// Returns the names in a directory.
pub(super) fn list(dir: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if !matches!(&name[..], b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}
