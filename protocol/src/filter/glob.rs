//! Shell patterns with `*`, `?`, `**`, classes and `\` escapes.

/// A compiled pattern.
///
/// Matching tracks the set of positions in the pattern that are reached. It takes at most pattern × subject steps for
/// any pattern, and allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glob {
    tokens: Box<[Token]>,
    classes: Box<[ByteSet]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Many,
    /// `**`
    Deep,
    /// `[…]`: the index of the class.
    Class(u16),
    /// Matches no byte. Stands for an invalid class and for a `\` at the end.
    Never,
}

/// A set of byte values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ByteSet([u64; 4]);

/// Where in the subject a match may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Starts {
    /// At the first byte.
    Beginning,
    /// At the first byte and after every `/`.
    Elements,
    /// At an imaginary `/` before the first byte, so that `**/a` matches `a`.
    SlashBefore,
}

/// The size of a set of positions in the longest pattern, in words of 64 bits. There is one position per token and one
/// for the end.
const WORDS: usize = crate::limits::PATH / 64 + 1;

impl Glob {
    /// Compiles a pattern. An invalid pattern, or one that is longer than any path, matches nothing.
    pub(super) fn new(pattern: &[u8]) -> Self {
        let (mut tokens, mut classes) = (Vec::new(), Vec::new());
        let mut rest = pattern;
        if pattern.len() > crate::limits::PATH {
            (tokens, rest) = (vec![Token::Never], &[]);
        }
        while let Some(byte) = take(&mut rest) {
            tokens.push(match byte {
                b'?' => Token::One,
                b'\\' => take(&mut rest).map_or(Token::Never, Token::Byte),
                b'*' => {
                    let stars = rest.iter().take_while(|&&byte| byte == b'*').count();
                    rest = &rest[stars..];
                    if stars == 0 { Token::Many } else { Token::Deep }
                }
                b'[' => class(&mut rest).map_or(Token::Never, |class| {
                    classes.push(class);
                    // A class takes at least three bytes of the pattern, so the number of classes fits.
                    Token::Class((classes.len() - 1) as u16)
                }),
                byte => Token::Byte(byte),
            });
        }
        Self { tokens: tokens.into(), classes: classes.into() }
    }

    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Returns whether the pattern matches nothing, because a part of it does not.
    pub(super) fn never_matches(&self) -> bool {
        self.tokens.contains(&Token::Never)
    }

    /// Returns the possible first bytes of a match.
    pub(super) fn first_bytes(&self) -> ByteSet {
        self.bytes_at(0)
    }

    /// Returns the possible last bytes of a match.
    pub(super) fn last_bytes(&self) -> ByteSet {
        self.bytes_at(self.tokens.len().wrapping_sub(1))
    }

    /// Returns the bytes that the token with this index can match first.
    pub(super) fn bytes_at(&self, token: usize) -> ByteSet {
        match self.tokens.get(token) {
            Some(&Token::Byte(byte)) => ByteSet::of(byte),
            Some(&Token::Class(number)) => self.classes[usize::from(number)],
            Some(Token::Never) => ByteSet::default(),
            Some(Token::One | Token::Many | Token::Deep) | None => ByteSet::ALL,
        }
    }

    /// Returns whether the pattern matches the subject to its end. With `slash_after`, the subject is followed by a `/`.
    /// Adds the number of steps to `work`.
    pub(super) fn matches(&self, subject: &[u8], slash_after: bool, starts: Starts, work: &mut u64) -> bool {
        // Most patterns are short. For these, clearing the sets for the longest pattern would cost more than matching.
        if self.tokens.len() < 64 {
            Comparison::<1>::new(self).matches(subject, slash_after, starts, work)
        } else {
            Comparison::<WORDS>::new(self).matches(subject, slash_after, starts, work)
        }
    }
}

/// The state of one comparison: the set of reached positions, one bit each.
struct Comparison<'a, const N: usize> {
    glob: &'a Glob,
    reached: [u64; N],
    /// The positions reached after the current byte, while they are collected.
    next: [u64; N],
    /// The last `**` that was reached. It stays reached, so positions before it no longer matter.
    deep: Option<usize>,
}

impl<'a, const N: usize> Comparison<'a, N> {
    fn new(glob: &'a Glob) -> Self {
        let mut run = Self { glob, reached: [0; N], next: [0; N], deep: None };
        run.add(0);
        run.reached = run.next;
        run
    }

    fn matches(mut self, subject: &[u8], slash_after: bool, starts: Starts, work: &mut u64) -> bool {
        let end = self.glob.tokens.len();
        if starts == Starts::SlashBefore {
            self.step(b'/', work);
        }
        let mut rest = subject;
        while let Some((&byte, after)) = rest.split_first() {
            if self.deep.is_some_and(|deep| deep + 1 == end) {
                return true;
            }
            if let Some(wanted) = self.only_way_on() {
                *work += 1;
                let Some(at) = memchr::memchr(wanted, rest) else { break };
                self.step(wanted, work);
                rest = &rest[at + 1..];
                continue;
            }
            let may_start = starts == Starts::Elements && self.deep.is_none();
            let alive = self.step(byte, work);
            if may_start && byte == b'/' {
                self.next = self.reached;
                self.add(0);
                self.reached = self.next;
            } else if !alive && !may_start {
                return false;
            }
            rest = after;
        }
        if slash_after {
            self.step(b'/', work);
        }
        has(&self.reached, end)
    }

    /// Returns the only byte that leads on, if the reached positions are just a `**` and a literal byte after it.
    fn only_way_on(&self) -> Option<u8> {
        let deep = self.deep?;
        match self.glob.tokens.get(deep + 1) {
            Some(&Token::Byte(byte)) if N == 1 && self.reached[0] == 0b11 << deep => Some(byte),
            _ => None,
        }
    }

    /// Advances by one byte. Returns whether any position is reached after it.
    fn step(&mut self, byte: u8, work: &mut u64) -> bool {
        self.next = [0; N];
        let (reached, mut alive) = (self.reached, false);
        *work += N as u64 / 8;
        for at in positions(&reached) {
            *work += 1;
            let to = match self.glob.tokens.get(at) {
                Some(&Token::Byte(wanted)) if wanted == byte => at + 1,
                Some(Token::One) if byte != b'/' => at + 1,
                Some(&Token::Class(number)) if self.glob.classes[usize::from(number)].has(byte) => at + 1,
                Some(Token::Many) if byte != b'/' => at,
                Some(Token::Deep) => at,
                _ => continue,
            };
            self.add(to);
            alive = true;
        }
        self.reached = self.next;
        alive
    }

    /// Adds a position to the next ones. If its token is a star, adds the following position too, because a star also
    /// matches nothing; there are never two stars in a row.
    fn add(&mut self, at: usize) {
        let token = self.glob.tokens.get(at);
        if token == Some(&Token::Deep) && self.deep.is_none_or(|deep| deep < at) {
            self.deep = Some(at);
            self.next = [0; N];
        }
        self.next[at / 64] |= 1 << (at % 64);
        if matches!(token, Some(Token::Many | Token::Deep)) {
            self.next[(at + 1) / 64] |= 1 << ((at + 1) % 64);
        }
    }
}

fn has(set: &[u64], at: usize) -> bool {
    set[at / 64] >> (at % 64) & 1 == 1
}

/// Returns the positions in a set, in ascending order.
fn positions(set: &[u64]) -> impl Iterator<Item = usize> {
    set.iter().enumerate().flat_map(|(word, &bits)| {
        let mut bits = bits;
        std::iter::from_fn(move || {
            let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
            bits &= bits - 1;
            Some(word * 64 + bit)
        })
    })
}

/// Reads a class from after its `[` up to and including its `]`. `None` if there is no such end, or if a named class is
/// unknown.
fn class(rest: &mut &[u8]) -> Option<ByteSet> {
    let negated = matches!(rest.first()?, b'!' | b'^');
    if negated {
        take(rest);
    }
    let mut set = ByteSet::default();
    let mut first = true;
    loop {
        match take(rest)? {
            b']' if !first => break,
            b'[' if named(rest).is_some() => {
                let (name, after) = named(rest)?;
                named_class(name)?.iter().for_each(|&(low, high)| set.add(low, high));
                *rest = after;
            }
            byte => {
                let low = if byte == b'\\' { take(rest)? } else { byte };
                let mut high = low;
                if rest.first() == Some(&b'-') && rest.get(1).is_some_and(|&byte| byte != b']') {
                    take(rest);
                    high = take(rest)?;
                    if high == b'\\' {
                        high = take(rest)?;
                    }
                }
                // A range in the wrong order contains its first byte only.
                set.add(low, high.max(low));
            }
        }
        first = false;
    }
    if negated {
        set.0.iter_mut().for_each(|word| *word = !*word);
    }
    set.remove(b'/');
    Some(set)
}

/// Returns the name in `:name:]` and what follows the `]`. The name ends at the next `]`. `None` if there is no such
/// name; the `[` before it is then an ordinary byte.
fn named(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let body = rest.strip_prefix(b":")?;
    let end = body.iter().position(|&byte| byte == b']')?;
    Some((body[..end].strip_suffix(b":")?, &body[end + 1..]))
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

fn take(rest: &mut &[u8]) -> Option<u8> {
    let (&byte, after) = rest.split_first()?;
    *rest = after;
    Some(byte)
}

impl ByteSet {
    pub(super) const ALL: Self = Self([u64::MAX; 4]);

    pub(super) fn of(byte: u8) -> Self {
        let mut set = Self::default();
        set.add(byte, byte);
        set
    }

    pub(super) fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte / 64)] >> (byte % 64) & 1 == 1
    }

    fn add(&mut self, low: u8, high: u8) {
        (low..=high).for_each(|byte| self.0[usize::from(byte / 64)] |= 1 << (byte % 64));
    }

    fn remove(&mut self, byte: u8) {
        self.0[usize::from(byte / 64)] &= !(1 << (byte % 64));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The simplest implementation of the tokens' meaning.
    fn plainly(glob: &Glob, tokens: &[Token], subject: &[u8]) -> bool {
        let Some((token, after)) = tokens.split_first() else { return subject.is_empty() };
        let skips = |deep: bool| {
            let reach = subject.iter().position(|&byte| byte == b'/' && !deep).unwrap_or(subject.len());
            (0..=reach).any(|at| plainly(glob, after, &subject[at..]))
        };
        let Some((&byte, rest)) = subject.split_first() else {
            return matches!(token, Token::Many | Token::Deep) && plainly(glob, after, subject);
        };
        match *token {
            Token::Many => skips(false),
            Token::Deep => skips(true),
            Token::One => byte != b'/' && plainly(glob, after, rest),
            Token::Byte(wanted) => byte == wanted && plainly(glob, after, rest),
            Token::Class(number) => glob.classes[usize::from(number)].has(byte) && plainly(glob, after, rest),
            Token::Never => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_simplest_implementation(
            pattern in prop::collection::vec(prop::sample::select(vec!["a", "b", "/", "*", "**", "?", "[ab]", "[!a]"]), 0..9),
            subject in prop::collection::vec(prop::sample::select(b"ab/".to_vec()), 0..10),
            slash_after: bool,
            starts in prop::sample::select(vec![Starts::Beginning, Starts::Elements, Starts::SlashBefore]),
        ) {
            let glob = Glob::new(pattern.concat().as_bytes());
            let slash = |wanted: bool| if wanted { "/" } else { "" }.as_bytes();
            let whole = [slash(starts == Starts::SlashBefore), &subject, slash(slash_after)].concat();
            let begins = |at: usize| at == 0 || (starts == Starts::Elements && whole[at - 1] == b'/');
            let expected =
                (0..=subject.len()).any(|at| begins(at) && plainly(&glob, &glob.tokens, &whole[at..]));
            let short = Comparison::<1>::new(&glob).matches(&subject, slash_after, starts, &mut 0);
            let long = Comparison::<WORDS>::new(&glob).matches(&subject, slash_after, starts, &mut 0);
            prop_assert_eq!((short, long), (expected, expected));
        }
    }

    #[test]
    fn the_longest_patterns_match() {
        let longest = crate::limits::PATH;
        for (pattern, subject) in [("a".repeat(longest), "a".repeat(longest)), ("*a".repeat(1000), "ba".repeat(1000))] {
            let matches = |subject: &str| {
                Glob::new(pattern.as_bytes()).matches(subject.as_bytes(), false, Starts::Beginning, &mut 0)
            };
            assert!(matches(&subject));
            assert!(!matches(&format!("{subject}b")));
        }
        assert!(Glob::new(&vec![b'*'; longest + 1]).never_matches());
    }
}
