//! Symlinks, resolved within the index as a kernel resolves them within a root: an absolute target begins at the
//! repository's root, and `..` stops there. So nothing outside can be named.

use super::Hides;
use crate::list::{ListRef, Row};

/// Symlinks that one path may lead through, as in Linux.
pub(crate) const LINKS: u32 = 40;

/// The symlinks that a client wants replaced by what they point to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Follow {
    /// All of them (`-L`).
    pub all: bool,
    /// Those that point to directories (`-k`).
    pub dirs: bool,
    /// Those whose targets leave the transfer (`--copy-unsafe-links`).
    pub leaving: bool,
}

/// A path that leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// A component is not there, or hidden.
    Absent,
    /// A component is no directory.
    NotDirectory,
    /// There are more symlinks on the way than [`LINKS`].
    TooManyLinks,
    /// It leads to a directory, but there are as many symlinks on the way as there may be: stock rsync lists such a
    /// directory, and cannot open it.
    Unopened,
    /// It leads through a directory that may not be gone into.
    Denied,
    /// It leads to a directory whose contents may not be listed.
    Closed,
}

/// What a symlink stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// The entry that it leads to, which is no symlink.
    pub(crate) row: u32,
    /// Symlinks on the way, this one counted, and those that were counted before.
    pub(crate) links: u32,
}

/// What a client gets for an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Standing {
    /// The entry itself.
    Itself,
    /// What the symlink leads to.
    For(Target),
    /// Nothing: the symlink leads nowhere.
    Lost(Lost),
}

impl Follow {
    /// Whether any symlink is to be replaced.
    pub fn any(self) -> bool {
        self.all || self.dirs || self.leaving
    }

    /// What the entry at `row`, in the directory `dir`, stands for. Its name in the list is so many directories deep, and
    /// so many symlinks on the way to it count.
    pub(crate) fn standing(
        self,
        list: ListRef<'_>,
        hides: &impl Hides,
        dir: u32,
        row: u32,
        (depth, links): (usize, u32),
    ) -> Standing {
        if !self.any() {
            return Standing::Itself;
        }
        let Some(target) = list.row(row).target() else { return Standing::Itself };
        let must = self.all || self.leaving && leaves(target, depth);
        if !must && !self.dirs {
            return Standing::Itself;
        }
        match resolve_link(list, hides, dir, target, links) {
            Ok(target) if must || list.row(target.row).is_dir() => Standing::For(target),
            Err(lost) if must => Standing::Lost(lost),
            _ => Standing::Itself,
        }
    }
}

/// Whether a symlink with this target, so many directories below the transfer's root, may lead out of it. Stock rsync
/// judges by the text alone: `..` is expected at the beginning only.
///
/// Source: a stock 3.5.0 daemon observed with 4,684 targets at four depths.
fn leaves(target: &[u8], depth: usize) -> bool {
    let mut rest = target;
    let mut up = 0;
    while let Some(after) = rest.strip_prefix(b"../") {
        up += 1;
        rest = &after[after.iter().take_while(|&&byte| byte == b'/').count()..];
    }
    up += usize::from(rest == b"..");
    target.is_empty()
        || target.starts_with(b"/")
        || target.ends_with(b"/..")
        || rest.windows(4).any(|part| part == b"/../")
        || up > depth
}

/// What a symlink in the directory `dir` leads to.
pub(crate) fn resolve_link(
    list: ListRef<'_>,
    hides: &impl Hides,
    dir: u32,
    target: &[u8],
    links: u32,
) -> Result<Target, Lost> {
    if links >= LINKS {
        return Err(Lost::TooManyLinks);
    }
    resolve(list, hides, dir, target, links + 1)
}

/// What a path leads to that begins in the directory `dir`, behind `links` symlinks. Takes time in the length of the path
/// and of at most [`LINKS`] targets.
pub(super) fn resolve(
    list: ListRef<'_>,
    hides: &impl Hides,
    dir: u32,
    path: &[u8],
    mut links: u32,
) -> Result<Target, Lost> {
    let mut at = list.dir(if path.starts_with(b"/") { 0 } else { dir }).row();
    // The names that are still to go, the next one last.
    let mut names: Vec<&[u8]> = path.rsplit(|&byte| byte == b'/').collect();
    while let Some(name) = names.pop() {
        let dir = list.row(at).dir_number().ok_or(Lost::NotDirectory)?;
        match name {
            b"" | b"." => continue,
            b".." => {
                enter(list, hides, dir)?;
                at = list.dir(list.dir(dir).parent()).row();
                continue;
            }
            _ => {}
        }
        let row = child(list, hides, dir, name)?;
        match row.target() {
            None => at = row.number(),
            Some(_) if links == LINKS => return Err(Lost::TooManyLinks),
            Some(target) => {
                links += 1;
                if target.starts_with(b"/") {
                    at = 0;
                }
                names.extend(target.rsplit(|&byte| byte == b'/'));
            }
        }
    }
    Ok(Target { row: at, links })
}

/// The number of a directory, if it may be gone into.
pub(super) fn enter(list: ListRef<'_>, hides: &impl Hides, dir: u32) -> Result<u32, Lost> {
    if hides.may_enter(list.row(list.dir(dir).row())) { Ok(dir) } else { Err(Lost::Denied) }
}

/// The entry of that name in a directory, unless the module's rules hide it.
pub(super) fn child<'a>(list: ListRef<'a>, hides: &impl Hides, dir: u32, name: &[u8]) -> Result<Row<'a>, Lost> {
    let row = list.dir(enter(list, hides, dir)?).child(name).ok_or(Lost::Absent)?;
    if hides.module_hides_row(list, row) { Err(Lost::Absent) } else { Ok(row) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_leaves_the_transfer_as_stock_judges_it() {
        let cases: [(&str, usize, bool); 16] = [
            ("a", 0, false),
            ("/a", 3, true),
            ("..", 0, true),
            ("..", 1, false),
            ("../", 1, false),
            ("../a", 0, true),
            ("../a", 1, false),
            ("../..", 2, true),
            ("../../", 2, false),
            ("../../a", 1, true),
            ("..//../a", 2, false),
            ("./..", 3, true),
            (".././../a", 3, true),
            ("a/..", 3, true),
            ("a/../b", 3, true),
            ("...", 0, false),
        ];
        for (target, depth, expected) in cases {
            assert_eq!(leaves(target.as_bytes(), depth), expected, "{target} at {depth}");
        }
    }
}
