//! Include and exclude patterns, with rsync's meaning.
//!
//! The first rule that matches decides; a name that no rule matches is kept, and what lies below an
//! excluded directory is excluded with it. A pattern that begins with `/` is anchored at the root; one
//! with another `/` or a `**` in it is matched against the end of the path, on a component's border; any
//! other against the last name. A trailing `/` restricts it to directories. `*` and `?` stop at `/`,
//! `**` does not, `[…]` is a class, `\` takes the next byte literally, `dir/***` is the directory and
//! all below it.

use thiserror::Error;

use crate::limits;

/// Rules of one filter, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    include: bool,
    directories_only: bool,
    scope: Scope,
    tokens: Vec<Token>,
    /// `dir/***`: the pattern as `dir/**`, and here the tokens of `dir` alone.
    also_directory: Option<Vec<Token>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The whole path.
    Anchored,
    /// The path from any component on.
    Tail,
    /// The last name.
    Name,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Many,
    /// `**`
    Deep,
    Class {
        negated: bool,
        ranges: Vec<(u8, u8)>,
    },
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
    /// `[` without its `]`.
    #[error("the pattern '{0}' has an unclosed '['")]
    Class(String),
}

impl Filter {
    /// Whether there is no rule: everything is kept.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Appends a rule that keeps what it matches.
    pub fn include(&mut self, pattern: &[u8]) -> Result<(), FilterError> {
        self.rules.push(Rule::parse(true, pattern)?);
        Ok(())
    }

    /// Appends a rule that leaves out what it matches.
    pub fn exclude(&mut self, pattern: &[u8]) -> Result<(), FilterError> {
        self.rules.push(Rule::parse(false, pattern)?);
        Ok(())
    }

    /// Whether the entry at `path` (relative to the root) is kept, its ancestors being kept. A walk
    /// asks on its way down, so an excluded directory's contents never come to be asked about.
    pub fn keeps(&self, path: &[u8], is_dir: bool) -> bool {
        self.rules.iter().find(|rule| rule.matches(path, is_dir)).is_none_or(|rule| rule.include)
    }

    /// As [`Filter::keeps`], for a path of which no ancestor has been asked about.
    pub fn keeps_below_root(&self, path: &[u8], is_dir: bool) -> bool {
        let ancestors = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| &path[..at]);
        self.rules.is_empty() || (ancestors.into_iter().all(|dir| self.keeps(dir, true)) && self.keeps(path, is_dir))
    }
}

impl Rule {
    fn parse(include: bool, pattern: &[u8]) -> Result<Self, FilterError> {
        if pattern.len() > limits::PATH {
            return Err(FilterError::TooLong(pattern.len()));
        }
        let (pattern, directories_only) = match pattern.strip_suffix(b"/") {
            Some(shorter) => (shorter, true),
            None => (pattern, false),
        };
        let (body, anchored) = match pattern.strip_prefix(b"/") {
            Some(shorter) => (shorter, true),
            None => (pattern, false),
        };
        if body.is_empty() {
            return Err(FilterError::Empty);
        }
        let deep = body.windows(2).any(|pair| pair == b"**");
        let scope = match (anchored, deep || body.contains(&b'/')) {
            (true, _) => Scope::Anchored,
            (false, true) => Scope::Tail,
            (false, false) => Scope::Name,
        };
        let also_directory = body.strip_suffix(b"/***").map(tokens).transpose()?;
        Ok(Self { include, directories_only, scope, tokens: tokens(body)?, also_directory })
    }

    fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        if self.directories_only && !is_dir {
            return false;
        }
        let matches = |subject: &[u8]| {
            glob(&self.tokens, subject)
                || (is_dir && self.also_directory.as_ref().is_some_and(|tokens| glob(tokens, subject)))
        };
        match self.scope {
            Scope::Anchored => matches(path),
            Scope::Name => matches(crate::path::split(path).1),
            Scope::Tail => {
                let starts = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at + 1);
                std::iter::once(0).chain(starts).any(|start| matches(&path[start..]))
            }
        }
    }
}

fn tokens(pattern: &[u8]) -> Result<Vec<Token>, FilterError> {
    let mut tokens = Vec::new();
    let mut rest = pattern;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        tokens.push(match byte {
            b'?' => Token::One,
            b'\\' if !rest.is_empty() => {
                let literal = rest[0];
                rest = &rest[1..];
                Token::Byte(literal)
            }
            b'*' => {
                let stars = rest.iter().take_while(|&&byte| byte == b'*').count();
                rest = &rest[stars..];
                if stars == 0 { Token::Many } else { Token::Deep }
            }
            b'[' => {
                let (class, after) =
                    class(rest).ok_or_else(|| FilterError::Class(String::from_utf8_lossy(pattern).into_owned()))?;
                rest = after;
                class
            }
            byte => Token::Byte(byte),
        });
    }
    Ok(tokens)
}

/// Reads a class after its `[`; gives what follows its `]`.
fn class(bytes: &[u8]) -> Option<(Token, &[u8])> {
    let (negated, mut rest) = match bytes.first()? {
        b'!' | b'^' => (true, &bytes[1..]),
        _ => (false, bytes),
    };
    let mut ranges = Vec::new();
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b']' if !ranges.is_empty() => return Some((Token::Class { negated, ranges }, rest)),
            b'[' if rest.first() == Some(&b':') => {
                let named = &rest[1..];
                let end = named.windows(2).position(|pair| pair == b":]")?;
                ranges.extend_from_slice(named_class(&named[..end])?);
                rest = &named[end + 2..];
            }
            _ => {
                let low = if byte == b'\\' { take(&mut rest)? } else { byte };
                let mut high = low;
                if rest.first() == Some(&b'-') && rest.get(1).is_some_and(|&byte| byte != b']') {
                    rest = &rest[1..];
                    high = take(&mut rest)?;
                    if high == b'\\' {
                        high = take(&mut rest)?;
                    }
                }
                ranges.push((low, high));
            }
        }
    }
}

fn take(rest: &mut &[u8]) -> Option<u8> {
    let (&byte, after) = rest.split_first()?;
    *rest = after;
    Some(byte)
}

fn named_class(name: &[u8]) -> Option<&'static [(u8, u8)]> {
    Some(match name {
        b"alnum" => &[(b'0', b'9'), (b'A', b'Z'), (b'a', b'z')],
        b"alpha" => &[(b'A', b'Z'), (b'a', b'z')],
        b"blank" => &[(b' ', b' '), (b'\t', b'\t')],
        b"cntrl" => &[(0, 31), (127, 127)],
        b"digit" => &[(b'0', b'9')],
        b"graph" => &[(33, 126)],
        b"lower" => &[(b'a', b'z')],
        b"print" => &[(32, 126)],
        b"punct" => &[(33, 47), (58, 64), (91, 96), (123, 126)],
        b"space" => &[(9, 13), (b' ', b' ')],
        b"upper" => &[(b'A', b'Z')],
        b"xdigit" => &[(b'0', b'9'), (b'A', b'F'), (b'a', b'f')],
        _ => return None,
    })
}

/// Matches a whole subject. Keeps the set of reachable pattern places, so time is pattern x subject at
/// the worst, whatever the pattern.
fn glob(tokens: &[Token], subject: &[u8]) -> bool {
    let mut reach = vec![false; tokens.len() + 1];
    let mut next = reach.clone();
    reach[0] = true;
    skip_stars(tokens, &mut reach);
    for &byte in subject {
        next.fill(false);
        let mut alive = false;
        for (at, token) in tokens.iter().enumerate().filter(|&(at, _)| reach[at]) {
            let (stays, moves) = match token {
                Token::Many => (byte != b'/', false),
                Token::Deep => (true, false),
                Token::One => (false, byte != b'/'),
                Token::Byte(wanted) => (false, byte == *wanted),
                Token::Class { negated, ranges } => {
                    let within = ranges.iter().any(|&(low, high)| (low..=high).contains(&byte));
                    (false, byte != b'/' && within != *negated)
                }
            };
            next[at] |= stays;
            next[at + 1] |= moves;
            alive |= stays | moves;
        }
        if !alive {
            return false;
        }
        std::mem::swap(&mut reach, &mut next);
        skip_stars(tokens, &mut reach);
    }
    reach[tokens.len()]
}

/// A star also matches nothing.
fn skip_stars(tokens: &[Token], reach: &mut [bool]) {
    for (at, token) in tokens.iter().enumerate() {
        if reach[at] && matches!(token, Token::Many | Token::Deep) {
            reach[at + 1] = true;
        }
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
        for pattern in [&b"a[bc"[..], b"[[:]", b"[[:digit:]", b"[[:nonsense:]]", b"[a-\\"] {
            assert!(matches!(Filter::default().exclude(pattern), Err(FilterError::Class(_))), "{pattern:?}");
        }
    }
}
