//! States of a destination: an initial state, and random operations on it.

use std::fmt;
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::{FileType, IFlags, OFlags};

use super::source::{self, Entry, NAMES, has_dirs, join, node, walk};
use crate::rsync::peers::am_root;
use crate::rsync::tree::{SOME_TIME, touch};
use crate::support::noise;

/// The initial state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    Empty,
    Absent,
    Copy,
}

/// One change of a destination.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Remove(String),
    /// Writes a file, whatever the name was before.
    File(String, Content, When),
    /// Creates a directory with files of these names.
    Dir(String, Vec<&'static str>),
    Symlink(String, Target),
    Fifo(String),
    /// Writes a merge file into a directory, and files that its rules may match.
    Merge(String, &'static str, Vec<&'static str>),
    /// Leaves behind what an interrupted transfer of a file does.
    Leftover(String, Leftover),
    /// Makes the first name a hard link to the second one.
    Join(String, String),
    /// Separates a name from its hard link group.
    Split(String),
    Mode(String, u32),
    Owner(String, u32),
    Time(String, When),
    Immutable(String),
}

/// A content, relative to that of the file at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Same,
    OtherOfSameSize,
    Edited,
    Truncated,
    Longer,
    Empty,
}

/// A time, relative to that at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Same,
    Older,
    Newer,
    OtherNanoseconds,
}

/// The target of a symlink. It never leaves the directory that one client works in.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Inside(String),
    /// A directory next to the destination.
    Outside,
    FileOutside,
    Dangling,
    Itself,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Leftover {
    Temporary,
    PartialDir(&'static str),
    PartialDirIsFile(&'static str),
    Backup,
}

const RULES: [&str; 16] = [
    "- local*", "P keep*", "- *.o", "+ keep1", "R keep*", "H f*", "S *", "- *", "-/ a", "-r g*", "-s f.o", "- sub/",
    "!", ": .name", "local2", "-! */",
];
/// Files that are written next to every merge file, and in the directories below.
const RULED: [&str; 3] = ["local1", "keep1", "g.o"];
/// `.cvsignore` is read with -C.
const MERGE_FILES: [&str; 4] = [".rsync-filter", ".name", ".name", ".cvsignore"];

/// Generates up to `limit` operations on the names of a source tree.
pub(super) fn ops(paths: &[String], dirs: &[String], limit: usize) -> impl Strategy<Value = Vec<Op>> + use<> {
    // Shrinking drops operations but does not change them: another path hardly ever makes a simpler case.
    prop::collection::vec(op(paths, dirs).no_shrink(), 0..=limit)
}

fn op(paths: &[String], dirs: &[String]) -> BoxedStrategy<Op> {
    let dir = select(dirs.to_vec());
    let known = select(paths.to_vec());
    let new = (dir.clone(), select(&NAMES)).prop_map(|(dir, name)| join(&dir, name));
    let path = prop_oneof![2 => known.clone(), 1 => new].boxed();
    let content = select(
        [Content::Same, Content::OtherOfSameSize, Content::Edited, Content::Truncated, Content::Longer, Content::Empty]
            .to_vec(),
    );
    let when = select([When::Same, When::Older, When::Newer, When::OtherNanoseconds].to_vec()).boxed();
    let target = prop_oneof![
        known.clone().prop_map(Target::Inside),
        dir.clone().prop_map(Target::Inside),
        Just(Target::Outside),
        Just(Target::FileOutside),
        Just(Target::Dangling),
        Just(Target::Itself),
    ];
    let leftover = select(vec![
        Leftover::Temporary,
        Leftover::PartialDir(".p"),
        Leftover::PartialDir(".~tmp~"),
        Leftover::PartialDirIsFile(".p"),
        Leftover::PartialDirIsFile(".~tmp~"),
        Leftover::Backup,
    ]);
    let rules = prop::collection::vec(select(&RULES), 1..=3);
    // Rules apply to everything below, so merge files matter more near the root.
    let high = (dir, prop::bool::ANY)
        .prop_map(|(dir, top)| if top { dir.split('/').next().unwrap_or_default().to_owned() } else { dir });
    let owned: &'static [u32] = &[0, 1, 12345];
    let modes: &'static [u32] = &[0o755, 0o700, 0o600, 0o444, 0o500, 0o4711];
    let immutable = if am_root() { 3 } else { 0 };
    prop_oneof![
        6 => path.clone().prop_map(Op::Remove),
        9 => (path.clone(), content, when.clone()).prop_map(|(path, content, when)| Op::File(path, content, when)),
        5 => (path.clone(), prop::collection::vec(select(&NAMES), 0..=3)).prop_map(|(path, names)| Op::Dir(path, names)),
        4 => (path.clone(), target).prop_map(|(path, target)| Op::Symlink(path, target)),
        1 => path.clone().prop_map(Op::Fifo),
        7 => (high, select(&MERGE_FILES), rules).prop_map(|(dir, name, rules)| Op::Merge(dir, name, rules)),
        3 => (known.clone(), leftover).prop_map(|(path, leftover)| Op::Leftover(path, leftover)),
        3 => (path.clone(), known.clone()).prop_map(|(new, old)| Op::Join(new, old)),
        1 => known.clone().prop_map(Op::Split),
        2 => (path.clone(), select(modes)).prop_map(|(path, mode)| Op::Mode(path, mode)),
        1 => (path.clone(), select(owned)).prop_map(|(path, owner)| Op::Owner(path, owner)),
        3 => (path.clone(), when).prop_map(|(path, when)| Op::Time(path, when)),
        immutable => path.prop_map(Op::Immutable),
    ]
    .boxed()
}

/// A destination. Dropping it clears the immutable flags, which would prevent its removal.
pub(super) struct Destination {
    immutable: Vec<File>,
    /// The features that the report counts.
    pub(super) features: Vec<String>,
}

/// Creates a destination. `src` is the tree of `entries`.
pub(super) fn make(dest: &Path, src: &Path, entries: &[Entry], base: Base, ops: &[Op]) -> Destination {
    let mut state = Destination { immutable: Vec::new(), features: vec![format!("{base:?}").to_lowercase()] };
    if base == Base::Absent {
        return state;
    }
    source::make(dest, if base == Base::Copy { entries } else { &[] });
    // Names whose time no operation sets get a time in the past, which no client's clock sets.
    let start = SystemTime::now() - Duration::from_millis(100);
    let (structure, attributes): (Vec<_>, Vec<_>) = ops.iter().partition(|op| !op.is_of_attributes());
    let mut apply = |op: &Op| {
        let path = dest.join(op.path());
        let before = kind(&path);
        if op.apply(dest, src, &path).is_some() {
            state.features.push(op.feature(before));
        }
    };
    structure.into_iter().for_each(&mut apply);
    settle(dest, src, start);
    attributes.iter().filter(|op| !matches!(op, Op::Immutable(_))).for_each(|op| apply(op));
    for op in &attributes {
        if let Op::Immutable(path) = op {
            let path = dest.join(path);
            if let Some(file) = freeze(&path) {
                state.features.push(format!("immutable {}", kind(&path)));
                state.immutable.push(file);
            }
        }
    }
    state
}

impl Drop for Destination {
    fn drop(&mut self) {
        for file in &self.immutable {
            if let Ok(flags) = rustix::fs::ioctl_getflags(file) {
                let _ = rustix::fs::ioctl_setflags(file, flags - IFlags::IMMUTABLE);
            }
        }
    }
}

/// Sets the immutable flag: no entry of such a directory can be created or removed. `None` if the file system does not
/// support it, or the user may not set it.
fn freeze(path: &Path) -> Option<File> {
    if !matches!(kind(path), "file" | "directory") {
        return None;
    }
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).ok()?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let flags = rustix::fs::ioctl_getflags(&file).ok()?;
    rustix::fs::ioctl_setflags(&file, flags | IFlags::IMMUTABLE).ok()?;
    Some(file)
}

/// Gives directories that the operations changed the time that they have at the source.
fn settle(dest: &Path, src: &Path, start: SystemTime) {
    walk(dest, &mut |path, facts| {
        if facts.modified().is_ok_and(|time| time >= start) {
            let name = path.strip_prefix(dest).expect("below");
            let (sec, nsec) = time_of(&src.join(name));
            touch(path, sec, nsec);
        }
    });
}

/// Returns the time of a name at the source, or some time if it does not exist there.
fn time_of(path: &Path) -> (i64, i64) {
    path.symlink_metadata().map_or((SOME_TIME + 50, 7), |facts| (facts.mtime(), facts.mtime_nsec()))
}

fn kind(path: &Path) -> &'static str {
    match path.symlink_metadata().map(|facts| facts.file_type()) {
        Err(_) => "nothing",
        Ok(kind) if kind.is_dir() => "directory",
        Ok(kind) if kind.is_file() => "file",
        Ok(kind) if kind.is_symlink() => "symlink",
        Ok(kind) if kind.is_fifo() => "fifo",
        Ok(_) => "device",
    }
}

fn remove(path: &Path) {
    if kind(path) == "directory" {
        std::fs::remove_dir_all(path).expect("it goes");
    } else {
        let _ = std::fs::remove_file(path);
    }
}

impl Op {
    fn path(&self) -> &str {
        match self {
            Self::Remove(path)
            | Self::File(path, ..)
            | Self::Dir(path, _)
            | Self::Symlink(path, _)
            | Self::Fifo(path)
            | Self::Merge(path, ..)
            | Self::Leftover(path, _)
            | Self::Join(path, _)
            | Self::Split(path)
            | Self::Mode(path, _)
            | Self::Owner(path, _)
            | Self::Time(path, _)
            | Self::Immutable(path) => path,
        }
    }

    /// Returns whether the operation sets attributes. Such operations come last, because the others would undo them.
    fn is_of_attributes(&self) -> bool {
        matches!(self, Self::Mode(..) | Self::Owner(..) | Self::Time(..) | Self::Immutable(_))
    }

    fn feature(&self, before: &str) -> String {
        match self {
            Self::Remove(_) => format!("no {before}"),
            Self::File(_, content, When::Same) => format!("file for {before}: {content:?} at the same time"),
            Self::File(_, content, _) => format!("file for {before}: {content:?}"),
            Self::Dir(_, names) if names.is_empty() => format!("empty directory for {before}"),
            Self::Dir(..) => format!("directory for {before}"),
            Self::Symlink(_, Target::Inside(_)) => format!("symlink for {before}: inside"),
            Self::Symlink(_, target) => format!("symlink for {before}: {target:?}"),
            Self::Fifo(_) => format!("fifo for {before}"),
            Self::Merge(_, name, _) => format!("merge file {name}"),
            Self::Leftover(_, leftover) => format!("leftover {leftover:?}"),
            Self::Join(..) => "link group joined".into(),
            Self::Split(_) => "link group split".into(),
            Self::Mode(..) => format!("mode of {before}"),
            Self::Owner(..) => format!("owner of {before}"),
            Self::Time(_, when) => format!("time of {before}: {when:?}"),
            Self::Immutable(_) => format!("immutable {before}"),
        }
    }

    /// Applies the operation. `None` if there is nothing to do.
    fn apply(&self, dest: &Path, src: &Path, path: &Path) -> Option<()> {
        let name = self.path();
        // Never follow a symlink.
        if self.is_of_attributes() || matches!(self, Self::Remove(_) | Self::Split(_)) {
            if kind(path) == "nothing" || !is_below_dirs(dest, name) {
                return None;
            }
        } else if !has_dirs(dest, name) {
            return None;
        }
        let origin = src.join(name);
        match self {
            Self::Remove(_) if name.is_empty() => return None,
            Self::Remove(_) => remove(path),
            Self::File(_, content, when) => {
                remove(path);
                std::fs::write(path, content.of(&origin)).ok()?;
                let mode = origin.symlink_metadata().map_or(0o644, |facts| facts.mode() & 0o7777);
                std::fs::set_permissions(path, Permissions::from_mode(mode)).ok()?;
                when.set(path, &origin);
            }
            Self::Dir(_, names) => {
                remove(path);
                std::fs::create_dir(path).ok()?;
                for name in names {
                    let path = path.join(name);
                    std::fs::write(&path, name).ok()?;
                    touch(&path, SOME_TIME, 3);
                }
            }
            Self::Symlink(_, target) => {
                remove(path);
                symlink(target.text(name), path).ok()?;
                touch(path, SOME_TIME, 2);
            }
            Self::Fifo(_) => {
                remove(path);
                node(path, FileType::Fifo, 0);
                touch(path, SOME_TIME, 4);
            }
            Self::Merge(dir, name, rules) => {
                let path = dest.join(join(dir, name));
                if !has_dirs(dest, &join(dir, name)) {
                    return None;
                }
                remove(&path);
                std::fs::write(&path, format!("{}\n", rules.join("\n"))).ok()?;
                touch(&path, SOME_TIME, 6);
                put_ruled(&dest.join(dir));
            }
            Self::Leftover(_, leftover) => leftover.put(path, &origin)?,
            Self::Join(_, old) => {
                if !is_below_dirs(dest, old) {
                    return None;
                }
                let old = dest.join(old);
                if !matches!(kind(&old), "file" | "symlink" | "fifo") || same_inode(path, &old) {
                    return None;
                }
                remove(path);
                std::fs::hard_link(&old, path).ok()?;
            }
            Self::Split(_) => {
                let facts = path.symlink_metadata().ok()?;
                if !facts.is_file() || facts.nlink() < 2 {
                    return None;
                }
                let content = std::fs::read(path).ok()?;
                remove(path);
                std::fs::write(path, content).ok()?;
                touch(path, facts.mtime(), facts.mtime_nsec());
            }
            Self::Mode(_, mode) if !path.is_symlink() => {
                // Without root, directories that are not searchable could not be compared.
                let kept = if path.is_dir() && !am_root() { 0o500 } else { 0 };
                std::fs::set_permissions(path, Permissions::from_mode(mode | kept)).ok()?;
            }
            Self::Mode(..) => return None,
            Self::Owner(_, owner) => lchown(path, Some(*owner), Some(*owner)).ok()?,
            Self::Time(_, when) => when.set(path, &origin),
            Self::Immutable(_) => {}
        }
        Some(())
    }
}

/// Writes the files of [`RULED`] into a directory and into all directories below.
fn put_ruled(root: &Path) {
    let mut dirs = Vec::new();
    walk(root, &mut |path, facts| dirs.extend(facts.is_dir().then(|| path.to_owned())));
    for path in dirs.iter().flat_map(|dir| RULED.map(|name| dir.join(name))) {
        if kind(&path) == "nothing" {
            std::fs::write(&path, b"ruled").expect("a file");
            touch(&path, SOME_TIME, 5);
        }
    }
}

fn is_below_dirs(dest: &Path, name: &str) -> bool {
    Path::new(name).ancestors().skip(1).all(|above| kind(&dest.join(above)) == "directory")
}

fn same_inode(a: &Path, b: &Path) -> bool {
    let inode = |path: &Path| path.symlink_metadata().ok().map(|facts| facts.ino());
    inode(a).is_some() && inode(a) == inode(b)
}

impl Content {
    fn of(self, origin: &Path) -> Vec<u8> {
        let is_file = kind(origin) == "file";
        let mut content = if is_file { std::fs::read(origin).unwrap_or_default() } else { noise(50, 9) };
        match self {
            Self::Same => {}
            Self::OtherOfSameSize => content = noise(content.len(), 77),
            Self::Edited => {
                let half = content.len() / 2;
                content.splice(half..half, *b"edited");
            }
            Self::Truncated => content.truncate(content.len() / 2),
            Self::Longer => content.extend_from_slice(&noise(1000, 5)),
            Self::Empty => content.clear(),
        }
        content
    }
}

impl When {
    fn set(self, path: &Path, origin: &Path) {
        let (sec, nsec) = time_of(origin);
        match self {
            Self::Same => touch(path, sec, nsec),
            Self::Older => touch(path, sec - 1000, nsec),
            Self::Newer => touch(path, sec + 1000, nsec),
            Self::OtherNanoseconds => touch(path, sec, (nsec + 1000) % 1_000_000_000),
        }
    }
}

/// Creates the directory next to the destination that symlinks point to.
pub(super) fn make_outside(out: &Path) {
    std::fs::create_dir(out).expect("a directory");
    for name in ["file", "dir/f", "dir/keep1", "dir/sub/g", "dir/sub/local1"] {
        let path = out.join(name);
        assert!(has_dirs(out, name));
        std::fs::write(&path, name).expect("a file");
        touch(&path, SOME_TIME, 8);
    }
    for name in ["dir/sub", "dir", ""] {
        touch(&out.join(name), SOME_TIME, 9);
    }
}

impl Target {
    fn text(&self, name: &str) -> String {
        let up = "../".repeat(name.matches('/').count());
        match self {
            Self::Inside(path) if path.is_empty() => format!("{up}."),
            Self::Inside(path) => format!("{up}{path}"),
            Self::Outside => format!("{up}../out/dir"),
            Self::FileOutside => format!("{up}../out/file"),
            Self::Dangling => "nowhere".into(),
            Self::Itself => name.rsplit('/').next().unwrap_or_default().into(),
        }
    }
}

impl Leftover {
    fn put(self, path: &Path, origin: &Path) -> Option<()> {
        let (dir, name) = (path.parent()?, path.file_name()?.to_str()?);
        let content = Content::Truncated.of(origin);
        let at = match self {
            Self::Temporary => dir.join(format!(".{name}.Ab3dEf")),
            Self::Backup => dir.join(format!("{name}~")),
            Self::PartialDir(partial) => {
                let partial = dir.join(partial);
                if kind(&partial) == "nothing" {
                    std::fs::create_dir(&partial).ok()?;
                }
                partial.join(name)
            }
            Self::PartialDirIsFile(partial) => dir.join(partial),
        };
        if kind(&at) != "nothing" || kind(at.parent()?) != "directory" {
            return None;
        }
        let file = File::create_new(&at).ok()?;
        file.write_all_at(&content, 0).ok()?;
        touch(&at, SOME_TIME, 10);
        Some(())
    }
}

impl fmt::Display for Op {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Merge(dir, name, rules) => {
                write!(
                    out,
                    "put merge file {:?} with the rules {}; and {RULED:?} there and below",
                    join(dir, name),
                    rules.join("; ")
                )
            }
            Self::File(path, content, when) => write!(out, "put file {path:?}: content {content:?}, time {when:?}"),
            Self::Dir(path, names) => write!(out, "put directory {path:?} with {names:?} in it"),
            Self::Symlink(path, target) => write!(out, "put symlink {path:?} -> {:?}", target.text(path)),
            Self::Join(new, old) => write!(out, "make {new:?} a link to {old:?}"),
            Self::Split(path) => write!(out, "make {path:?} a file of its own"),
            Self::Mode(path, mode) => write!(out, "chmod {mode:o} {path:?}"),
            Self::Owner(path, owner) => write!(out, "chown {owner}:{owner} {path:?}"),
            Self::Leftover(path, leftover) => write!(out, "leave {leftover:?} of {path:?}"),
            Self::Remove(path) => write!(out, "remove {path:?}"),
            Self::Fifo(path) => write!(out, "put fifo {path:?}"),
            Self::Time(path, when) => write!(out, "time of {path:?}: {when:?}"),
            Self::Immutable(path) => write!(out, "chattr +i {path:?}"),
        }
    }
}
