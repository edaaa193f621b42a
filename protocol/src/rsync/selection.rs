//! Selects the part of the repository that a client requests.
//!
//! [`Selecting`] takes the client's [`Wanted`] paths and, one by one, the names of `--files-from`.
//! [`Selecting::finish`] returns the [`Selection`]. A selection consists of views, one for each directory
//! that names are relative to. A view is a sorted sequence of marked rows: which rows are listed, and which
//! are descended into. The list's names follow from the tree, so a million names from a client take four
//! bytes each.

mod follow;
mod glob;
mod locate;
mod marks;
mod paths;

use std::collections::BTreeMap;

use crate::limits;
use crate::list::{ListRef, Row};
use crate::path;
use crate::rsync::mux::Severity;
use crate::rsync::version::Version;

use locate::Locator;
pub use locate::visible;
use marks::Marks;
use paths::RequestedPath;
pub use paths::tidy;

pub use follow::Follow;
pub(crate) use follow::{Followed, LINKS, LookupError};
pub(crate) use marks::{CHILDREN, IMPLIED, LISTED, RECURSE, REQUESTED, ROW, View};

/// Maximum number of missing paths of a command line that are reported. Wildcards can skip any number of
/// directories, over and over.
const MISSING_LIMIT: usize = 16 << 10;

/// The paths and options of a client that select entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Paths below the module, without the module's name: `""` or `"dir/"` for contents, `"dir"` for the
    /// directory itself. Wildcards and backslashes are left as the client sent them. With `--files-from`, the
    /// names are relative to the first path.
    pub paths: Vec<Vec<u8>>,
    /// `-r`.
    pub recurse: bool,
    /// `-d`. Implied by `--files-from`.
    pub dirs: bool,
    /// `-R`. Implied by `--files-from`, unless `--no-relative` is given.
    pub relative: bool,
    /// False with `--no-implied-dirs`.
    pub implied_dirs: bool,
    /// `--files-from`: names are passed one by one to [`Selecting::add`].
    pub files_from: bool,
    /// `--delete-missing-args`: a missing name is listed anyway, so that the client deletes it.
    pub delete_missing: bool,
    /// The symlinks that are replaced by their targets.
    pub follow: Follow,
}

impl Wanted {
    /// Returns whether looking up each path finds everything that is requested: there are no wildcards and no
    /// names from a list.
    pub fn is_plain(&self) -> bool {
        !self.files_from && !self.paths.iter().any(|path| glob::is_glob(path))
    }

    /// Returns whether the list may be sent incrementally: there is one plain path, it is recursed, and no
    /// symlink below it is followed. Otherwise the compatibility bit 0x001 must be cleared.
    pub fn may_be_incremental(&self) -> bool {
        let [path] = &self.paths[..] else { return false };
        let is_whole_name = !self.relative || RequestedPath::new(b"", path, true).name.is_empty();
        self.recurse && is_whole_name && self.is_plain() && !self.follow.any()
    }
}

/// Filters that hide names.
pub trait Hides {
    /// Returns whether a rule of the module or the client hides an entry. `path` is relative to the module.
    /// `name` is the offset in it at which the name in the list begins, which is relative to the transfer's
    /// root. Called once per entry, for a directory before its contents. Not called for what is below a
    /// hidden directory.
    fn hides(&self, path: &[u8], name: usize, is_dir: bool) -> bool;

    /// Returns whether the module's own rules hide a path. A client that requests it is told that it does not exist.
    fn module_hides(&self, path: &[u8], is_dir: bool) -> bool;

    /// Returns whether the module has rules of its own.
    fn has_module_rules(&self) -> bool {
        true
    }

    /// Returns whether the module's own rules hide an entry by its own path, regardless of the path that led
    /// to it. Does not check the directories above it.
    fn module_hides_row(&self, list: ListRef<'_>, row: Row<'_>) -> bool {
        self.has_module_rules() && self.module_hides(&list.path(row.number()), row.is_dir())
    }

    /// Returns whether the entries of a directory may be named. If not, only the directory's own name is known.
    fn may_enter(&self, _dir: Row<'_>) -> bool {
        true
    }

    /// Returns whether the names in a directory may be listed.
    fn may_list(&self, _dir: Row<'_>) -> bool {
        true
    }

    /// Returns whether these filters hide nothing at all.
    fn nothing(&self) -> bool {
        false
    }

    /// Returns the number of comparison steps taken so far, of about two nanoseconds each. Callers that must
    /// yield to others check it from time to time.
    fn steps(&self) -> u64 {
        0
    }

    /// Returns whether the filters have given up. If so, a list that was made with them must not be used.
    fn gave_up(&self) -> bool {
        false
    }
}

/// No filters: nothing is hidden.
#[derive(Debug, Clone, Copy, Default)]
pub struct Everything;

impl Hides for Everything {
    fn hides(&self, _: &[u8], _: usize, _: bool) -> bool {
        false
    }

    fn module_hides(&self, _: &[u8], _: bool) -> bool {
        false
    }

    fn has_module_rules(&self) -> bool {
        false
    }

    fn nothing(&self) -> bool {
        true
    }
}

/// A requested path that is not listed. The client must be notified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The path as stock rsync names it in messages.
    pub path: Vec<u8>,
    /// The reason.
    pub why: Why,
}

/// The reason why a requested path is not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The entry does not exist. This alone is not an I/O error.
    NoEntry,
    /// A component of the path is not a directory.
    NotOnTheWay,
    /// The directory to enter does not exist.
    NoDirectory,
    /// The path to enter is not a directory.
    NotDirectory,
    /// The path to the entry leads through too many symlinks.
    NoEntryBehindLinks,
    /// The path to the directory to enter leads through too many symlinks.
    NoDirectoryBehindLinks,
    /// An entry found in a directory is a symlink that must be followed, but its target does not exist.
    NoReferent,
    /// Like `NoReferent`, but a component of the target is not a directory.
    NoReferentOnTheWay,
    /// Like `NoReferent`, but the target leads through too many symlinks.
    NoReferentBehindLinks,
    /// The directory is listed, but not its contents, because its path leads through too many symlinks.
    Unopened,
    /// The path to the entry leads through a directory that must not be entered.
    EntryDenied,
    /// The directory to enter, or one above it, must not be entered.
    DirectoryDenied,
    /// An entry found in a directory is a symlink that must be followed, but its target leads through a
    /// directory that must not be entered.
    ReferentDenied,
    /// The directory is listed, but its contents must not be.
    Closed,
    /// The entry is a directory, but the client does not want directories.
    Skipped,
    /// The directory of an entry that is listed for deletion. The number is the length, in bytes, of the path
    /// of the first parent that does not exist.
    Vanished(usize),
}

/// Maximum number of views that are kept apart. Beyond it, names with a common base share a view, and of two
/// equal names the first path's is not always listed first.
const VIEWS: usize = 1024;
/// Approximate memory of a symlink that stands for a directory, in bytes: its marks and its entry in the map.
const GRAFT_BYTES: usize = size_of::<Marks>() + 32;
/// Maximum number of missing parents that are reported for one path. No honest path has thousands.
const VANISHED_LIMIT: usize = 16;

impl Missing {
    /// Returns the messages that stock rsync sends.
    pub fn messages(&self, module: &str) -> Vec<Vec<u8>> {
        let (call, error) = match self.why {
            Why::NoEntry => ("link_stat", "No such file or directory (2)"),
            Why::NotOnTheWay => ("link_stat", "Not a directory (20)"),
            Why::NoDirectory => ("change_dir", "No such file or directory (2)"),
            Why::NotDirectory => ("change_dir", "Not a directory (20)"),
            Why::NoEntryBehindLinks => ("link_stat", "Too many levels of symbolic links (40)"),
            Why::NoDirectoryBehindLinks => ("change_dir", "Too many levels of symbolic links (40)"),
            Why::Unopened => ("opendir", "Too many levels of symbolic links (40)"),
            Why::EntryDenied => ("link_stat", "Permission denied (13)"),
            Why::DirectoryDenied => ("change_dir", "Permission denied (13)"),
            Why::Closed => ("opendir", "Permission denied (13)"),
            Why::ReferentDenied => return vec![self.unreadable(module, "Permission denied (13)")],
            Why::NoReferentOnTheWay => return vec![self.unreadable(module, "Not a directory (20)")],
            Why::NoReferentBehindLinks => {
                return vec![self.unreadable(module, "Too many levels of symbolic links (40)")];
            }
            Why::NoReferent => {
                let after = format!("\" (in {module})\n");
                return vec![[b"symlink has no referent: \"", &self.path[..], after.as_bytes()].concat()];
            }
            Why::Skipped => return vec![[b"skipping directory ", &self.path[..], b"\n"].concat()],
            Why::Vanished(first) => {
                let (path, after) = (&self.path, format!("\" (in {module})\n").into_bytes());
                let ends = (first..=path.len()).filter(|&end| path.get(end).is_none_or(|&byte| byte == b'/'));
                let text = |end| [b"file has vanished: \"", &path[..end], &after].concat();
                return ends.take(VANISHED_LIMIT).map(text).collect();
            }
        };
        let before = format!("rsync: [sender] {call} \"").into_bytes();
        let after = format!("\" (in {module}) failed: {error}\n").into_bytes();
        vec![[&before[..], &self.path, &after].concat()]
    }

    /// Creates the report for a symlink at `path`, below the module, that must be followed but cannot be resolved.
    pub(crate) fn referent(path: &[u8], error: LookupError) -> Self {
        let why = match error {
            LookupError::NotFound => Why::NoReferent,
            LookupError::NotDirectory => Why::NoReferentOnTheWay,
            LookupError::TooManyLinks => Why::NoReferentBehindLinks,
            LookupError::Unopened => Why::Unopened,
            LookupError::Denied => Why::ReferentDenied,
            LookupError::Closed => Why::Closed,
        };
        // The path of the directory that names are relative to ends with a slash.
        let dot: &[u8] = if path.ends_with(b"/") { b"." } else { b"" };
        Self { path: [b"/", path, dot].concat(), why }
    }

    fn unreadable(&self, module: &str, error: &str) -> Vec<u8> {
        let after = format!("\" (in {module})) failed: {error}\n");
        [b"rsync: [sender] readlink_stat(\"", &self.path[..], after.as_bytes()].concat()
    }

    /// Returns the severity of the messages.
    pub fn severity(&self, version: Version) -> Severity {
        match self.why {
            Why::Skipped => Severity::Info,
            // Before protocol 28, no exit code can express this.
            Why::Vanished(_) if version > Version::OLDEST => Severity::Warning,
            _ => Severity::Transfer,
        }
    }

    /// Returns whether `--ignore-missing-args` suppresses the report.
    pub fn may_be_ignored(&self) -> bool {
        self.why == Why::NoEntry
    }

    pub(crate) fn io_error(&self) -> i32 {
        match self.why {
            Why::NoEntry | Why::Skipped => 0,
            Why::Vanished(_) => 2,
            _ => 1,
        }
    }
}

/// The one entry that an incremental list starts from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Top {
    pub(crate) row: u32,
    /// Whether it is a directory whose contents are listed too.
    pub(crate) contents: bool,
    /// Whether it is the directory that names are relative to.
    pub(crate) is_dot: bool,
}

/// Builds a selection from the client's paths.
#[derive(Debug)]
pub struct Selecting {
    wanted: Wanted,
    /// The paths of the command line that have not been looked up yet.
    paths: std::vec::IntoIter<Vec<u8>>,
    globs: glob::Budget,
    /// The directory that names from a list are relative to. `None` if it is missing.
    base: Option<Vec<u8>>,
    /// The views, in the order of the paths: of equal names, a client keeps that of the first path.
    views: Vec<Marks>,
    /// The position in `views` of each base's last view.
    view_of: BTreeMap<u32, usize>,
    /// Whether the next entry is the first of another path on the command line.
    is_new_path: bool,
    locator: Locator,
    deletions: Vec<Vec<u8>>,
    deletion_bytes: usize,
    io_error: i32,
    /// Memory of the marks, in bytes.
    memory: usize,
}

/// A requested entry.
struct Found {
    /// The symlinks that its path leads through, in order.
    through: Vec<Through>,
    /// Whether the last of these symlinks is the entry itself, because its contents are requested.
    is_through: bool,
    row: u32,
}

/// A symlink that stands for a directory.
struct Through {
    row: u32,
    /// The number of the directory that it leads to.
    base: u32,
    /// The number of symlinks on the way to that directory, including this one.
    links: u32,
}

impl Found {
    /// Looks up a normalized path below a base, following the symlinks above the entry. The entry's name
    /// begins at `name_at`.
    fn follow_links(
        list: ListRef<'_>,
        hides: &impl Hides,
        base: u32,
        path: &[u8],
        name_at: usize,
    ) -> Result<Self, LookupError> {
        let mut found = Self { through: Vec::new(), is_through: false, row: list.dir(base).row() };
        let (mut dir, mut end) = (base, name_at);
        for name in path::components(&path[name_at..]) {
            if end > name_at {
                dir = found.enter(list, hides, dir)?;
                end += 1;
            }
            end += name.len();
            let row = follow::child(list, hides, dir, name)?;
            if hides.module_hides(&path[..end], row.is_dir()) {
                return Err(LookupError::NotFound);
            }
            found.row = row.number();
        }
        Ok(found)
    }

    /// Returns the number of the directory that the entry, in the directory `dir`, is or stands for.
    fn enter(&mut self, list: ListRef<'_>, hides: &impl Hides, dir: u32) -> Result<u32, LookupError> {
        let row = list.row(self.row);
        let Some(target) = row.target() else { return row.dir_number().ok_or(LookupError::NotDirectory) };
        let target = follow::resolve_link(list, hides, dir, target, self.links())?;
        let base = list.row(target.row).dir_number().ok_or(LookupError::NotDirectory)?;
        self.through.push(Through { row: self.row, base, links: target.links });
        Ok(base)
    }

    fn links(&self) -> u32 {
        self.through.last().map_or(0, |through| through.links)
    }
}

/// The entries that a client requested, before filters.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The views of the directories that names are relative to (`roots` of them), then those behind symlinks.
    views: Vec<View>,
    roots: usize,
    follow: Follow,
    /// Missing names that are listed for deletion.
    pub(crate) deletions: Vec<Vec<u8>>,
    io_error: i32,
    memory: usize,
}

impl Selecting {
    /// Takes all paths of the command line. Appends those that are missing to `missing`.
    pub fn new(list: ListRef<'_>, wanted: Wanted, hides: &impl Hides, missing: &mut Vec<Missing>) -> Self {
        let mut selecting = Self::begin(list, wanted, hides, missing);
        while selecting.next_path(list, hides, missing) {}
        selecting
    }

    /// Starts a selection without taking any path.
    pub fn begin(list: ListRef<'_>, wanted: Wanted, hides: &impl Hides, missing: &mut Vec<Missing>) -> Self {
        let paths = if wanted.files_from { Vec::new() } else { wanted.paths.clone() };
        let mut selecting = Self {
            wanted,
            paths: paths.into_iter(),
            globs: glob::Budget::for_list(list),
            base: Some(Vec::new()),
            views: Vec::new(),
            view_of: BTreeMap::new(),
            is_new_path: false,
            locator: Locator::default(),
            deletions: Vec::new(),
            deletion_bytes: 0,
            io_error: 0,
            memory: 0,
        };
        if selecting.wanted.files_from {
            selecting.set_base(list, hides, missing);
        }
        selecting
    }

    /// Takes the next path of the command line, with everything that its wildcards match. Returns false if
    /// there is no path left.
    pub fn next_path(&mut self, list: ListRef<'_>, hides: &impl Hides, missing: &mut Vec<Missing>) -> bool {
        let Some(path) = self.paths.next() else { return false };
        let (mut globs, relative) = (std::mem::take(&mut self.globs), self.wanted.relative);
        self.is_new_path = true;
        glob::expand(list, &path, relative, hides, &mut globs, |path| {
            let report = self.add(list, hides, path).err();
            if missing.len() < MISSING_LIMIT {
                missing.extend(report);
            }
        });
        self.globs = globs;
        true
    }

    /// Adds one name from a list of names (`--files-from`). Fails if the client must be notified that it is
    /// not listed.
    pub fn add(&mut self, list: ListRef<'_>, hides: &impl Hides, name: &[u8]) -> Result<(), Missing> {
        let Some(base) = &self.base else { return Ok(()) };
        let requested = RequestedPath::new(base, name, self.wanted.relative);
        self.select(list, hides, &requested).inspect_err(|missing| self.io_error |= missing.io_error())
    }

    /// Returns the memory used, in bytes.
    pub fn memory(&self) -> usize {
        self.memory + self.deletion_bytes + size_of::<Vec<u8>>() * self.deletions.capacity()
    }

    /// Finishes the selection.
    pub fn finish(self) -> Selection {
        let roots = self.views.len();
        let mut views = vec![View::default(); roots];
        for (at, marks) in self.views.into_iter().enumerate() {
            views[at] = marks.into_view(&mut views);
        }
        let memory = views.iter().map(View::memory).sum::<usize>() + self.deletion_bytes;
        let memory = memory + size_of::<Vec<u8>>() * self.deletions.capacity();
        Selection {
            views,
            roots,
            follow: self.wanted.follow,
            deletions: self.deletions,
            io_error: self.io_error,
            memory,
        }
    }

    fn set_base(&mut self, list: ListRef<'_>, hides: &impl Hides, missing: &mut Vec<Missing>) {
        let base = paths::tidy(self.wanted.paths.first().map_or(&[][..], |path| path));
        self.base = match self.locator.base(list, hides, &base) {
            Ok((_, base)) => Some(base),
            Err(error) => {
                self.io_error |= 1;
                missing.push(Missing { path: [b"/", &base[..]].concat(), why: error.change_dir_reason() });
                None
            }
        };
    }

    fn select(&mut self, list: ListRef<'_>, hides: &impl Hides, requested: &RequestedPath) -> Result<(), Missing> {
        let cannot_enter =
            |error: LookupError| Missing { path: [b"/", &requested.base[..]].concat(), why: error.change_dir_reason() };
        let (base, base_path) = self.locator.base(list, hides, &requested.base).map_err(cannot_enter)?;
        let missing = |error: LookupError| Missing { path: requested.display_path(), why: error.stat_reason() };
        let path = RequestedPath { base: base_path, name: requested.name.clone(), contents: requested.contents }.path();
        let name_at = path.len() - requested.name.len();
        let found = match self.locator.entry(list, hides, &path) {
            Ok(row) => Found { through: Vec::new(), is_through: false, row: row.number() },
            Err(LookupError::NotFound) if self.may_delete() => {
                return self.add_deletion(list, hides, base, &path, requested);
            }
            Err(LookupError::NotDirectory) => {
                Found::follow_links(list, hides, base, &path, name_at).map_err(missing)?
            }
            Err(error) => return Err(missing(error)),
        };
        let (found, is_dir) = match self.follow_last(list, hides, found, requested) {
            Ok(found) => found,
            // Stock rsync finds the symlink first and only then resolves it.
            Err(error) if !self.wanted.follow.all => return Err(Missing::referent(&path, error)),
            Err(LookupError::NotFound) if self.may_delete() => {
                return self.add_deletion(list, hides, base, &path, requested);
            }
            Err(error) => return Err(missing(error)),
        };
        if is_dir && !self.wanted.recurse && !self.wanted.dirs && !self.wanted.files_from {
            let path = if requested.name.is_empty() { b".".to_vec() } else { requested.name.clone() };
            return Err(Missing { path, why: Why::Skipped });
        }
        if !requested.name.is_empty() && hides.hides(&path, name_at, is_dir) {
            return Ok(());
        }
        let contents = match (is_dir, self.wanted.recurse, requested.contents) {
            (true, true, _) => RECURSE,
            (true, false, true) => CHILDREN,
            _ => 0,
        };
        self.mark(list, base, &found, REQUESTED | contents);
        Ok(())
    }

    /// Returns whether a missing name may be listed for deletion.
    fn may_delete(&self) -> bool {
        self.wanted.delete_missing && self.deletion_bytes < limits::GONE_NAMES
    }

    /// Returns the entry and whether it is a directory. A symlink counts as a directory if it leads to one
    /// and its contents are requested or the client wants it followed.
    fn follow_last(
        &self,
        list: ListRef<'_>,
        hides: &impl Hides,
        mut found: Found,
        requested: &RequestedPath,
    ) -> Result<(Found, bool), LookupError> {
        let row = list.row(found.row);
        let Some(target) = row.target() else { return Ok((found, row.is_dir())) };
        let (dir, links) = (list.parent_of(found.row).number(), found.links());
        if requested.contents
            && let Ok(target) = follow::resolve_link(list, hides, dir, target, links)
            && let Some(base) = list.row(target.row).dir_number()
        {
            found.through.push(Through { row: found.row, base, links: target.links });
            found.is_through = true;
            return Ok((found, true));
        }
        let depth = requested.name.iter().filter(|&&byte| byte == b'/').count();
        match self.wanted.follow.follow_entry(list, hides, dir, found.row, (depth, links)) {
            Followed::Itself => Ok((found, false)),
            Followed::Target(target) => Ok((found, list.row(target.row).is_dir())),
            Followed::Failed(error) => Err(error),
        }
    }

    /// Returns the marks for the next entry with a name relative to `base`. Each path of the command line
    /// gets a view of its own, up to [`VIEWS`], because a name that two paths select is twice in a stock
    /// sender's list. With `-R` paths share what is above them.
    fn marks_for(&mut self, base: u32) -> &mut Marks {
        let is_apart = std::mem::take(&mut self.is_new_path) && !self.wanted.relative;
        let last = self.view_of.get(&base).copied();
        let is_kept = |&place: &usize| (place + 1 == self.views.len() && !is_apart) || self.views.len() >= VIEWS;
        let place = last.filter(is_kept).unwrap_or(self.views.len());
        if place == self.views.len() {
            self.views.push(Marks::new(base, 0));
            self.view_of.insert(base, place);
        }
        &mut self.views[place]
    }

    /// Marks an entry and its parents.
    fn mark(&mut self, list: ListRef<'_>, base: u32, found: &Found, bits: u32) {
        let implied = if self.wanted.implied_dirs { IMPLIED } else { 0 };
        let views = self.views.len();
        let mut marks = self.marks_for(base);
        let (mut before, mut after) = (marks.memory(), 0);
        for (at, &Through { row, base, links }) in found.through.iter().enumerate() {
            let is_entry = found.is_through && at + 1 == found.through.len();
            marks.put_parents(list, row, implied);
            marks.put(row, if is_entry { bits } else { implied });
            after += marks.memory();
            after += if marks.has_graft(row) { 0 } else { GRAFT_BYTES };
            marks = marks.graft(row, base, links);
            before += marks.memory();
        }
        if !found.is_through {
            marks.put_parents(list, found.row, implied);
            marks.put(found.row, bits);
        }
        after += marks.memory() + size_of::<Marks>() * (self.views.len() - views);
        self.memory = (self.memory + after).saturating_sub(before);
    }

    /// Adds a missing name for deletion, with the directories above it. A missing directory above it is
    /// reported as vanished, as in stock rsync.
    fn add_deletion(
        &mut self,
        list: ListRef<'_>,
        hides: &impl Hides,
        base: u32,
        path: &[u8],
        requested: &RequestedPath,
    ) -> Result<(), Missing> {
        let name_at = path.len() - requested.name.len();
        let is_hidden = hides.hides(path, name_at, false);
        if !is_hidden {
            self.deletion_bytes += requested.name.len();
            self.deletions.push(requested.name.clone());
        }
        let slashes = requested.name.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
        for end in slashes {
            let Ok(row) = self.locator.entry(list, hides, &path[..name_at + end]) else {
                let shown = |name: &[u8]| {
                    RequestedPath { name: name.to_vec(), base: requested.base.clone(), contents: false }.display_path()
                };
                let first = shown(&requested.name[..end]).len();
                return Err(Missing { path: shown(path::split(&requested.name).0), why: Why::Vanished(first) });
            };
            if self.wanted.implied_dirs && !is_hidden {
                self.marks_for(base).put(row.number(), IMPLIED);
            }
        }
        Ok(())
    }
}

impl Selection {
    /// Returns the selection of a client without a list of names, and its missing paths.
    pub fn resolve(list: ListRef<'_>, wanted: Wanted, hides: &impl Hides) -> (Self, Vec<Missing>) {
        let mut missing = Vec::new();
        let selection = Selecting::new(list, wanted, hides, &mut missing).finish();
        (selection, missing)
    }

    /// Returns the memory used, in bytes.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Returns the bits of rsync's I/O error for the end of the list. Bit 1 (general) is set if a requested
    /// directory is missing.
    pub fn io_error(&self) -> i32 {
        self.io_error
    }

    /// Returns the views of the directories that names are relative to.
    pub(crate) fn roots(&self) -> &[View] {
        &self.views[..self.roots]
    }

    /// Returns the view at this position. Those of [`Selection::roots`] come first.
    pub(crate) fn view(&self, place: u32) -> &View {
        &self.views[place as usize]
    }

    /// Returns the symlinks that are replaced by their targets.
    pub(crate) fn follow(&self) -> Follow {
        self.follow
    }

    /// Returns the requested entry of a selection that may be sent incrementally.
    pub(crate) fn top(&self, list: ListRef<'_>) -> Option<Top> {
        let view = self.roots().first()?;
        let mark = view.marks.iter().find(|&&mark| mark & REQUESTED != 0)?;
        let row = mark & ROW;
        Some(Top { row, contents: mark & RECURSE != 0, is_dot: row == list.dir(view.base).row() })
    }

    /// Returns whether nothing is selected, so that the list is empty.
    pub fn is_empty(&self) -> bool {
        self.views.is_empty() && self.deletions.is_empty()
    }

    /// Returns bytes that are equal only for equal selections of one list, as part of a cached list's key.
    /// `None` if the selection is so specific that no other client will request the same.
    pub fn key(&self) -> Option<Vec<u8>> {
        const MARKS: usize = 64;
        let marks: usize = self.views.iter().map(|view| view.marks.len()).sum();
        let numbers = |view: &View| [view.base, view.marks.len() as u32].into_iter().chain(view.marks.clone());
        let is_plain = self.deletions.is_empty() && self.views.len() == self.roots && !self.follow.any();
        (marks <= MARKS && is_plain).then(|| {
            let numbers = self.views.iter().flat_map(numbers);
            self.io_error.to_le_bytes().into_iter().chain(numbers.flat_map(u32::to_le_bytes)).collect()
        })
    }
}
