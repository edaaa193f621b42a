//! Paths with wildcards. A sender expands them, as a shell would.
//!
//! `*` also matches names that begin with a dot, as stock rsync's daemon has it.

use super::{Hides, paths};
use crate::filter::Filter;
use crate::list::ListRef;

/// Names that one session's globs may be compared with, beside eight times all names: enough for every
/// honest command line, and `*/*/*` a thousand times over is none.
const FREE_STEPS: u64 = 1 << 20;

/// What is left for a session's globs.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Budget {
    pub(super) fn for_list(list: ListRef<'_>) -> Self {
        Self(FREE_STEPS + 8 * u64::from(list.len()))
    }
}

/// Whether a path has wildcards.
pub(super) fn is_glob(path: &[u8]) -> bool {
    path.iter().any(|byte| b"*?[".contains(byte))
}

/// Calls `each` with every path that a path with wildcards stands for: with itself when it has none or
/// nothing matches.
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
        let escaped_on_the_way = plain != path && list.find(&paths::tidy(path)).is_none();
        return each(if escaped_on_the_way { &plain } else { path });
    }
    // Without `..`, so that every component but the pivot goes one level deeper.
    let tidied = paths::tidied(path, relative);
    let components: Vec<&[u8]> = tidied.split(|&byte| byte == b'/').collect();
    let mut found = false;
    let mut reached = |path: &[u8]| {
        found = true;
        each(path);
    };
    Expansion { list, hides, budget }.go(Vec::new(), 0, &components, &mut reached);
    if !found {
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
            // At the end: contents. Else `/./`: names begin here.
            path.extend_from_slice(component);
            path.extend_from_slice(if rest.is_empty() { b"" } else { b"/" });
            return self.go(path, dir, rest, each);
        }
        for (name, row) in matching(self.list, dir, component, self.budget) {
            let number = self.list.row(row).dir_number();
            let mut path = [&path[..], &name].concat();
            if self.hides.module_hides(&paths::tidy(&path), number.is_some()) {
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
}

/// The children of a directory that match one component.
fn matching(list: ListRef<'_>, dir: u32, component: &[u8], budget: &mut Budget) -> Vec<(Vec<u8>, u32)> {
    let dir = list.dir(dir);
    let mut filter = Filter::default();
    if !is_glob(component) || filter.exclude(&[b"/", component].concat()).is_err() {
        let name = unescaped(component);
        return dir.child(&name).map(|row| (name, row.number())).into_iter().collect();
    }
    let steps = u64::from(dir.rows().end - dir.rows().start);
    let Some(left) = budget.0.checked_sub(steps) else { return Vec::new() };
    budget.0 = left;
    let matches = dir.children().filter(|(name, row)| !filter.keeps_below_root(name, row.is_dir()));
    matches.map(|(name, row)| (name.to_vec(), row.number())).collect()
}

/// Without the backslashes that protect the byte after them.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte });
    }
    plain
}
