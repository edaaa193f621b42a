//! Include and exclude patterns, with the meaning that they have in rsync.
//!
//! The first rule that matches decides. A name that no rule matches is kept. Everything below an excluded directory is
//! excluded with it. What a pattern is compared with depends on its form:
//!
//! - A pattern that begins with `/` is anchored at the root.
//! - A pattern with a `**` is compared with the end of the path, starting at the beginning of any name.
//! - A pattern with another `/` is compared with as many of the path's last names as it has itself.
//! - Any other pattern is compared with the last name.
//!
//! A trailing `/` restricts a pattern to directories. `*` and `?` do not match `/`, `**` does. `[…]` is a class.
//! `dir/***` matches the directory and everything below it. In a pattern with any of these, `\` takes the next byte
//! literally; in other patterns it is an ordinary byte.
//!
//! Sources: rsync's manual page, and the behaviour of rsync 3.5.0 where the page leaves something open.

mod chain;
mod glob;
mod pattern;

use thiserror::Error;

use crate::limits;

pub(crate) use chain::{Chain, Link};
pub(crate) use pattern::{Pattern, Subject};

/// An ordered list of rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    rules: Chain,
}

/// Why a pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilterError {
    /// The pattern is empty, `/` or `//`.
    #[error("empty pattern")]
    Empty,
    /// The pattern is longer than any path. The field is its length in bytes.
    #[error("pattern of {0} bytes is longer than any path")]
    TooLong(usize),
    /// The pattern has a `[` without its `]`, an unknown named class, or a `\` without its byte. Rsync accepts such a
    /// pattern, but it matches nothing.
    #[error("pattern '{0}' never matches: unclosed '[', unknown class name or trailing '\\'")]
    Class(String),
}

impl Filter {
    /// Returns whether there are no rules. Everything is kept then.
    pub fn is_empty(&self) -> bool {
        self.rules.links().is_empty()
    }

    /// Appends a rule that keeps the names it matches. Fails if the pattern is refused.
    pub fn include(&mut self, pattern: &[u8]) -> Result<(), FilterError> {
        self.push(pattern, true)
    }

    /// Appends a rule that excludes the names it matches. Fails if the pattern is refused.
    pub fn exclude(&mut self, pattern: &[u8]) -> Result<(), FilterError> {
        self.push(pattern, false)
    }

    /// Returns whether the entry at `path` (relative to the root) is kept, provided that its ancestors are. A walk calls
    /// this on its way down, so it never gets to the contents of an excluded directory.
    pub fn keeps(&self, path: &[u8], is_dir: bool) -> bool {
        self.rules.decide(&Subject::new(path, 0, is_dir), &mut 0, u64::MAX).unwrap_or(true)
    }

    /// Like [`Filter::keeps`], but checks the ancestors too.
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
    fn patterns_match_as_in_rsync() {
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
    fn a_hostile_pattern_takes_bounded_time() {
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
