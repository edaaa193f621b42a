//! Random source trees.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::{CWD, FileType, Mode};

use crate::rsync::peers::am_root;
use crate::rsync::tree::{SOME_TIME, touch};
use crate::support::noise;

/// Names of directories. The slash after the name changes how some of them sort.
pub(super) const DIRS: [&str; 11] = ["a", "a-b", "a.d", "a0", "b", "B", "local", "keep", "x.d", "0", "sub"];
/// Other names. Some are also names of directories, or match rules of `options` and of merge files.
pub(super) const NAMES: [&str; 18] = [
    "f", "g", "f.o", "g.o", "local1", "local2", "keep1", "keep2", "x~", ".hid", "big", "same", "core", "sp ace", "a",
    "a-b", "a.d", "pkg-1.0",
];
/// The target of absolute and escaping symlinks. No host has this name in its root directory, so no client follows such a
/// symlink out of its destination.
const INSIDE: &str = "only-in-module";

/// One name of a tree.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    path: String,
    kind: Kind,
    attributes: Attributes,
}

#[derive(Clone, Debug)]
enum Kind {
    Dir,
    File {
        len: usize,
        seed: u8,
    },
    Symlink(String),
    /// A name of the hard link group with this number.
    Linked(u8),
    Fifo,
    Device,
    /// A directory with many empty files.
    Crowd(u16),
}

/// Mode, owner and time. Symlinks have no mode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    mode: u32,
    owner: (u32, u32),
    time: (i64, i64),
}

const PLAIN: Attributes = Attributes { mode: 0o755, owner: (0, 0), time: (SOME_TIME, 0) };
/// Only a few times, so that equal times, and times in the same second, are common.
const TIMES: [(i64, i64); 7] = [
    (SOME_TIME, 0),
    (SOME_TIME, 5),
    (SOME_TIME, 999_999_999),
    (SOME_TIME + 1, 0),
    (SOME_TIME + 7000, 123_456_789),
    (SOME_TIME - 90_000, 1),
    (-60, 500_000_000),
];

/// Generates source trees: some directories first, then everything else in them or in the root.
pub(super) fn any() -> impl Strategy<Value = Vec<Entry>> {
    let dir = prop::collection::vec(select(&DIRS), 1..=4).prop_map(|parts| parts.join("/"));
    prop::collection::vec(dir, 2..=10).prop_flat_map(|dirs| {
        let all: Vec<_> = dirs.iter().cloned().chain([String::new()]).collect();
        let empty = prop::collection::vec(dir_entry(select(dirs)), 1..=8);
        let files = prop::collection::vec(file(select(all.clone())), 4..=26);
        let symlinks = prop::collection::vec(symlink_to(select(all.clone()), select(all.clone())), 0..=7);
        let linked = prop::collection::vec(linked(select(all.clone())), 0..=9);
        let special = prop::collection::vec(special(select(all.clone())), 0..=2);
        let crowd = prop::option::weighted(0.05, (select(all), 1..=1500_u16).prop_map(crowd));
        (empty, files, symlinks, linked, special, crowd).prop_map(|(empty, files, symlinks, linked, special, crowd)| {
            [inside(), symlinks, empty, files, linked, special, crowd.into_iter().collect()].concat()
        })
    })
}

fn inside() -> Vec<Entry> {
    let file = Kind::File { len: 10, seed: 1 };
    let entry = |path: String, kind| Entry { path, kind, attributes: PLAIN };
    vec![entry(format!("{INSIDE}/f"), file), entry(format!("{INSIDE}/sub"), Kind::Dir)]
}

fn attributes(modes: &'static [u32]) -> impl Strategy<Value = Attributes> {
    let owners: &'static [_] = &[(0, 0), (0, 0), (0, 0), (1, 1), (12345, 23456)];
    (select(modes), select(owners), select(&TIMES)).prop_map(|(mode, owner, time)| Attributes { mode, owner, time })
}

fn dir_entry(path: impl Strategy<Value = String>) -> impl Strategy<Value = Entry> {
    let modes = &[0o755, 0o755, 0o755, 0o700, 0o1777, 0o2711];
    (path, attributes(modes)).prop_map(|(path, attributes)| Entry { path, kind: Kind::Dir, attributes })
}

fn named(dir: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (dir, select(&NAMES)).prop_map(|(dir, name)| join(&dir, name))
}

const FILE_MODES: &[u32] = &[0o644, 0o644, 0o644, 0o600, 0o755, 0o4755, 0o444];

fn file(dir: impl Strategy<Value = String>) -> impl Strategy<Value = Entry> {
    let sizes: &'static [_] = &[0, 1, 10, 10, 699, 701, 5000, 40_000, 70_000];
    (named(dir), select(sizes), 0..3_u8, attributes(FILE_MODES)).prop_map(|(path, len, seed, attributes)| Entry {
        path,
        kind: Kind::File { len, seed },
        attributes,
    })
}

fn linked(dir: impl Strategy<Value = String>) -> impl Strategy<Value = Entry> {
    (named(dir), 0..6_u8, attributes(FILE_MODES)).prop_map(|(path, group, attributes)| Entry {
        path,
        kind: Kind::Linked(group),
        attributes,
    })
}

fn symlink_to(dir: impl Strategy<Value = String>, to: impl Strategy<Value = String>) -> impl Strategy<Value = Entry> {
    let names: Vec<_> = NAMES.iter().chain(&DIRS).copied().chain(["link", "link2", "link3", "link4"]).collect();
    let at = (dir, select(names)).prop_map(|(dir, name)| join(&dir, name));
    (at, to, select(&NAMES), 0..100_u8, attributes(&[0o777])).prop_map(|(path, to, name, kind, attributes)| {
        let depth = path.matches('/').count();
        let up = |target: &str| format!("{}{target}", "../".repeat(depth));
        let target = match kind {
            0..35 if !to.is_empty() => up(&to),
            0..60 => up(&join(&to, name)),
            60..70 => name.to_owned(),
            70..78 => format!("/{INSIDE}"),
            78..84 => format!("/{INSIDE}/f"),
            84..88 => "/nowhere-at-all".to_owned(),
            88..94 => format!("{}{INSIDE}", "../".repeat(depth + 12)),
            94..98 => path.rsplit('/').next().unwrap_or_default().to_owned(),
            98 if depth > 0 => "..".to_owned(),
            _ => ".".to_owned(),
        };
        Entry { path, kind: Kind::Symlink(target), attributes }
    })
}

fn special(dir: impl Strategy<Value = String>) -> impl Strategy<Value = Entry> {
    (named(dir), prop::bool::ANY, attributes(&[0o644, 0o600])).prop_map(|(path, device, attributes)| {
        let kind = if device && am_root() { Kind::Device } else { Kind::Fifo };
        Entry { path, kind, attributes }
    })
}

fn crowd((dir, count): (String, u16)) -> Entry {
    Entry { path: join(&dir, "crowd"), kind: Kind::Crowd(count), attributes: PLAIN }
}

pub(super) fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

/// Creates a tree with the entries. If two entries conflict, the first one wins.
pub(super) fn make(root: &Path, entries: &[Entry]) {
    std::fs::create_dir(root).expect("a root");
    let (mut groups, mut made) = (BTreeMap::new(), Vec::new());
    for entry in entries {
        let path = root.join(&entry.path);
        let is_in_the_way = path.symlink_metadata().is_ok_and(|facts| !(facts.is_dir() && entry.is_dir()));
        if has_dirs(root, &entry.path) && !is_in_the_way {
            entry.kind.put(&path, &mut groups);
            made.push((path, entry.attributes));
        }
    }
    walk(root, &mut |path, facts| {
        if facts.is_dir() {
            PLAIN.set(path);
        }
    });
    for (path, attributes) in made {
        attributes.set(&path);
    }
}

/// Creates the directories above a name. Returns `false` if something else has the name of one of them.
pub(super) fn has_dirs(root: &Path, name: &str) -> bool {
    let mut at = root.to_owned();
    Path::new(name).parent().into_iter().flatten().all(|part| {
        at.push(part);
        at.symlink_metadata().map_or_else(|_| std::fs::create_dir(&at).is_ok(), |facts| facts.is_dir())
    })
}

/// Calls `seen` for everything at and below `root`, for a directory before its entries.
pub(super) fn walk(root: &Path, seen: &mut impl FnMut(&Path, &std::fs::Metadata)) {
    let Ok(facts) = root.symlink_metadata() else { return };
    seen(root, &facts);
    if facts.is_dir() {
        let mut below: Vec<PathBuf> =
            std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        below.sort();
        below.iter().for_each(|path| walk(path, seen));
    }
}

impl Entry {
    fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir | Kind::Crowd(_))
    }
}

impl Kind {
    fn put(&self, path: &Path, groups: &mut BTreeMap<u8, PathBuf>) {
        match self {
            Self::Dir => std::fs::create_dir_all(path).expect("a directory"),
            Self::File { len, seed } => std::fs::write(path, noise(*len, u64::from(*seed))).expect("a file"),
            Self::Symlink(target) => symlink(target, path).expect("a symlink"),
            Self::Linked(group) => match groups.get(group) {
                Some(first) => std::fs::hard_link(first, path).expect("a hard link"),
                None => {
                    match group {
                        4 => Self::Symlink("f".into()).put(path, groups),
                        5 => Self::Fifo.put(path, groups),
                        _ => Self::File { len: usize::from(*group) * 300, seed: *group }.put(path, groups),
                    }
                    groups.insert(*group, path.to_owned());
                }
            },
            Self::Fifo => node(path, FileType::Fifo, 0),
            Self::Device => node(path, FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            Self::Crowd(count) => {
                std::fs::create_dir_all(path).expect("a directory");
                for number in 0..*count {
                    let path = path.join(format!("{number:04}"));
                    std::fs::write(&path, b"").expect("a file");
                    PLAIN.set(&path);
                }
            }
        }
    }
}

pub(super) fn node(path: &Path, kind: FileType, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).expect("a node");
}

impl Attributes {
    pub(super) fn set(self, path: &Path) {
        if am_root() {
            lchown(path, Some(self.owner.0), Some(self.owner.1)).expect("an owner");
        }
        if !path.is_symlink() {
            std::fs::set_permissions(path, Permissions::from_mode(self.mode)).expect("a mode");
        }
        touch(path, self.time.0, self.time.1);
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Attributes { mode, owner: (uid, gid), time: (sec, nsec) } = self.attributes;
        match &self.kind {
            Kind::Dir => write!(out, "directory {:?}", self.path)?,
            Kind::File { len, seed } => write!(out, "file {:?}, {len} bytes of seed {seed}", self.path)?,
            Kind::Symlink(target) => write!(out, "symlink {:?} -> {target:?}", self.path)?,
            Kind::Linked(group) => write!(out, "name {:?} of link group {group}", self.path)?,
            Kind::Fifo => write!(out, "fifo {:?}", self.path)?,
            Kind::Device => write!(out, "device {:?}", self.path)?,
            Kind::Crowd(count) => write!(out, "directory {:?} with {count} empty files", self.path)?,
        }
        write!(out, " ({mode:o}, {uid}:{gid}, {sec}.{nsec:09})")
    }
}
