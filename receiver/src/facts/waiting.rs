//! Adds the names that wait for their deletion to the facts. The generation of the last pull does not have them, so
//! facts that were taken from it lack them, and so does a look at a directory that cannot be read.

use std::collections::HashSet;
use std::os::fd::AsFd as _;

use stillmirror_protocol::list::{FileType, Row};
use stillmirror_protocol::local::RelativeDevice;
use stillmirror_protocol::path;

use super::{Extra, Facts, Fate, Found, Inspected, Inspector};
use crate::error::{At as _, PullError};
use crate::journal::Journal;
use crate::local::{self, Stat, Tree, self_and_ancestors};
use crate::selection::WantedDir;

/// The devices and inodes of entries that have several names.
#[derive(Debug, Default)]
pub(crate) struct Shared(HashSet<(RelativeDevice, u64)>);

impl Shared {
    /// Adds an entry that is about to be deleted, with everything below it. What cannot be read is left out.
    pub(crate) fn add_below(&mut self, tree: &Tree, path: &[u8]) {
        let Ok(Some(stat)) = tree.stat(path) else { return };
        self.add(tree, &stat);
        if stat.kind == FileType::Directory
            && let Ok(names) = tree.dir(path).and_then(|dir| local::names(dir.as_fd()))
        {
            names.iter().for_each(|(name, _)| self.add_below(tree, &path::join(path, name)));
        }
    }

    fn add(&mut self, tree: &Tree, stat: &Stat) {
        if stat.kind != FileType::Directory && stat.names > 1 {
            self.0.insert(tree.identity(stat).inode_key());
        }
    }

    /// Notes in the facts which rows have one of these entries. Their ctime changes when a name goes.
    pub(crate) fn note(&self, facts: &mut Facts) {
        if self.0.is_empty() {
            return;
        }
        for fact in facts.rows.iter_mut().flatten() {
            fact.has_other_names |= fact.kind != FileType::Directory && self.0.contains(&fact.identity.inode_key());
        }
    }
}

impl Inspector<'_> {
    /// Looks at the names that wait. Those that the list has again, and those that are gone, leave the journal. The
    /// others become extras, except those that must not be deleted, which go on waiting. `inspected`: whether the facts
    /// were taken from the tree.
    pub(crate) fn add_waiting(
        &self,
        tree: &Tree,
        journal: &mut Journal,
        facts: &mut Facts,
        inspected: bool,
    ) -> Result<(), PullError> {
        if journal.len() == 0 {
            return Ok(());
        }
        let mut known: HashSet<Vec<u8>> = facts.extra.iter().map(|extra| extra.path.clone()).collect();
        let (mut shared, mut over, mut again) = (Shared::default(), HashSet::new(), HashSet::new());
        for waiting in journal.names() {
            if self.cancel.is_cancelled() {
                return Err(PullError::Interrupted);
            }
            let stat = tree.stat(waiting).at("stat", tree.shown(waiting))?;
            stat.iter().for_each(|stat| shared.add(tree, stat));
            match (self.selection.find(waiting), stat) {
                (_, None) => drop(over.insert(waiting.to_vec())),
                (Some(row), Some(stat)) => {
                    over.insert(waiting.to_vec());
                    self.add_row(tree, waiting, row, facts)?;
                    match (stat.kind, row.is_dir()) {
                        (FileType::Directory, true) => drop(again.insert(waiting.to_vec())),
                        (FileType::Directory, false) => shared.add_below(tree, waiting),
                        _ => {}
                    }
                }
                (None, Some(stat)) => {
                    let is_dir = stat.kind == FileType::Directory;
                    if self.selection.owns_deep(waiting, is_dir) && known.insert(waiting.to_vec()) {
                        let file = (stat.kind == FileType::File).then_some((stat.size, stat.mtime));
                        facts.extra.push(Extra { path: waiting.to_vec(), is_dir, file, fate: Fate::default() });
                    }
                }
            }
        }
        journal.retain(|name| !over.contains(name));
        if !inspected && !again.is_empty() {
            self.add_dirs(tree, &again, facts, &mut known, &mut shared)?;
        }
        shared.note(facts);
        Ok(())
    }

    /// Adds the fact of a row whose name waited, unless it is known.
    fn add_row(&self, tree: &Tree, path: &[u8], row: Row<'_>, facts: &mut Facts) -> Result<(), PullError> {
        if self.selection.index(row.number()).is_none_or(|index| facts.rows[index].is_some()) {
            return Ok(());
        }
        let (parent, name) = path::split(path);
        let place = WantedDir { dir: self.selection.list.parent_of(row.number()), path: parent.to_vec() };
        let dir = tree.dir(parent).at("open", tree.shown(parent))?;
        if let Some(Inspected::Row(index, fact)) = self.inspect_name(tree, &place, dir.as_fd(), None, name)? {
            facts.rows[index] = Some(fact);
        }
        Ok(())
    }

    /// Adds what is in the wanted directories at and below some paths.
    fn add_dirs(
        &self,
        tree: &Tree,
        tops: &HashSet<Vec<u8>>,
        facts: &mut Facts,
        known: &mut HashSet<Vec<u8>>,
        shared: &mut Shared,
    ) -> Result<(), PullError> {
        let is_below = |path: &[u8]| self_and_ancestors(path).any(|dir| tops.contains(dir));
        for place in self.selection.dirs.iter().filter(|place| is_below(&place.path)) {
            let Found { rows, extra } = self.inspect_dir(tree, place)?;
            for (index, fact) in rows {
                if fact.has_other_names {
                    shared.0.insert(fact.identity.inode_key());
                }
                facts.rows[index].get_or_insert(fact);
            }
            facts.extra.extend(extra.into_iter().filter(|extra| known.insert(extra.path.clone())));
        }
        Ok(())
    }
}
