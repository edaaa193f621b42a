//! One pattern, with what it is compared to.

use memchr::memmem::Finder;

use super::glob::{ByteSet, Glob, Starts, Token};

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    directories_only: bool,
    scope: Scope,
    shape: Shape,
}

/// What part of a path a pattern is compared to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// All of it.
    Whole,
    /// Its last name.
    Name,
    /// So many of its last names.
    Last(usize),
    /// All that follows any `/`.
    Anywhere,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    Literal(Box<[u8]>),
    /// `text*`, of a name.
    Prefix(Box<[u8]>),
    /// `*text`, of a name.
    Suffix(Box<[u8]>),
    Glob {
        glob: Glob,
        /// It begins with `**`.
        deep: bool,
        /// It ends with `***`: a directory is compared with a slash at its end.
        slash_after: bool,
        /// Text that all it matches contain: most names do not, and that is quickly seen.
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

/// What is matched: a path relative to the transfer's root, which is maybe not the module's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// Relative to the module.
    pub(crate) path: &'a [u8],
    /// Where in it the path relative to the transfer's root begins.
    pub(crate) root: usize,
    /// Where in it the last name begins.
    pub(crate) name: usize,
    /// Whether it is a directory.
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
    /// Compiles a pattern of at most [`crate::limits::PATH`] bytes. What is no proper pattern matches nothing.
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

    /// Whether no name at all matches.
    pub(crate) fn never_matches(&self) -> bool {
        matches!(&self.shape, Shape::Glob { glob, .. } if glob.never_matches())
    }

    pub(crate) fn directories_only(&self) -> bool {
        self.directories_only
    }

    /// The whole path that is all this matches, relative to the transfer's root.
    pub(crate) fn only_path(&self) -> Option<&[u8]> {
        self.literal(Scope::Whole)
    }

    /// The last name that all it matches have.
    pub(crate) fn only_name(&self) -> Option<&[u8]> {
        self.literal(Scope::Name)
    }

    fn literal(&self, scope: Scope) -> Option<&[u8]> {
        match &self.shape {
            Shape::Literal(text) if self.scope == scope => Some(text),
            _ => None,
        }
    }

    /// Whether it matches. `absolute` compares with the path relative to the module. Adds its steps to `work`.
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
                // What looking for the text costs.
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

    /// Bytes that the last name of what it matches may begin with.
    pub(super) fn first_bytes(&self) -> ByteSet {
        match (&self.shape, self.scope) {
            (Shape::Literal(text) | Shape::Prefix(text), Scope::Name) => edge(text.first()),
            (Shape::Glob { glob, .. }, Scope::Name) => glob.first_bytes(),
            (Shape::Literal(text), _) => edge(text.rsplit(|&byte| byte == b'/').next().and_then(<[u8]>::first)),
            (Shape::Glob { glob, slash_after: false, .. }, _) => last_name_begins(glob),
            _ => ByteSet::ALL,
        }
    }

    /// Bytes that the last name of what it matches may end with.
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
        // A backslash means something only beside a wildcard.
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

/// The longest text in a pattern. A slash behind a `**` at the beginning, or before one at the end, may
/// be one that is only thought there.
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

/// The bytes that can stand where a literal has this one; all, where it has none.
fn edge(byte: Option<&u8>) -> ByteSet {
    byte.map_or(ByteSet::ALL, |&byte| ByteSet::of(byte))
}

/// What the last name begins with, when the pattern says: the last slash is not in reach of a `**`.
fn last_name_begins(glob: &Glob) -> ByteSet {
    let tokens = glob.tokens();
    match tokens.iter().rposition(|token| matches!(token, Token::Byte(b'/') | Token::Deep)) {
        Some(at) if tokens[at] != Token::Deep => glob.bytes_at(at + 1),
        Some(_) => ByteSet::ALL,
        None => glob.first_bytes(),
    }
}

/// The last so many names of a path; none when it has fewer.
fn last_names(path: &[u8], names: usize) -> Option<&[u8]> {
    let mut slashes = path.iter().enumerate().rev().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
    match slashes.nth(names - 1) {
        Some(at) => Some(&path[at + 1..]),
        None => (path.iter().filter(|&&byte| byte == b'/').count() + 1 == names).then_some(path),
    }
}
