//! Include and exclude patterns, with rsync's meaning.
//!
//! The first rule that matches decides; a name that no rule matches is kept, and what lies below an
//! excluded directory is excluded with it. A pattern that begins with `/` is anchored at the root; one
//! with another `/` is compared with as many of the path's last names, one with a `**` with the end of
//! the path, from a name's beginning; any other with the last name. A trailing `/` restricts it to
//! directories. `*` and `?` stop at `/`, `**` does not, `[…]` is a class, `dir/***` is the directory and
//! all below it. In a pattern with one of these, `\` takes the next byte literally; in others it is a byte
//! like any other.
//!
//! Facts: rsync's manual page, and rsync 3.5.0 asked about what that leaves open.

mod chain;
mod glob;
mod pattern;

use thiserror::Error;

use crate::limits;

pub(crate) use chain::{Chain, Link};
pub(crate) use pattern::{Pattern, Subject};

/// Rules of one filter, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    rules: Chain,
}

/// A pattern that is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilterError {
    /// Nothing to match.
    #[error("an empty pattern")]
    Empty,
    /// Longer than any path.
    #[error("a pattern of {0} bytes")]
    TooLong(usize),
    /// `[` without its `]`, or a named class that is none. Rsync takes it, and it matches nothing.
    #[error("the pattern '{0}' has an unclosed '['")]
    Class(String),
}

impl Filter {
    /// Whether there is no rule: everything is kept.
    pub fn is_empty(&self) -> bool {
        self.rules.links().is_empty()
    }

    /// Appends a rule that keeps what it matches.
    pub fn include(&mut self, pattern: &[u8]) -> Result<(), FilterError> {
        self.push(pattern, true)
    }

    /// Appends a rule that leaves out what it matches.
    pub fn exclude(&mut self, pattern: &[u8]) -> Result<(), FilterError> {
        self.push(pattern, false)
    }

    /// Whether the entry at `path` (relative to the root) is kept, its ancestors being kept. A walk
    /// asks on its way down, so an excluded directory's contents never come to be asked about.
    pub fn keeps(&self, path: &[u8], is_dir: bool) -> bool {
        self.rules.decide(&Subject::new(path, 0, is_dir), &mut 0, u64::MAX).unwrap_or(true)
    }

    /// As [`Filter::keeps`], for a path of which no ancestor has been asked about.
    pub fn keeps_below_root(&self, path: &[u8], is_dir: bool) -> bool {
        let ancestors = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| &path[..at]);
        self.is_empty() || (ancestors.into_iter().all(|dir| self.keeps(dir, true)) && self.keeps(path, is_dir))
    }

    fn push(&mut self, text: &[u8], include: bool) -> Result<(), FilterError> {
        if text.len() > limits::PATH {
            return Err(FilterError::TooLong(text.len()));
        }
        if matches!(text, b"" | b"/" | b"//") {
            return Err(FilterError::Empty);
        }
        let pattern = Pattern::new(text);
        if pattern.never_matches() {
            return Err(FilterError::Class(String::from_utf8_lossy(text).into_owned()));
        }
        self.rules.push(Link { pattern, include, negated: false, absolute: false });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(pattern: &str, path: &str) -> bool {
        let mut filter = Filter::default();
        filter.exclude(pattern.as_bytes()).unwrap();
        !filter.keeps_below_root(path.trim_end_matches('/').as_bytes(), path.ends_with('/'))
    }

    #[test]
    fn patterns_mean_what_they_mean_to_rsync() {
        for (pattern, hit, miss) in [
            ("*.o", "a/b.o", "a/b.oo"),
            ("/foo", "foo", "a/foo"),
            ("foo/", "a/foo/", "a/foo"),
            ("foo/", "foo/bar", "foobar"),
            ("foo/*/bar", "x/foo/a/bar", "foo/a/b/bar"),
            ("foo/**/bar", "foo/a/b/bar", "foo/bar"),
            ("/dists/**/by-hash", "dists/a/main/by-hash", "x/dists/a/by-hash"),
            ("foo/***", "foo/", "foo"),
            ("foo/***", "a/foo/b/c", "a/fo/b"),
            ("[a-c]x", "bx", "dx"),
            ("[!a-c]x", "dx", "bx"),
            ("[[:digit:]]*", "1a", "a1"),
            ("a\\*b", "a*b", "axb"),
            ("a\\b", "a\\b", "ab"),
            ("[[:]", ":", "a"),
            ("[z-a]", "z", "a"),
            ("**/foo", "foo", "xfoo"),
            ("f**/bar", "x/foo/a/bar", "x/of/bar"),
            ("foo/b*r", "x/foo/bar", "x/ofoo/bar"),
            ("/foo/**", "foo/a/b", "foo"),
            ("?", "a", "ab"),
        ] {
            assert!(excludes(pattern, hit), "{pattern} excludes {hit}");
            assert!(!excludes(pattern, miss), "{pattern} keeps {miss}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let mut filter = Filter::default();
        filter.include(b"*.deb").unwrap();
        filter.include(b"*/").unwrap();
        filter.exclude(b"*").unwrap();
        assert!(filter.keeps_below_root(b"pool/a/x.deb", false));
        assert!(!filter.keeps_below_root(b"pool/a/x.dsc", false));
    }

    #[test]
    fn a_hostile_pattern_takes_no_longer_than_its_length_times_the_names() {
        let mut filter = Filter::default();
        filter.exclude("*a".repeat(1000).as_bytes()).unwrap();
        assert!(filter.keeps(&[b'a'; 900], false));
    }

    #[test]
    fn an_unclosed_class_is_refused() {
        for pattern in [&b"a[bc"[..], b"[[:]]*[", b"[[:digit:]", b"[[:nonsense:]]", b"[a-\\"] {
            assert!(matches!(Filter::default().exclude(pattern), Err(FilterError::Class(_))), "{pattern:?}");
        }
    }
}
