//! Receives the current file list: unchanged, as deltas, or whole. A list is accepted only if its digest is
//! the one in the head.

use std::io::{self, Write};

use rkyv::util::AlignedVec;
use stillmirror_protocol::changes::{self, Changes};
use stillmirror_protocol::entry::Digest;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::list::{self, ListRef};
use stillmirror_protocol::wire::{ListForm, Reply, Request};
use stillmirror_store::Store;

use crate::answer::{self, ListAnswer, Lists};
use crate::error::PullError;
use crate::source::{Answer, Event, Pinned, Source};

/// A received list.
pub(crate) struct Listing {
    /// The encoded list, whose digest is the one in the head. It is not validated yet.
    pub(crate) encoded: AlignedVec,
    /// The last delta, which leads from the preceding list to this one. `None` if the list came whole.
    pub(crate) delta: Option<Vec<u8>>,
    /// Number of bytes received.
    pub(crate) bytes: u64,
    /// The answer as received. `None` if it came from the store.
    pub(crate) answer: Option<ListAnswer>,
}

/// Requests the list of a pinned generation. `held` is the list that the receiver already has, with its
/// digest. Returns `None` if that list is still current. If an earlier pull left the answer in the store, nothing is
/// requested.
pub(crate) async fn fetch(
    source: &dyn Source,
    pinned: &Pinned,
    held: Option<(Digest, ListRef<'_>)>,
    store: Option<&Store>,
) -> Result<Option<Listing>, PullError> {
    let have = held.map_or(Digest::NONE, |(digest, _)| digest);
    let lists = Lists { to: pinned.head.list_digest, from: have };
    let kept = store.and_then(|store| answer::load(store, lists, longest(&pinned.head)));
    if let Some(ListAnswer { form, bytes, .. }) = kept {
        match receive(Answer::replay(form, bytes), pinned, held).await {
            Ok(listing) => return Ok(listing.map(|listing| Listing { bytes: 0, answer: None, ..listing })),
            Err(error) => {
                tracing::debug!(%error, "the list that an earlier pull received is of no use; requesting it again");
            }
        }
    }
    receive(source.ask(Request::List { handle: pinned.handle, have })?, pinned, held).await
}

async fn receive(
    mut answer: Answer,
    pinned: &Pinned,
    held: Option<(Digest, ListRef<'_>)>,
) -> Result<Option<Listing>, PullError> {
    let form = form(&mut answer).await?;
    let first = Reply::ListForm(form.clone());
    answer.copy();
    let received = match (form, held) {
        (ListForm::Whole { list_len }, _) => {
            let (encoded, bytes) = receive_whole(&mut answer, &pinned.head, list_len).await?;
            Listing { encoded, delta: None, bytes, answer: None }
        }
        (ListForm::Deltas(lens), Some((digest, held))) => {
            let (encoded, delta, bytes) = receive_deltas(&mut answer, &pinned.head, &lens, digest, held).await?;
            Listing { encoded, delta: Some(delta), bytes, answer: None }
        }
        (ListForm::Unchanged, Some((digest, _))) if digest == pinned.head.list_digest => return Ok(None),
        _ => {
            return Err(PullError::protocol("the list's form (unchanged or deltas) does not fit the receiver's list"));
        }
    };
    let from = held.map_or(Digest::NONE, |(digest, _)| digest);
    let lists = Lists { to: pinned.head.list_digest, from };
    Ok(Some(Listing { answer: Some(ListAnswer { lists, form: first, bytes: answer.into_copy() }), ..received }))
}

/// Receives a list that was requested whole.
pub(crate) async fn whole(mut answer: Answer, head: &Head) -> Result<AlignedVec, PullError> {
    match form(&mut answer).await? {
        ListForm::Whole { list_len } => Ok(receive_whole(&mut answer, head, list_len).await?.0),
        _ => Err(PullError::protocol("'unchanged' or list deltas where the whole list was requested")),
    }
}

async fn form(answer: &mut Answer) -> Result<ListForm, PullError> {
    match answer.next().await? {
        Event::Reply(Reply::ListForm(form)) => Ok(form),
        _ => Err(PullError::protocol("the answer to a list request does not begin with the list's form")),
    }
}

async fn receive_whole(answer: &mut Answer, head: &Head, list_len: u64) -> Result<(AlignedVec, u64), PullError> {
    if list_len != head.list_len {
        return Err(PullError::protocol(format!("a list of {list_len} bytes, but its head says {}", head.list_len)));
    }
    let broken = |error: io::Error| PullError::protocol(format!("file list: {error}"));
    let bounded = Bounded { bytes: AlignedVec::new(), limit: list_len };
    let mut decoder = zstd::stream::write::Decoder::new(bounded).map_err(broken)?;
    let mut received = 0;
    while let Event::Bytes(bytes) = answer.next().await? {
        received += bytes.len() as u64;
        decoder.write_all(&bytes).map_err(broken)?;
    }
    decoder.flush().map_err(broken)?;
    let encoded = decoder.into_inner().bytes;
    check_digest(&encoded, head)?;
    Ok((encoded, received))
}

/// Applies deltas one after another as they arrive. Returns the encoded list, the last delta, and the number
/// of bytes received.
async fn receive_deltas(
    answer: &mut Answer,
    head: &Head,
    lens: &[u64],
    mut digest: Digest,
    held: ListRef<'_>,
) -> Result<(AlignedVec, Vec<u8>, u64), PullError> {
    let total: u64 = lens.iter().sum();
    if total > longest(head) {
        return Err(PullError::protocol(format!("{total} bytes of list deltas, more than the list itself has")));
    }
    let mut input = Vec::new();
    let mut encoded: Option<AlignedVec> = None;
    let mut last = Vec::new();
    for &len in lens {
        while (input.len() as u64) < len {
            match answer.next().await? {
                Event::Bytes(bytes) => input.extend_from_slice(&bytes),
                Event::Reply(_) => return Err(PullError::protocol("the list deltas end too soon")),
            }
        }
        let rest = input.split_off(len as usize);
        last = std::mem::replace(&mut input, rest);
        let (from, to, changes) = Changes::decode(&last)?;
        if from != digest {
            return Err(PullError::protocol("a list delta that does not start from the preceding list"));
        }
        let list = match &encoded {
            Some(encoded) => list::open(encoded)?,
            None => held,
        };
        encoded = Some(changes::apply(Some(list), &changes)?.list.encode());
        digest = to;
    }
    if !matches!(answer.next().await?, Event::Reply(Reply::End)) {
        return Err(PullError::protocol("bytes after the last list delta"));
    }
    let encoded = encoded.ok_or_else(|| PullError::protocol("an answer of list deltas without a delta"))?;
    check_digest(&encoded, head)?;
    Ok((encoded, last, total))
}

/// Returns the maximum number of bytes that a list is received in.
fn longest(head: &Head) -> u64 {
    head.list_len.max(SMALL_DELTAS)
}

fn check_digest(encoded: &[u8], head: &Head) -> Result<(), PullError> {
    if encoded.len() as u64 != head.list_len || list::digest(encoded) != head.list_digest {
        return Err(PullError::protocol("the file list does not have the digest in its head"));
    }
    Ok(())
}

/// A writer that fails when its content would exceed a limit.
struct Bounded {
    bytes: AlignedVec,
    /// Maximum length, in bytes.
    limit: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limit {
            return Err(io::Error::other("it decompresses to more than its announced length"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The deltas of a small list may be longer than the list, so up to this many bytes are always accepted.
const SMALL_DELTAS: u64 = 1 << 20;
