//! What a path on a client's command line means.
//!
//! As stock rsync's daemon does it: a path never leaves the module (`..` stops at its root), empty
//! components and `.` count for nothing, a path that ends in `/`, `.` or `..` means a directory's contents.
//! With `-R` the whole path is the name, or what follows the first `/./`.

use crate::path;

/// A path, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The directory that the name is relative to.
    pub(super) base: Vec<u8>,
    /// The name in the list; empty for `.`.
    pub(super) name: Vec<u8>,
    /// Contents, rather than the directory itself.
    pub(super) contents: bool,
}

impl Asked {
    pub(super) fn new(start: &[u8], asked: &[u8], relative: bool) -> Self {
        let last = asked.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let contents = matches!(last, b"" | b"." | b"..");
        if relative {
            let (before, after) = pivot(asked);
            return Self { base: join(start, &tidy(before)), name: tidy(after), contents };
        }
        let whole = join(start, &tidy(asked));
        if contents {
            return Self { base: whole, name: Vec::new(), contents };
        }
        let (base, name) = path::split(&whole);
        Self { base: base.to_vec(), name: name.to_vec(), contents }
    }

    /// The path below the module.
    pub(super) fn path(&self) -> Vec<u8> {
        join(&self.base, &self.name)
    }

    /// The path as a stock daemon shows it whose root is the module.
    pub(super) fn shown(&self) -> Vec<u8> {
        [b"/", &self.path()[..]].concat()
    }
}

/// The path without what counts for nothing, and without `..`.
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

/// The same path, tidy but for its pivot and a slash at its end.
pub(super) fn tidied(asked: &[u8], relative: bool) -> Vec<u8> {
    let parts = Asked::new(b"", asked, relative);
    let pivot: &[u8] = if relative && !parts.base.is_empty() { b"/./" } else { b"" };
    let name = if relative { [&parts.base[..], pivot, &parts.name].concat() } else { parts.path() };
    if parts.contents { [&name[..], b"/"].concat() } else { name }
}

/// Two tidy paths as one; either may be empty.
fn join(base: &[u8], name: &[u8]) -> Vec<u8> {
    if name.is_empty() { base.to_vec() } else { path::join(base, name) }
}

/// What stands before and after the first `/./`; a `./` in front counts only where there is none.
fn pivot(path: &[u8]) -> (&[u8], &[u8]) {
    match path.windows(3).position(|three| three == b"/./") {
        Some(at) => (&path[..at], &path[at + 3..]),
        None => (&[], path.strip_prefix(b"./").unwrap_or(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(base: &str, name: &str, contents: bool) -> Asked {
        Asked { base: base.into(), name: name.into(), contents }
    }

    #[test]
    fn a_plain_path_is_named_by_its_last_component() {
        let cases = [
            ("", asked("", "", true)),
            ("a/b", asked("a", "b", false)),
            ("a/b/", asked("a/b", "", true)),
            ("a/.", asked("a", "", true)),
            ("a/..", asked("", "", true)),
            ("//a//./b", asked("a", "b", false)),
            ("../../z", asked("", "z", false)),
        ];
        for (path, expected) in cases {
            assert_eq!(Asked::new(b"", path.as_bytes(), false), expected, "{path}");
        }
    }

    #[test]
    fn a_relative_path_is_named_whole_or_from_its_pivot() {
        let cases = [
            ("a/b/", asked("", "a/b", true)),
            ("./a/b", asked("", "a/b", false)),
            ("a/./b/./c", asked("a", "b/c", false)),
            ("./a/./b", asked("a", "b", false)),
            ("././a/./b", asked("", "a/b", false)),
            ("a/b/./", asked("a/b", "", true)),
            ("a/b/.", asked("", "a/b", true)),
            ("", asked("", "", true)),
        ];
        for (path, expected) in cases {
            assert_eq!(Asked::new(b"", path.as_bytes(), true), expected, "{path}");
        }
        assert_eq!(Asked::new(b"s", b"../z/q", true), asked("s", "z/q", false));
    }
}
