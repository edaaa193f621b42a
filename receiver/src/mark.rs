//! Records which tree a store's generation describes.
//!
//! A list does not name a tree: the same store may be used with another destination, or the destination may
//! have been replaced. So a pull with a store leaves a file `tree` in it with one line, `stillmirror tree 1
//! GENERATION DEVICE INODE SECONDS NANOSECONDS`: the store's number of the generation, and the device, inode
//! and time of birth (zeros if the file system does not know it) of the root directory that it describes. If
//! the mark is missing, unreadable or of another generation, the tree is inspected.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use stillmirror_store::Store;

use crate::error::{At as _, PullError};
use crate::local::{self, Tree};

/// Returns whether the mark says that generation `number` of the store describes the tree.
pub(crate) fn is_of(store: &Store, number: u64, tree: &Tree) -> Result<bool, PullError> {
    let mut found = String::new();
    let read = File::open(path(store)).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut found));
    Ok(read.is_ok() && found == mark(number, tree)?)
}

/// Records that generation `number` of the store describes the tree.
pub(crate) fn set(store: &Store, number: u64, tree: &Tree) -> Result<(), PullError> {
    if is_of(store, number, tree)? {
        return Ok(());
    }
    let (path, draft) = (path(store), store.dir().join("tree.tmp"));
    let mut file = File::create(&draft).at("create", &draft)?;
    file.write_all(mark(number, tree)?.as_bytes()).at("write", &draft)?;
    file.sync_all().at("sync", &draft)?;
    fs::rename(&draft, &path).at("rename", &draft)
}

fn mark(number: u64, tree: &Tree) -> Result<String, PullError> {
    Ok(format!("stillmirror tree 1 {number} {}\n", identity(tree)?))
}

/// Returns what identifies a tree: the device, inode and time of birth of its root directory, as text.
pub(crate) fn identity(tree: &Tree) -> Result<String, PullError> {
    let root = local::stat(tree.root(), b".").and_then(|root| Ok((root, local::birth(tree.root())?)));
    let (root, born) = root.at("stat", tree.shown(b""))?;
    Ok(format!("{} {} {} {}", root.on_device, root.inode, born.sec, born.nsec))
}

fn path(store: &Store) -> PathBuf {
    store.dir().join("tree")
}

/// Maximum length of a mark, in bytes.
const MAX_BYTES: u64 = 256;
