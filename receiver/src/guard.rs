//! Guards against a sender whose current generation is probably a mistake.

use stillmirror_protocol::head::Head;
use stillmirror_protocol::list::FileType;
use stillmirror_store::Store;

use crate::error::PullError;
use crate::facts::Facts;
use crate::limit::MaxDelete;
use crate::report::Options;
use crate::selection::Selection;
use crate::stores::Stores;

/// More deletions than [`Options::max_delete`] allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TooMany {
    /// Number of names that would be deleted.
    pub(crate) wanted: u64,
    /// Number of names that the tree has: those that would be deleted, and those that the sender has, too.
    pub(crate) total: u64,
}

/// Counts the names that would be deleted, if there is a limit. Returns the counts if they exceed it.
pub(crate) fn refused_deletions(
    options: &Options,
    selection: &Selection<'_>,
    facts: &Facts,
    stores: &Stores<'_>,
) -> Result<Option<TooMany>, PullError> {
    if !options.delete || options.max_delete == MaxDelete::Any {
        return Ok(None);
    }
    let (mut wanted, mut present) = (stores.count_doomed(facts)?, 0);
    for (&row, fact) in selection.rows.iter().zip(&facts.rows) {
        match fact {
            // What is below a directory goes when something else takes its name.
            Some(fact) if fact.kind == FileType::Directory && !selection.list.row(row).is_dir() => {
                wanted += stores.count(&selection.path(row))?;
            }
            Some(_) => present += 1,
            None => {}
        }
    }
    let total = wanted + present;
    let allowed = options.max_delete.allows(wanted, total, selection.rows.is_empty());
    Ok((!allowed).then_some(TooMany { wanted, total }))
}

/// Fails if the sender has only a slice, and the last pull found it whole: with `--delete`, everything else would go, here and
/// at every mirror that pulls from here. Without it, the clients of this mirror would lose it all the same.
pub(crate) fn refuse_slice(options: &Options, store: Option<&Store>, head: &Head) -> Result<(), PullError> {
    let Some(slice) = head.slice.as_ref().filter(|_| !options.allow_slice) else { return Ok(()) };
    let Some(current) = store.map(Store::current_head).transpose()?.flatten() else { return Ok(()) };
    if current.origin.unwrap_or(current.head).slice.is_some() {
        return Ok(());
    }
    Err(PullError::TurnedSlice { repository: head.repository.clone(), selected: slice.selected.clone() })
}

/// Fails if the sender's generation is older than the one that the last pull took: by its number and by its time. A sender
/// whose store was made anew counts from 1 again, but its generations are newer by their times.
pub(crate) fn refuse_older(options: &Options, store: Option<&Store>, head: &Head) -> Result<(), PullError> {
    let Some(current) = store.filter(|_| !options.allow_older).map(Store::current_head).transpose()?.flatten() else {
        return Ok(());
    };
    let held = current.origin.unwrap_or(current.head);
    let (of_sender, of_held) = ((head.generation, head.created), (held.generation, held.created));
    let is_older = of_sender.0 <= of_held.0 && of_sender.1 <= of_held.1 && of_sender != of_held;
    if is_older { Err(PullError::Older { generation: head.generation, held: held.generation }) } else { Ok(()) }
}
