//! Shell patterns: `*`, `?`, `**`, classes, and `\` before what is meant literally.

/// A compiled pattern. Matching keeps the set of places in the pattern that are reached, so it takes
/// pattern × subject steps at the worst, whatever the pattern, and allocates nothing.
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
    /// `[…]`, by its number.
    Class(u16),
    /// What no byte matches: a class without its end, a `\` at the end.
    Never,
}

/// Some of the 256 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ByteSet([u64; 4]);

/// Where in the subject a match may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Starts {
    /// At its first byte.
    Beginning,
    /// At its first byte and after every `/`.
    Elements,
    /// At a `/` that is thought before its first byte: so `**/a` matches `a`.
    SlashBefore,
}

/// Places of the longest pattern, as words of 64: one place per token and the end.
const WORDS: usize = crate::limits::PATH / 64 + 1;

impl Glob {
    /// Compiles a pattern. What is longer than any path, or no proper pattern, matches nothing.
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
                    // A class takes three bytes of the pattern, so there are never too many.
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

    /// Whether some part of the pattern matches nothing, and so the whole.
    pub(super) fn never_matches(&self) -> bool {
        self.tokens.contains(&Token::Never)
    }

    /// Bytes that what the pattern matches may begin with.
    pub(super) fn first_bytes(&self) -> ByteSet {
        self.bytes_at(0)
    }

    /// Bytes that may be the last.
    pub(super) fn last_bytes(&self) -> ByteSet {
        self.bytes_at(self.tokens.len().wrapping_sub(1))
    }

    /// Bytes that may stand where the token of that number is reached.
    pub(super) fn bytes_at(&self, token: usize) -> ByteSet {
        match self.tokens.get(token) {
            Some(&Token::Byte(byte)) => ByteSet::of(byte),
            Some(&Token::Class(number)) => self.classes[usize::from(number)],
            Some(Token::Never) => ByteSet::default(),
            Some(Token::One | Token::Many | Token::Deep) | None => ByteSet::ALL,
        }
    }

    /// Whether the pattern matches the subject to its end; `slash_after` has a `/` follow it. Adds its
    /// steps to `work`.
    pub(super) fn matches(&self, subject: &[u8], slash_after: bool, starts: Starts, work: &mut u64) -> bool {
        // Most patterns are short, and clearing the longest one's sets would cost more than matching.
        if self.tokens.len() < 64 {
            Comparison::<1>::new(self).matches(subject, slash_after, starts, work)
        } else {
            Comparison::<WORDS>::new(self).matches(subject, slash_after, starts, work)
        }
    }
}

/// One comparison: the places that are reached, a bit each, and room for the next ones.
struct Comparison<'a, const N: usize> {
    glob: &'a Glob,
    reach: [u64; N],
    next: [u64; N],
    /// The last `**` that was reached. It stays reached, so nothing before it matters any more.
    deep: Option<usize>,
}

impl<'a, const N: usize> Comparison<'a, N> {
    fn new(glob: &'a Glob) -> Self {
        let mut run = Self { glob, reach: [0; N], next: [0; N], deep: None };
        run.add(0);
        run.reach = run.next;
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
            if let Some(wanted) = self.only_waits_for() {
                *work += 1;
                let Some(at) = memchr::memchr(wanted, rest) else { break };
                self.step(wanted, work);
                rest = &rest[at + 1..];
                continue;
            }
            let may_start = starts == Starts::Elements && self.deep.is_none();
            let alive = self.step(byte, work);
            if may_start && byte == b'/' {
                self.next = self.reach;
                self.add(0);
                self.reach = self.next;
            } else if !alive && !may_start {
                return false;
            }
            rest = after;
        }
        if slash_after {
            self.step(b'/', work);
        }
        has(&self.reach, end)
    }

    /// The byte that must come, when all that is reached is a `**` and that byte behind it.
    fn only_waits_for(&self) -> Option<u8> {
        let deep = self.deep?;
        match self.glob.tokens.get(deep + 1) {
            Some(&Token::Byte(byte)) if N == 1 && self.reach[0] == 0b11 << deep => Some(byte),
            _ => None,
        }
    }

    /// Goes on by a byte. Whether any place is reached then.
    fn step(&mut self, byte: u8, work: &mut u64) -> bool {
        self.next = [0; N];
        let (reach, mut alive) = (self.reach, false);
        *work += N as u64 / 8;
        for at in places(&reach) {
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
        self.reach = self.next;
        alive
    }

    /// Adds a place to the next ones; a star also matches nothing. There are never two stars in a row.
    fn add(&mut self, place: usize) {
        let token = self.glob.tokens.get(place);
        if token == Some(&Token::Deep) && self.deep.is_none_or(|deep| deep < place) {
            self.deep = Some(place);
            self.next = [0; N];
        }
        self.next[place / 64] |= 1 << (place % 64);
        if matches!(token, Some(Token::Many | Token::Deep)) {
            self.next[(place + 1) / 64] |= 1 << ((place + 1) % 64);
        }
    }
}

fn has(set: &[u64], place: usize) -> bool {
    set[place / 64] >> (place % 64) & 1 == 1
}

fn places(set: &[u64]) -> impl Iterator<Item = usize> {
    set.iter().enumerate().flat_map(|(word, &bits)| {
        let mut bits = bits;
        std::iter::from_fn(move || {
            let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
            bits &= bits - 1;
            Some(word * 64 + bit)
        })
    })
}

/// Reads a class after its `[` to behind its `]`; none when there is no such end, or a name that is no
/// class.
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
                // A range the wrong way round holds its first byte.
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

/// The name in `:name:]`, and what follows. Up to the next `]`, or the `[` before stands for itself.
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

    /// What the tokens mean, in the plainest words.
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
        fn sets_of_places_say_what_the_pattern_says(
            pattern in prop::collection::vec(prop::sample::select(vec!["a", "b", "/", "*", "**", "?", "[ab]", "[!a]"]), 0..9),
            subject in prop::collection::vec(prop::sample::select(b"ab/".to_vec()), 0..10),
            slash_after: bool,
            starts in prop::sample::select(vec![Starts::Beginning, Starts::Elements, Starts::SlashBefore]),
        ) {
            let glob = Glob::new(pattern.concat().as_bytes());
            let slash = |there: bool| if there { "/" } else { "" }.as_bytes();
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
