//! One pattern, and the part of a path that it is compared with.

use memchr::memmem::Finder;

use super::glob::{ByteSet, Glob, Starts, Token};

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    directories_only: bool,
    scope: Scope,
    shape: Shape,
}

/// The part of a path that a pattern is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The whole path.
    Whole,
    /// The last name.
    Name,
    /// This number of last names.
    Last(usize),
    /// The whole path, and the rest of it after any `/`.
    Anywhere,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    Literal(Box<[u8]>),
    /// `text*`, compared with a name.
    Prefix(Box<[u8]>),
    /// `*text`, compared with a name.
    Suffix(Box<[u8]>),
    Glob {
        glob: Glob,
        /// Whether the pattern begins with `**`.
        deep: bool,
        /// Whether the pattern ends with `***`. A directory's path is then compared with a slash appended.
        slash_after: bool,
        /// Text that every match contains. It quickly rules out most names.
        needle: Needle,
    },
}

#[derive(Debug, Clone)]
struct Needle(Box<Finder<'static>>);

impl PartialEq for Needle {
    fn eq(&self, other: &Self) -> bool {
        self.0.needle() == other.0.needle()
    }
}

impl Eq for Needle {}

/// The path that a pattern is matched against. The transfer's root may lie below the module's root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// The path relative to the module.
    pub(crate) path: &'a [u8],
    /// The offset in `path` at which the path relative to the transfer's root begins.
    pub(crate) root: usize,
    /// The offset in `path` at which the last name begins.
    pub(crate) name: usize,
    /// Whether the entry is a directory.
    pub(crate) is_dir: bool,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(path: &'a [u8], root: usize, is_dir: bool) -> Self {
        let root = root.min(path.len());
        let name = path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1).max(root);
        Self { path, root, name, is_dir }
    }
}

impl Pattern {
    /// Compiles a pattern of up to [`crate::limits::PATH`] bytes. An invalid or longer pattern matches nothing.
    pub(crate) fn new(pattern: &[u8]) -> Self {
        let (body, directories_only) = match pattern.strip_suffix(b"/") {
            Some(shorter) if !shorter.is_empty() => (shorter, true),
            _ => (pattern, false),
        };
        let anchored = body.first() == Some(&b'/');
        let body = &body[usize::from(anchored)..];
        let slashes = body.iter().filter(|&&byte| byte == b'/').count();
        let deep = body.windows(2).any(|pair| pair == b"**");
        let scope = match (anchored, deep, slashes) {
            (true, ..) => Scope::Whole,
            (_, true, _) => Scope::Anywhere,
            (_, _, 0) => Scope::Name,
            _ => Scope::Last(slashes + 1),
        };
        Self { directories_only, scope, shape: Shape::new(body, scope) }
    }

    /// Returns whether the pattern is invalid and thus matches nothing.
    pub(crate) fn never_matches(&self) -> bool {
        matches!(&self.shape, Shape::Glob { glob, .. } if glob.never_matches())
    }

    pub(crate) fn directories_only(&self) -> bool {
        self.directories_only
    }

    /// Returns the only path that the pattern matches, relative to the transfer's root. `None` if the pattern is not an
    /// anchored literal.
    pub(crate) fn only_path(&self) -> Option<&[u8]> {
        self.literal(Scope::Whole)
    }

    /// Returns the last name that every match has. `None` if the pattern is not a literal name.
    pub(crate) fn only_name(&self) -> Option<&[u8]> {
        self.literal(Scope::Name)
    }

    fn literal(&self, scope: Scope) -> Option<&[u8]> {
        match &self.shape {
            Shape::Literal(text) if self.scope == scope => Some(text),
            _ => None,
        }
    }

    /// Returns whether the pattern matches. With `absolute`, it is compared with the path relative to the module. Adds
    /// the number of steps to `work`.
    pub(crate) fn matches(&self, subject: &Subject<'_>, absolute: bool, work: &mut u64) -> bool {
        *work += 1;
        if self.directories_only && !subject.is_dir {
            return false;
        }
        let path = if absolute { subject.path } else { &subject.path[subject.root..] };
        let part = match self.scope {
            Scope::Name => &subject.path[subject.name..],
            Scope::Last(names) if !matches!(self.shape, Shape::Literal(_)) => match last_names(path, names) {
                Some(part) => part,
                None => return false,
            },
            _ => path,
        };
        match &self.shape {
            Shape::Literal(text) if self.scope == Scope::Name || self.scope == Scope::Whole => part == &text[..],
            Shape::Literal(text) => {
                part.strip_suffix(&text[..]).is_some_and(|before| before.last().is_none_or(|&byte| byte == b'/'))
            }
            Shape::Prefix(text) => part.starts_with(text),
            Shape::Suffix(text) => part.ends_with(text),
            Shape::Glob { glob, deep, slash_after, needle } => {
                // The cost of searching for the needle.
                *work += 4 + part.len() as u64 / 16;
                if needle.0.find(part).is_none() {
                    return false;
                }
                let starts = match (self.scope, deep) {
                    (Scope::Anywhere, true) if absolute && subject.root > 0 => Starts::Beginning,
                    (Scope::Anywhere, true) => Starts::SlashBefore,
                    (Scope::Anywhere, false) => Starts::Elements,
                    _ => Starts::Beginning,
                };
                glob.matches(part, *slash_after && subject.is_dir, starts, work)
            }
        }
    }

    /// Returns the possible first bytes of a match's last name.
    pub(super) fn first_bytes(&self) -> ByteSet {
        match (&self.shape, self.scope) {
            (Shape::Literal(text) | Shape::Prefix(text), Scope::Name) => edge(text.first()),
            (Shape::Glob { glob, .. }, Scope::Name) => glob.first_bytes(),
            (Shape::Literal(text), _) => edge(text.rsplit(|&byte| byte == b'/').next().and_then(<[u8]>::first)),
            (Shape::Glob { glob, slash_after: false, .. }, _) => last_name_begins(glob),
            _ => ByteSet::ALL,
        }
    }

    /// Returns the possible last bytes of a match's last name.
    pub(super) fn last_bytes(&self) -> ByteSet {
        match &self.shape {
            Shape::Literal(text) | Shape::Suffix(text) => edge(text.last()),
            Shape::Prefix(_) | Shape::Glob { slash_after: true, .. } => ByteSet::ALL,
            Shape::Glob { glob, .. } => glob.last_bytes(),
        }
    }
}

impl Shape {
    fn new(body: &[u8], scope: Scope) -> Self {
        let plain = |text: &[u8]| !text.iter().any(|byte| b"*?[".contains(byte));
        // A backslash is an escape only in a pattern with a wildcard.
        let text = |text: &[u8]| plain(text) && !text.contains(&b'\\');
        match body {
            body if plain(body) => Self::Literal(body.into()),
            [before @ .., b'*'] if scope == Scope::Name && text(before) => Self::Prefix(before.into()),
            [b'*', after @ ..] if scope == Scope::Name && text(after) => Self::Suffix(after.into()),
            body => {
                let glob = Glob::new(body);
                let needle = Needle(Box::new(Finder::new(&needle(&glob)).into_owned()));
                let (deep, slash_after) = (body.starts_with(b"**"), body.ends_with(b"***"));
                Self::Glob { glob, deep, slash_after, needle }
            }
        }
    }
}

/// Returns the longest literal text in a pattern. Slashes at the edges are excluded, because a slash after a leading
/// `**` or before a trailing one may match an imaginary slash that is not in the path.
fn needle(glob: &Glob) -> Vec<u8> {
    let tokens = glob.tokens();
    let text = |at: usize| match tokens.get(at) {
        Some(&Token::Byte(b'/')) if at <= 1 || at + 2 >= tokens.len() => None,
        Some(&Token::Byte(byte)) => Some(byte),
        _ => None,
    };
    let (mut longest, mut start) = (0..0, 0);
    for at in (0..=tokens.len()).filter(|&at| text(at).is_none()) {
        if at - start > longest.len() {
            longest = start..at;
        }
        start = at + 1;
    }
    longest.filter_map(text).collect()
}

/// Returns the set of just this byte. If there is none, returns the set of all bytes.
fn edge(byte: Option<&u8>) -> ByteSet {
    byte.map_or(ByteSet::ALL, |&byte| ByteSet::of(byte))
}

/// Returns the possible first bytes of the last name. They are known if no `**` can match the path's last slash.
fn last_name_begins(glob: &Glob) -> ByteSet {
    let tokens = glob.tokens();
    match tokens.iter().rposition(|token| matches!(token, Token::Byte(b'/') | Token::Deep)) {
        Some(at) if tokens[at] != Token::Deep => glob.bytes_at(at + 1),
        Some(_) => ByteSet::ALL,
        None => glob.first_bytes(),
    }
}

/// Returns the last `names` names of a path. `None` if it has fewer.
fn last_names(path: &[u8], names: usize) -> Option<&[u8]> {
    let mut slashes = path.iter().enumerate().rev().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
    match slashes.nth(names - 1) {
        Some(at) => Some(&path[at + 1..]),
        None => (path.iter().filter(|&&byte| byte == b'/').count() + 1 == names).then_some(path),
    }
}
