//! Trees as plain maps, shared by all tests of lists.

use std::collections::BTreeMap;

use stillmirror_protocol::changes::{Changes, Put};
use stillmirror_protocol::entry::Entry;
use stillmirror_protocol::path;

/// Entries by path. The root is the empty path.
pub(crate) type Tree = BTreeMap<Vec<u8>, Entry>;

/// Builds a tree by putting entries one after the other. The ancestors of an entry become directories, and everything
/// below a non-directory is removed.
pub(crate) fn grow(root: Entry, entries: Vec<(Vec<u8>, Entry)>, directory: impl Fn() -> Entry) -> Tree {
    let mut tree = Tree::from([(Vec::new(), root)]);
    for (path, entry) in entries {
        for (at, _) in path.iter().enumerate().filter(|&(_, &byte)| byte == b'/') {
            let ancestor = tree.entry(path[..at].to_vec()).or_insert_with(&directory);
            if !ancestor.kind.is_dir() {
                *ancestor = directory();
            }
        }
        if !entry.kind.is_dir() {
            let below = [&path[..], b"/"].concat();
            tree.retain(|path, _| !path.starts_with(&below));
        }
        tree.insert(path, entry);
    }
    tree
}

/// Returns the changes that build the tree from nothing.
pub(crate) fn whole(tree: &Tree, tag: u32) -> Changes {
    let put = |entry: &Entry| Put { entry: entry.clone(), tag };
    let mut changes = Changes { root: Some(put(&tree[&b""[..]])), ..Changes::default() };
    for (at, entry) in tree.iter().filter(|(at, _)| !at.is_empty()) {
        let (dir, name) = path::split(at);
        changes.put(dir, name, entry.clone(), tag);
    }
    changes
}
