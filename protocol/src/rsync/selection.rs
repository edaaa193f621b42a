//! What part of the repository a client asked for.
//!
//! A selection is a few views, one for every directory that names are relative to, each a sorted run
//! of marked rows: what is listed, and what of it is descended into. The names of the list follow from
//! the tree, so a million names from a client cost four bytes each.

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
use paths::Asked;
pub use paths::tidy;

pub use follow::Follow;
pub(crate) use follow::{LINKS, Lost, Standing};
pub(crate) use marks::{ASKED, CHILDREN, IMPLIED, LISTED, RECURSE, ROW, View};

/// Missing paths of one command line that are told. Wildcards can skip any number of directories, over and over.
const TOLD: usize = 16 << 10;

/// The paths and options of a client that choose entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Paths below the module, the module's name stripped: `""` or `"dir/"` for contents, `"dir"` for the
    /// directory itself. Globs and backslashes as they came. With names from a list, the first is what
    /// these are relative to.
    pub paths: Vec<Vec<u8>>,
    /// `-r`.
    pub recurse: bool,
    /// `-d`. Names from a list imply it.
    pub dirs: bool,
    /// `-R`, also implied by names from a list (then off with `--no-relative`).
    pub relative: bool,
    /// Off with `--no-implied-dirs`.
    pub implied_dirs: bool,
    /// `--files-from`: names come one by one to [`Selecting::add`].
    pub files_from: bool,
    /// `--delete-missing-args`: a name that is not there is listed all the same, for the client to delete.
    pub delete_missing: bool,
    /// The symlinks that are replaced by what they point to.
    pub follow: Follow,
}

impl Wanted {
    /// Whether a lookup for each path finds all that is named: there are no wildcards, and no names from a list.
    pub fn is_plain(&self) -> bool {
        !self.files_from && !self.paths.iter().any(|path| glob::is_glob(path))
    }

    /// Whether the list may be sent incrementally: one plain path, recursively, no symlink followed below it. Otherwise
    /// the compatibility bit 0x001 must be cleared.
    pub fn may_be_incremental(&self) -> bool {
        let [path] = &self.paths[..] else { return false };
        let is_whole_name = !self.relative || Asked::new(b"", path, true).name.is_empty();
        self.recurse && is_whole_name && self.is_plain() && !self.follow.any()
    }
}

/// Whether filters hide a name.
pub trait Hides {
    /// Whether any rule, of the module or of the client, hides an entry. `path` is relative to the module;
    /// from `name` on it is the name as it stands in the list, relative to the transfer's root. Asked once
    /// per entry, a directory before its contents; what is below a hidden directory is not asked for.
    fn hides(&self, path: &[u8], name: usize, is_dir: bool) -> bool;

    /// Whether the module's own rules hide a path: a client that names it hears that it does not exist.
    fn module_hides(&self, path: &[u8], is_dir: bool) -> bool;

    /// Whether the module has rules of its own.
    fn has_module_rules(&self) -> bool {
        true
    }

    /// Whether the module's own rules hide an entry by its own path, whatever path led to it. Those of the directories on
    /// the way to it are not asked for.
    fn module_hides_row(&self, list: ListRef<'_>, row: Row<'_>) -> bool {
        self.has_module_rules() && self.module_hides(&list.path(row.number()), row.is_dir())
    }

    /// Whether what is in a directory may be named: else its name is all that there is of it.
    fn may_enter(&self, _dir: Row<'_>) -> bool {
        true
    }

    /// Whether the names in a directory may be listed.
    fn may_list(&self, _dir: Row<'_>) -> bool {
        true
    }

    /// Whether nothing at all is hidden.
    fn nothing(&self) -> bool {
        false
    }

    /// Steps that it has taken so far to say so, of some two nanoseconds each. Whoever has to leave others their turn asks
    /// now and then.
    fn steps(&self) -> u64 {
        0
    }

    /// Whether the filters have given up: a list that was made with them is not to be believed.
    fn gave_up(&self) -> bool {
        false
    }
}

/// No filters.
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

/// A requested path that is not listed, and the client must be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The path as stock rsync names it.
    pub path: Vec<u8>,
    /// The reason.
    pub why: Why,
}

/// Why a requested path is not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no such entry. No I/O error by itself.
    NoEntry,
    /// Something on the way to the entry is no directory.
    NotOnTheWay,
    /// There is no such directory to go into.
    NoDirectory,
    /// What should be gone into is no directory.
    NotDirectory,
    /// Too many symlinks lead to the entry.
    NoEntryBehindLinks,
    /// Too many symlinks lead to the directory to go into.
    NoDirectoryBehindLinks,
    /// An entry found in a directory: a symlink that is to be followed, to an entry that is not there.
    NoReferent,
    /// The same, and its target leads through something that is no directory.
    NoReferentOnTheWay,
    /// The same, and it leads round in circles.
    NoReferentBehindLinks,
    /// A directory that is listed, and that too many symlinks lead to for its contents to be.
    Unopened,
    /// The way to the entry leads through a directory that may not be gone into.
    EntryDenied,
    /// The directory to go into may not be, or one on the way to it.
    DirectoryDenied,
    /// An entry found in a directory: a symlink that is to be followed, through a directory that may not be gone into.
    ReferentDenied,
    /// A directory that is listed, and whose contents may not be.
    Closed,
    /// A directory, and the client wants none.
    Skipped,
    /// The directory of an entry that is listed to be deleted. Its path's first so many bytes are the first of
    /// its parents that is not there.
    Vanished(usize),
}

/// Views of one selection from which on names that have a base in common share one. Beyond it the first of two equal
/// names is not always that of the first path.
const VIEWS: usize = 1024;
/// About what a symlink takes that stands for a directory: its marks, and its place among them.
const GRAFT_BYTES: usize = size_of::<Marks>() + 32;
/// Directories that one path may be told to lack: a path of thousands is no honest one.
const LEVELS_TOLD: usize = 16;

impl Missing {
    /// The texts that stock rsync sends.
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
                return ends.take(LEVELS_TOLD).map(text).collect();
            }
        };
        let before = format!("rsync: [sender] {call} \"").into_bytes();
        let after = format!("\" (in {module}) failed: {error}\n").into_bytes();
        vec![[&before[..], &self.path, &after].concat()]
    }

    /// Of a symlink at a path below the module that is to be followed and leads nowhere.
    pub(crate) fn referent(path: &[u8], lost: Lost) -> Self {
        let why = match lost {
            Lost::Absent => Why::NoReferent,
            Lost::NotDirectory => Why::NoReferentOnTheWay,
            Lost::TooManyLinks => Why::NoReferentBehindLinks,
            Lost::Unopened => Why::Unopened,
            Lost::Denied => Why::ReferentDenied,
            Lost::Closed => Why::Closed,
        };
        // Of the directory that names are relative to, the path ends in a slash.
        let dot: &[u8] = if path.ends_with(b"/") { b"." } else { b"" };
        Self { path: [b"/", path, dot].concat(), why }
    }

    fn unreadable(&self, module: &str, error: &str) -> Vec<u8> {
        let after = format!("\" (in {module})) failed: {error}\n");
        [b"rsync: [sender] readlink_stat(\"", &self.path[..], after.as_bytes()].concat()
    }

    /// How grave they are.
    pub fn severity(&self, version: Version) -> Severity {
        match self.why {
            Why::Skipped => Severity::Info,
            // Before protocol 28 no exit code says it.
            Why::Vanished(_) if version > Version::OLDEST => Severity::Warning,
            _ => Severity::Transfer,
        }
    }

    /// Whether it is nothing to speak of with `--ignore-missing-args`.
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

/// The one entry that an incremental list is of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Top {
    pub(crate) row: u32,
    /// It is a directory, and what is below it is listed too.
    pub(crate) contents: bool,
    /// It is the directory that names are relative to.
    pub(crate) is_dot: bool,
}

/// Takes what a client asks for, path by path.
#[derive(Debug)]
pub struct Selecting {
    wanted: Wanted,
    /// Those of the command line that are still to be looked for.
    paths: std::vec::IntoIter<Vec<u8>>,
    globs: glob::Budget,
    /// The directory that names from a list are relative to; none when it is missing.
    base: Option<Vec<u8>>,
    /// In the order of the paths: of equal names a client keeps that of the first path.
    views: Vec<Marks>,
    /// The place of the last view of each base.
    view_of: BTreeMap<u32, usize>,
    /// The next path is one more of the command line.
    is_next_path: bool,
    locator: Locator,
    gone: Vec<Vec<u8>>,
    gone_bytes: usize,
    io_error: i32,
    /// Bytes of the marks.
    memory: usize,
}

/// An entry that was asked for.
struct Found {
    /// The symlinks that its path leads through, in order.
    through: Vec<Through>,
    /// The last of them is the entry itself: its contents are asked for.
    is_through: bool,
    row: u32,
}

/// A symlink that stands for a directory.
struct Through {
    row: u32,
    /// The number of the directory.
    base: u32,
    /// Symlinks on the way to it, this one counted.
    links: u32,
}

impl Found {
    /// The entry at a tidy path below a base, whose name begins at `name_at`: symlinks on the way to it are followed.
    fn behind_links(
        list: ListRef<'_>,
        hides: &impl Hides,
        base: u32,
        path: &[u8],
        name_at: usize,
    ) -> Result<Self, Lost> {
        let mut found = Self { through: Vec::new(), is_through: false, row: list.dir(base).row() };
        let (mut dir, mut end) = (base, name_at);
        for name in path::components(&path[name_at..]) {
            if end > name_at {
                dir = found.go_into(list, hides, dir)?;
                end += 1;
            }
            end += name.len();
            let row = follow::child(list, hides, dir, name)?;
            if hides.module_hides(&path[..end], row.is_dir()) {
                return Err(Lost::Absent);
            }
            found.row = row.number();
        }
        Ok(found)
    }

    /// The number of the directory that the entry, in the directory `dir`, is or stands for.
    fn go_into(&mut self, list: ListRef<'_>, hides: &impl Hides, dir: u32) -> Result<u32, Lost> {
        let row = list.row(self.row);
        let Some(target) = row.target() else { return row.dir_number().ok_or(Lost::NotDirectory) };
        let target = follow::resolve_link(list, hides, dir, target, self.links())?;
        let base = list.row(target.row).dir_number().ok_or(Lost::NotDirectory)?;
        self.through.push(Through { row: self.row, base, links: target.links });
        Ok(base)
    }

    fn links(&self) -> u32 {
        self.through.last().map_or(0, |through| through.links)
    }
}

/// The entries that a client asked for, before filters.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Those of the directories that names are relative to, then those behind symlinks.
    views: Vec<View>,
    roots: usize,
    follow: Follow,
    /// Names that are not there, and listed all the same.
    pub(crate) gone: Vec<Vec<u8>>,
    io_error: i32,
    memory: usize,
}

impl Selecting {
    /// Takes all paths of the command line; what is missing among them is appended to `missing`.
    pub fn new(list: ListRef<'_>, wanted: Wanted, hides: &impl Hides, missing: &mut Vec<Missing>) -> Self {
        let mut selecting = Self::begin(list, wanted, hides, missing);
        while selecting.next_path(list, hides, missing) {}
        selecting
    }

    /// Begins, and takes no path yet.
    pub fn begin(list: ListRef<'_>, wanted: Wanted, hides: &impl Hides, missing: &mut Vec<Missing>) -> Self {
        let paths = if wanted.files_from { Vec::new() } else { wanted.paths.clone() };
        let mut selecting = Self {
            wanted,
            paths: paths.into_iter(),
            globs: glob::Budget::for_list(list),
            base: Some(Vec::new()),
            views: Vec::new(),
            view_of: BTreeMap::new(),
            is_next_path: false,
            locator: Locator::default(),
            gone: Vec::new(),
            gone_bytes: 0,
            io_error: 0,
            memory: 0,
        };
        if selecting.wanted.files_from {
            selecting.set_base(list, hides, missing);
        }
        selecting
    }

    /// Takes the next path of the command line, with all that its wildcards match. False when there is none.
    pub fn next_path(&mut self, list: ListRef<'_>, hides: &impl Hides, missing: &mut Vec<Missing>) -> bool {
        let Some(path) = self.paths.next() else { return false };
        let (mut globs, relative) = (std::mem::take(&mut self.globs), self.wanted.relative);
        self.is_next_path = true;
        glob::expand(list, &path, relative, hides, &mut globs, |path| {
            let lost = self.add(list, hides, path).err();
            if missing.len() < TOLD {
                missing.extend(lost);
            }
        });
        self.globs = globs;
        true
    }

    /// Adds one name from a list of names (`--files-from`).
    pub fn add(&mut self, list: ListRef<'_>, hides: &impl Hides, name: &[u8]) -> Result<(), Missing> {
        let Some(base) = &self.base else { return Ok(()) };
        let asked = Asked::new(base, name, self.wanted.relative);
        self.select(list, hides, &asked).inspect_err(|missing| self.io_error |= missing.io_error())
    }

    /// Bytes that it takes.
    pub fn memory(&self) -> usize {
        self.memory + self.gone_bytes + size_of::<Vec<u8>>() * self.gone.capacity()
    }

    /// The selection.
    pub fn finish(self) -> Selection {
        let roots = self.views.len();
        let mut views = vec![View::default(); roots];
        for (at, marks) in self.views.into_iter().enumerate() {
            views[at] = marks.into_view(&mut views);
        }
        let memory = views.iter().map(View::memory).sum::<usize>() + self.gone_bytes;
        let memory = memory + size_of::<Vec<u8>>() * self.gone.capacity();
        Selection { views, roots, follow: self.wanted.follow, gone: self.gone, io_error: self.io_error, memory }
    }

    fn set_base(&mut self, list: ListRef<'_>, hides: &impl Hides, missing: &mut Vec<Missing>) {
        let base = paths::tidy(self.wanted.paths.first().map_or(&[][..], |path| path));
        self.base = match self.locator.base(list, hides, &base) {
            Ok((_, base)) => Some(base),
            Err(lost) => {
                self.io_error |= 1;
                missing.push(Missing { path: [b"/", &base[..]].concat(), why: lost.going_in() });
                None
            }
        };
    }

    fn select(&mut self, list: ListRef<'_>, hides: &impl Hides, asked: &Asked) -> Result<(), Missing> {
        let going_in = |lost: Lost| Missing { path: [b"/", &asked.base[..]].concat(), why: lost.going_in() };
        let (base, base_path) = self.locator.base(list, hides, &asked.base).map_err(going_in)?;
        let missing = |lost: Lost| Missing { path: asked.shown(), why: lost.looking() };
        let path = Asked { base: base_path, name: asked.name.clone(), contents: asked.contents }.path();
        let name_at = path.len() - asked.name.len();
        let found = match self.locator.entry(list, hides, &path) {
            Ok(row) => Found { through: Vec::new(), is_through: false, row: row.number() },
            Err(Lost::Absent) if self.may_be_gone() => return self.put_gone(list, hides, base, &path, asked),
            Err(Lost::NotDirectory) => Found::behind_links(list, hides, base, &path, name_at).map_err(missing)?,
            Err(lost) => return Err(missing(lost)),
        };
        let (found, is_dir) = match self.look_behind(list, hides, found, asked) {
            Ok(found) => found,
            // Stock rsync has found the symlink, and only then looks where it leads.
            Err(lost) if !self.wanted.follow.all => return Err(Missing::referent(&path, lost)),
            Err(Lost::Absent) if self.may_be_gone() => return self.put_gone(list, hides, base, &path, asked),
            Err(lost) => return Err(missing(lost)),
        };
        if is_dir && !self.wanted.recurse && !self.wanted.dirs && !self.wanted.files_from {
            let path = if asked.name.is_empty() { b".".to_vec() } else { asked.name.clone() };
            return Err(Missing { path, why: Why::Skipped });
        }
        if !asked.name.is_empty() && hides.hides(&path, name_at, is_dir) {
            return Ok(());
        }
        let contents = match (is_dir, self.wanted.recurse, asked.contents) {
            (true, true, _) => RECURSE,
            (true, false, true) => CHILDREN,
            _ => 0,
        };
        self.mark(list, base, &found, ASKED | contents);
        Ok(())
    }

    /// Whether a name that is not there may still be listed for the client to delete.
    fn may_be_gone(&self) -> bool {
        self.wanted.delete_missing && self.gone_bytes < limits::GONE_NAMES
    }

    /// Whether the entry is a directory, or a symlink that stands for one: it does if its contents are asked for, or if
    /// the client wants it to be followed.
    fn look_behind(
        &self,
        list: ListRef<'_>,
        hides: &impl Hides,
        mut found: Found,
        asked: &Asked,
    ) -> Result<(Found, bool), Lost> {
        let row = list.row(found.row);
        let Some(target) = row.target() else { return Ok((found, row.is_dir())) };
        let (dir, links) = (list.parent_of(found.row).number(), found.links());
        if asked.contents
            && let Ok(target) = follow::resolve_link(list, hides, dir, target, links)
            && let Some(base) = list.row(target.row).dir_number()
        {
            found.through.push(Through { row: found.row, base, links: target.links });
            found.is_through = true;
            return Ok((found, true));
        }
        let depth = asked.name.iter().filter(|&&byte| byte == b'/').count();
        match self.wanted.follow.standing(list, hides, dir, found.row, (depth, links)) {
            Standing::Itself => Ok((found, false)),
            Standing::For(target) => Ok((found, list.row(target.row).is_dir())),
            Standing::Lost(lost) => Err(lost),
        }
    }

    /// Where the next entry with a name relative to that base is marked. Paths of the command line are kept apart, as
    /// far as there are not too many, since the same name from two of them is in a stock sender's list twice. With `-R`
    /// they share what is above them.
    fn marks_of(&mut self, base: u32) -> &mut Marks {
        let is_apart = std::mem::take(&mut self.is_next_path) && !self.wanted.relative;
        let last = self.view_of.get(&base).copied();
        let is_kept = |&place: &usize| (place + 1 == self.views.len() && !is_apart) || self.views.len() >= VIEWS;
        let place = last.filter(is_kept).unwrap_or(self.views.len());
        if place == self.views.len() {
            self.views.push(Marks::new(base, 0));
            self.view_of.insert(base, place);
        }
        &mut self.views[place]
    }

    /// Marks an entry, and what is above it.
    fn mark(&mut self, list: ListRef<'_>, base: u32, found: &Found, bits: u32) {
        let implied = if self.wanted.implied_dirs { IMPLIED } else { 0 };
        let views = self.views.len();
        let mut marks = self.marks_of(base);
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

    /// Puts a name that is not there, with the directories above it. A directory that is not there either has
    /// vanished, as stock rsync has it.
    fn put_gone(
        &mut self,
        list: ListRef<'_>,
        hides: &impl Hides,
        base: u32,
        path: &[u8],
        asked: &Asked,
    ) -> Result<(), Missing> {
        let name_at = path.len() - asked.name.len();
        let is_hidden = hides.hides(path, name_at, false);
        if !is_hidden {
            self.gone_bytes += asked.name.len();
            self.gone.push(asked.name.clone());
        }
        let slashes = asked.name.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
        for end in slashes {
            let Ok(row) = self.locator.entry(list, hides, &path[..name_at + end]) else {
                let shown =
                    |name: &[u8]| Asked { name: name.to_vec(), base: asked.base.clone(), contents: false }.shown();
                let first = shown(&asked.name[..end]).len();
                return Err(Missing { path: shown(path::split(&asked.name).0), why: Why::Vanished(first) });
            };
            if self.wanted.implied_dirs && !is_hidden {
                self.marks_of(base).put(row.number(), IMPLIED);
            }
        }
        Ok(())
    }
}

impl Selection {
    /// The selection of a client without a list of names.
    pub fn resolve(list: ListRef<'_>, wanted: Wanted, hides: &impl Hides) -> (Self, Vec<Missing>) {
        let mut missing = Vec::new();
        let selection = Selecting::new(list, wanted, hides, &mut missing).finish();
        (selection, missing)
    }

    /// Bytes that it takes.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Bits of rsync's I/O error that the list's end carries; 1 when a directory asked for is missing.
    pub fn io_error(&self) -> i32 {
        self.io_error
    }

    /// The views of the directories that names are relative to.
    pub(crate) fn roots(&self) -> &[View] {
        &self.views[..self.roots]
    }

    /// A view, by its place: those of [`Selection::roots`] come first.
    pub(crate) fn view(&self, place: u32) -> &View {
        &self.views[place as usize]
    }

    /// The symlinks that are replaced by what they point to.
    pub(crate) fn follow(&self) -> Follow {
        self.follow
    }

    /// The entry that was asked for, of a selection that may be sent incrementally.
    pub(crate) fn top(&self, list: ListRef<'_>) -> Option<Top> {
        let view = self.roots().first()?;
        let mark = view.marks.iter().find(|&&mark| mark & ASKED != 0)?;
        let row = mark & ROW;
        Some(Top { row, contents: mark & RECURSE != 0, is_dot: row == list.dir(view.base).row() })
    }

    /// Whether nothing is selected: the list is empty.
    pub fn is_empty(&self) -> bool {
        self.views.is_empty() && self.gone.is_empty()
    }

    /// Bytes that are equal for equal selections of one list, as part of the name of a cached list; none
    /// when it names so much that no other client will ask for the same.
    pub fn key(&self) -> Option<Vec<u8>> {
        const MARKS: usize = 64;
        let marks: usize = self.views.iter().map(|view| view.marks.len()).sum();
        let numbers = |view: &View| [view.base, view.marks.len() as u32].into_iter().chain(view.marks.clone());
        let is_plain = self.gone.is_empty() && self.views.len() == self.roots && !self.follow.any();
        (marks <= MARKS && is_plain).then(|| {
            let numbers = self.views.iter().flat_map(numbers);
            self.io_error.to_le_bytes().into_iter().chain(numbers.flat_map(u32::to_le_bytes)).collect()
        })
    }
}
