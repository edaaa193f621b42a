//! The file `answer` of a store: the sender's answer to the request for its list, as received, so that a pull that
//! continues after a kill does not request the list again. A pull that ends removes it.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | magic `SML1` |
//! | 32 | SHA-256 of the list |
//! | 32 | SHA-256 of the list that the deltas start from |
//! | 2 | length of the next field |
//! | … | the list's form, as in a frame of the native protocol |
//! | rest | the bytes of the answer |
//!
//! Integers are little-endian. Nothing of it is trusted: whoever replays the answer compares the list with its digest.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

use stillmirror_protocol::codec::Reader;
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::wire::{Reply, kind};
use stillmirror_store::Store;

/// The list that an answer makes, and the list that its deltas start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lists {
    pub(crate) to: Digest,
    pub(crate) from: Digest,
}

/// An answer to the request for a list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ListAnswer {
    pub(crate) lists: Lists,
    pub(crate) form: Reply,
    /// The bytes that follow the form.
    pub(crate) bytes: Vec<u8>,
}

/// Returns the answer that an earlier pull received, if it is one for these lists. `limit` is the maximum number of its
/// bytes.
pub(crate) fn load(store: &Store, lists: Lists, limit: u64) -> Option<ListAnswer> {
    let file = File::open(path_in(store)).ok()?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(MAX_HEADER)).read_to_end(&mut bytes).ok()?;
    decode(&bytes).filter(|answer| answer.lists == lists)
}

/// Writes an answer. If the disk refuses it, the list is requested again after a kill.
pub(crate) fn keep(store: &Store, answer: &ListAnswer) {
    let Some(header) = header(answer) else { return };
    let write = || -> io::Result<()> {
        let mut file = File::create(path_in(store))?;
        file.write_all(&header)?;
        file.write_all(&answer.bytes)
    };
    if let Err(error) = write() {
        tracing::warn!(path = %path_in(store).display(), %error, "cannot keep the list that was received");
        forget(store);
    }
}

/// Removes the answer.
pub(crate) fn forget(store: &Store) {
    // One that remains is overwritten by the next, or found to be for other lists.
    let _ = fs::remove_file(path_in(store));
}

fn decode(bytes: &[u8]) -> Option<ListAnswer> {
    let mut reader = Reader::new(bytes);
    let magic: [u8; 4] = reader.array("magic").ok()?;
    let lists = Lists { to: Digest(reader.array("list").ok()?), from: Digest(reader.array("from").ok()?) };
    let len = u16::from_le_bytes(reader.array("length").ok()?);
    let form = Reply::decode(kind::LIST_FORM, reader.take("form", len.into()).ok()?).ok()?;
    (magic == MAGIC).then(|| ListAnswer { lists, form, bytes: reader.rest().to_vec() })
}

/// Returns everything before the answer's own bytes. `None` if the form is too long.
fn header(ListAnswer { lists, form, .. }: &ListAnswer) -> Option<Vec<u8>> {
    let form = form.encode();
    let len = u16::try_from(form.len()).ok()?.to_le_bytes();
    Some([&MAGIC[..], &lists.to.0, &lists.from.0, &len, &form].concat())
}

fn path_in(store: &Store) -> PathBuf {
    store.dir().join("answer")
}

const MAGIC: [u8; 4] = *b"SML1";
/// Maximum number of bytes before the answer's own.
const MAX_HEADER: u64 = 70 + u16::MAX as u64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stillmirror_protocol::wire::ListForm;

    use super::*;

    proptest! {
        #[test]
        fn a_kept_answer_is_loaded_as_it_was(lens in prop::collection::vec(0..1000u64, 0..4), bytes: Vec<u8>) {
            let lists = Lists { to: Digest([1; 32]), from: Digest([2; 32]) };
            let answer = ListAnswer { lists, form: Reply::ListForm(ListForm::Deltas(lens)), bytes };
            let encoded = [header(&answer).unwrap(), answer.bytes.clone()].concat();
            prop_assert_eq!(decode(&encoded), Some(answer));
        }

        #[test]
        fn any_bytes_can_be_decoded(bytes: Vec<u8>, is_ours: bool) {
            decode(&[if is_ours { &MAGIC[..] } else { b"" }, &bytes].concat());
        }
    }
}
