//! The syntax of rules.
//!
//! Sources: rsync's manual pages, and the behaviour of rsync 3.5.0 (client and daemon) for every prefix with
//! every modifier.

use super::RuleError;
use crate::path::Escaped;

/// One parsed rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rule<'a> {
    /// Clears all rules so far.
    Clear,
    /// A pattern to include or exclude.
    Match(Modifiers, &'a [u8]),
    /// CVS's exclude patterns.
    Cvs(Modifiers),
    /// The rules in the file of this name in every directory.
    DirMerge(Modifiers, &'a [u8]),
    /// The rules in a single file. The text is the whole rule.
    Merge(String),
}

/// The modifiers before a pattern.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Modifiers {
    /// `+` instead of `-`.
    pub(super) include: bool,
    /// `/`: matches the path relative to the module.
    pub(super) absolute: bool,
    /// `!`: applies to names that do not match.
    pub(super) negated: bool,
    /// `s`: for the sender's side. A rule that names no side is for both.
    pub(super) sender: bool,
    /// `r`: for the receiver's side.
    pub(super) receiver: bool,
    /// `x`: for names of extended attributes.
    pub(super) xattr: bool,
    /// `e`: excludes the merge file itself.
    pub(super) exclude_self: bool,
}

/// The long names of the prefixes.
const NAMES: [(&[u8], u8); 9] = [
    (b"exclude", b'-'),
    (b"include", b'+'),
    (b"dir-merge", b':'),
    (b"merge", b'.'),
    (b"hide", b'H'),
    (b"show", b'S'),
    (b"protect", b'P'),
    (b"risk", b'R'),
    (b"clear", b'!'),
];

/// Parses a rule in the syntax of protocol 29 and later.
pub(super) fn rule(text: &[u8]) -> Result<Rule<'_>, RuleError> {
    let head = Head::read(text, false)?;
    match head.prefix {
        b'!' if head.rest.is_empty() => Ok(Rule::Clear),
        b'!' => Err(RuleError::Trailing(escaped(text))),
        _ => head.rule(head.rest, text),
    }
}

/// Parses a rule in the syntax of protocols before 29: only `+ ` or `- ` may precede the pattern, and a bare
/// pattern is an exclude.
pub(super) fn old_rule(text: &[u8]) -> Result<Rule<'_>, RuleError> {
    plain_pattern(text, text, false)
}

/// Takes the next rule from a `filter` of rsyncd.conf, in which white space ends a pattern.
pub(super) fn next_rule<'a>(rest: &mut &'a [u8]) -> Option<Result<Rule<'a>, RuleError>> {
    let text = skip_space(rest)?;
    let mut take = || {
        let head = Head::read(text, true)?;
        if head.prefix == b'!' {
            *rest = head.rest;
            let ends = head.rest.first().is_none_or(u8::is_ascii_whitespace);
            return ends.then_some(Rule::Clear).ok_or_else(|| RuleError::Trailing(escaped(text)));
        }
        if head.cvs && head.prefix != b':' {
            *rest = head.rest;
            return head.rule(b"", text);
        }
        let (pattern, after) = word(head.rest);
        *rest = after;
        head.rule(pattern, text)
    };
    Some(take())
}

/// Takes the next pattern from an `include` or `exclude` of rsyncd.conf.
pub(super) fn next_pattern<'a>(rest: &mut &'a [u8], include: bool) -> Option<Result<Rule<'a>, RuleError>> {
    let text = skip_space(rest)?;
    let prefix = usize::from(text.starts_with(b"- ") || text.starts_with(b"+ ")) * 2;
    let (pattern, after) = word(&text[prefix..]);
    *rest = after;
    Some(plain_pattern(&text[..prefix + pattern.len()], text, include))
}

/// Parses the pattern in a line of an `include from` or `exclude from`. `None` if the line has no pattern.
pub(super) fn line_pattern(line: &[u8], include: bool) -> Option<Result<Rule<'_>, RuleError>> {
    let has_pattern = !matches!(line.first(), None | Some(b'#' | b';'));
    has_pattern.then(|| plain_pattern(line, line, include))
}

fn plain_pattern<'a>(rule: &'a [u8], text: &[u8], include: bool) -> Result<Rule<'a>, RuleError> {
    let (include, pattern) = match rule {
        b"!" => return Ok(Rule::Clear),
        [b'-', b' ', pattern @ ..] => (false, pattern),
        [b'+', b' ', pattern @ ..] => (true, pattern),
        pattern => (include, pattern),
    };
    if pattern.is_empty() {
        return Err(RuleError::End(escaped(text)));
    }
    Ok(Rule::Match(Modifiers { include, ..Modifiers::default() }, pattern))
}

/// The part of a rule before its pattern.
struct Head<'a> {
    prefix: u8,
    modifiers: Modifiers,
    /// Whether the modifier `C` is set.
    cvs: bool,
    rest: &'a [u8],
}

impl<'a> Head<'a> {
    /// Parses the prefix and the modifiers. If `words` is set, any white space ends the modifiers.
    fn read(text: &'a [u8], words: bool) -> Result<Self, RuleError> {
        let (prefix, mut at) = prefix(text).ok_or_else(|| RuleError::Unknown(escaped(text)))?;
        let mut head = Self { prefix, modifiers: Modifiers::default(), cvs: false, rest: &[] };
        head.modifiers.include = matches!(prefix, b'+' | b'S' | b'R');
        head.modifiers.sender = matches!(prefix, b'H' | b'S');
        head.modifiers.receiver = matches!(prefix, b'P' | b'R');
        if text.get(at) == Some(&b',') {
            at += 1;
        }
        if prefix != b'!' {
            // `-`, `+` and `C` mean that a merge file holds plain patterns. Only one of them is allowed.
            let mut plain = !matches!(prefix, b'.' | b':');
            while let Some(&modifier) = text.get(at).filter(|&&byte| !ends_modifiers(byte, words)) {
                if !head.modify(modifier, &mut plain) {
                    return Err(RuleError::Modifier { modifier: char::from(modifier), at, rule: escaped(text) });
                }
                at += 1;
            }
            at += usize::from(matches!(text.get(at), Some(b' ' | b'_')));
        }
        head.rest = text.get(at..).unwrap_or_default();
        Ok(head)
    }

    /// Applies a modifier. Returns whether it is valid here.
    fn modify(&mut self, modifier: u8, plain: &mut bool) -> bool {
        let merge = matches!(self.prefix, b'.' | b':');
        let sided = matches!(self.prefix, b'H' | b'S' | b'P' | b'R');
        match modifier {
            b'/' => self.modifiers.absolute = true,
            b'!' if !merge => self.modifiers.negated = true,
            b'C' if !(self.cvs || sided || merge && *plain) => (self.cvs, *plain) = (true, true),
            b'-' if !*plain => *plain = true,
            b'+' if !*plain => (*plain, self.modifiers.include) = (true, true),
            b'e' if merge => self.modifiers.exclude_self = true,
            b'n' | b'w' if merge => (),
            b'p' => (),
            b's' if !sided => self.modifiers.sender = true,
            b'r' if !sided => self.modifiers.receiver = true,
            b'x' => self.modifiers.xattr = true,
            _ => return false,
        }
        true
    }

    fn rule(&self, pattern: &'a [u8], text: &[u8]) -> Result<Rule<'a>, RuleError> {
        match (self.prefix, self.cvs) {
            (b'.', _) => Ok(Rule::Merge(escaped(text))),
            (b':', true) if pattern.is_empty() => Ok(Rule::DirMerge(self.modifiers, b".cvsignore")),
            (b'-' | b'+', true) => Ok(Rule::Cvs(self.modifiers)),
            _ if pattern.is_empty() => Err(RuleError::End(escaped(text))),
            (b':', _) => Ok(Rule::DirMerge(self.modifiers, pattern)),
            _ => Ok(Rule::Match(self.modifiers, pattern)),
        }
    }
}

/// Returns the letter of the prefix at the beginning of a rule, and the prefix's length.
fn prefix(text: &[u8]) -> Option<(u8, usize)> {
    let long = NAMES.iter().find(|(name, _)| {
        text.strip_prefix(*name).is_some_and(|rest| rest.first().is_none_or(|byte| b", _".contains(byte)))
    });
    if let Some((name, letter)) = long {
        return Some((*letter, name.len()));
    }
    let &letter = text.first()?;
    b"-+:.HSPR!".contains(&letter).then_some((letter, 1))
}

fn ends_modifiers(byte: u8, words: bool) -> bool {
    matches!(byte, b' ' | b'_') || (words && byte.is_ascii_whitespace())
}

/// Skips white space. `None` if nothing follows it.
fn skip_space<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    *rest = rest.trim_ascii_start();
    (!rest.is_empty()).then_some(*rest)
}

/// Splits the text at the first white space.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len()))
}

/// Formats a rule for an error, truncated to a reasonable length.
pub(super) fn escaped(text: &[u8]) -> String {
    Escaped(&text[..text.len().min(200)]).to_string()
}
