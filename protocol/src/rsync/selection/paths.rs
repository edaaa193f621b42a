//! Parses the paths on a client's command line.
//!
//! The rules are those of stock rsync's daemon. A path never leaves the module: `..` stops at its root. Empty
//! components and `.` are ignored. A path that ends in `/`, `.` or `..` means a directory's contents. With
//! `-R`, the name is the whole path, or what follows the first `/./`.

use crate::path;

/// A parsed path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestedPath {
    /// The directory that the name is relative to.
    pub(super) base: Vec<u8>,
    /// The name in the list. Empty for `.`.
    pub(super) name: Vec<u8>,
    /// Whether the contents of the directory are requested, not the directory itself.
    pub(super) contents: bool,
}

impl RequestedPath {
    pub(super) fn new(start: &[u8], requested: &[u8], relative: bool) -> Self {
        let last = requested.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let contents = matches!(last, b"" | b"." | b"..");
        if relative {
            let (before, after) = pivot(requested);
            return Self { base: join(start, &tidy(before)), name: tidy(after), contents };
        }
        let whole = join(start, &tidy(requested));
        if contents {
            return Self { base: whole, name: Vec::new(), contents };
        }
        let (base, name) = path::split(&whole);
        Self { base: base.to_vec(), name: name.to_vec(), contents }
    }

    /// Returns the path below the module.
    pub(super) fn path(&self) -> Vec<u8> {
        join(&self.base, &self.name)
    }

    /// Returns the path as a stock daemon shows it whose root is the module.
    pub(super) fn display_path(&self) -> Vec<u8> {
        [b"/", &self.path()[..]].concat()
    }
}

/// Normalizes a path: removes empty components and `.`, and resolves `..` within the module.
pub fn tidy(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join(&b'/')
}

/// Normalizes a path, but keeps its `/./` and a slash at its end.
pub(super) fn tidy_glob(requested: &[u8], relative: bool) -> Vec<u8> {
    let parts = RequestedPath::new(b"", requested, relative);
    let pivot: &[u8] = if relative && !parts.base.is_empty() { b"/./" } else { b"" };
    let name = if relative { [&parts.base[..], pivot, &parts.name].concat() } else { parts.path() };
    if parts.contents { [&name[..], b"/"].concat() } else { name }
}

/// Joins two normalized paths. Either may be empty.
fn join(base: &[u8], name: &[u8]) -> Vec<u8> {
    if name.is_empty() { base.to_vec() } else { path::join(base, name) }
}

/// Splits a path at the first `/./`. A leading `./` is removed only if there is none.
fn pivot(path: &[u8]) -> (&[u8], &[u8]) {
    match path.windows(3).position(|three| three == b"/./") {
        Some(at) => (&path[..at], &path[at + 3..]),
        None => (&[], path.strip_prefix(b"./").unwrap_or(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requested(base: &str, name: &str, contents: bool) -> RequestedPath {
        RequestedPath { base: base.into(), name: name.into(), contents }
    }

    #[test]
    fn a_plain_path_is_named_by_its_last_component() {
        let cases = [
            ("", requested("", "", true)),
            ("a/b", requested("a", "b", false)),
            ("a/b/", requested("a/b", "", true)),
            ("a/.", requested("a", "", true)),
            ("a/..", requested("", "", true)),
            ("//a//./b", requested("a", "b", false)),
            ("../../z", requested("", "z", false)),
        ];
        for (path, expected) in cases {
            assert_eq!(RequestedPath::new(b"", path.as_bytes(), false), expected, "{path}");
        }
    }

    #[test]
    fn a_relative_path_is_named_whole_or_after_its_pivot() {
        let cases = [
            ("a/b/", requested("", "a/b", true)),
            ("./a/b", requested("", "a/b", false)),
            ("a/./b/./c", requested("a", "b/c", false)),
            ("./a/./b", requested("a", "b", false)),
            ("././a/./b", requested("", "a/b", false)),
            ("a/b/./", requested("a/b", "", true)),
            ("a/b/.", requested("", "a/b", true)),
            ("", requested("", "", true)),
        ];
        for (path, expected) in cases {
            assert_eq!(RequestedPath::new(b"", path.as_bytes(), true), expected, "{path}");
        }
        assert_eq!(RequestedPath::new(b"s", b"../z/q", true), requested("s", "z/q", false));
    }
}
