//! Expands paths with wildcards. The sender does this, as a shell would.
//!
//! As in stock rsync's daemon, `*` also matches names that begin with a dot.

use super::{Hides, follow, paths, visible};
use crate::filter::{Pattern, Subject};
use crate::list::ListRef;

/// Comparison steps that one session's globs may take, in addition to [`STEPS_EACH`] for every name in the
/// list. This is enough for every honest command line. `*/*/*` a thousand times is not an honest one.
const STEPS: u64 = 1 << 26;
/// Comparison steps per name in the list. An ordinary component takes a few dozen steps for a name.
const STEPS_EACH: u64 = 256;

/// The comparison steps that are left for a session's globs.
#[derive(Debug, Default)]
pub(super) struct Budget(u64);

impl Budget {
    pub(super) fn for_list(list: ListRef<'_>) -> Self {
        Self(STEPS + STEPS_EACH * u64::from(list.len()))
    }

    /// Returns whether the name matches. Nothing matches when the budget is used up.
    fn matches(&mut self, pattern: &Pattern, name: &[u8], is_dir: bool) -> bool {
        let mut steps = 0;
        let matches = self.0 > 0 && pattern.matches(&Subject::new(name, 0, is_dir), false, &mut steps);
        self.0 = self.0.saturating_sub(steps);
        matches
    }
}

/// Returns whether a path has wildcards.
pub(super) fn is_glob(path: &[u8]) -> bool {
    path.iter().any(|byte| b"*?[".contains(byte))
}

/// Calls `each` with every path that a path with wildcards matches. Calls it with the path itself if the path
/// has no wildcards, nothing matches, or the budget was used up.
pub(super) fn expand(
    list: ListRef<'_>,
    path: &[u8],
    relative: bool,
    hides: &impl Hides,
    budget: &mut Budget,
    mut each: impl FnMut(&[u8]),
) {
    if !is_glob(path) {
        let plain = unescaped(path);
        let escaped_on_the_way = plain != path && visible(list, hides, &paths::tidy(path)).is_none();
        return each(if escaped_on_the_way { &plain } else { path });
    }
    // Without `..`, every component except the pivot leads one level deeper.
    let normalized = paths::tidy_glob(path, relative);
    let components: Vec<&[u8]> = normalized.split(|&byte| byte == b'/').collect();
    let mut found = false;
    let mut reached = |path: &[u8]| {
        found = true;
        each(path);
    };
    Expansion { list, hides, budget }.go(Vec::new(), 0, &components, &mut reached);
    if !found || budget.0 == 0 {
        each(path);
    }
}

struct Expansion<'a, 'b, H> {
    list: ListRef<'a>,
    hides: &'b H,
    budget: &'b mut Budget,
}

impl<H: Hides> Expansion<'_, '_, H> {
    fn go(&mut self, mut path: Vec<u8>, dir: u32, components: &[&[u8]], each: &mut impl FnMut(&[u8])) {
        let Some((&component, rest)) = components.split_first() else { return each(&path) };
        if matches!(component, b"" | b".") {
            // At the end this means the contents. Elsewhere it is `/./`, where the name begins.
            path.extend_from_slice(component);
            path.extend_from_slice(if rest.is_empty() { b"" } else { b"/" });
            return self.go(path, dir, rest, each);
        }
        if rest.is_empty() && !is_glob(component) {
            // Stock rsync does not check whether a last component without wildcards exists.
            path.extend_from_slice(component);
            return each(&path);
        }
        for row in matching(self.list, dir, component, self.hides, self.budget) {
            let Some(number) = self.dir_number_of(dir, row) else { continue };
            let mut path = [&path[..], self.list.dir(dir).name_of(row)].concat();
            // A symlink on the way gives an entry a path that differs from its own.
            let is_hidden = self.hides.module_hides(&paths::tidy(&path), number.is_some())
                || self.hides.module_hides_row(self.list, self.list.row(row));
            if is_hidden {
                continue;
            }
            match number {
                _ if rest.is_empty() => each(&path),
                Some(number) => {
                    path.push(b'/');
                    self.go(path, number, rest, each);
                }
                None => {}
            }
        }
    }

    /// Returns the number of the directory that the row, in the directory `dir`, is or stands for;
    /// `Some(None)` if it is not a directory. `None` for a symlink that cannot be resolved, which no wildcard
    /// matches.
    fn dir_number_of(&self, dir: u32, row: u32) -> Option<Option<u32>> {
        let row = self.list.row(row);
        let Some(target) = row.target() else { return Some(row.dir_number()) };
        let target = follow::resolve_link(self.list, self.hides, dir, target, 0).ok()?;
        Some(self.list.row(target.row).dir_number())
    }
}

/// Returns the rows of a directory's children that match one component.
fn matching(list: ListRef<'_>, dir: u32, component: &[u8], hides: &impl Hides, budget: &mut Budget) -> Vec<u32> {
    let dir = list.dir(dir);
    let is_open = |is_listed: bool| {
        let row = list.row(dir.row());
        if is_listed { hides.may_list(row) } else { hides.may_enter(row) }
    };
    if !is_open(is_glob(component)) {
        return Vec::new();
    }
    let pattern = Pattern::new(&[b"/", component].concat());
    if !is_glob(component) || pattern.never_matches() {
        return dir.child(&unescaped(component)).map(|row| row.number()).into_iter().collect();
    }
    let matches = dir.children().filter(|(name, row)| budget.matches(&pattern, name, row.is_dir()));
    matches.map(|(_, row)| row.number()).collect()
}

/// Removes the backslashes that escape the byte after them.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte });
    }
    plain
}
