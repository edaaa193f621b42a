//! Filter rules in a client's or a module's words: what a sender leaves out of the list.
//!
//! The first rule that matches decides, and what is below a hidden directory is hidden with it. What a
//! pattern matches is [`crate::filter`]'s to say. A client's rules are relative to the transfer's root, a
//! module's to the module; both must let a name through.
//!
//! Rules about one side only count all the same when a client sends them (it keeps those about its own
//! side to itself), as with a stock daemon. In a module's `filter`, those about the sender alone are void,
//! as with a stock daemon: there `hide` is no way to hide.

mod grammar;
mod ordered;
mod void;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::filter::{Link, Subject};
use crate::list::{Dir, FileType, ListRef, Row};
use crate::path::{join, split};
use crate::rsync::exit::Exit;
use crate::rsync::selection::Hides;
use crate::rsync::version::Version;
use grammar::{Rule, shown};
use ordered::Ordered;

/// Steps of comparison that a name may cost without being counted. A step is some two nanoseconds; names cost the filters
/// of mirror scripts a few dozen.
const FREE_STEPS: u64 = 2048;
/// Steps beyond that in one session: some five seconds.
const COUNTED_STEPS: u64 = 1 << 31;

/// Steps that the client's rules may cost for one name: some eight milliseconds. More are counted as all that a session
/// may have.
const NAME_STEPS: u64 = 1 << 22;
/// Permissions of a directory.
const READ_BY_OTHERS: u16 = 0o4;
const SEARCHED_BY_OTHERS: u16 = 0o1;

/// Whether everybody may list what is in a directory, by its own permissions.
pub fn is_listed_to_others(dir: Row<'_>) -> bool {
    let both = READ_BY_OTHERS | SEARCHED_BY_OTHERS;
    dir.permissions() & both == both
}

/// What one client may not see: by its own rules, and by those of the module.
#[derive(Debug, Default)]
pub struct Rules {
    client: Ordered,
    module: Arc<ModuleRules>,
    /// Directories that not everybody may read are not gone into.
    is_public_only: bool,
    /// Steps so far.
    steps: AtomicU64,
    /// Those that are counted.
    counted: AtomicU64,
}

/// A module's `filter`, `include` and `exclude`. Compiled once; client rules come and go beside them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleRules(Ordered);

/// The rules of a module, in the order in which they are asked; the first match decides. What is absent is empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct ModuleTexts<'a> {
    /// Rules, separated by white space.
    pub filter: &'a [u8],
    /// What a file of patterns to keep holds: one a line, or a comment with `#` or `;`.
    pub include_from: &'a [u8],
    /// Patterns to keep, separated by white space.
    pub include: &'a [u8],
    /// What a file of patterns to hide holds.
    pub exclude_from: &'a [u8],
    /// Patterns to hide.
    pub exclude: &'a [u8],
}

/// A rule that is refused. The texts are stock rsync's, where it has one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RuleError {
    /// Not a rule.
    #[error("Unknown filter rule: {0}")]
    Unknown(String),
    /// A modifier that the rule cannot have.
    #[error("invalid modifier '{modifier}' at position {at} in filter rule: {rule}")]
    Modifier {
        /// The letter.
        modifier: char,
        /// Its place in the rule, from 0.
        at: usize,
        /// The rule.
        rule: String,
    },
    /// A rule without a pattern.
    #[error("unexpected end of filter rule: {0}")]
    End(String),
    /// A `!` with something after it.
    #[error("'!' rule has trailing characters: {0}")]
    Trailing(String),
    /// A rule that would have the server read a file of rules. The index holds no contents.
    #[error("filter rule '{0}' is not supported: this server does not read rules from files")]
    Merge(String),
    /// A per-directory rule whose file is there.
    #[error("filter rule ': {rule}' is not supported: '{file}' is in the repository, and this server does not read it")]
    DirMerge {
        /// The name that the rule gives.
        rule: String,
        /// The first such file, relative to the module.
        file: String,
    },
}

impl Rules {
    /// From the texts that the client sent, in order, in the words of its version; `cvs_exclude` is its
    /// option `-C`, whose rules follow the others.
    pub fn parse<'a>(
        texts: impl IntoIterator<Item = &'a [u8]>,
        version: Version,
        cvs_exclude: bool,
    ) -> Result<Self, RuleError> {
        let mut client = Ordered::default();
        let words = if version.facts().filter_modifiers { grammar::rule } else { grammar::old_rule };
        let ends: [&[u8]; 2] = [b":C", b"-C"];
        for text in texts {
            // A stock daemon sees no further.
            let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
            client.push(&words(&text[..end])?)?;
        }
        for text in ends.iter().filter(|_| cvs_exclude) {
            client.push(&grammar::rule(text)?)?;
        }
        Ok(Self { client, ..Self::default() })
    }

    /// The same, of a client of that module.
    pub fn within(self, module: Arc<ModuleRules>) -> Self {
        Self { module, ..self }
    }

    /// The same, where directories show what is in them by their permissions for everybody else.
    pub fn public_only(self, is_public_only: bool) -> Self {
        Self { is_public_only, ..self }
    }

    /// Names of per-directory merge files (`.cvsignore`, `.rsync-filter`) that the rules ask for.
    pub fn merge_files(&self) -> impl Iterator<Item = &[u8]> {
        self.merges().map(|path| split(path).1)
    }

    /// Refuses rules whose merge files stand in the list: in `under` or below it, or above it, where they may be looked
    /// for too. The index has no contents, so what they say is not known. Empty files say nothing, and files that the
    /// module's rules hide are not there.
    pub fn check_merges(&self, list: ListRef<'_>, under: &[u8]) -> Result<(), RuleError> {
        let rules: BTreeMap<&[u8], &[u8]> = self.merges().map(|path| (split(path).1, path)).collect();
        for dir in list.dirs().filter(|_| !rules.is_empty()) {
            let mut found = merge_files(dir, &rules).peekable();
            if found.peek().is_none() {
                continue;
            }
            let path = dir.path();
            if !related(&path, under) && !related(under, &path) {
                continue;
            }
            let files = found.map(|(name, rule)| (join(&path, name), rule));
            let is_there = |file: &[u8]| !self.module.hides_file(file) && self.may_reach(list, dir);
            if let Some((file, rule)) = files.into_iter().find(|(file, _)| is_there(file)) {
                return Err(RuleError::DirMerge { rule: shown(rule), file: shown(&file) });
            }
        }
        Ok(())
    }

    /// Whether what is in a directory may be named.
    fn may_reach<'a>(&self, list: ListRef<'a>, mut dir: Dir<'a>) -> bool {
        while self.may_enter(list.row(dir.row())) {
            if dir.number() == 0 {
                return true;
            }
            dir = list.dir(dir.parent());
        }
        false
    }

    /// Whether directories that not everybody may read are closed: the client is told of each in its list.
    pub fn is_public_only(&self) -> bool {
        self.is_public_only
    }

    /// Whether nothing below the root is hidden, so that a list made without rules serves. The module's
    /// rules count.
    pub fn is_void_for(&self, list: ListRef<'_>) -> bool {
        self.is_void_below(list, b"", 0, || true).unwrap_or(false)
    }

    /// As [`Rules::is_void_for`], of a transfer of one directory: `name` is where names in the list begin
    /// within paths relative to the module, as in [`Hides::hides`]. So for `sub/`, it is 4, for `sub` 0.
    /// `goes_on` is asked now and then; nothing is found out once it says no.
    pub fn is_void_below(
        &self,
        list: ListRef<'_>,
        dir: &[u8],
        name: usize,
        goes_on: impl FnMut() -> bool,
    ) -> Option<bool> {
        match () {
            () if self.nothing() => Some(true),
            () if self.is_public_only => Some(false),
            () => void::is_void(self, list, dir, name, goes_on),
        }
    }

    /// Whether the rules have cost more than any honest ones do; from then on everything is hidden. To be
    /// asked before a list is believed, and the session ends.
    pub fn exhausted(&self) -> bool {
        self.counted.load(Ordering::Relaxed) > COUNTED_STEPS
    }

    /// Steps so far that no honest rules take. What a session has cost others beyond its share.
    pub fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    /// Whether the client has rules of its own that can hide something.
    pub fn are_own(&self) -> bool {
        self.client.excluding().next().is_some()
    }

    /// Bytes that are equal for rules that hide the same. Part of the name of a cached list.
    pub fn key(&self) -> Vec<u8> {
        let module = self.module.0.key();
        [&[u8::from(self.is_public_only)][..], &(module.len() as u64).to_le_bytes(), module, self.client.key()].concat()
    }

    fn excluding(&self) -> impl Iterator<Item = &Link> {
        self.module.0.excluding().chain(self.client.excluding())
    }

    fn merges(&self) -> impl Iterator<Item = &[u8]> {
        self.module.0.merges().chain(self.client.merges())
    }
}

impl Hides for Rules {
    fn hides(&self, path: &[u8], name: usize, is_dir: bool) -> bool {
        if self.exhausted() {
            return true;
        }
        let mut work = 0;
        // The module's rules are the operator's, and hide whatever they cost.
        let is_hidden_here = self.module.0.excludes(&Subject::new(path, 0, is_dir), &mut work, u64::MAX);
        let most = work.saturating_add(NAME_STEPS);
        let hidden = is_hidden_here || self.client.excludes(&Subject::new(path, name, is_dir), &mut work, most);
        // One session asks at a time, and a few steps that are lost do not matter: so this need be no exact sum.
        self.steps.store(self.steps.load(Ordering::Relaxed).wrapping_add(work), Ordering::Relaxed);
        if work > FREE_STEPS {
            let counted = if work > most { COUNTED_STEPS + 1 } else { work - FREE_STEPS };
            self.counted.fetch_add(counted, Ordering::Relaxed);
        }
        hidden || work > most
    }

    fn gave_up(&self) -> bool {
        self.exhausted()
    }

    fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    fn module_hides(&self, path: &[u8], is_dir: bool) -> bool {
        self.module.hides(path, is_dir)
    }

    fn has_module_rules(&self) -> bool {
        self.module.0.excluding().next().is_some()
    }

    fn may_enter(&self, dir: Row<'_>) -> bool {
        !self.is_public_only || dir.permissions() & SEARCHED_BY_OTHERS != 0
    }

    fn may_list(&self, dir: Row<'_>) -> bool {
        !self.is_public_only || is_listed_to_others(dir)
    }

    fn nothing(&self) -> bool {
        !self.is_public_only && self.excluding().next().is_none()
    }
}

impl ModuleRules {
    /// From rules in rsyncd.conf's words.
    pub fn parse(texts: &ModuleTexts<'_>) -> Result<Self, RuleError> {
        let mut rules = Ordered::default();
        let mut rest = texts.filter;
        while let Some(rule) = grammar::next_rule(&mut rest) {
            let rule = rule?;
            if !matches!(&rule, Rule::Match(modifiers, _) if modifiers.sender && !modifiers.receiver) {
                rules.push(&rule)?;
            }
        }
        let sources = [(texts.include_from, texts.include, true), (texts.exclude_from, texts.exclude, false)];
        for (lines, mut rest, include) in sources {
            for line in lines.split(|&byte| matches!(byte, b'\n' | b'\r')) {
                if let Some(rule) = grammar::line_pattern(line, include) {
                    rules.push(&rule?)?;
                }
            }
            while let Some(rule) = grammar::next_pattern(&mut rest, include) {
                rules.push(&rule?)?;
            }
        }
        Ok(Self(rules))
    }

    /// Whether the module has no such name, though its directory be there.
    pub fn hides(&self, path: &[u8], is_dir: bool) -> bool {
        self.0.excludes(&Subject::new(path, 0, is_dir), &mut 0, u64::MAX)
    }

    /// Whether the module has no file of that name, whatever is there: the rules hide it, or a directory on the way to it.
    pub fn hides_file(&self, path: &[u8]) -> bool {
        let dirs = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(end, _)| &path[..end]);
        self.may_hide() && (dirs.into_iter().any(|dir| self.hides(dir, true)) || self.hides(path, false))
    }

    /// Whether there is anything that the rules could hide.
    pub fn may_hide(&self) -> bool {
        self.0.excluding().next().is_some() || self.0.merges().next().is_some()
    }
}

impl RuleError {
    /// The exit code that stock rsync has for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Merge(_) | Self::DirMerge { .. } => Exit::Unsupported,
            _ => Exit::Syntax,
        }
    }
}

/// The files in the directory that some rule names and that have something to say, each with the rule. Rules can name
/// more than there is.
fn merge_files<'a>(
    dir: Dir<'a>,
    rules: &'a BTreeMap<&'a [u8], &'a [u8]>,
) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    let says = |row: Row<'_>| match row.file_type() {
        FileType::File => row.size() > 0,
        file_type => file_type == FileType::Symlink,
    };
    let are_few = rules.len() < dir.files().len();
    let named = rules.iter().filter(move |(name, _)| dir.child(name).is_some_and(says));
    let named = are_few.then(|| named.map(|(&name, &rule)| (name, rule)));
    let there = dir.children().filter(move |&(_, row)| says(row));
    let there = (!are_few).then(|| there.filter_map(|(name, _)| Some((name, *rules.get(name)?))));
    named.into_iter().flatten().chain(there.into_iter().flatten())
}

/// Whether `path` is `dir` or below it.
fn related(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

#[cfg(test)]
mod tests;
