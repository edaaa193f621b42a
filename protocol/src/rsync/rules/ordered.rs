//! A compiled, ordered sequence of rules.

use super::RuleError;
use super::grammar::{Modifiers, Rule};
use crate::filter::{Chain, Link, Pattern, Subject};
use crate::limits;

/// CVS's exclude patterns, as the manual page of rsync lists them for `-C`.
const CVS: &str = "RCS SCCS CVS CVS.adm RCSLOG cvslog.* tags TAGS .make.state .nse_depinfo *~ #* .#* ,* _$* *$ \
    *.old *.bak *.BAK *.orig *.rej .del-* *.a *.olb *.o *.obj *.so *.exe *.Z *.elc *.ln core \
    .svn/ .git/ .hg/ .bzr/";

/// Rules in order, compiled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ordered {
    chain: Chain,
    /// Per-directory files of rules: paths relative to any directory. If a path begins with a slash, the file
    /// is also looked up above the transfer's root.
    merges: Vec<Vec<u8>>,
    key: Vec<u8>,
    /// The modifiers of the first rule that adds CVS's patterns. Later rules do not change them: stock rsync
    /// creates these patterns once.
    cvs: Option<Modifiers>,
    /// Whether CVS's patterns are among the links. Adding them a second time could decide nothing.
    has_cvs: bool,
}

impl Ordered {
    /// Appends a rule. Rules for either side count.
    pub(super) fn push(&mut self, rule: &Rule<'_>) -> Result<(), RuleError> {
        match rule {
            Rule::Clear => *self = Self { cvs: self.cvs, ..Self::default() },
            Rule::Match(modifiers, pattern) if !modifiers.xattr => self.link(*modifiers, pattern),
            Rule::Match(..) => (),
            Rule::Cvs(modifiers) => {
                let modifiers = *self.cvs.get_or_insert(*modifiers);
                if std::mem::replace(&mut self.has_cvs, true) {
                    return Ok(());
                }
                CVS.split_ascii_whitespace().for_each(|word| self.link(modifiers, word.as_bytes()));
            }
            Rule::DirMerge(modifiers, path) => {
                if modifiers.exclude_self {
                    self.link(Modifiers::default(), crate::path::split(path).1);
                }
                self.add_to_key(b':', path);
                self.merges.push(path.to_vec());
            }
            Rule::Merge(text) => return Err(RuleError::Merge(text.clone())),
        }
        Ok(())
    }

    fn link(&mut self, modifiers: Modifiers, pattern: &[u8]) {
        // Like stock rsync, which drops such a rule. No path is that long.
        if pattern.len() > limits::PATH {
            return;
        }
        let Modifiers { include, negated, absolute, .. } = modifiers;
        self.add_to_key(u8::from(include) | u8::from(negated) << 1 | u8::from(absolute) << 2, pattern);
        self.chain.push(Link { pattern: Pattern::new(pattern), include, negated, absolute });
    }

    fn add_to_key(&mut self, kind: u8, text: &[u8]) {
        self.key.push(kind);
        self.key.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.key.extend_from_slice(text);
    }

    /// Returns whether the rules exclude the subject. Adds the cost to `work`, and gives up when that exceeds
    /// `limit`.
    pub(super) fn excludes(&self, subject: &Subject<'_>, work: &mut u64, limit: u64) -> bool {
        self.chain.decide(subject, work, limit) == Some(false)
    }

    /// Returns the links that exclude something.
    pub(super) fn excluding(&self) -> impl Iterator<Item = &Link> {
        self.chain.links().iter().filter(|link| !link.include)
    }

    pub(super) fn merges(&self) -> impl Iterator<Item = &[u8]> {
        self.merges.iter().map(Vec::as_slice)
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }
}
