//! Small trees in memory, which can be encoded as lists and compared with the disk.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rkyv::util::AlignedVec;
use sha2::{Digest as _, Sha256};
use stillmirror_protocol::changes::{Changes, Put, apply};
use stillmirror_protocol::entry::{Device, Digest, Digests, Entry, Kind, Owner, Time};
use stillmirror_protocol::path;

/// The type and content of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    File(Vec<u8>),
    Dir,
    Symlink(Vec<u8>),
    Fifo,
    /// Major and minor number.
    CharDevice(u32, u32),
}

/// An entry: a node with its link group, mode and time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) node: Node,
    pub(crate) link: Option<u64>,
    pub(crate) mode: u16,
    pub(crate) mtime: Time,
}

/// Entries by path. The root has the empty path and always exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree(pub(crate) BTreeMap<Vec<u8>, At>);

impl Default for Tree {
    fn default() -> Self {
        Self(BTreeMap::from([(Vec::new(), at(Node::Dir, 1))]))
    }
}

impl Tree {
    pub(crate) fn file(mut self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.put(path, Node::File(content.into()));
        self
    }

    pub(crate) fn linked(self, path: &str, content: impl Into<Vec<u8>>, group: u64) -> Self {
        self.file(path, content).in_group(path, group)
    }

    pub(crate) fn in_group(mut self, path: &str, group: u64) -> Self {
        self.0.get_mut(path.as_bytes()).unwrap().link = Some(group);
        self
    }

    pub(crate) fn symlink(mut self, path: &str, target: &str) -> Self {
        self.put(path, Node::Symlink(target.into()));
        self
    }

    pub(crate) fn dir(mut self, path: &str) -> Self {
        self.put(path, Node::Dir);
        self
    }

    pub(crate) fn fifo(mut self, path: &str) -> Self {
        self.put(path, Node::Fifo);
        self
    }

    pub(crate) fn device(mut self, path: &str, major: u32, minor: u32) -> Self {
        self.put(path, Node::CharDevice(major, minor));
        self
    }

    pub(crate) fn without(mut self, path: &str) -> Self {
        let below = format!("{path}/").into_bytes();
        self.0.retain(|other, _| other != path.as_bytes() && !other.starts_with(&below));
        self
    }

    pub(crate) fn renamed(mut self, from: &str, to: &str) -> Self {
        let moved: Vec<_> = self.0.iter().map(|(path, at)| (path.clone(), at.clone())).collect();
        self = self.without(from);
        for (path, at) in moved {
            let rest = path.strip_prefix(from.as_bytes());
            if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest[0] == b'/') {
                self.0.insert([to.as_bytes(), rest].concat(), at);
            }
        }
        self
    }

    pub(crate) fn mode(mut self, path: &str, mode: u16) -> Self {
        self.0.get_mut(path.as_bytes()).unwrap().mode = mode;
        self
    }

    fn put(&mut self, path: &str, node: Node) {
        for (end, _) in path.match_indices('/') {
            self.0.entry(path[..end].into()).or_insert_with(|| at(Node::Dir, 2));
        }
        // The time depends on the content, so that a changed file has a changed time.
        let seed = match &node {
            Node::File(content) => content.iter().fold(7u64, |sum, &byte| sum.wrapping_mul(31) + u64::from(byte)),
            _ => 3,
        };
        self.0.insert(path.into(), at(node, seed));
    }

    pub(crate) fn contents(&self) -> HashMap<Vec<u8>, Vec<u8>> {
        let file = |(path, at): (&Vec<u8>, &At)| match &at.node {
            Node::File(content) => Some((path.clone(), content.clone())),
            _ => None,
        };
        self.0.iter().filter_map(file).collect()
    }

    /// Returns the encoded list.
    pub(crate) fn encode(&self) -> AlignedVec {
        let mut changes = Changes::default();
        for (path, at) in &self.0 {
            let kind = match &at.node {
                Node::File(content) => {
                    let sha256 = Digest(Sha256::digest(content).into());
                    let digests = Digests { sha256, ..Digests::default() };
                    Kind::File { size: content.len() as u64, digests }
                }
                Node::Dir => Kind::Directory,
                Node::Symlink(target) => Kind::Symlink { target: target.clone() },
                Node::Fifo => Kind::Fifo,
                &Node::CharDevice(major, minor) => Kind::CharDevice(Device { major, minor }),
            };
            let entry = Entry { mode: at.mode, mtime: at.mtime, owner: Owner::default(), link: at.link, kind };
            if path.is_empty() {
                changes.root = Some(Put { entry, tag: 0 });
            } else {
                let (dir, name) = path::split(path);
                changes.put(dir, name, entry, 0);
            }
        }
        apply(None, &changes).expect("a tree is a valid list").list.encode()
    }

    /// Reads a tree from the disk. Link groups are numbered in the order of their first paths.
    pub(crate) fn read(root: &Path) -> Self {
        let mut tree = Self(BTreeMap::new());
        let mut inodes: HashMap<u64, Vec<Vec<u8>>> = HashMap::new();
        let mut paths = vec![Vec::new()];
        while let Some(path) = paths.pop() {
            let full = root.join(std::ffi::OsStr::from_bytes(&path));
            let stat = fs::symlink_metadata(&full).unwrap();
            let kind = stat.file_type();
            let node = if kind.is_dir() {
                for child in fs::read_dir(&full).unwrap() {
                    paths.push(path::join(&path, child.unwrap().file_name().as_bytes()));
                }
                Node::Dir
            } else if kind.is_symlink() {
                Node::Symlink(fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec())
            } else if kind.is_file() {
                Node::File(fs::read(&full).unwrap())
            } else {
                Node::Fifo
            };
            let mode = if kind.is_symlink() { 0o777 } else { (stat.mode() & 0o7777) as u16 };
            let mtime = Time { sec: stat.mtime(), nsec: stat.mtime_nsec() as u32 };
            if !kind.is_dir() {
                inodes.entry(stat.ino()).or_default().push(path.clone());
            }
            tree.0.insert(path, At { node, link: None, mode, mtime });
        }
        tree.number_links(inodes.into_values().collect());
        tree
    }

    /// Returns the tree with its link groups numbered as by [`Tree::read`]. Groups with one member are
    /// dissolved.
    pub(crate) fn canonical(&self) -> Self {
        let mut tree = self.clone();
        let mut groups: HashMap<u64, Vec<Vec<u8>>> = HashMap::new();
        for (path, at) in &mut tree.0 {
            if let Some(group) = at.link.take() {
                groups.entry(group).or_default().push(path.clone());
            }
            if matches!(at.node, Node::Symlink(_)) {
                at.mode = 0o777;
            }
        }
        tree.number_links(groups.into_values().collect());
        tree
    }

    fn number_links(&mut self, groups: Vec<Vec<Vec<u8>>>) {
        let mut groups: Vec<_> = groups.into_iter().filter(|paths| paths.len() > 1).collect();
        groups.iter_mut().for_each(|paths| paths.sort());
        groups.sort();
        for (number, paths) in groups.into_iter().enumerate() {
            for path in paths {
                if let Some(at) = self.0.get_mut(&path) {
                    at.link = Some(number as u64);
                }
            }
        }
    }
}

fn at(node: Node, seed: u64) -> At {
    let mode = if node == Node::Dir { 0o755 } else { 0o644 };
    At {
        node,
        link: None,
        mode,
        mtime: Time { sec: 1_600_000_000 + (seed % 1_000_000) as i64, nsec: (seed % 999_999_937) as u32 },
    }
}

/// Returns bytes that do not repeat. They depend only on the length and the seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// Asserts that a directory has exactly the entries of a tree.
pub(crate) fn assert_same(dest: &Path, tree: &Tree) {
    let (found, wanted) = (Tree::read(dest), tree.canonical());
    for (path, at) in &wanted.0 {
        let name = String::from_utf8_lossy(path);
        let there = found.0.get(path).unwrap_or_else(|| panic!("'{name}' is missing"));
        if let (Node::File(a), Node::File(b)) = (&there.node, &at.node) {
            assert!(a == b, "the content of '{name}' differs");
        } else {
            assert_eq!(there.node, at.node, "'{name}'");
        }
        assert_eq!(there.link, at.link, "link group of '{name}'");
        assert_eq!((there.mode, there.mtime), (at.mode, at.mtime), "mode and time of '{name}'");
    }
    let extra: Vec<_> = found.0.keys().filter(|path| !wanted.0.contains_key(*path)).collect();
    assert!(extra.is_empty(), "unexpected entries: {extra:?}");
}
