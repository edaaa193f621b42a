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
            self.run(&mut [0; 1], &mut [0; 1], subject, slash_after, starts, work)
        } else {
            self.run(&mut [0; WORDS], &mut [0; WORDS], subject, slash_after, starts, work)
        }
    }

    fn run<const N: usize>(
        &self,
        reach: &mut [u64; N],
        next: &mut [u64; N],
        subject: &[u8],
        slash_after: bool,
        starts: Starts,
        work: &mut u64,
    ) -> bool {
        let slash = |there: bool| there.then_some(&b'/');
        let bytes = slash(starts == Starts::SlashBefore).into_iter().chain(subject).chain(slash(slash_after));
        self.reach(reach, 0);
        for &byte in bytes {
            if self.at_end(reach, Token::Deep) {
                return true;
            }
            next.fill(0);
            let mut alive = starts == Starts::Elements;
            for at in places(reach) {
                *work += 1;
                let Some(&token) = self.tokens.get(at) else { continue };
                let to = match token {
                    Token::Byte(wanted) if wanted == byte => at + 1,
                    Token::One if byte != b'/' => at + 1,
                    Token::Class(number) if self.classes[usize::from(number)].has(byte) => at + 1,
                    Token::Many if byte != b'/' => at,
                    Token::Deep => at,
                    _ => continue,
                };
                self.reach(next, to);
                alive = true;
            }
            if !alive {
                return false;
            }
            if byte == b'/' && starts == Starts::Elements {
                self.reach(next, 0);
            }
            std::mem::swap(reach, next);
        }
        has(reach, self.tokens.len())
    }

    /// Adds a place; a star also matches nothing. There are never two stars in a row.
    fn reach(&self, set: &mut [u64], place: usize) {
        set[place / 64] |= 1 << (place % 64);
        if matches!(self.tokens.get(place), Some(Token::Many | Token::Deep)) {
            set[(place + 1) / 64] |= 1 << ((place + 1) % 64);
        }
    }

    /// Whether the last token is reached and is `token`.
    fn at_end(&self, reach: &[u64], token: Token) -> bool {
        self.tokens.last() == Some(&token) && has(reach, self.tokens.len() - 1)
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
