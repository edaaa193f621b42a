//! Filter rules of a client or a module: which names a sender leaves out of the list.
//!
//! The first matching rule decides, and everything below a hidden directory is hidden too. [`crate::filter`]
//! matches the patterns. A client's rules are relative to the transfer's root, a module's rules to the
//! module. A name is listed only if both allow it.
//!
//! As in a stock daemon, rules for one side only count when a client sends them, because it does not send
//! those for its own side. In a module's `filter`, rules for the sender only are ignored, as in a stock
//! daemon: `hide` hides nothing there.

mod grammar;
mod hides_nothing;
mod ordered;

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
use grammar::{Rule, escaped};
use ordered::Ordered;

/// Comparison steps per name that are not counted. A step takes about two nanoseconds. The filters of mirror
/// scripts take a few dozen steps per name.
const FREE_STEPS: u64 = 2048;
/// Limit of counted steps in one session: about five seconds.
const COUNTED_STEPS: u64 = 1 << 31;

/// Limit of steps that the client's rules may take for one name: about eight milliseconds. A name that
/// exceeds it uses up the limit of the session.
const NAME_STEPS: u64 = 1 << 22;
const READ_BY_OTHERS: u16 = 0o4;
const SEARCHED_BY_OTHERS: u16 = 0o1;

/// Returns whether a directory's own permissions allow everybody to list it.
pub fn is_listed_to_others(dir: Row<'_>) -> bool {
    let both = READ_BY_OTHERS | SEARCHED_BY_OTHERS;
    dir.permissions() & both == both
}

/// The rules that hide names from one client: its own rules and those of the module.
#[derive(Debug, Default)]
pub struct Rules {
    client: Ordered,
    module: Arc<ModuleRules>,
    /// Whether directories that not everybody may read are left closed.
    is_public_only: bool,
    /// Number of comparison steps so far.
    steps: AtomicU64,
    /// Number of counted steps so far, see [`FREE_STEPS`].
    counted: AtomicU64,
}

/// A module's `filter`, `include` and `exclude`. They are compiled once and shared by the clients' rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleRules(Ordered);

/// The texts of a module's rules, in the order in which they apply. The first match decides. A missing text is empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct ModuleTexts<'a> {
    /// Rules, separated by white space.
    pub filter: &'a [u8],
    /// The content of a file of include patterns: one per line; `#` or `;` begins a comment.
    pub include_from: &'a [u8],
    /// Include patterns, separated by white space.
    pub include: &'a [u8],
    /// The content of a file of exclude patterns.
    pub exclude_from: &'a [u8],
    /// Exclude patterns, separated by white space.
    pub exclude: &'a [u8],
}

/// An invalid or unsupported rule. The messages are those of stock rsync where it has one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RuleError {
    /// Unknown rule.
    #[error("Unknown filter rule: {0}")]
    Unknown(String),
    /// A modifier that is invalid for the rule.
    #[error("invalid modifier '{modifier}' at position {at} in filter rule: {rule}")]
    Modifier {
        /// The letter.
        modifier: char,
        /// Its offset in the rule, in bytes.
        at: usize,
        /// The rule.
        rule: String,
    },
    /// A rule without a pattern.
    #[error("unexpected end of filter rule: {0}")]
    End(String),
    /// A `!` with trailing characters.
    #[error("'!' rule has trailing characters: {0}")]
    Trailing(String),
    /// A rule that makes the server read rules from a file. The index holds no contents.
    #[error("filter rule '{0}' is not supported: this server does not read rules from files")]
    Merge(String),
    /// A per-directory merge rule whose file exists.
    #[error("filter rule ': {rule}' is not supported: '{file}' is in the repository, and this server does not read it")]
    DirMerge {
        /// The file's name in the rule.
        rule: String,
        /// The first such file, relative to the module.
        file: String,
    },
}

impl Rules {
    /// Parses the rules that a client sent, in order, in the syntax of its version. `cvs_exclude` is the
    /// client's option `-C`, whose rules follow the others.
    pub fn parse<'a>(
        texts: impl IntoIterator<Item = &'a [u8]>,
        version: Version,
        cvs_exclude: bool,
    ) -> Result<Self, RuleError> {
        let mut client = Ordered::default();
        let words = if version.facts().filter_modifiers { grammar::rule } else { grammar::old_rule };
        let ends: [&[u8]; 2] = [b":C", b"-C"];
        for text in texts {
            // A stock daemon ignores what follows a NUL.
            let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
            client.push(&words(&text[..end])?)?;
        }
        for text in ends.iter().filter(|_| cvs_exclude) {
            client.push(&grammar::rule(text)?)?;
        }
        Ok(Self { client, ..Self::default() })
    }

    /// Adds the rules of the client's module.
    pub fn within(self, module: Arc<ModuleRules>) -> Self {
        Self { module, ..self }
    }

    /// Sets whether directories that not everybody may read are closed.
    pub fn public_only(self, is_public_only: bool) -> Self {
        Self { is_public_only, ..self }
    }

    /// Returns the names of per-directory merge files (`.cvsignore`, `.rsync-filter`) that the rules refer to.
    pub fn merge_files(&self) -> impl Iterator<Item = &[u8]> {
        self.merges().map(|path| split(path).1)
    }

    /// Refuses per-directory merge rules whose files are in the list: in `under`, below it, or above it,
    /// where they may be looked up too. The index holds no contents, so the rules in such a file are unknown.
    /// Empty files have no rules, and files that the module's rules hide count as missing.
    pub fn check_merges(&self, list: ListRef<'_>, under: &[u8]) -> Result<(), RuleError> {
        let rules: BTreeMap<&[u8], &[u8]> = self.merges().map(|path| (split(path).1, path)).collect();
        for dir in list.dirs().filter(|_| !rules.is_empty()) {
            let mut found = merge_files(dir, &rules).peekable();
            if found.peek().is_none() {
                continue;
            }
            let path = dir.path();
            if !is_at_or_below(&path, under) && !is_at_or_below(under, &path) {
                continue;
            }
            let files = found.map(|(name, rule)| (join(&path, name), rule));
            let exists = |file: &[u8]| !self.module.hides_file(file) && self.may_reach(list, dir);
            if let Some((file, rule)) = files.into_iter().find(|(file, _)| exists(file)) {
                return Err(RuleError::DirMerge { rule: escaped(rule), file: escaped(&file) });
            }
        }
        Ok(())
    }

    /// Returns whether the client may see the names in a directory.
    fn may_reach<'a>(&self, list: ListRef<'a>, mut dir: Dir<'a>) -> bool {
        while self.may_enter(list.row(dir.row())) {
            if dir.number() == 0 {
                return true;
            }
            dir = list.dir(dir.parent());
        }
        false
    }

    /// Returns whether directories that not everybody may read are closed. The client is notified of each of
    /// them with its list.
    pub fn is_public_only(&self) -> bool {
        self.is_public_only
    }

    /// Returns whether the rules, including the module's, hide nothing in the list, so that a list made
    /// without rules can be sent.
    pub fn is_void_for(&self, list: ListRef<'_>) -> bool {
        self.is_void_below(list, b"", 0, || true).unwrap_or(false)
    }

    /// Like [`Rules::is_void_for`], for a transfer of one directory. `name` is the offset at which the listed
    /// name begins within a path relative to the module, as in [`Hides::hides`]: 4 for `sub/`, 0 for `sub`.
    /// Calls `goes_on` from time to time. `None` if it returns false before the result is known.
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
            () => hides_nothing::hides_nothing(self, list, dir, name, goes_on),
        }
    }

    /// Returns whether the rules have cost more steps than any honest rules take. From then on they hide
    /// everything, so check this before using a list, and end the session.
    pub fn exhausted(&self) -> bool {
        self.counted.load(Ordering::Relaxed) > COUNTED_STEPS
    }

    /// Returns the number of counted steps: work beyond the session's fair share, which no honest rules take.
    pub fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    /// Returns whether the client has rules of its own that can hide something.
    pub fn are_own(&self) -> bool {
        self.client.excluding().next().is_some()
    }

    /// Returns bytes that are equal only for rules that hide the same names. They are part of a cached list's key.
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
        // The module's rules come from the operator, so they hide names at any cost.
        let is_hidden_here = self.module.0.excludes(&Subject::new(path, 0, is_dir), &mut work, u64::MAX);
        let limit = work.saturating_add(NAME_STEPS);
        let hidden = is_hidden_here || self.client.excludes(&Subject::new(path, name, is_dir), &mut work, limit);
        // Only one session uses this counter, and losing a few steps does not matter, so a plain load and
        // store suffice.
        self.steps.store(self.steps.load(Ordering::Relaxed).wrapping_add(work), Ordering::Relaxed);
        if work > FREE_STEPS {
            let counted = if work > limit { COUNTED_STEPS + 1 } else { work - FREE_STEPS };
            self.counted.fetch_add(counted, Ordering::Relaxed);
        }
        hidden || work > limit
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
    /// Parses rules in the syntax of rsyncd.conf.
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

    /// Returns whether the module's rules hide this name itself. Directories above it are not considered.
    pub fn hides(&self, path: &[u8], is_dir: bool) -> bool {
        self.0.excludes(&Subject::new(path, 0, is_dir), &mut 0, u64::MAX)
    }

    /// Returns whether the module's rules hide this file or a directory above it, whether or not it exists.
    pub fn hides_file(&self, path: &[u8]) -> bool {
        let dirs = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(end, _)| &path[..end]);
        self.may_hide() && (dirs.into_iter().any(|dir| self.hides(dir, true)) || self.hides(path, false))
    }

    /// Returns whether the rules can hide anything.
    pub fn may_hide(&self) -> bool {
        self.0.excluding().next().is_some() || self.0.merges().next().is_some()
    }
}

impl RuleError {
    /// Returns the exit code that stock rsync uses for this error.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Merge(_) | Self::DirMerge { .. } => Exit::Unsupported,
            _ => Exit::Syntax,
        }
    }
}

/// Returns the symlinks and non-empty files in the directory that a rule names, each with its rule. There may
/// be more rules than files, so this iterates over the fewer of the two.
fn merge_files<'a>(
    dir: Dir<'a>,
    rules: &'a BTreeMap<&'a [u8], &'a [u8]>,
) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    let has_rules = |row: Row<'_>| match row.file_type() {
        FileType::File => row.size() > 0,
        file_type => file_type == FileType::Symlink,
    };
    let are_few = rules.len() < dir.files().len();
    let named = rules.iter().filter(move |(name, _)| dir.child(name).is_some_and(has_rules));
    let named = are_few.then(|| named.map(|(&name, &rule)| (name, rule)));
    let there = dir.children().filter(move |&(_, row)| has_rules(row));
    let there = (!are_few).then(|| there.filter_map(|(name, _)| Some((name, *rules.get(name)?))));
    named.into_iter().flatten().chain(there.into_iter().flatten())
}

/// Returns whether `path` is `dir` or below it.
fn is_at_or_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

#[cfg(test)]
mod tests;
