//! Finds local files that have wanted contents under other names.

use std::collections::{HashMap, HashSet};

use stillmirror_protocol::entry::{Digest, Time};
use stillmirror_protocol::list::FileType;

use super::{Fetch, Inputs, Reuse};
use crate::facts::Fate;
use crate::local::{same_time, self_and_ancestors};
use crate::roots::FileAt;

/// The fetches by the digest of their content, as indices.
pub(super) type ByDigest = HashMap<Digest, usize>;

/// Adds the local files that have the content of a fetch: by the digests of the last pull, among names that are right
/// already, and by size and time among the names that the list does not have. `replaced` are the rows that change.
pub(super) fn add_reuse(inputs: &Inputs<'_>, replaced: &HashSet<u32>, by_digest: &ByDigest, fetches: &mut [Fetch]) {
    add_right(inputs, replaced, by_digest, fetches);
    add_held(inputs, replaced, by_digest, fetches);
    add_by_look(inputs, fetches);
    for fetch in fetches {
        // Moving is cheaper than copying, and what is known need not be checked.
        fetch.reuse.sort_by_key(|reuse| (!reuse.is_certain, !reuse.disappears));
    }
}

/// Adds a file, unless there are enough of its kind.
fn add(fetch: &mut Fetch, reuse: Reuse) {
    let known = &mut fetch.reuse;
    let alike = |other: &&Reuse| (other.is_certain, other.disappears) == (reuse.is_certain, reuse.disappears);
    if known.iter().filter(alike).count() < MAX_REUSE && !known.iter().any(|other| other.at == reuse.at) {
        known.push(reuse);
    }
}

/// Adds files whose name already has the content that the list gives it.
fn add_right(inputs: &Inputs<'_>, replaced: &HashSet<u32>, by_digest: &ByDigest, fetches: &mut [Fetch]) {
    for (&row, fact) in inputs.selection.rows.iter().zip(&inputs.facts.rows) {
        let Some(fact) = fact.filter(|fact| fact.content_matches && fact.kind == FileType::File) else { continue };
        if let Some(&at) = by_digest.get(&inputs.selection.list.row(row).sha256()) {
            let (file, disappears) = (FileAt::dest(inputs.selection.path(row)), replaced.contains(&row));
            add(&mut fetches[at], Reuse { at: file, size: fact.size, mtime: fact.mtime, disappears, is_certain: true });
        }
    }
}

/// Adds files that had the content after the last pull, whether they are in the list or not.
fn add_held(inputs: &Inputs<'_>, replaced: &HashSet<u32>, by_digest: &ByDigest, fetches: &mut [Fetch]) {
    let Some(held) = inputs.held else { return };
    // What waits, or has waited, may remain for longer than the new name exists: it is not moved.
    let doomed = inputs.facts.extra.iter().filter(|extra| extra.fate == Fate::Doomed);
    let doomed: HashSet<&[u8]> = doomed.map(|extra| extra.path.as_slice()).collect();
    let is_doomed = |path: &[u8]| self_and_ancestors(path).any(|path| doomed.contains(path));
    for row in (0..held.len()).map(|row| held.row(row)).filter(stillmirror_protocol::list::Row::is_file) {
        let Some(&at) = by_digest.get(&row.sha256()) else { continue };
        let path = held.path(row.number());
        let disappears = match inputs.selection.find(&path) {
            Some(now) => replaced.contains(&now.number()),
            None => inputs.delete && is_doomed(&path) && inputs.selection.owns_deep(&path, false),
        };
        let (size, mtime, is_certain) = (row.size(), row.mtime(), inputs.trust_held);
        add(&mut fetches[at], Reuse { at: FileAt::dest(path), size, mtime, disappears, is_certain });
    }
}

/// Adds files of the wanted size and time, whose content is not known, to the fetches that have no other file.
fn add_by_look(inputs: &Inputs<'_>, fetches: &mut [Fetch]) {
    let list = inputs.selection.list;
    let mut by_look: HashMap<(u64, Time), Vec<usize>> = HashMap::new();
    for (at, fetch) in fetches.iter().enumerate() {
        let row = list.row(fetch.row);
        if row.size() > 0 && fetch.reuse.is_empty() {
            by_look.entry((row.size(), row.mtime())).or_default().push(at);
        }
    }
    let facts = inputs.facts;
    let extra = facts.extra.iter().filter_map(|extra| {
        let (size, mtime) = extra.file?;
        Some((&extra.path, size, mtime, inputs.delete && extra.fate == Fate::Doomed))
    });
    let below = facts.below.iter().map(|file| (&file.path, file.size, file.mtime, false));
    for (path, size, mtime, disappears) in extra.chain(below) {
        let Some(alike) = by_look.get_mut(&(size, mtime)) else { continue };
        for &at in alike.iter() {
            let reuse = Reuse { at: FileAt::dest(path.clone()), size, mtime, disappears, is_certain: false };
            add(&mut fetches[at], reuse);
        }
        alike.retain(|&at| fetches[at].reuse.len() < MAX_REUSE);
    }
}

/// Adds what the bases have at the paths that want a content. A file of the wanted size and time is read, and used if it
/// has the content; parts of another one may be of use.
pub(super) fn add_elsewhere(inputs: &Inputs<'_>, fetches: &mut [Fetch]) {
    for fetch in fetches {
        let rows: Vec<u32> = std::iter::once(fetch.row).chain(fetch.copies.iter().copied()).collect();
        for row in rows {
            let wanted = inputs.selection.list.row(row);
            for found in inputs.facts.elsewhere.get(&row).into_iter().flatten() {
                let (size, mtime) = (found.file.size, found.file.mtime);
                if size == wanted.size() && same_time(mtime, wanted.mtime()) {
                    add(fetch, Reuse { at: found.at(), size, mtime, disappears: false, is_certain: false });
                } else if size > 0 && fetch.bases.len() < MAX_BASES {
                    fetch.bases.push(found.at());
                }
            }
        }
    }
}

/// Gives a fetch for which nothing else is known a file of the same size that the list does not have, as a basis: it may
/// be the wanted one, moved and touched.
pub(super) fn add_bases_by_size(inputs: &Inputs<'_>, fetches: &mut [Fetch]) {
    let facts = inputs.facts;
    let extra = facts.extra.iter().filter_map(|extra| Some((extra.file?.0, &extra.path)));
    let below = facts.below.iter().map(|file| (file.size, &file.path));
    let mut by_size: HashMap<u64, &Vec<u8>> = HashMap::new();
    for (size, path) in extra.chain(below) {
        by_size.entry(size).or_insert(path);
    }
    for fetch in fetches.iter_mut().filter(|fetch| fetch.reuse.is_empty() && fetch.bases.is_empty()) {
        let size = inputs.selection.list.row(fetch.row).size();
        fetch.bases.extend(by_size.get(&size).map(|path| FileAt::dest((*path).clone())));
    }
}

/// Maximum number of local files of one kind remembered for one content. There is more than one, because a file may
/// change meanwhile.
const MAX_REUSE: usize = 4;
/// Maximum number of local files that are searched for parts of one content.
const MAX_BASES: usize = 8;
