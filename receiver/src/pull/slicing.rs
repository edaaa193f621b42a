//! Finds the rows of a slice. Its index files are brought first: those that are in place are read there, and the others are
//! staged, where the rest of the pull finds them.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;

use rayon::ThreadPool;
use rayon::prelude::*;
use rustix::fs::OFlags;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::filter::Filter;
use stillmirror_protocol::list::ListRef;
use stillmirror_store::Generation;
use tempfile::TempDir;

use super::contents::Contents;
use super::prepared::Wanted;
use super::{Destination, Pull};
use crate::attributes::Attributes;
use crate::error::{At as _, PullError};
use crate::facts::{self, Facts, Held, Inspector};
use crate::local::{self, Tree};
use crate::plan::{Inputs, Plan, plan};
use crate::report::{Check, Failed, Report};
use crate::selection::{Scope, Selection};
use crate::slice::{Index, IndexFault, Reading, Rows, Slice, Sliced};
use crate::source::Pinned;
use crate::stage::{self, Stage};

/// What is known before the slice is.
pub(super) struct Indexed<'a> {
    pub(super) pinned: &'a Pinned,
    pub(super) held: Option<&'a Generation>,
    pub(super) list: ListRef<'a>,
    pub(super) pool: &'a ThreadPool,
    pub(super) bases: &'a [Tree],
}

/// A slice that was found.
pub(super) struct Found {
    pub(super) sliced: Sliced,
    /// The indices that were staged.
    pub(super) staged: HashSet<Digest>,
}

/// Where the content of an index is.
enum Place {
    /// In the tree, at this path.
    Tree(Vec<u8>),
    /// In the staging directory.
    Stage(Digest),
}

impl Pull<'_> {
    /// Finds the rows of a slice. `None` if an index could not be brought, which the report then says.
    pub(super) fn find_slice(
        &self,
        slice: &Slice,
        destination: &mut Destination,
        indexed: &Indexed<'_>,
        report: &mut Report,
    ) -> Result<Option<Found>, PullError> {
        let list = indexed.list;
        let (everything, nothing) = (Filter::default(), Rows::new(list));
        let root = Selection::of(list, &self.options.path, &everything, Scope::Rows(&nothing), Vec::new())?;
        if !root.sets_root() {
            return Err(PullError::usage("a single file has no suites and architectures"));
        }
        let usage = |error: crate::slice::SliceError| PullError::usage(error.to_string());
        let mut reading = Reading::begin(list, root.root, slice, self.options.names.as_ref()).map_err(usage)?;
        let (mut staged, mut scratch) = (HashSet::new(), None);
        loop {
            let indices = reading.next();
            if indices.is_empty() {
                break;
            }
            let places = self.places(destination.tree.as_ref(), indexed, &root, &indices)?;
            let needed = self.needed(&indices, &places, &root)?;
            if !needed.is_empty()
                && !self.stage_indices(
                    destination,
                    indexed,
                    &named(list, reading.rows(), &needed),
                    &mut scratch,
                    report,
                )?
            {
                return Ok(None);
            }
            staged.extend(needed.iter().map(|&row| list.row(row).sha256()));
            let mut needed = needed.into_iter();
            for (index, place) in indices.iter().zip(places) {
                let place = place.or_else(|| needed.next().map(|row| Place::Stage(list.row(row).sha256())));
                let file = self.open_index(destination, scratch.as_ref(), place)?;
                let fault = |reason| PullError::Index { path: list_path(&root, &index.path), reason };
                reading.read(index, BufReader::with_capacity(READ, file)).map_err(fault)?;
                if self.cancel.is_cancelled() {
                    return Err(PullError::Interrupted);
                }
            }
        }
        Ok(Some(Found { sliced: reading.finish().map_err(usage)?, staged }))
    }

    /// Returns where the tree has each index, if it does. The files are read, because nothing else says what is in them.
    fn places(
        &self,
        tree: Option<&Tree>,
        indexed: &Indexed<'_>,
        root: &Selection<'_>,
        indices: &[Index],
    ) -> Result<Vec<Option<Place>>, PullError> {
        let Some(tree) = tree else { return Ok(indices.iter().map(|_| None).collect()) };
        let has = |row: u32| {
            let (path, wanted) = (root.path(row), indexed.list.row(row));
            let stat = tree.stat(&path).ok().flatten();
            let is_alike = stat.is_some_and(|stat| stat.kind == wanted.file_type() && stat.size == wanted.size());
            let digest = is_alike.then(|| tree.file(&path).and_then(|file| facts::hash(file, self.cancel)));
            // One that cannot be read is brought.
            digest
                .is_some_and(|digest| digest.is_ok_and(|digest| digest == wanted.sha256()))
                .then_some(Place::Tree(path))
        };
        let find = |index: &Index| {
            if self.cancel.is_cancelled() {
                return Err(PullError::Interrupted);
            }
            Ok(index.forms.iter().find_map(|&row| has(row)))
        };
        indexed.pool.install(|| indices.par_iter().map(find).collect())
    }

    /// Returns a row for each index that the tree does not have, preferably one that the pull brings anyway.
    fn needed(&self, indices: &[Index], places: &[Option<Place>], root: &Selection<'_>) -> Result<Vec<u32>, PullError> {
        let lacking = indices.iter().zip(places).filter(|(_, place)| place.is_none()).map(|(index, _)| index);
        let row = |index: &Index| {
            let keeps = |row: &&u32| self.options.filter.keeps_below_root(&root.path(**row), false);
            let row = index.forms.iter().find(keeps).or(index.forms.first()).copied();
            let name = || String::from_utf8_lossy(&index.path).into_owned();
            let path = || list_path(root, &index.path);
            row.ok_or_else(|| PullError::Index { path: path(), reason: IndexFault::NoForm(name()) })
        };
        lacking.map(row).collect()
    }

    /// Brings the contents of some rows into the staging directory. Returns false if one cannot be brought.
    fn stage_indices(
        &self,
        destination: &mut Destination,
        indexed: &Indexed<'_>,
        rows: &[u32],
        scratch: &mut Option<(TempDir, Tree)>,
        report: &mut Report,
    ) -> Result<bool, PullError> {
        if self.options.dry_run && scratch.is_none() {
            // It writes nothing to the tree.
            let dir = tempfile::tempdir().at("create a directory in", std::env::temp_dir())?;
            let tree = Tree::open(dir.path()).at("open", dir.path())?;
            *scratch = Some((dir, tree));
        }
        if let Some(snapshots) = self.snapshots.filter(|snapshots| !self.options.dry_run && !snapshots.is_building()) {
            self.begin_snapshot(destination, snapshots, indexed.pool)?;
        }
        let tree = scratch.as_ref().map(|(_, tree)| tree).or(destination.tree.as_ref());
        let tree = tree.ok_or_else(|| PullError::usage("no tree to pull into"))?;
        let Indexed { pinned, held, list, pool, bases } = *indexed;
        let mut only = Rows::new(list);
        rows.iter().for_each(|&row| only.add(list, row));
        let everything = Filter::default();
        let wanted = Wanted {
            pinned,
            held,
            listing: None,
            selection: Selection::of(list, &self.options.path, &everything, Scope::Rows(&only), self.own_names())?,
            attributes: Attributes::new(list, self.options.owners, self.options.setid),
            pool,
            bases,
            staged: HashSet::new(),
            are_indices: true,
        };
        let plan = self.plan_indices(&wanted, tree)?;
        local::make_writable(tree.root());
        let stage = Stage::open(tree)?;
        // The files count when the rest of the pull takes them from the staging directory.
        let mut fetched = Report::default();
        let contents = Contents { pull: self, wanted: &wanted, tree, stage: &stage, draft: None, plan: &plan };
        let staged = contents.bring(&mut fetched)?;
        report.bytes_literal += fetched.bytes_literal;
        report.bytes_checksums += fetched.bytes_checksums;
        report.add_matched(fetched.bytes_matched);
        let failed = staged.failed.iter().map(|(&row, &why)| Failed { path: wanted.selection.path(row), why });
        report.failed.extend(failed);
        Ok(staged.failed.is_empty())
    }

    /// Plans how to bring the wanted contents, none of which is in place.
    fn plan_indices(&self, wanted: &Wanted<'_>, tree: &Tree) -> Result<Plan, PullError> {
        let Wanted { held, selection, attributes, pool, bases, .. } = wanted;
        let inspector = Inspector {
            selection,
            held: held.map(|held| Held { list: held.list(), local: held.local() }),
            attributes,
            check: Check::Stat,
            progress: self.progress,
            cancel: self.cancel,
        };
        let mut facts: Facts = pool.install(|| inspector.inspect(Some(tree)))?;
        facts.extra.clear();
        facts.rows.iter_mut().flatten().for_each(|fact| fact.content_matches = false);
        pool.install(|| facts.add_elsewhere(bases, selection));
        let inputs = Inputs {
            selection,
            facts: &facts,
            held: held.map(Generation::list),
            delete: false,
            options: self.options,
            shares_inodes: tree.shares_inodes(),
            blocked: &HashSet::new(),
            trust_held: self.options.check != Check::Hash,
        };
        let mut plan = plan(&inputs);
        for fetch in &mut plan.fetches {
            // Of use for asking only: nothing is put into place yet.
            fetch.links.append(&mut fetch.copies);
        }
        Ok(plan)
    }

    fn open_index(
        &self,
        destination: &Destination,
        scratch: Option<&(TempDir, Tree)>,
        place: Option<Place>,
    ) -> Result<File, PullError> {
        let none = || PullError::usage("an index was not brought");
        let tree = match place {
            Some(Place::Tree(_)) => destination.tree.as_ref(),
            _ => scratch.map(|(_, tree)| tree).or(destination.tree.as_ref()),
        };
        let tree = tree.ok_or_else(none)?;
        match place.ok_or_else(none)? {
            Place::Tree(path) => tree.file(&path).at("open", tree.shown(&path)),
            Place::Stage(digest) => {
                let (stage, name) = (Stage::open(tree)?, stage::final_name(digest));
                local::open_file(stage.fd(), &name, OFlags::RDONLY).at("open", stage.shown(&name))
            }
        }
    }
}

/// Returns all the rows of a slice that have the contents of some: a sender that has replaced one name may have another.
fn named(list: ListRef<'_>, rows: &Rows, contents: &[u32]) -> Vec<u32> {
    let digests: HashSet<Digest> = contents.iter().map(|&row| list.row(row).sha256()).collect();
    let is_one =
        |row: &u32| rows.contains(*row) && list.row(*row).is_file() && digests.contains(&list.row(*row).sha256());
    contents.iter().copied().chain((0..list.len()).filter(is_one)).collect()
}

/// Returns the path in the repository of a path below the pulled directory.
fn list_path(root: &Selection<'_>, path: &[u8]) -> Vec<u8> {
    stillmirror_protocol::path::join(&root.root.path(), path)
}

/// Number of bytes that are read at once.
const READ: usize = 256 << 10;
