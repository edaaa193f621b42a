//! The forms in which a generation's list is sent to receivers: deltas from a list that they have, or the
//! whole list, compressed.

use std::sync::{Arc, OnceLock};

use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::limits;
use stillmirror_protocol::wire::ListForm;
use stillmirror_store::{Delta, Generation, Store};

use crate::damage::{DamageLog, Part};

/// The forms of one generation's list.
pub(crate) struct ListForms {
    /// The deltas that lead to the list, last one first.
    deltas: Vec<Arc<Delta>>,
    /// The list, compressed again because the file in the store is damaged.
    compressed: OnceLock<Option<Vec<u8>>>,
}

impl ListForms {
    /// Finds the deltas that lead to the list of `generation`. Reads the heads of older generations, but not
    /// their lists.
    pub(crate) fn new(generation: &Generation, store: &Store) -> Self {
        Self { deltas: find_deltas(generation, store), compressed: OnceLock::new() }
    }

    /// Returns the form in which the list of `generation` is sent to a receiver that has the list with digest
    /// `have`. Reads the deltas completely to verify them.
    pub(crate) fn form(&self, generation: &Generation, have: Digest, damage_log: &DamageLog) -> ListForm {
        let head = generation.head();
        if have == head.list_digest {
            return ListForm::Unchanged;
        }
        let whole = ListForm::Whole { list_len: head.list_len };
        let Some(deltas) = self.deltas(have) else { return whole };
        let mut lens = Vec::with_capacity(deltas.len());
        for delta in deltas {
            if !delta.is_right() {
                damage_log.record(Part::Delta, &head.repository, generation, delta.path().display());
                return whole;
            }
            lens.push(delta.bytes().len() as u64);
        }
        ListForm::Deltas(lens)
    }

    /// Returns the deltas that lead from the list with digest `have` to this one, in the order in which they
    /// are applied. `None` if there are none.
    pub(crate) fn deltas(&self, have: Digest) -> Option<impl ExactSizeIterator<Item = &Delta>> {
        let first = have.is_some().then(|| self.deltas.iter().position(|delta| delta.from() == have))??;
        Some(self.deltas[..=first].iter().rev().map(AsRef::as_ref))
    }

    /// Returns whether there is an intact compressed list to send. Reads it completely. If it is damaged, the
    /// list is compressed again and kept in memory. `false` if the list itself is damaged too.
    pub(crate) fn check_compressed(&self, generation: &Generation, damage_log: &DamageLog) -> bool {
        if self.compressed.get().is_some_and(Option::is_some) || generation.list_zst_is_right() {
            return true;
        }
        let place = generation.dir().join("list.zst");
        damage_log.record(Part::List, &generation.head().repository, generation, place.display());
        self.compressed.get_or_init(|| generation.compress_list().ok()).is_some()
    }

    /// Returns the compressed list. It is intact only if [`ListForms::check_compressed`] returned `true`.
    pub(crate) fn compressed<'a>(&'a self, generation: &'a Generation) -> &'a [u8] {
        self.compressed.get().and_then(Option::as_deref).unwrap_or(generation.list_zst())
    }
}

/// Goes back from a generation through the retained ones, as long as each has a delta and all deltas together
/// are not larger than the compressed list.
fn find_deltas(current: &Generation, store: &Store) -> Vec<Arc<Delta>> {
    let mut budget = current.list_zst().len();
    let mut deltas = Vec::new();
    let mut numbers = store.generations().unwrap_or_default();
    numbers.retain(|&number| number < current.number());
    let mut next = current.delta().cloned();
    while let Some(delta) = next.take() {
        let Some(left) = budget.checked_sub(delta.bytes().len()) else { break };
        budget = left;
        let wanted = delta.from();
        deltas.push(delta);
        if deltas.len() == limits::DELTAS {
            break;
        }
        let mut older = std::iter::from_fn(|| numbers.pop()).filter_map(|number| store.delta(number).ok()?);
        next = older.find(|older| older.to() == wanted).map(Arc::new);
    }
    deltas
}
