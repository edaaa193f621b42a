//! Rules in order, compiled.

use super::RuleError;
use super::grammar::{Modifiers, Rule};
use crate::filter::{Chain, Link, Pattern, Subject};
use crate::limits;

/// CVS's patterns, as `-C` has them in the manual page of rsync.
const CVS: &str = "RCS SCCS CVS CVS.adm RCSLOG cvslog.* tags TAGS .make.state .nse_depinfo *~ #* .#* ,* _$* *$ \
    *.old *.bak *.BAK *.orig *.rej .del-* *.a *.olb *.o *.obj *.so *.exe *.Z *.elc *.ln core \
    .svn/ .git/ .hg/ .bzr/";

/// Rules in order, compiled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ordered {
    chain: Chain,
    /// Files of rules that may stand in every directory: paths relative to any; with a slash before it, one is also
    /// looked for above the transfer's root.
    merges: Vec<Vec<u8>>,
    key: Vec<u8>,
    /// How CVS's patterns were first asked for. It stays so, whatever later rules say: stock rsync makes them
    /// once.
    cvs: Option<Modifiers>,
    /// They are among the links. A second time they could decide on nothing that is left.
    has_cvs: bool,
}

impl Ordered {
    /// Appends a rule. Both sides' rules count.
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
                self.note(b':', path);
                self.merges.push(path.to_vec());
            }
            Rule::Merge(text) => return Err(RuleError::Merge(text.clone())),
        }
        Ok(())
    }

    fn link(&mut self, modifiers: Modifiers, pattern: &[u8]) {
        // As stock rsync, which drops such a rule: no path is as long.
        if pattern.len() > limits::PATH {
            return;
        }
        let Modifiers { include, negated, absolute, .. } = modifiers;
        self.note(u8::from(include) | u8::from(negated) << 1 | u8::from(absolute) << 2, pattern);
        self.chain.push(Link { pattern: Pattern::new(pattern), include, negated, absolute });
    }

    fn note(&mut self, kind: u8, text: &[u8]) {
        self.key.push(kind);
        self.key.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.key.extend_from_slice(text);
    }

    /// Whether the subject is left out. Adds what it cost to `work`, and gives up when that is more than `most`.
    pub(super) fn excludes(&self, subject: &Subject<'_>, work: &mut u64, most: u64) -> bool {
        self.chain.decide(subject, work, most) == Some(false)
    }

    /// The links that leave something out.
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
