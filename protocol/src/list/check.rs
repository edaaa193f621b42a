//! Validates that a decoded list is a tree of valid names in the right order.
//!
//! A list may come from anybody. After [`validate`], no accessor of [`super::ListRef`] can go out of bounds, no name can
//! leave the root, no name occurs twice in a directory, and every row is below the root.

use thiserror::Error;

use super::{ArchivedFileList, FLAG_LINKED, FileType, ListRef};
use crate::path::{self, Escaped, PathError};
use crate::{limits, order};

/// Why a list is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Offence {
    /// A column has a wrong length or invalid content, or a count is over its limit.
    #[error("invalid column '{0}'")]
    Column(&'static str),
    /// The directories are not laid out breadth first as one tree.
    #[error("the directories are not one breadth-first tree (directory {0})")]
    Tree(u32),
    /// A name could leave the root, or cannot exist in a file system.
    #[error("in directory '{}': {error}", Escaped(.dir))]
    Name {
        /// The directory's path.
        dir: Vec<u8>,
        /// The error.
        error: PathError,
    },
    /// Two children have the same name, or the children are out of order.
    #[error("in directory '{}': duplicate or unordered name '{}'", Escaped(.dir), Escaped(.name))]
    Order {
        /// The directory's path.
        dir: Vec<u8>,
        /// The later name.
        name: Vec<u8>,
    },
    /// A field of a row has an invalid value for the row's type.
    #[error("row {row}: invalid {field}")]
    Field {
        /// The row.
        row: u32,
        /// The field's name.
        field: &'static str,
    },
    /// A link group is incomplete, or its names differ in type or content.
    #[error("row {0}: invalid link group")]
    Link(u32),
}

/// Checks that a list describes a possible repository. Takes time linear in the length of the list, and eight bytes of
/// memory per directory.
pub fn validate(list: ListRef<'_>) -> Result<(), Offence> {
    let columns = list.archived();
    column_lengths(columns)?;
    owners(columns)?;
    targets(columns)?;
    fields(list)?;
    tree(list)?;
    links(list)
}

fn column_lengths(list: &ArchivedFileList) -> Result<(), Offence> {
    let entries = list.mode.len();
    if entries == 0 || entries as u64 > limits::ENTRIES {
        return Err(Offence::Column("mode"));
    }
    let directories = list.dir_row.len();
    if directories == 0 || directories > entries {
        return Err(Offence::Column("dir_row"));
    }
    let files = list.sha256.len();
    let optional = |len: usize| if len == 0 { files } else { len };
    let same = [
        ("name_end", list.name_end.len(), entries),
        ("flags", list.flags.len(), entries),
        ("owner", list.owner.len(), entries),
        ("size", list.size.len(), entries),
        ("mtime_sec", list.mtime_sec.len(), entries),
        ("mtime_nsec", list.mtime_nsec.len(), entries),
        ("aux", list.aux.len(), entries),
        ("dir_parent", list.dir_parent.len(), directories),
        ("dir_first", list.dir_first.len(), directories),
        ("dir_files", list.dir_files.len(), directories),
        ("dir_dirs", list.dir_dirs.len(), directories),
        ("dir_names", list.dir_names.len(), directories),
        ("xxh128", optional(list.xxh128.len()), files),
        ("md5", optional(list.md5.len()), files),
        ("minor", list.minor.len(), list.major.len()),
        ("gid", list.gid.len(), list.uid.len()),
        ("owner_name_end", list.owner_name_end.len(), 2 * list.uid.len()),
        ("link_leader", list.link_leader.len(), list.link_row.len()),
    ];
    match same.into_iter().find(|(_, found, expected)| found != expected) {
        Some((column, ..)) => Err(Offence::Column(column)),
        None => Ok(()),
    }
}

fn owners(list: &ArchivedFileList) -> Result<(), Offence> {
    if list.uid.len() as u64 > limits::OWNERS {
        return Err(Offence::Column("uid"));
    }
    let ends = list.owner_name_end.iter().map(|end| u64::from(end.to_native()));
    arena("owner_names", ends, list.owner_names.len(), 0, limits::OWNER_NAME)
}

fn targets(list: &ArchivedFileList) -> Result<(), Offence> {
    if list.targets.contains(&0) {
        return Err(Offence::Column("targets"));
    }
    let ends = list.target_end.iter().map(|end| end.to_native());
    arena("targets", ends, list.targets.len(), 1, limits::TARGET)
}

/// Checks that `ends` cut an arena of `len` bytes into pieces of `min..=max` bytes.
fn arena(
    column: &'static str,
    ends: impl Iterator<Item = u64>,
    len: usize,
    min: usize,
    max: usize,
) -> Result<(), Offence> {
    let mut start = 0;
    for end in ends {
        let bytes = end.checked_sub(start).ok_or(Offence::Column(column))?;
        if bytes < min as u64 || bytes > max as u64 {
            return Err(Offence::Column(column));
        }
        start = end;
    }
    if start == len as u64 { Ok(()) } else { Err(Offence::Column(column)) }
}

/// Checks every row on its own, and that `aux` numbers the rows of each type in row order.
fn fields(list: ListRef<'_>) -> Result<(), Offence> {
    let columns = list.archived();
    let (mut files, mut dirs, mut symlinks, mut devices) = (0, 0, 0, 0);
    for at in 0..columns.mode.len() {
        let row = at as u32;
        let offence = |field| Offence::Field { row, field };
        let kind = FileType::from_mode(u32::from(columns.mode[at].to_native())).ok_or(offence("type"))?;
        let counter = match kind {
            FileType::File => Some(&mut files),
            FileType::Directory => Some(&mut dirs),
            FileType::Symlink => Some(&mut symlinks),
            FileType::CharDevice | FileType::BlockDevice => Some(&mut devices),
            FileType::Fifo | FileType::Socket => None,
        };
        let expected = counter.map_or(0, |counter| {
            *counter += 1;
            *counter - 1
        });
        if columns.aux[at] != expected {
            return Err(offence("table number"));
        }
        let size_limit = if kind == FileType::File { limits::FILE_SIZE } else { 0 };
        if columns.size[at] > size_limit {
            return Err(offence("size"));
        }
        if columns.flags[at] & !FLAG_LINKED != 0 || (columns.flags[at] != 0 && kind == FileType::Directory) {
            return Err(offence("flags"));
        }
        if columns.mtime_nsec[at] > 999_999_999 {
            return Err(offence("mtime"));
        }
        if columns.owner[at].to_native() as usize >= columns.uid.len() {
            return Err(offence("owner"));
        }
    }
    let tables = [
        ("sha256", files, columns.sha256.len()),
        ("dir_row", dirs, columns.dir_row.len()),
        ("target_end", symlinks, columns.target_end.len()),
        ("major", devices, columns.major.len()),
    ];
    match tables.into_iter().find(|&(_, rows, len)| rows as usize != len) {
        Some((column, ..)) => Err(Offence::Column(column)),
        None => Ok(()),
    }
}

/// Checks that the rows are one breadth-first tree below row 0, with valid, ordered, distinct names.
fn tree(list: ListRef<'_>) -> Result<(), Offence> {
    let columns = list.archived();
    let entries = u64::from(list.len());
    // The length of each directory's path in bytes, to check the length of the paths below it.
    let mut path_len = vec![0usize; columns.dir_row.len()];
    let (mut next_row, mut next_dir, mut names) = (1u64, 1usize, 0u64);
    if columns.dir_row[0] != 0 || columns.dir_parent[0] != 0 || columns.name_end[0] != 0 {
        return Err(Offence::Tree(0));
    }
    for number in 0..columns.dir_row.len() {
        let broken = || Offence::Tree(number as u32);
        let (files, dirs) = (columns.dir_files[number].to_native(), columns.dir_dirs[number].to_native());
        let end = next_row + u64::from(files) + u64::from(dirs);
        if u64::from(columns.dir_first[number].to_native()) != next_row
            || columns.dir_names[number] != names
            || end > entries
            // No earlier directory contains this one: it is an orphan or part of a cycle.
            || number >= next_dir
        {
            return Err(broken());
        }
        let first_dir = next_row + u64::from(files);
        let mut before = Sibling { start: 0, name: &[], is_dir: false };
        for row in next_row..end {
            let at = row as usize;
            let is_dir = row >= first_dir;
            let name_end = u64::from(columns.name_end[at].to_native());
            let name = name_end
                .checked_sub(before.start)
                .and_then(|_| columns.names.get((names + before.start) as usize..(names + name_end) as usize))
                .ok_or_else(broken)?;
            let offends = |error| Offence::Name { dir: path_so_far(columns, number), error };
            path::check_name(name).map_err(offends)?;
            let len = path_len[number] + usize::from(number > 0) + name.len();
            if len > limits::PATH {
                return Err(offends(PathError::TooLong(len)));
            }
            if is_dir != (FileType::from_mode(u32::from(columns.mode[at].to_native())) == Some(FileType::Directory)) {
                return Err(broken());
            }
            if row > next_row && order::siblings(before.name, before.is_dir, name, is_dir).is_ge() {
                return Err(Offence::Order { dir: path_so_far(columns, number), name: name.to_vec() });
            }
            if is_dir {
                if columns.dir_row.get(next_dir).is_none_or(|own| u64::from(own.to_native()) != row)
                    || columns.dir_parent[next_dir].to_native() as usize != number
                {
                    return Err(Offence::Tree(next_dir as u32));
                }
                path_len[next_dir] = len;
                next_dir += 1;
            }
            before = Sibling { start: name_end, name, is_dir };
        }
        names += before.start;
        next_row = end;
        // Files and directories are two separate runs, so a name that is in both has to be searched for.
        let dir = list.dir(number as u32);
        for row in dir.subdirs() {
            let name = dir.name_of(row);
            if super::view::search(dir.files(), |row| dir.name_of(row).cmp(name)).is_some() {
                return Err(Offence::Order { dir: path_so_far(columns, number), name: name.to_vec() });
            }
        }
    }
    if next_row != entries || next_dir != columns.dir_row.len() || names != columns.names.len() as u64 {
        return Err(Offence::Tree(columns.dir_row.len() as u32 - 1));
    }
    Ok(())
}

struct Sibling<'a> {
    /// The offset at which the next name starts in the directory's names.
    start: u64,
    name: &'a [u8],
    is_dir: bool,
}

/// Returns the path of a directory. Its ancestors are checked already, because the check goes breadth first.
fn path_so_far(list: &ArchivedFileList, number: usize) -> Vec<u8> {
    ListRef::new(list).dir(number as u32).path()
}

/// Checks that link groups are complete, have at least two names, and agree in type and content.
fn links(list: ListRef<'_>) -> Result<(), Offence> {
    let columns = list.archived();
    let flagged = columns.flags.iter().filter(|&&flags| flags & FLAG_LINKED != 0).count();
    if flagged != columns.link_row.len() {
        return Err(Offence::Column("link_row"));
    }
    let mut before = None;
    let mut followed = vec![false; columns.link_row.len()];
    for (at, (row, leader)) in list.links().enumerate() {
        let broken = Offence::Link(row);
        if before.is_some_and(|before| before >= row)
            || row >= list.len()
            || columns.flags[row as usize] & FLAG_LINKED == 0
            || leader > row
        {
            return Err(broken);
        }
        before = Some(row);
        if leader == row {
            continue;
        }
        let lead = columns.link_row[..at].binary_search_by(|other| other.to_native().cmp(&leader));
        let Ok(lead) = lead else { return Err(broken) };
        if columns.link_leader[lead] != leader || !list.row(row).has_content_of(list.row(leader)) {
            return Err(broken);
        }
        followed[lead] = true;
    }
    match list.links().enumerate().find(|&(at, (row, leader))| row == leader && !followed[at]) {
        Some((_, (row, _))) => Err(Offence::Link(row)),
        None => Ok(()),
    }
}
