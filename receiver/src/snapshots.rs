//! Whole trees beside each other, of which a symlink names the current one, so that readers get a new state in one step.
//!
//! DEST is the symlink. The directory `DEST.snapshots` beside it has:
//!
//! | name | |
//! |---|---|
//! | `20261130T032046Z`, `20261130T032046Z-2`, … | a snapshot, named by the time at which it became current |
//! | `first` | the directory that DEST was before |
//! | `building` | the next snapshot, which a pull updates. It begins as hard links to the files of the current one. |
//! | `copying` | the beginning of `building` |
//! | `switch` | for a moment: the symlink that replaces DEST, or the directory that it has replaced |
//! | `removing` | an expired snapshot, half removed |
//!
//! Snapshots share inodes. So no pull changes one in place: a file of which only the mode, owner or time changes gets an
//! inode of its own, and the ctime is not recorded ([`Tree::open_snapshot`]).
//!
//! Each step is one rename, so a pull that is killed anywhere leaves DEST naming a whole snapshot. The next pull goes on
//! from there: [`Snapshots::open`] and [`Snapshots::finish_switch`].

mod copy;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use rustix::fs::{AtFlags, CWD, RenameFlags};
use stillmirror_protocol::list::FileType;
use tokio_util::sync::CancellationToken;

use crate::error::{At as _, PullError};
use crate::local::{self, Tree, TreeLock};
use crate::report::Progress;

const BUILDING: &str = "building";
const COPYING: &str = "copying";
const FIRST: &str = "first";
const REMOVING: &str = "removing";
const SWITCH: &str = "switch";

/// The snapshots of one destination, locked.
#[derive(Debug)]
pub(crate) struct Snapshots {
    dest: PathBuf,
    dir: Tree,
    /// `None` for a dry run.
    _lock: Option<TreeLock>,
}

/// What DEST is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Current {
    /// Nothing has the name.
    Missing,
    /// A symlink to the snapshot of this name.
    Snapshot(Vec<u8>),
    /// A directory, which becomes the first snapshot.
    Directory,
}

/// When a snapshot became current, and its number among those of the same second. `None` for [`FIRST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Began(Option<(DateTime, u32)>);

/// Fails if `dest` is a symlink to a snapshot: an update in place would change the other snapshots, too.
pub(crate) fn refuse_snapshot(dest: &Path) -> Result<(), PullError> {
    let dest = without_slash(dest);
    let Ok(target) = fs::read_link(dest) else { return Ok(()) };
    let is_snapshot = match (target.parent(), snapshots_dir(dest)) {
        (Some(parent), Ok(dir)) => parent.file_name() == dir.file_name() && parent.components().count() == 1,
        _ => false,
    };
    if is_snapshot {
        let dest = dest.display();
        return Err(PullError::usage(format!("{dest} is a symlink to a snapshot: pull with --switch")));
    }
    Ok(())
}

/// Returns whether another pull has the snapshots of a destination. Errors are reported by the pull itself.
pub(crate) fn are_taken(dest: &Path) -> bool {
    let lock = |dir: PathBuf| Tree::open(&dir).and_then(|dir| dir.lock());
    snapshots_dir(without_slash(dest)).is_ok_and(|dir| matches!(lock(dir), Ok(None)))
}

impl Snapshots {
    /// Opens the snapshots of a destination, and locks them unless `dry_run`. `None` for a dry run without snapshots.
    pub(crate) fn open(dest: &Path, dry_run: bool) -> Result<Option<Self>, PullError> {
        let dest = without_slash(dest);
        let path = snapshots_dir(dest)?;
        if !dry_run {
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                created => created.at("create", &path)?,
            }
        }
        let dir = match Tree::open(&path) {
            Err(error) if dry_run && error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.at("open", &path)?,
        };
        let lock = if dry_run { None } else { Some(lock(&dir, dest)?) };
        let snapshots = Self { dest: dest.to_owned(), dir, _lock: lock };
        if !dry_run {
            snapshots.clear_up()?;
        }
        snapshots.current()?;
        Ok(Some(snapshots))
    }

    /// Opens the next snapshot if a pull has begun it, else the current one. `None` if there is neither.
    pub(crate) fn open_tree(&self) -> Result<Option<Tree>, PullError> {
        let open = |path: PathBuf| Tree::open_snapshot(&path).at("open", &path).map(Some);
        match self.current()? {
            _ if self.is_building() => open(self.path(BUILDING)),
            Current::Missing => Ok(None),
            Current::Snapshot(name) => open(self.dir.shown(&name)),
            Current::Directory => Tree::open(&self.dest).at("open", &self.dest).map(Some),
        }
    }

    /// Returns whether a pull has begun the next snapshot.
    pub(crate) fn is_building(&self) -> bool {
        fs::symlink_metadata(self.path(BUILDING)).is_ok()
    }

    /// Begins the next snapshot: hard links to all files of `current`, in directories of its own.
    pub(crate) fn begin(
        &self,
        current: &Tree,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Tree, PullError> {
        let path = self.path(COPYING);
        fs::create_dir(&path).at("create", &path)?;
        let copy = Tree::open_snapshot(&path).at("open", &path)?;
        copy::copy(current, &copy, progress, cancel)?;
        self.rename(COPYING.as_bytes(), BUILDING.as_bytes())?;
        Tree::open_snapshot(&self.path(BUILDING)).at("open", self.path(BUILDING))
    }

    /// Begins the next snapshot with nothing in it.
    pub(crate) fn begin_empty(&self) -> Result<Tree, PullError> {
        let path = self.path(BUILDING);
        fs::create_dir(&path).at("create", &path)?;
        Tree::open_snapshot(&path).at("open", path)
    }

    /// Makes `building` the current snapshot. Everything in it must have reached the disk.
    pub(crate) fn switch(&self) -> Result<(), PullError> {
        let name = self.free_name(Timestamp::now())?;
        self.rename(BUILDING.as_bytes(), &name)?;
        self.point_to(&name)
    }

    /// Ends a switch that a killed pull began: if the snapshot with the inode `root`, which the store describes, is not
    /// current, it becomes so. Returns whether it did.
    pub(crate) fn finish_switch(&self, root: u64) -> Result<bool, PullError> {
        let has_root = |name: &[u8]| local::stat(self.dir.root(), name).is_ok_and(|stat| stat.inode == root);
        if self.is_building() && has_root(BUILDING.as_bytes()) {
            self.switch()?;
            return Ok(true);
        }
        let complete = self.complete()?.into_iter().find(|(_, name)| has_root(name));
        match complete {
            Some((_, name)) if self.current()? != Current::Snapshot(name.clone()) => {
                self.point_to(&name)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Removes the snapshots that ceased to be current at least `keep` ago. Returns their number.
    pub(crate) fn expire(&self, keep: Duration) -> Result<u64, PullError> {
        let mut removed = 0;
        for (name, ended) in self.former()? {
            if time_left(ended, keep, Timestamp::now()).is_zero() {
                self.rename(&name, REMOVING.as_bytes())?;
                self.remove(REMOVING.as_bytes())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Returns when the next snapshot expires, from now on. `None` if there is none that will.
    pub(crate) fn next_to_expire(&self, keep: Duration) -> Result<Option<Duration>, PullError> {
        let now = Timestamp::now();
        Ok(self.former()?.into_iter().map(|(_, ended)| time_left(ended, keep, now)).min())
    }

    /// Returns the snapshots that are not current any more, and when they ceased to be.
    fn former(&self) -> Result<Vec<(Vec<u8>, DateTime)>, PullError> {
        let Current::Snapshot(current) = self.current()? else { return Ok(Vec::new()) };
        let complete = self.complete()?;
        let former = complete.windows(2).filter_map(|pair| match pair {
            [(_, name), (Began(Some((ended, _))), _)] if *name != current => Some((name.clone(), *ended)),
            _ => None,
        });
        Ok(former.collect())
    }

    /// Makes DEST a symlink to the snapshot `name`, in one step.
    fn point_to(&self, name: &[u8]) -> Result<(), PullError> {
        let switch = self.path(SWITCH);
        let dir_name = self.dir_name();
        let target = Path::new(&dir_name).join(OsStr::from_bytes(name));
        // A relative target: the directory that has both may be mounted or exported elsewhere.
        rustix::fs::symlinkat(&target, CWD, &switch).at("create", &switch)?;
        match self.current()? {
            Current::Directory => {
                rustix::fs::renameat_with(CWD, &switch, CWD, &self.dest, RenameFlags::EXCHANGE)
                    .at("exchange with a symlink", &self.dest)?;
                self.sync_parent()?;
                self.keep_replaced()?;
            }
            Current::Missing | Current::Snapshot(_) => {
                fs::rename(&switch, &self.dest).at("rename to", &self.dest)?;
                self.sync_parent()?;
            }
        }
        Ok(())
    }

    /// Removes or completes what a killed pull left.
    fn clear_up(&self) -> Result<(), PullError> {
        let switch = local::optional(local::stat(self.dir.root(), SWITCH.as_bytes())).at("stat", self.path(SWITCH))?;
        match switch {
            Some(stat) if stat.kind == FileType::Directory => self.keep_replaced()?,
            Some(_) => self.remove(SWITCH.as_bytes())?,
            None => {}
        }
        self.remove(COPYING.as_bytes())?;
        self.remove(REMOVING.as_bytes())
    }

    /// Makes a snapshot of the directory that DEST was.
    fn keep_replaced(&self) -> Result<(), PullError> {
        let first = local::optional(local::stat(self.dir.root(), FIRST.as_bytes())).at("stat", self.path(FIRST))?;
        let name = if first.is_none() { FIRST.into() } else { self.free_name(Timestamp::now())? };
        self.rename(SWITCH.as_bytes(), &name)
    }

    fn current(&self) -> Result<Current, PullError> {
        let found = local::optional(fs::symlink_metadata(&self.dest)).at("stat", &self.dest)?;
        let Some(found) = found else { return Ok(Current::Missing) };
        if found.is_dir() {
            return match is_mount_point(&self.dest).at("stat", &self.dest)? {
                false => Ok(Current::Directory),
                true => {
                    Err(self.refuse("is a mount point, which cannot become a symlink: pull into a directory in it"))
                }
            };
        }
        if !found.is_symlink() {
            return Err(self.refuse("is not a directory"));
        }
        let target = fs::read_link(&self.dest).at("read", &self.dest)?;
        let name = target.file_name().map(OsStr::as_bytes).unwrap_or_default();
        if target.parent() != Some(Path::new(&self.dir_name())) || Began::parse(name).is_none() {
            let other = format!("is a symlink to {}, which is not one of its snapshots", target.display());
            return Err(self.refuse(&format!("{other}: give the directory itself, or another name")));
        }
        match local::optional(local::stat(self.dir.root(), name)).at("stat", self.dir.shown(name))? {
            Some(_) => Ok(Current::Snapshot(name.to_vec())),
            // Its snapshot was removed by hand.
            None => Ok(Current::Missing),
        }
    }

    fn refuse(&self, why: &str) -> PullError {
        PullError::usage(format!("{} {why}", self.dest.display()))
    }

    /// Returns the complete snapshots, the oldest first.
    fn complete(&self) -> Result<Vec<(Began, Vec<u8>)>, PullError> {
        let names = local::names(self.dir.root()).at("read", self.dir.shown(b""))?;
        let mut found: Vec<_> = names.into_iter().filter_map(|(name, _)| Some((Began::parse(&name)?, name))).collect();
        found.sort();
        Ok(found)
    }

    /// Returns the name for a snapshot that becomes current now. It sorts after all others even if the clock went back.
    fn free_name(&self, now: Timestamp) -> Result<Vec<u8>, PullError> {
        let now = TimeZone::UTC.to_datetime(now);
        let newest = self.complete()?.last().and_then(|(began, _)| began.0);
        let began = match newest {
            Some((second, number)) if second >= truncated(now) => (second, number.saturating_add(1)),
            _ => (truncated(now), 1),
        };
        Ok(Began(Some(began)).name())
    }

    fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), PullError> {
        local::rename_new(self.dir.root(), from, self.dir.root(), to).at("rename", self.dir.shown(from))?;
        rustix::fs::fsync(self.dir.root()).at("sync", self.dir.shown(b""))
    }

    fn remove(&self, name: &[u8]) -> Result<(), PullError> {
        let removed = local::remove_all(self.dir.root(), name, b"", &|_, _| false);
        removed.at("remove", self.dir.shown(name)).map(drop)
    }

    fn sync_parent(&self) -> Result<(), PullError> {
        let parent = parent_of(&self.dest);
        fs::File::open(parent).and_then(|parent| parent.sync_all()).at("sync", parent)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.shown(name.as_bytes())
    }

    fn dir_name(&self) -> OsString {
        snapshots_name(self.dest.file_name().unwrap_or_default())
    }
}

impl Began {
    fn parse(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        if name == FIRST {
            return Some(Self(None));
        }
        let (time, number) = name.split_once('-').map_or((name, Some(1)), |(time, number)| (time, number.parse().ok()));
        let began = Self(Some((DateTime::strptime(TIME, time).ok()?, number?)));
        // Only names that `name` gives are snapshots.
        (began.name() == name.as_bytes()).then_some(began)
    }

    fn name(self) -> Vec<u8> {
        match self.0 {
            None => FIRST.into(),
            Some((time, 1)) => time.strftime(TIME).to_string().into_bytes(),
            Some((time, number)) => format!("{}-{number}", time.strftime(TIME)).into_bytes(),
        }
    }
}

const TIME: &str = "%Y%m%dT%H%M%SZ";

fn truncated(time: DateTime) -> DateTime {
    time.with().subsec_nanosecond(0).build().unwrap_or(time)
}

/// Returns how much time is left until `age` has passed since a time. A time in the future counts as now.
fn time_left(time: DateTime, age: Duration, now: Timestamp) -> Duration {
    let Ok(time) = TimeZone::UTC.to_timestamp(time) else { return Duration::MAX };
    match Duration::try_from(now.duration_since(time)) {
        Ok(passed) => age.saturating_sub(passed),
        Err(_) => age.max(Duration::from_secs(1)),
    }
}

fn lock(dir: &Tree, dest: &Path) -> Result<TreeLock, PullError> {
    let busy = || PullError::Busy { dest: dest.to_owned() };
    dir.lock().at("lock", dir.shown(b""))?.ok_or_else(busy)
}

/// Returns a path without the slash at its end, with which calls that concern a symlink follow it.
fn without_slash(path: &Path) -> &Path {
    path.components().as_path()
}

fn snapshots_dir(dest: &Path) -> Result<PathBuf, PullError> {
    match dest.file_name() {
        Some(name) => Ok(parent_of(dest).join(snapshots_name(name))),
        None => Err(PullError::usage(format!("{} has no name that could become a symlink", dest.display()))),
    }
}

fn snapshots_name(dest: &OsStr) -> OsString {
    [dest, OsStr::new(".snapshots")].into_iter().collect()
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_mount_point(dir: &Path) -> io::Result<bool> {
    let of = |path: &Path| rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_dev);
    Ok(of(dir)? != of(parent_of(dir))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_named_in_the_order_in_which_they_became_current() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(&dir.path().join("dest"), false).unwrap().unwrap();
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        let mut names = vec![b"first".to_vec()];
        // The last two begin after the clock went back.
        for time in ["09:59:59", "10:00:00.9", "10:00:00.99", "10:00:01", "09:00:00", "10:00:01"] {
            for name in &names {
                let _ = fs::create_dir(snapshots.dir.shown(name));
            }
            names.push(snapshots.free_name(at(&format!("2026-11-30T{time}Z"))).unwrap());
        }
        let shown: Vec<_> = names.iter().map(|name| std::str::from_utf8(name).unwrap()).collect();
        assert_eq!(shown[1..4], ["20261130T095959Z", "20261130T100000Z", "20261130T100000Z-2"]);
        assert_eq!(shown[4..], ["20261130T100001Z", "20261130T100001Z-2", "20261130T100001Z-3"]);
        for strange in ["building", "20261130T095959", "20261130T095959Z-1", "20261130T095959Z-02", "20261330T095959Z"]
        {
            assert_eq!(Began::parse(strange.as_bytes()), None, "{strange}");
        }
        let found: Vec<_> = snapshots.complete().unwrap().into_iter().map(|(_, name)| name).collect();
        assert_eq!(found, names[..6]);
    }

    #[test]
    fn a_snapshot_expires_by_when_the_next_one_became_current() {
        let began = Began::parse(b"20261130T100000Z").unwrap().0.unwrap().0;
        let left =
            |seconds: u64, now: &str| time_left(began, Duration::from_secs(seconds), now.parse().unwrap()).as_secs();
        assert_eq!([left(60, "2026-11-30T10:01:00Z"), left(60, "2026-11-30T10:00:59Z")], [0, 1]);
        assert_ne!(left(0, "2026-11-30T09:00:00Z"), 0, "the clock went back");
    }
}
