//! The demo's tree: real files of this host, and a release that changes some of them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::visit;

/// Directories with texts on most hosts.
const TEXTS: [&str; 3] = ["/usr/share/common-licenses", "/usr/share/doc", "/usr/include"];
const TEXTS_LIMIT: usize = 200;
/// In bytes.
const TEXT_SIZE_LIMIT: u64 = 200_000;

/// Copies a directory. Leaves out devices, fifos and sockets. Fails if something cannot be read.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    visit(from, &mut |path, metadata| {
        let target = to.join(path.strip_prefix(from)?);
        let kind = metadata.file_type();
        if kind.is_dir() {
            fs::create_dir_all(target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(path)?, target)?;
        } else if !(kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device()) {
            fs::copy(path, target).with_context(|| format!("cannot copy {}", path.display()))?;
        }
        Ok(())
    })
}

/// Creates a small tree of real files: this program as the package, and texts of this host.
pub(super) fn make(origin: &Path) -> Result<()> {
    let (texts, pool) = (origin.join("texts"), origin.join("pool"));
    fs::create_dir_all(&texts)?;
    fs::create_dir_all(&pool)?;
    fs::copy(std::env::current_exe()?, pool.join("stillmirror"))?;
    fs::hard_link(pool.join("stillmirror"), pool.join("stillmirror-again"))?;
    symlink("pool/stillmirror", origin.join("latest"))?;
    let mut found = 0;
    for dir in TEXTS.map(Path::new).into_iter().filter(|dir| dir.is_dir()) {
        // Skip directories that cannot be read.
        let _ = visit(dir, &mut |path, metadata| {
            if found < TEXTS_LIMIT && metadata.is_file() && (1..TEXT_SIZE_LIMIT).contains(&metadata.len()) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                fs::copy(path, texts.join(format!("{found:03}-{name}")))?;
                found += 1;
            }
            Ok(())
        });
    }
    Ok(())
}

/// Changes the tree as a release does. Returns descriptions of the changes.
pub(super) fn release(origin: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    visit(origin, &mut |path, metadata| {
        if metadata.is_file() {
            files.push((metadata.len(), path.to_owned()));
        }
        Ok(())
    })?;
    files.sort();
    ensure!(!files.is_empty(), "the directory has no files");
    let mut done = Vec::new();
    let mut note = |what: &str, path: &Path| {
        done.push(format!("{what} {}", path.strip_prefix(origin).unwrap_or(path).display()));
    };
    let largest = take_largest(&mut files);
    insert(&largest)?;
    note("inserted some bytes into", &largest);
    if files.len() >= 3 {
        // Files of medium size, so that the cost of the change inside the largest file stands out.
        files.truncate(files.len() / 2 + 1);
        let (renamed, removed) = (take_largest(&mut files), take_largest(&mut files));
        let mut name = renamed.file_name().unwrap_or_default().to_owned();
        name.push("-renamed");
        fs::rename(&renamed, renamed.with_file_name(name))?;
        note("renamed", &renamed);
        fs::remove_file(&removed)?;
        note("removed", &removed);
    }
    let added = origin.join("ANNOUNCEMENT");
    fs::write(&added, "A new release.\n")?;
    note("added", &added);
    Ok(done)
}

/// Removes and returns the largest of the sorted files.
fn take_largest(files: &mut Vec<(u64, PathBuf)>) -> PathBuf {
    files.pop().map(|(_, path)| path).unwrap_or_default()
}

/// Inserts bytes at two places, as in a rebuilt package, and replaces the file as a publisher does: by renaming.
fn insert(path: &Path) -> Result<()> {
    let mut content = fs::read(path)?;
    for place in [content.len() / 3, content.len() * 2 / 3] {
        content.splice(place..place, *b"a few new bytes");
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)?;
    Ok(())
}
