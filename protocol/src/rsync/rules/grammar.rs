//! The words of rules: what a text says, before what it means.
//!
//! Facts: rsync's manual pages, and rsync 3.5.0 (client and daemon) asked about every prefix with every
//! modifier.

use super::RuleError;
use crate::path::Escaped;

/// What one text says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rule<'a> {
    /// Forget all rules so far.
    Clear,
    /// Names that match a pattern.
    Match(Modifiers, &'a [u8]),
    /// CVS's patterns.
    Cvs(Modifiers),
    /// What a file of that name says, in every directory.
    DirMerge(Modifiers, &'a [u8]),
    /// What one file says, where it is named by this text.
    Merge(String),
}

/// What stands before a pattern.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Modifiers {
    /// `+`, not `-`.
    pub(super) include: bool,
    /// `/`: compared with the path relative to the module.
    pub(super) absolute: bool,
    /// `!`: decides on what does not match.
    pub(super) negated: bool,
    /// `s`: the sender's side. Neither side named is both.
    pub(super) sender: bool,
    /// `r`: the receiver's side.
    pub(super) receiver: bool,
    /// `x`: about names of extended attributes.
    pub(super) xattr: bool,
    /// `e`: leave out the merge file itself.
    pub(super) exclude_self: bool,
}

/// Prefixes by their long names.
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

/// Reads the rule that a text is, in the words of protocol 29 and later.
pub(super) fn rule(text: &[u8]) -> Result<Rule<'_>, RuleError> {
    let head = Head::read(text, false)?;
    match head.prefix {
        b'!' if head.rest.is_empty() => Ok(Rule::Clear),
        b'!' => Err(RuleError::Trailing(shown(text))),
        _ => head.rule(head.rest, text),
    }
}

/// Reads the rule that a text is, in the words of protocols before 29: `+ ` and `- ` are all that may stand before a
/// pattern, and without them it is excluded.
pub(super) fn old_rule(text: &[u8]) -> Result<Rule<'_>, RuleError> {
    old(text, text, false)
}

/// Takes the next rule from a `filter` of rsyncd.conf, white space being the end of a pattern.
pub(super) fn next_rule<'a>(rest: &mut &'a [u8]) -> Option<Result<Rule<'a>, RuleError>> {
    let text = skip_space(rest)?;
    let mut take = || {
        let head = Head::read(text, true)?;
        if head.prefix == b'!' {
            *rest = head.rest;
            let ends = head.rest.first().is_none_or(u8::is_ascii_whitespace);
            return ends.then_some(Rule::Clear).ok_or_else(|| RuleError::Trailing(shown(text)));
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
    Some(old(&text[..prefix + pattern.len()], text, include))
}

/// Reads the pattern that a line of an `include from` or `exclude from` is; none for one without.
pub(super) fn line_pattern(line: &[u8], include: bool) -> Option<Result<Rule<'_>, RuleError>> {
    let says = !matches!(line.first(), None | Some(b'#' | b';'));
    says.then(|| old(line, line, include))
}

fn old<'a>(rule: &'a [u8], text: &[u8], include: bool) -> Result<Rule<'a>, RuleError> {
    let (include, pattern) = match rule {
        b"!" => return Ok(Rule::Clear),
        [b'-', b' ', pattern @ ..] => (false, pattern),
        [b'+', b' ', pattern @ ..] => (true, pattern),
        pattern => (include, pattern),
    };
    if pattern.is_empty() {
        return Err(RuleError::End(shown(text)));
    }
    Ok(Rule::Match(Modifiers { include, ..Modifiers::default() }, pattern))
}

/// A rule up to its pattern.
struct Head<'a> {
    prefix: u8,
    modifiers: Modifiers,
    /// `C`.
    cvs: bool,
    rest: &'a [u8],
}

impl<'a> Head<'a> {
    /// In `words`, any white space ends the modifiers.
    fn read(text: &'a [u8], words: bool) -> Result<Self, RuleError> {
        let (prefix, mut at) = prefix(text).ok_or_else(|| RuleError::Unknown(shown(text)))?;
        let mut head = Self { prefix, modifiers: Modifiers::default(), cvs: false, rest: &[] };
        head.modifiers.include = matches!(prefix, b'+' | b'S' | b'R');
        head.modifiers.sender = matches!(prefix, b'H' | b'S');
        head.modifiers.receiver = matches!(prefix, b'P' | b'R');
        if text.get(at) == Some(&b',') {
            at += 1;
        }
        if prefix != b'!' {
            // `-`, `+` and `C` say that a merge file holds patterns, and may be said once.
            let mut plain = !matches!(prefix, b'.' | b':');
            while let Some(&modifier) = text.get(at).filter(|&&byte| !ends_modifiers(byte, words)) {
                if !head.modify(modifier, &mut plain) {
                    return Err(RuleError::Modifier { modifier: char::from(modifier), at, rule: shown(text) });
                }
                at += 1;
            }
            at += usize::from(matches!(text.get(at), Some(b' ' | b'_')));
        }
        head.rest = text.get(at..).unwrap_or_default();
        Ok(head)
    }

    /// Whether the modifier may stand here.
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
            (b'.', _) => Ok(Rule::Merge(shown(text))),
            (b':', true) if pattern.is_empty() => Ok(Rule::DirMerge(self.modifiers, b".cvsignore")),
            (b'-' | b'+', true) => Ok(Rule::Cvs(self.modifiers)),
            _ if pattern.is_empty() => Err(RuleError::End(shown(text))),
            (b':', _) => Ok(Rule::DirMerge(self.modifiers, pattern)),
            _ => Ok(Rule::Match(self.modifiers, pattern)),
        }
    }
}

/// The prefix that a rule begins with, as its letter, and its length.
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

/// What follows white space; none when nothing does.
fn skip_space<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    *rest = rest.trim_ascii_start();
    (!rest.is_empty()).then_some(*rest)
}

/// The bytes before white space, and the rest.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len()))
}

/// A rule in an error, not longer than a message should be.
pub(super) fn shown(text: &[u8]) -> String {
    Escaped(&text[..text.len().min(200)]).to_string()
}
