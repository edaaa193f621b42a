//! What part of the repository a client asked for.

use crate::list::ListRef;

/// The paths and options of a client that choose entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Paths below the module, the module's name stripped: `""` or `"dir/"` for contents, `"dir"` for the
    /// directory itself. Globs and backslashes as they came. With names from a list, the first is what
    /// these are relative to.
    pub paths: Vec<Vec<u8>>,
    /// `-r`.
    pub recurse: bool,
    /// `-d`.
    pub dirs: bool,
    /// `-R`, also implied by names from a list (then off with `--no-relative`).
    pub relative: bool,
    /// Off with `--no-implied-dirs`.
    pub implied_dirs: bool,
    /// `--files-from`: names come one by one to [`Selecting::add`].
    pub files_from: bool,
}

impl Wanted {
    /// Whether the list may be sent incrementally: one plain path, recursively. Otherwise the
    /// compatibility bit 0x001 must be cleared.
    pub fn may_be_incremental(&self) -> bool {
        let plain = |path: &[u8]| !path.iter().any(|byte| b"*?[\\".contains(byte));
        self.recurse && !self.relative && !self.files_from && self.paths.len() == 1 && plain(&self.paths[0])
    }
}

/// Whether filters hide a name.
pub trait Hides {
    /// `path` is relative to the module; from `name` on it is the name as it stands in the list, relative
    /// to the transfer's root. Called once per entry, a directory before its contents; what is below a
    /// hidden directory is not asked for.
    fn hides(&self, path: &[u8], name: usize, is_dir: bool) -> bool;

    /// Whether nothing at all is hidden.
    fn nothing(&self) -> bool {
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

    fn nothing(&self) -> bool {
        true
    }
}

/// A requested path that is not there. The client is told with an ERROR_XFER message ([`Missing::message`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The path as asked for, relative to the module.
    pub path: Vec<u8>,
    /// It was to be a directory (asked for with a slash at its end): also an I/O error.
    pub directory: bool,
}

impl Missing {
    /// The text that stock rsync sends.
    pub fn message(&self, module: &str) -> Vec<u8> {
        let what = if self.directory { "change_dir" } else { "link_stat" };
        let path = &self.path[..];
        [
            b"rsync: [sender] ",
            what.as_bytes(),
            b" \"",
            path,
            b"\" (in ",
            module.as_bytes(),
            b") failed: No such file or directory (2)\n",
        ]
        .concat()
    }
}

/// Takes what a client asks for, path by path.
#[derive(Debug)]
pub struct Selecting {
    selection: Selection,
}

/// The entries that a client asked for, before filters.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    io_error: i32,
}

impl Selecting {
    /// Begins with the paths of the command line; what is missing among them is appended to `missing`.
    pub fn new(list: ListRef<'_>, wanted: &Wanted, missing: &mut Vec<Missing>) -> Self {
        let _ = (list, wanted, missing);
        Self { selection: Selection::default() }
    }

    /// Adds one name from a list of names (`--files-from`).
    pub fn add(&mut self, list: ListRef<'_>, name: &[u8]) -> Result<(), Missing> {
        let _ = list;
        Err(Missing { path: name.to_vec(), directory: false })
    }

    /// The selection.
    pub fn finish(self, list: ListRef<'_>) -> Selection {
        let _ = list;
        self.selection
    }
}

impl Selection {
    /// The selection of a client without a list of names.
    pub fn resolve(list: ListRef<'_>, wanted: &Wanted) -> (Self, Vec<Missing>) {
        let mut missing = Vec::new();
        let selection = Selecting::new(list, wanted, &mut missing).finish(list);
        (selection, missing)
    }

    /// Bits of rsync's I/O error that the list's end carries; 1 when a directory asked for is missing.
    pub fn io_error(&self) -> i32 {
        self.io_error
    }

    /// Bytes that are equal for equal selections of one list. Part of the name of a cached list.
    pub fn key(&self) -> Vec<u8> {
        Vec::new()
    }
}
