//! Names to pull, from a list that an operator gives.

use std::ops::Range;

use stillmirror_protocol::path::{self, PathError};
use thiserror::Error;

use crate::local::self_and_ancestors;

/// A set of paths relative to the pulled part. A directory stands for everything below it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    text: Vec<u8>,
    /// Where each path lies in `text`, in the order of [`key`], without duplicates. The empty path is the whole part.
    places: Vec<Range<usize>>,
}

/// A name in the list is not a path below the pulled part.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("name {number}: {reason}")]
pub struct NamesError {
    /// The number of the name, counted from 1. Without NULs, it is the number of the line.
    pub number: usize,
    /// What is wrong with it.
    pub reason: PathError,
}

impl Names {
    /// Reads names as rsync's `--files-from` does. With `from0`, each ends with a NUL. Otherwise each is a line, and empty
    /// lines and those that begin with `#` or `;` are comments. Slashes at the beginning and the end, double slashes and
    /// components `.` do not count. `..` is refused.
    pub fn parse(input: &[u8], from0: bool) -> Result<Self, NamesError> {
        let mut names = Self { text: Vec::with_capacity(input.len()), places: Vec::new() };
        let end = if from0 { 0 } else { b'\n' };
        for (at, line) in input.split(|&byte| byte == end).enumerate() {
            let line = if from0 { line } else { line.strip_suffix(b"\r").unwrap_or(line) };
            let is_comment = !from0 && matches!(line.first(), Some(b'#' | b';'));
            if !line.is_empty() && !is_comment {
                names.push(line).map_err(|reason| NamesError { number: at + 1, reason })?;
            }
        }
        let Self { text, places } = &mut names;
        places.sort_unstable_by(|a, b| key(&text[a.clone()]).cmp(key(&text[b.clone()])));
        places.dedup_by(|a, b| text[a.clone()] == text[b.clone()]);
        Ok(names)
    }

    fn push(&mut self, line: &[u8]) -> Result<(), PathError> {
        let start = self.text.len();
        for name in path::components(line).filter(|name| *name != b".") {
            if self.text.len() > start {
                self.text.push(b'/');
            }
            self.text.extend_from_slice(name);
        }
        path::check_relative(&self.text[start..])?;
        self.places.push(start..self.text.len());
        Ok(())
    }

    fn get(&self, at: usize) -> &[u8] {
        &self.text[self.places[at].clone()]
    }

    /// Returns the paths, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.places.len()).map(|at| self.get(at))
    }

    /// Returns whether everything below the pulled part is named.
    pub(crate) fn name_all(&self) -> bool {
        self.places.first().is_some_and(Range::is_empty)
    }

    /// Returns whether a path lies below a named one.
    pub(crate) fn cover(&self, path: &[u8]) -> bool {
        self.name_all() || self_and_ancestors(path::split(path).0).any(|dir| !dir.is_empty() && self.contains(dir))
    }

    fn contains(&self, path: &[u8]) -> bool {
        self.places.binary_search_by(|place| key(&self.text[place.clone()]).cmp(key(path))).is_ok()
    }

    /// Returns all paths.
    pub(crate) fn all(&self) -> Range<usize> {
        0..self.places.len()
    }

    /// Returns the children of a directory that lead to a path in `range`. All of these paths lie below the directory,
    /// whose own path has `depth` bytes.
    pub(crate) fn children(&self, range: Range<usize>, depth: usize) -> impl Iterator<Item = Child<'_>> {
        let skip = if depth == 0 { 0 } else { depth + 1 };
        let mut rest = range;
        std::iter::from_fn(move || {
            let start = rest.clone().next()?;
            let first = self.get(start).get(skip..).unwrap_or_default();
            let name = path::components(first).next().unwrap_or_default();
            let is_in = |at: &usize| {
                path::components(self.get(*at).get(skip..).unwrap_or_default()).next().unwrap_or_default() == name
            };
            let end = start + rest.clone().take_while(is_in).count();
            rest.start = end;
            Some(Child { name, is_named: first.len() == name.len(), below: start..end })
        })
    }
}

/// A name in a directory that leads to named paths.
pub(crate) struct Child<'a> {
    pub(crate) name: &'a [u8],
    /// Whether it is itself a named path.
    pub(crate) is_named: bool,
    /// The paths at and below it.
    pub(crate) below: Range<usize>,
}

/// The order in which what is below a directory follows it at once.
fn key(path: &[u8]) -> impl Iterator<Item = u8> {
    path.iter().map(|&byte| if byte == b'/' { 0 } else { byte })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(input: &[u8], from0: bool) -> Vec<String> {
        let names = Names::parse(input, from0).unwrap();
        names.iter().map(|name| String::from_utf8(name.to_vec()).unwrap()).collect()
    }

    #[test]
    fn names_are_read_as_rsync_reads_them() {
        let text = b"b//c/\n# comment\n; another\n\n/a/./x\r\na\nb/c\na-b\n#\n./d";
        assert_eq!(parsed(text, false), ["a", "a/x", "a-b", "b/c", "d"]);
        assert_eq!(parsed(b"#a\0new\nline\0\0", true), ["#a", "new\nline"]);
        assert_eq!(parsed(b".\na", false), ["", "a"]);
        let error = Names::parse(b"a\n\nb/../../c\n", false).unwrap_err();
        assert_eq!(error.to_string(), "name 3: invalid name '..'");
    }

    #[test]
    fn only_what_is_below_a_named_path_is_covered() {
        let names = Names::parse(b"a/b\nc\n", false).unwrap();
        for inside in [&b"a/b/x"[..], b"a/b/x/y", b"c/d"] {
            assert!(names.cover(inside));
        }
        for outside in [&b"a"[..], b"a/b", b"a/x", b"c", b"cc/d", b""] {
            assert!(!names.cover(outside));
        }
        assert!(Names::parse(b".", false).unwrap().cover(b"x"));
    }
}
