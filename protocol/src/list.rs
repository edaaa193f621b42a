//! The file list of a generation: columns that are read in place.
//!
//! There is one row per entry; row 0 is the repository's root. Directories are numbered breadth first, and a
//! directory's children are consecutive rows in the order of [`crate::order`]. The number of a row, plus one for each
//! list begun, is therefore the index that rsync's incremental recursion gives it. The depth-first order of rsync's
//! other mode is derived by walking.
//!
//! A [`FileList`] is built by [`crate::changes::apply`] and encoded. [`open`] checks an encoded list and returns a
//! [`ListRef`], which gives access to its [`Row`]s and [`Dir`]s. The encoded form is described byte by byte in
//! `docs/index-format.md`: a hand-written header that can be read without rkyv, then one archived [`FileList`]. It is a
//! pure function of the tree it describes, so its SHA-256 names a generation on every mirror.

mod check;
mod encoded;
mod row;
mod view;

use rkyv::{Archive, Serialize};

pub use check::{Offence, validate};
pub use encoded::{HEADER_BYTES, Header, ListError, MAGIC, VERSION, digest, open, open_body};
pub use row::{FileType, Row};
pub use view::{Dir, ListRef};

/// Bit in the column of flags: the row is a member of a link group.
pub const FLAG_LINKED: u8 = 1;

/// A whole list as columns. [`crate::changes::apply`] builds it; it is serialized once, and from then on read in its
/// archived form only.
#[derive(Debug, Default, Archive, Serialize)]
pub struct FileList {
    // One element per entry.
    pub(crate) name_end: Vec<u32>,
    pub(crate) mode: Vec<u16>,
    pub(crate) flags: Vec<u8>,
    pub(crate) owner: Vec<u32>,
    pub(crate) size: Vec<u64>,
    pub(crate) mtime_sec: Vec<i64>,
    pub(crate) mtime_nsec: Vec<u32>,
    /// The index into the columns of the entry's type: a file's among the digests, a directory's among the directories,
    /// a symlink's among the targets, a device's among the devices. 0 for other types.
    pub(crate) aux: Vec<u32>,
    /// The names, directory by directory. `name_end` counts from the start of the directory's names.
    pub(crate) names: Vec<u8>,
    // One element per directory, breadth first.
    pub(crate) dir_row: Vec<u32>,
    pub(crate) dir_parent: Vec<u32>,
    pub(crate) dir_first: Vec<u32>,
    pub(crate) dir_files: Vec<u32>,
    pub(crate) dir_dirs: Vec<u32>,
    pub(crate) dir_names: Vec<u64>,
    // One element per regular file. The second and third are empty if they are not carried.
    pub(crate) sha256: Vec<[u8; 32]>,
    pub(crate) xxh128: Vec<[u8; 16]>,
    pub(crate) md5: Vec<[u8; 16]>,
    // One element per symlink.
    pub(crate) target_end: Vec<u64>,
    pub(crate) targets: Vec<u8>,
    // One element per device.
    pub(crate) major: Vec<u32>,
    pub(crate) minor: Vec<u32>,
    // One element per distinct owner, in order of first use. `owner_name_end` has two (user, group).
    pub(crate) uid: Vec<u32>,
    pub(crate) gid: Vec<u32>,
    pub(crate) owner_name_end: Vec<u32>,
    pub(crate) owner_names: Vec<u8>,
    // One element per name in a link group, in row order.
    pub(crate) link_row: Vec<u32>,
    pub(crate) link_leader: Vec<u32>,
}

impl FileList {
    /// Creates an empty list with room for `entries` entries, most of which come from `old`.
    pub(crate) fn with_capacity(entries: usize, old: Option<ListRef<'_>>) -> Self {
        let names = old.map_or(0, |old| old.archived().names.len());
        Self {
            name_end: Vec::with_capacity(entries),
            mode: Vec::with_capacity(entries),
            flags: Vec::with_capacity(entries),
            owner: Vec::with_capacity(entries),
            size: Vec::with_capacity(entries),
            mtime_sec: Vec::with_capacity(entries),
            mtime_nsec: Vec::with_capacity(entries),
            aux: Vec::with_capacity(entries),
            names: Vec::with_capacity(names + names / 8),
            sha256: Vec::with_capacity(entries),
            ..Self::default()
        }
    }

    /// Returns the number of entries, including the root.
    pub fn len(&self) -> usize {
        self.mode.len()
    }

    /// Returns whether there are no entries. A built list has at least the root.
    pub fn is_empty(&self) -> bool {
        self.mode.is_empty()
    }
}
