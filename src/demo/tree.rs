//! The demo's tree: real files of this host, and a release that changes some of them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::visit;

/// Where real text is found on most hosts.
const TEXTS: [&str; 3] = ["/usr/share/common-licenses", "/usr/share/doc", "/usr/include"];
const MOST_TEXTS: usize = 200;
const LARGEST_TEXT: u64 = 200_000;

/// Copies a directory: files, directories, symlinks. What cannot be read is left out.
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

/// Makes a small tree of real files: this program as the package, and texts of this host.
pub(super) fn make(origin: &Path) -> Result<()> {
    let (texts, pool) = (origin.join("texts"), origin.join("pool"));
    fs::create_dir_all(&texts)?;
    fs::create_dir_all(&pool)?;
    fs::copy(std::env::current_exe()?, pool.join("stillmirror"))?;
    fs::hard_link(pool.join("stillmirror"), pool.join("stillmirror-again"))?;
    symlink("pool/stillmirror", origin.join("latest"))?;
    let mut found = 0;
    for dir in TEXTS.map(Path::new).into_iter().filter(|dir| dir.is_dir()) {
        // A directory that cannot be read has nothing for us.
        let _ = visit(dir, &mut |path, metadata| {
            if found < MOST_TEXTS && metadata.is_file() && (1..LARGEST_TEXT).contains(&metadata.len()) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                fs::copy(path, texts.join(format!("{found:03}-{name}")))?;
                found += 1;
            }
            Ok(())
        });
    }
    Ok(())
}

/// Changes the tree as a release does; says what it did.
pub(super) fn release(origin: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    visit(origin, &mut |path, metadata| {
        if metadata.is_file() {
            files.push((metadata.len(), path.to_owned()));
        }
        Ok(())
    })?;
    files.sort();
    ensure!(!files.is_empty(), "there is no file in the directory");
    let mut done = Vec::new();
    let mut note = |what: &str, path: &Path| {
        done.push(format!("{what} {}", path.strip_prefix(origin).unwrap_or(path).display()));
    };
    let largest = take(&mut files);
    insert(&largest)?;
    note("inserted some bytes into", &largest);
    if files.len() >= 3 {
        // Of the middle sizes, so that the largest file shows what a change inside it costs.
        files.truncate(files.len() / 2 + 1);
        let (renamed, removed) = (take(&mut files), take(&mut files));
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

/// The largest file that is left.
fn take(files: &mut Vec<(u64, PathBuf)>) -> PathBuf {
    files.pop().map(|(_, path)| path).unwrap_or_default()
}

/// Inserts bytes at two places, as a rebuilt package would have them, and replaces the file as a publisher would.
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
