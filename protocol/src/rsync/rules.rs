//! Filter rules in a client's or a module's words: what a sender leaves out of the list.

use std::sync::Arc;

use thiserror::Error;

use crate::list::ListRef;
use crate::rsync::fault::Exit;
use crate::rsync::version::Version;

/// What one client may not see: its own rules, and those of the module behind them.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    module: Arc<ModuleRules>,
}

/// A module's `filter`, `include` and `exclude`, as rsyncd.conf has them: each a list of rules or
/// patterns separated by white space. Compiled once; client rules come and go beside them.
#[derive(Debug, Clone, Default)]
pub struct ModuleRules {}

/// A rule that is refused: with the text and exit code that stock rsync has, where it has one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RuleError {
    /// Not a rule.
    #[error("Unknown filter rule: `{0}'")]
    Unknown(String),
    /// A modifier that the rule cannot have.
    #[error("invalid modifier '{modifier}' at position {at} in filter rule: {rule}")]
    Modifier {
        /// The letter.
        modifier: char,
        /// Its place in the rule.
        at: usize,
        /// The rule.
        rule: String,
    },
    /// A rule that needs a pattern and has none, or needs none and has one.
    #[error("unexpected end of filter rule: {0}")]
    Pattern(String),
    /// A rule that would have the server read a file of rules. The index holds no contents.
    #[error("filter rule '{0}': merge files are not read by this server")]
    Merge(String),
    /// Longer than any path.
    #[error("a filter rule of {0} bytes")]
    TooLong(usize),
}

impl Rules {
    /// From the texts that the client sent, in order, in the words of its version; `cvs_exclude` is its
    /// option `-C`.
    pub fn parse<'a>(
        texts: impl IntoIterator<Item = &'a [u8]>,
        version: Version,
        cvs_exclude: bool,
    ) -> Result<Self, RuleError> {
        let _ = (texts.into_iter().count(), version, cvs_exclude);
        Ok(Self::default())
    }

    /// The same, of a client of that module.
    pub fn within(self, module: Arc<ModuleRules>) -> Self {
        Self { module }
    }

    /// Whether any rule hides an entry: `path` is relative to the module, from `name` on it is the name in
    /// the list. To be asked of a directory before its contents, which go with it.
    pub fn hides(&self, path: &[u8], name: usize, is_dir: bool) -> bool {
        let _ = (path, name, is_dir);
        false
    }

    /// Whether the module's own rules hide a path that the client asks for by name: it does not exist.
    pub fn module_hides(&self, path: &[u8], is_dir: bool) -> bool {
        self.module.hides(path, is_dir)
    }

    /// Names of per-directory merge files (`.cvsignore`, `.rsync-filter`) that the rules ask for.
    pub fn merge_files(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::empty()
    }

    /// Refuses rules whose merge files stand in the list, in `under` or below it, with something in them. The
    /// index has no contents, so what they say is not known; rules whose files are nowhere are void.
    pub fn check_merges(&self, list: ListRef<'_>, under: &[u8]) -> Result<(), RuleError> {
        let _ = (list, under);
        Ok(())
    }

    /// Whether nothing below the root is hidden, so that a list made without rules serves. The module's
    /// rules count.
    pub fn is_void_for(&self, list: ListRef<'_>) -> bool {
        self.is_void_below(list, b"", 0)
    }

    /// As [`Rules::is_void_for`], of a transfer of one directory: `name` is where names in the list begin
    /// within paths relative to the module, as in [`Rules::hides`].
    pub fn is_void_below(&self, list: ListRef<'_>, dir: &[u8], name: usize) -> bool {
        let _ = (list, dir, name);
        true
    }

    /// Whether the rules have cost more than any honest ones do; from then on everything is hidden. To be
    /// asked before a list is believed; the session ends.
    pub fn exhausted(&self) -> bool {
        false
    }

    /// Bytes that are equal for rules that hide the same. Part of the name of a cached list.
    pub fn key(&self) -> Vec<u8> {
        Vec::new()
    }
}

impl ModuleRules {
    /// From the values of the keys; an absent key is empty. In this order the first match decides.
    pub fn parse(filter: &[u8], include: &[u8], exclude: &[u8]) -> Result<Self, RuleError> {
        let _ = (filter, include, exclude);
        Ok(Self::default())
    }

    /// Whether the module has no such name: for the paths that a client asks for by name.
    pub fn hides(&self, path: &[u8], is_dir: bool) -> bool {
        let _ = (path, is_dir);
        false
    }
}

impl RuleError {
    /// The exit code that stock rsync has for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Merge(_) => Exit::Unsupported,
            _ => Exit::Syntax,
        }
    }
}
