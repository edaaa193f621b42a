//! Resolves symlinks within the index as a kernel resolves them within a root directory. An absolute target
//! begins at the repository's root, and `..` stops there, so a path cannot lead out of the repository.

use super::Hides;
use crate::list::{ListRef, Row};

/// Maximum number of symlinks that one path may lead through, as in Linux.
pub(crate) const LINKS: u32 = 40;

/// The symlinks that a client wants replaced by their targets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Follow {
    /// All symlinks (`-L`).
    pub all: bool,
    /// Symlinks to directories (`-k`).
    pub dirs: bool,
    /// Symlinks whose targets lead out of the transfer (`--copy-unsafe-links`).
    pub leaving: bool,
}

/// The reason why a path cannot be resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LookupError {
    /// A component does not exist or is hidden.
    NotFound,
    /// A component is not a directory.
    NotDirectory,
    /// The path leads through more than [`LINKS`] symlinks.
    TooManyLinks,
    /// The path leads to a directory, but through exactly as many symlinks as are allowed. Stock rsync lists
    /// such a directory but cannot open it.
    Unopened,
    /// The path leads through a directory that must not be entered.
    Denied,
    /// The path leads to a directory whose contents must not be listed.
    Closed,
}

/// The resolved target of a symlink.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// The row of the target, which is not a symlink itself.
    pub(crate) row: u32,
    /// The number of symlinks on the way, including this one and those before it.
    pub(crate) links: u32,
}

/// What is listed for an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Followed {
    /// The entry itself.
    Itself,
    /// The target of the symlink.
    Target(Target),
    /// Nothing: the symlink cannot be resolved.
    Failed(LookupError),
}

impl Follow {
    /// Returns whether any symlinks are replaced.
    pub fn any(self) -> bool {
        self.all || self.dirs || self.leaving
    }

    /// Returns what is listed for the entry at `row` in the directory `dir`. `depth` is the number of
    /// directories in its name in the list, `links` the number of symlinks on the way to it.
    pub(crate) fn follow_entry(
        self,
        list: ListRef<'_>,
        hides: &impl Hides,
        dir: u32,
        row: u32,
        (depth, links): (usize, u32),
    ) -> Followed {
        if !self.any() {
            return Followed::Itself;
        }
        let Some(target) = list.row(row).target() else { return Followed::Itself };
        let must = self.all || self.leaving && leaves(target, depth);
        if !must && !self.dirs {
            return Followed::Itself;
        }
        match resolve_link(list, hides, dir, target, links) {
            Ok(target) if must || list.row(target.row).is_dir() => Followed::Target(target),
            Err(error) if must => Followed::Failed(error),
            _ => Followed::Itself,
        }
    }
}

/// Returns whether a symlink with this target may lead out of the transfer. The symlink is `depth`
/// directories below the transfer's root. Stock rsync judges by the text alone: it allows `..` only at the
/// beginning.
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

/// Resolves the target of a symlink in the directory `dir`.
pub(crate) fn resolve_link(
    list: ListRef<'_>,
    hides: &impl Hides,
    dir: u32,
    target: &[u8],
    links: u32,
) -> Result<Target, LookupError> {
    if links >= LINKS {
        return Err(LookupError::TooManyLinks);
    }
    resolve(list, hides, dir, target, links + 1)
}

/// Resolves a path that begins in the directory `dir`, after `links` symlinks. The time is bounded by the
/// length of the path and of at most [`LINKS`] targets.
pub(super) fn resolve(
    list: ListRef<'_>,
    hides: &impl Hides,
    dir: u32,
    path: &[u8],
    mut links: u32,
) -> Result<Target, LookupError> {
    let mut at = list.dir(if path.starts_with(b"/") { 0 } else { dir }).row();
    // The components that are still to be resolved, the next one last.
    let mut names: Vec<&[u8]> = path.rsplit(|&byte| byte == b'/').collect();
    while let Some(name) = names.pop() {
        let dir = list.row(at).dir_number().ok_or(LookupError::NotDirectory)?;
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
            Some(_) if links == LINKS => return Err(LookupError::TooManyLinks),
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

/// Returns the number of a directory that may be entered. Fails if it must not be.
pub(super) fn enter(list: ListRef<'_>, hides: &impl Hides, dir: u32) -> Result<u32, LookupError> {
    if hides.may_enter(list.row(list.dir(dir).row())) { Ok(dir) } else { Err(LookupError::Denied) }
}

/// Returns the entry of this name in a directory. Fails if it does not exist or the module's rules hide it.
pub(super) fn child<'a>(list: ListRef<'a>, hides: &impl Hides, dir: u32, name: &[u8]) -> Result<Row<'a>, LookupError> {
    let row = list.dir(enter(list, hides, dir)?).child(name).ok_or(LookupError::NotFound)?;
    if hides.module_hides_row(list, row) { Err(LookupError::NotFound) } else { Ok(row) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_leaves_the_transfer_if_stock_rsync_says_so() {
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
